//! `vnc VM`: the VM's screen, for one viewer on this machine.

use std::net::Ipv4Addr;

use stockade_crds::v1alpha1::ConsoleDevice;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

use super::error::PluginError;
use super::session::Session;
use super::ticket::Ticket;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The VM.
    vm: String,
    /// Port of the loopback address to offer it on; 0: any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let vm = arguments.vm.as_str();
    session.vm(vm).await?;
    let no = |error: std::io::Error| {
        PluginError::Refused(format!("can't listen on port {}: {error}", arguments.port))
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port)).await.map_err(no)?;
    let at = listener.local_addr().map_err(no)?;
    println!("the screen of {vm}: vnc://{at}; waits for one viewer");
    let (mut viewer, _) = listener.accept().await.map_err(no)?;
    drop(listener);
    // Asked for only now: a ticket does not last.
    let ticket = Ticket::ask(session, vm, ConsoleDevice::VNC).await?;
    let shown = ticket.show().await;
    let done = match shown {
        Ok(mut line) => {
            // Either side may just go.
            let _ = copy_bidirectional(&mut viewer, &mut line).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    ticket.give_back().await;
    done
}
