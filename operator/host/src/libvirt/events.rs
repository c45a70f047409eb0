//! The few calls that the `virt` crate lacks or leaks: events, close callback, addresses, abort.
//!
//! All unsafe code of the driver is here.
#![allow(unsafe_code, reason = "libvirt's C API has no safe wrapper for these calls")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::thread;

use tokio::sync::mpsc::UnboundedSender;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use crate::ports::{HypervisorEvent, StopReason};

/// What arrives from a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// News for the agent.
    Event(HypervisorEvent),
    /// The connection with this number is gone.
    Closed(u64),
}

/// What a callback is given: where to send, and for which connection.
struct Opaque {
    signals: UnboundedSender<Signal>,
    generation: u64,
}

/// Starts libvirt's event loop in a thread of its own, once per process and before the first
/// connection; keepalive and events need it.
pub(super) fn start_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // Errors are returned; libvirt would print each to standard error as well.
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl().map_err(|error| error.to_string())?;
            thread::Builder::new()
                .name("libvirt-events".into())
                .spawn(|| {
                    loop {
                        // An error here is about one descriptor; its connection will close.
                        let _ = virt::event::event_run_default_impl();
                    }
                })
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .clone()
}

/// Asks for lifecycle events and for the news that the connection is gone.
pub(super) fn register(
    connect: &Connect,
    signals: &UnboundedSender<Signal>,
    generation: u64,
) -> Result<(), virt::error::Error> {
    let opaque = || {
        let opaque = Opaque { signals: signals.clone(), generation };
        Box::into_raw(Box::new(opaque)).cast::<c_void>()
    };
    // SAFETY: libvirt calls a generic callback by the signature that belongs to its event id;
    // `lifecycle` has that of VIR_DOMAIN_EVENT_ID_LIFECYCLE. The opaque pointers are owned by
    // libvirt until it calls `free`; if it refuses, they are leaked once, and the connection is
    // given up.
    let result = unsafe {
        let callback: sys::virConnectDomainEventGenericCallback =
            std::mem::transmute(lifecycle as *const ());
        let id = sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int;
        let connect = connect.as_ptr();
        let registered = sys::virConnectDomainEventRegisterAny(
            connect,
            null_mut(),
            id,
            callback,
            opaque(),
            Some(free),
        );
        if registered < 0 {
            registered
        } else {
            sys::virConnectRegisterCloseCallback(connect, Some(closed), opaque(), Some(free))
        }
    };
    if result < 0 { Err(virt::error::Error::last_error()) } else { Ok(()) }
}

/// Lets go of a connection that is gone: the close callback holds a reference to it.
pub(super) fn forget(connect: &Connect) {
    // SAFETY: the handle is valid, and `closed` is the callback that was registered on it. That
    // it was taken away already is no error worth a word.
    unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(closed)) };
}

/// Called by libvirt's event loop; must not call back into libvirt's RPC.
unsafe extern "C" fn lifecycle(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let mut uuid = [0 as c_char; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the domain is valid during the callback, the buffer has the size that libvirt
    // documents, and the opaque pointer is the `Opaque` that was registered.
    let (uuid, opaque) = unsafe {
        if sys::virDomainGetUUIDString(domain, uuid.as_mut_ptr()) < 0 {
            return 0;
        }
        (CStr::from_ptr(uuid.as_ptr()), &*opaque.cast::<Opaque>())
    };
    let event = HypervisorEvent::Domain {
        uuid: uuid.to_string_lossy().into_owned(),
        stopped: stop_reason(event.unsigned_abs(), detail.unsigned_abs()),
    };
    // The receiver is gone only when the driver is.
    let _ = opaque.signals.send(Signal::Event(event));
    0
}

unsafe extern "C" fn closed(_connect: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: the opaque pointer is the `Opaque` that was registered, not freed before `free`.
    let opaque = unsafe { &*opaque.cast::<Opaque>() };
    let _ = opaque.signals.send(Signal::Closed(opaque.generation));
}

unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `register`, and libvirt frees each exactly once.
    drop(unsafe { Box::from_raw(opaque.cast::<Opaque>()) });
}

fn stop_reason(event: u32, detail: u32) -> Option<StopReason> {
    if event != sys::VIR_DOMAIN_EVENT_STOPPED {
        return None;
    }
    Some(match detail {
        sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => StopReason::Shutdown,
        sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => StopReason::Destroyed,
        sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => StopReason::Migrated,
        // QEMU's monitor closed without a shutdown before: libvirt calls that "failed".
        sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED | sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => {
            StopReason::Crashed
        }
        _ => StopReason::Failed,
    })
}

/// Aborts the domain's running job, a live move for instance.
pub(super) fn abort_job(domain: &Domain) -> Result<(), virt::error::Error> {
    // SAFETY: the handle is valid for the whole call.
    let result = unsafe { sys::virDomainAbortJob(domain.as_ptr()) };
    if result < 0 { Err(virt::error::Error::last_error()) } else { Ok(()) }
}

/// Guest addresses that a libvirt network of this host has leased (`virt`'s own call leaks).
pub(super) fn leased(domain: &Domain) -> Result<Vec<String>, virt::error::Error> {
    const SOURCE_LEASE: u32 = 0;
    let mut interfaces: *mut sys::virDomainInterfacePtr = null_mut();
    let mut found = Vec::new();
    // SAFETY: libvirt returns an array of that many interfaces, each with its addresses; each is
    // freed once by libvirt's own function, and the array by free.
    unsafe {
        let count =
            sys::virDomainInterfaceAddresses(domain.as_ptr(), &mut interfaces, SOURCE_LEASE, 0);
        if count < 0 {
            return Err(virt::error::Error::last_error());
        }
        for index in 0..count.unsigned_abs() as usize {
            let interface = *interfaces.add(index);
            for address in 0..(*interface).naddrs as usize {
                let text = CStr::from_ptr((*(*interface).addrs.add(address)).addr);
                found.push(text.to_string_lossy().into_owned());
            }
            sys::virDomainInterfaceFree(interface);
        }
        libc::free(interfaces.cast());
    }
    Ok(found)
}
