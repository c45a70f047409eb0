//! The kubectl plugin: what people ask and order of Stockade beyond plain manifests.
//!
//! ```text
//! command line ─► Session (client, namespace, who asks) ─► one verb ─► text, or an error with its remedy
//! ```
//! A verb reads the API and writes what a person could write by hand: annotations, a host's
//! mode, a VirtualMachineMigration, a word in a HostFence. It decides nothing that the
//! controller decides; where it tells what would happen it asks the same functions of `core`.
//! Writes carry the field manager `stockade-cli`: GitOps controllers take what is managed by
//! names that begin with kubectl for drift, and strip it.

mod console;
mod cordon;
mod drain;
mod error;
mod fence;
mod migrate;
mod power;
mod read;
mod session;
mod status;
mod table;
mod ticket;
mod vnc;
mod wait;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::error::PluginError;
use self::session::Session;

#[derive(Parser)]
#[command(
    name = "kubectl stockade",
    bin_name = "kubectl stockade",
    version,
    about = "Looks after virtual machines on libvirt hosts"
)]
struct Arguments {
    #[command(flatten)]
    api: Api,
    #[command(subcommand)]
    verb: Verb,
}

/// Which API server, and as whom: kubectl's own flags.
#[derive(clap::Args, Clone, Debug, Default)]
struct Api {
    /// Path of the kubeconfig; absent: KUBECONFIG, or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context to use.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the VM; absent: that of the context.
    #[arg(long, short = 'n', global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// User to act as.
    #[arg(long = "as", global = true, value_name = "USER")]
    acts_as: Option<String>,
    /// Group to act as; may be repeated.
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "acts_as")]
    acts_as_groups: Vec<String>,
}

#[derive(Subcommand)]
enum Verb {
    /// One screen: hosts and how their life is seen, certificates that wait, what still may fail.
    Status(status::Arguments),
    /// Where a VM is and why, or why it does not run.
    Why(why::Arguments),
    /// Fence devices: read a host's plugs, see what was done, give a human's word.
    #[command(subcommand)]
    Fence(fence::Verb),
    /// Empty a host: every VM is moved away, and the host may then be switched off.
    Drain(drain::Arguments),
    /// Let no further VM come to a host; those on it stay.
    Cordon(cordon::Arguments),
    /// Let VMs run on a host again; a drain that is under way ends.
    Uncordon(cordon::Arguments),
    /// Move a VM to another host.
    Migrate(migrate::Arguments),
    /// Talk to a VM over its serial line, also while it moves. Ctrl+] ends it.
    Console(console::Arguments),
    /// Offer a VM's screen on this machine's loopback address, to one viewer.
    Vnc(vnc::Arguments),
    /// Let a VM run.
    Start(power::StartArguments),
    /// Shut a VM's guest down, and keep it stopped.
    Stop(power::Arguments),
    /// Shut a VM's guest down and start it again, with all changes of its spec.
    Restart(power::Arguments),
    /// Press a running VM's reset button.
    Reset(power::Arguments),
}

/// Does what the command line says.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(obey(arguments)),
        Err(source) => Err(PluginError::Runtime(source)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error::told(&error));
            ExitCode::FAILURE
        }
    }
}

async fn obey(arguments: Arguments) -> Result<(), PluginError> {
    let session = Session::open(&arguments.api).await?;
    match arguments.verb {
        Verb::Status(a) => status::run(&session, &a).await,
        Verb::Why(a) => why::run(&session, &a).await,
        Verb::Fence(verb) => fence::run(&session, verb).await,
        Verb::Drain(a) => drain::run(&session, &a).await,
        Verb::Cordon(a) => cordon::cordon(&session, &a).await,
        Verb::Uncordon(a) => cordon::uncordon(&session, &a).await,
        Verb::Migrate(a) => migrate::run(&session, &a).await,
        Verb::Console(a) => console::run(&session, &a).await,
        Verb::Vnc(a) => vnc::run(&session, &a).await,
        Verb::Start(a) => power::start(&session, &a).await,
        Verb::Stop(a) => power::stop(&session, &a).await,
        Verb::Restart(a) => power::restart(&session, &a).await,
        Verb::Reset(a) => power::reset(&session, &a).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Arguments::command().debug_assert();
    }
}
