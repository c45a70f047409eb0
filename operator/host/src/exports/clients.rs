//! knfsd's own list of its NFS 4 clients, and how one of them is dropped.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::error::{HostError, HostResult};
use crate::files::failed;

const OP: &str = "break locks";

/// Drops the state of every client that calls itself by this host uid: opens, locks, delegations.
///
/// `denied` is how long the host has been denied. A client that has renewed since then lives, and
/// is left alone.
pub(super) fn expire(clients: &Path, host_uid: &str, denied: Duration) -> HostResult<()> {
    let entries = match fs::read_dir(clients) {
        // No server runs: nothing is held, and it admits nobody who is denied when it starts.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed(OP, clients))?,
    };
    let mut theirs = Vec::new();
    for entry in entries {
        let folder = entry.map_err(failed(OP, clients))?.path();
        let info = match fs::read_to_string(folder.join("info")) {
            Ok(info) => info,
            // It went by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(OP, &folder)(error)),
        };
        if !is_named(&info, host_uid) {
            continue;
        }
        if let Some(renewed) = since_renewal(&info)
            && renewed < denied.as_secs()
        {
            let message = format!(
                "its client renewed {renewed} s ago, after it was denied: it lives, and no lock of \
                 it is broken"
            );
            return Err(HostError::refused(OP, host_uid, message));
        }
        theirs.push(folder);
    }
    for folder in theirs {
        let control = folder.join("ctl");
        match fs::write(&control, "expire\n") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(failed(OP, &control))?,
        }
    }
    Ok(())
}

/// Whether a client is that host. Its name reads `"Linux NFSv4.2 <uid>/<hostname>"`.
fn is_named(info: &str, host_uid: &str) -> bool {
    let name = info.lines().find_map(|line| line.strip_prefix("name: "));
    let words = name.unwrap_or_default().split([' ', '/', '"']);
    !host_uid.is_empty() && words.into_iter().any(|word| word == host_uid)
}

/// Whole seconds since the client last renewed, if the kernel says so.
fn since_renewal(info: &str) -> Option<u64> {
    let seconds = info.lines().find_map(|line| line.strip_prefix("seconds from last renew: "))?;
    seconds.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Clients(PathBuf);

    impl Clients {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("knfsd-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn add(&self, number: u32, uid: &str, renewed: u64) -> PathBuf {
            let folder = self.0.join(number.to_string());
            fs::create_dir(&folder).unwrap();
            let info = format!(
                "clientid: 0x1\naddress: \"10.0.0.1:900\"\nstatus: confirmed\n\
                 seconds from last renew: {renewed}\nname: \"Linux NFSv4.2 {uid}/h1\"\n\
                 minor version: 2\n"
            );
            fs::write(folder.join("info"), info).unwrap();
            fs::write(folder.join("ctl"), "").unwrap();
            folder.join("ctl")
        }
    }

    impl Drop for Clients {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_the_dead_host_s_entries_are_expired() {
        let clients = Clients::new("dead");
        let dead = clients.add(1, "uid-1", 40);
        let other = clients.add(2, "uid-10", 40);
        expire(&clients.0, "uid-1", Duration::from_secs(10)).unwrap();
        assert_eq!(fs::read_to_string(dead).unwrap(), "expire\n");
        assert_eq!(fs::read_to_string(other).unwrap(), "");
    }

    #[test]
    fn a_client_that_renewed_after_its_denial_is_left_alone() {
        let clients = Clients::new("alive");
        let dead = clients.add(1, "uid-1", 40);
        clients.add(2, "uid-1", 3);
        let refused = expire(&clients.0, "uid-1", Duration::from_secs(10));
        assert!(matches!(refused, Err(HostError::Refused { .. })), "{refused:?}");
        assert_eq!(fs::read_to_string(dead).unwrap(), "");
    }

    #[test]
    fn without_a_server_nothing_is_held() {
        assert_eq!(expire(Path::new("/not/there"), "uid-1", Duration::ZERO), Ok(()));
    }
}
