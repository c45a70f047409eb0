//! A VM's serial line and its screen, each as a socket.
#![allow(unsafe_code, reason = "libvirt hands over a descriptor as a number")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use stockade_crds::v1alpha1::ConsoleDevice;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::stream::Stream;
use virt::sys;

use super::connect::Connection;
use super::domain;
use crate::error::{HostError, HostResult};

const OP: &str = "open console";
/// How long the daemon may take.
const LIMIT: Duration = Duration::from_secs(10);
/// A stream is asked so often whether the guest has said something. libvirt's own way to be told
/// is not safe to use from Rust.
const LOOK: Duration = Duration::from_millis(10);
/// What libvirt answers where nothing can be read or written now.
const WOULD_BLOCK: isize = -2;

/// A guest that takes nothing for so many looks does not read its line.
const DEAF: u32 = 3_000;

/// What the daemon opened.
enum Opened {
    /// Another epoch runs here, or none.
    NotHere,
    Serial(Stream),
    Screen(UnixStream),
}

/// Opens a console of the domain that runs this epoch.
pub(super) async fn open(
    connection: &Connection,
    vm_uid: &str,
    epoch: i64,
    device: ConsoleDevice,
) -> HostResult<UnixStream> {
    let uid = vm_uid.to_owned();
    // A connection of its own: it lives as long as the stream, and ends with it.
    let opened = connection.change_alone(OP, vm_uid, LIMIT, move |connect| {
        let domain = connect.lookup_domain_by_uuid_string(&uid)?;
        let ours = domain::see(&domain)?.is_some_and(|seen| seen.view.epoch == Some(epoch));
        match device {
            _ if !ours => Ok(Opened::NotHere),
            ConsoleDevice::Serial => serial(connect, &domain),
            ConsoleDevice::VNC => screen(&domain),
        }
    });
    match opened.await? {
        Opened::NotHere => {
            Err(HostError::refused(OP, vm_uid, format!("epoch {epoch} does not run here")))
        }
        Opened::Screen(socket) => Ok(socket),
        Opened::Serial(stream) => {
            let failed = |error: std::io::Error| HostError::failed(OP, vm_uid, error.to_string());
            let (ours, theirs) = UnixStream::pair().map_err(failed)?;
            ours.set_read_timeout(Some(LOOK)).map_err(failed)?;
            let carry = move || {
                if let Err(error) = carry(&stream, ours) {
                    tracing::debug!(%error, "a serial line was closed");
                }
                // What is over can't be aborted any more.
                let _ = stream.abort();
            };
            thread::Builder::new().name("serial".into()).spawn(carry).map_err(failed)?;
            Ok(theirs)
        }
    }
}

/// Without "force": whoever has it open keeps it.
fn serial(connect: &Connect, domain: &Domain) -> Result<Opened, Error> {
    let stream = Stream::new(connect, sys::VIR_STREAM_NONBLOCK)?;
    domain.open_console(None, &stream, 0)?;
    Ok(Opened::Serial(stream))
}

fn screen(domain: &Domain) -> Result<Opened, Error> {
    let number = domain.open_graphics_fd(0, sys::VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)?;
    let Ok(number) = RawFd::try_from(number) else { return Ok(Opened::NotHere) };
    // SAFETY: libvirt has just opened it for this caller, who owns it alone.
    Ok(Opened::Screen(unsafe { UnixStream::from_raw_fd(number) }))
}

/// Carries bytes both ways until one side is over.
fn carry(stream: &Stream, mut person: UnixStream) -> Result<(), String> {
    let mut buffer = [0; 4096];
    let mut typed: Vec<u8> = Vec::new();
    let mut deaf = 0;
    loop {
        match stream.recv(&mut buffer).map_err(|error| error.to_string())? {
            0 => return Ok(()),
            WOULD_BLOCK => {}
            count => {
                let said = buffer.get(..count.unsigned_abs()).unwrap_or_default();
                person.write_all(said).map_err(|error| error.to_string())?;
                // A guest that talks is not waited for.
                if typed.is_empty() {
                    person.set_nonblocking(true).map_err(|error| error.to_string())?;
                }
            }
        }
        if typed.is_empty() {
            match person.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => typed.extend(buffer.get(..count).unwrap_or_default()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
            person.set_nonblocking(false).map_err(|error| error.to_string())?;
        }
        if !typed.is_empty() {
            match stream.send(&typed).map_err(|error| error.to_string())? {
                // The guest does not read its line now.
                WOULD_BLOCK if deaf >= DEAF => return Err("the guest is deaf".to_owned()),
                WOULD_BLOCK => {
                    deaf += 1;
                    thread::sleep(LOOK);
                }
                count => {
                    deaf = 0;
                    typed.drain(..count.unsigned_abs().min(typed.len()));
                }
            }
        }
    }
}
