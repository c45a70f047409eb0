//! Consoles, which simulated VMs have none of.

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentConsole, ConsoleReport, ConsoleState};
use stockade_host::ports::ConsolePort;

pub(super) struct SimConsoles;

impl ConsolePort for SimConsoles {
    fn serve<'a>(&'a self, tickets: &'a [AgentConsole]) -> BoxFuture<'a, Vec<ConsoleReport>> {
        let refused = |ticket: &AgentConsole| ConsoleReport {
            id: ticket.id.clone(),
            state: ConsoleState::Closed,
            address: String::new(),
            message: "a simulated VM has no console".into(),
        };
        let reports = tickets.iter().map(refused).collect();
        async { reports }.boxed()
    }
}
