//! The host's neighbour table: the addresses of those who have spoken to it.
//!
//! Read by `ip` rather than by libvirt, whose own reader knows no IPv6, and fails ("wrong nlmsg
//! len", 9.0) on kernels that end the table in its last packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::guard;
use crate::cmd;
use crate::error::{HostError, HostResult};

const OP: &str = "read neighbours";
/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(2);
/// One reading serves all VMs of a look.
const FRESH: Duration = Duration::from_secs(5);

/// Addresses by MAC address, in small letters.
type Table = BTreeMap<String, BTreeSet<IpAddr>>;

/// The table as it was last read.
#[derive(Default)]
pub(super) struct Neighbours(Mutex<Option<(Instant, Arc<Table>)>>);

/// An entry, in the words of `ip -json`. One that nobody answers for has no MAC address.
#[derive(Deserialize)]
struct Entry {
    dst: String,
    #[serde(default)]
    lladdr: String,
}

fn parse(json: &str) -> Result<Table, serde_json::Error> {
    let mut table = Table::new();
    for Entry { dst, lladdr } in serde_json::from_str::<Vec<Entry>>(json)? {
        let Ok(address) = dst.parse::<IpAddr>() else { continue };
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if !lladdr.is_empty() && !link_local {
            table.entry(lladdr.to_lowercase()).or_default().insert(address);
        }
    }
    Ok(table)
}

impl Neighbours {
    /// Addresses that those with these MAC addresses were seen with, IPv4 first.
    pub(super) async fn of(&self, macs: &[String]) -> HostResult<BTreeSet<IpAddr>> {
        let table = self.table().await?;
        let known = macs.iter().filter_map(|mac| table.get(&mac.to_lowercase()));
        Ok(known.flatten().copied().collect())
    }

    async fn table(&self) -> HostResult<Arc<Table>> {
        if let Some((read, table)) = &*guard(&self.0)
            && read.elapsed() < FRESH
        {
            return Ok(table.clone());
        }
        let json = cmd::run(OP, "ip", "ip", &["-json", "neigh", "show"], LIMIT).await?;
        let table = parse(&json).map_err(|error| HostError::failed(OP, "ip", error.to_string()))?;
        let table = Arc::new(table);
        *guard(&self.0) = Some((Instant::now(), table.clone()));
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_is_known_by_its_mac_address_with_every_address_that_others_can_reach() {
        let table = parse(
            r#"[{"dst":"192.0.2.7","dev":"br0","lladdr":"52:54:00:77:00:01","state":["STALE"]},
                {"dst":"192.0.2.9","dev":"br0","state":["FAILED"]},
                {"dst":"fe80::1","dev":"br0","lladdr":"52:54:00:77:00:01","state":["STALE"]},
                {"dst":"2001:db8::7","dev":"br0","lladdr":"52:54:00:77:00:01","state":["DELAY"]},
                {"dst":"192.0.2.8","dev":"br0","lladdr":"52:54:00:77:00:02","state":["REACHABLE"]}]"#,
        );
        let table = table.unwrap();
        assert_eq!(table.len(), 2);
        let first: Vec<String> = table["52:54:00:77:00:01"].iter().map(IpAddr::to_string).collect();
        assert_eq!(first, ["192.0.2.7", "2001:db8::7"]);
        assert!(parse("[]").unwrap().is_empty());
    }
}
