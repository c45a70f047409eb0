//! `console VM`: a terminal on the VM's serial line.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use stockade_crds::v1alpha1::ConsoleDevice;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::error::PluginError;
use super::session::Session;
use super::ticket::{Line, Ticket};

/// Ctrl+], as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
/// For how long a console that was closed is asked for again: a move takes a moment to settle.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The VM.
    vm: String,
    /// End when the VM leaves its host, instead of going on where it went.
    #[arg(long)]
    once: bool,
}

/// How a line ended.
#[derive(PartialEq, Eq)]
enum End {
    /// The person is done.
    Left,
    /// The other side closed it.
    Closed,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let vm = arguments.vm.as_str();
    session.vm(vm).await?;
    let ticket = Ticket::ask(session, vm, ConsoleDevice::Serial).await?;
    let mut line = match ticket.show().await {
        Ok(line) => line,
        Err(error) => {
            ticket.give_back().await;
            return Err(error);
        }
    };
    eprintln!("on the serial line of {vm}; Ctrl+] ends it");
    let raw = Raw::set();
    let mut typed = keyboard();
    let mut ticket = ticket;
    loop {
        let end = carry(&mut line, &mut typed).await;
        ticket.give_back().await;
        if end == End::Left || arguments.once {
            break;
        }
        eprint!("\r\n[the line was closed; it is asked for again]\r\n");
        let Some(again) = again(session, vm, &mut typed).await? else { break };
        (ticket, line) = again;
        eprint!("[open]\r\n");
    }
    drop(raw);
    Ok(())
}

/// Asks for it again until it opens; `None`: the person is done.
async fn again(
    session: &Session,
    vm: &str,
    typed: &mut mpsc::Receiver<Vec<u8>>,
) -> Result<Option<(Ticket, Line)>, PluginError> {
    let end = Instant::now() + AGAIN;
    loop {
        tokio::select! {
            biased;
            keys = typed.recv() => match keys {
                Some(keys) if keys.contains(&ESCAPE) => return Ok(None),
                Some(_) => continue,
                None => return Ok(None),
            },
            () = sleep(PAUSE) => {}
        }
        let ticket = Ticket::ask(session, vm, ConsoleDevice::Serial).await?;
        match ticket.show().await {
            Ok(line) => return Ok(Some((ticket, line))),
            Err(error) => {
                ticket.give_back().await;
                if Instant::now() >= end {
                    return Err(error);
                }
            }
        }
    }
}

/// Carries bytes both ways until one side is over.
async fn carry(line: &mut Line, typed: &mut mpsc::Receiver<Vec<u8>>) -> End {
    // Written at once: a terminal that can't keep up is waited for.
    let mut screen = std::io::stdout();
    let mut buffer = [0; 4096];
    let is_person = std::io::stdin().is_terminal();
    loop {
        tokio::select! {
            biased;
            keys = typed.recv() => {
                let Some(keys) = keys else { return End::Left };
                let end = keys.iter().position(|key| is_person && *key == ESCAPE);
                let keys = keys.get(..end.unwrap_or(keys.len())).unwrap_or_default();
                let sent = async {
                    line.write_all(keys).await?;
                    line.flush().await
                };
                if sent.await.is_err() {
                    return End::Closed;
                }
                if end.is_some() {
                    return End::Left;
                }
            }
            count = line.read(&mut buffer) => {
                let said = match count {
                    Ok(0) | Err(_) => return End::Closed,
                    Ok(count) => buffer.get(..count).unwrap_or_default(),
                };
                if screen.write_all(said).and_then(|()| screen.flush()).is_err() {
                    return End::Left;
                }
            }
        }
    }
}

/// What is typed. A thread of its own, which ends with the program: a read of a terminal can't be
/// called off.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count) = std::io::stdin().read(&mut buffer) {
            let keys = buffer.get(..count).unwrap_or_default().to_vec();
            if count == 0 || sender.blocking_send(keys).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A terminal that passes every key on; as it was before once this is dropped.
struct Raw(Termios);

impl Raw {
    /// `None`: standard input is no terminal.
    fn set() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}
