//! The guest that proves things: it counts its ticks and its boots on its disk.

use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::local_hosts::{GUEST_DISK_BYTES, boot_sector};

use super::common::{LIMIT, Outcome, apply, machine, runs, said, sh};

/// Where the disk of the guest is read from.
#[derive(Clone, Copy)]
pub struct Prover<'a> {
    /// The machine that reads it.
    pub reader: &'a str,
    /// The file there.
    pub file: &'a str,
    /// The SharedStorage.
    pub storage: &'a str,
}

impl Prover<'_> {
    /// Writes its disk, declares it, and waits until it runs and writes; gives its host.
    pub fn start(&self, cluster: &Cluster) -> Result<String, String> {
        let size = usize::try_from(GUEST_DISK_BYTES).map_err(|error| error.to_string())?;
        let mut disk = boot_sector().to_vec();
        disk.resize(size, 0);
        machine(cluster, self.reader)?.write(self.file, &disk).map_err(said)?;
        let storage = self.storage;
        apply(
            cluster,
            &format!(
                "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
                 metadata: {{name: prover, namespace: default}}\nspec:\n  memory: 64Mi\n  \
                 disks:\n  - {{name: root, storage: {storage}, format: raw, \
                 existing: {{path: prover.raw}}}}\n"
            ),
        )?;
        let host = runs(cluster, "prover", "")?;
        self.writes(cluster, 1)?;
        Ok(host)
    }

    /// Ticks since its last boot, and boots.
    pub fn counters(&self, cluster: &Cluster) -> Result<(u64, u64), String> {
        // Past the reader's own cache.
        let script = format!(
            "dd if={} bs=4096 count=1 iflag=direct 2>/dev/null | od -An -t u8 -j 512 -N 16",
            self.file
        );
        let text = sh(machine(cluster, self.reader)?, &script)?;
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(ticks), Some(boots)) => Ok((ticks, boots)),
            _ => Err(format!("not two numbers: {text:?}")),
        }
    }

    /// Waits until it counts in its boot of that number.
    pub fn writes(&self, cluster: &Cluster, boot: u64) -> Outcome {
        let writes = until("the guest writes", LIMIT, || match self.counters(cluster)? {
            (ticks, boots) if ticks > 0 && boots == boot => Ok(()),
            other => Err(format!("{other:?}")),
        });
        writes.map_err(said)
    }

    /// Waits until it has counted on without a boot.
    pub fn goes_on(&self, cluster: &Cluster) -> Outcome {
        let before = self.counters(cluster)?;
        let rises = until("the guest writes on", LIMIT, || match self.counters(cluster)? {
            now if now.0 > before.0 && now.1 == before.1 => Ok(()),
            now => Err(format!("{before:?} and then {now:?}")),
        });
        rises.map_err(said)
    }
}
