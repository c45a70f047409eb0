//! The guest that proves things: it counts its ticks and its boots on its disk.

use super::asks::{LIMIT, Outcome, apply, machine, runs, said, sh};
use crate::lab::{Cluster, until};
use crate::local_hosts::{GUEST_DISK_BYTES, slow_boot_sector};

/// A guest, and where its disk is read from.
#[derive(Clone, Copy, Debug)]
pub struct Prover<'a> {
    /// Its VM; its disk is `<name>.raw`.
    pub name: &'a str,
    /// The machine that reads the disk.
    pub reader: &'a str,
    /// The file there, or a device.
    pub file: &'a str,
    /// Where in it the disk begins, in bytes.
    pub at: u64,
    /// The SharedStorage.
    pub storage: &'a str,
}

impl Prover<'_> {
    /// Writes its disk, declares it, and waits until it runs and writes; gives its host.
    ///
    /// # Errors
    /// What it does instead.
    pub fn start(&self, cluster: &Cluster) -> Result<String, String> {
        self.declare(cluster)?;
        let host = runs(cluster, self.name, "")?;
        self.writes(cluster, 1)?;
        Ok(host)
    }

    /// Writes its disk and declares it.
    ///
    /// # Errors
    /// What could not be written or applied.
    pub fn declare(&self, cluster: &Cluster) -> Outcome {
        self.declare_with(cluster, "{}")
    }

    /// As [`Prover::declare`], where this placement says, in YAML on one line.
    ///
    /// # Errors
    /// As there.
    pub fn declare_with(&self, cluster: &Cluster, placement: &str) -> Outcome {
        machine(cluster, self.reader)?.write(self.file, &Self::disk()).map_err(said)?;
        self.declare_vm_with(cluster, placement)
    }

    /// What its disk holds before it first boots.
    #[must_use]
    pub fn disk() -> Vec<u8> {
        let mut disk = slow_boot_sector().to_vec();
        disk.resize(usize::try_from(GUEST_DISK_BYTES).unwrap_or_default(), 0);
        disk
    }

    /// Declares it over a disk that is there. An emulated host may take half a minute for the first
    /// byte of a move.
    ///
    /// # Errors
    /// kubectl's words.
    pub fn declare_vm(&self, cluster: &Cluster) -> Outcome {
        self.declare_vm_with(cluster, "{}")
    }

    fn declare_vm_with(&self, cluster: &Cluster, placement: &str) -> Outcome {
        let Self { name, storage, .. } = self;
        apply(
            cluster,
            &format!(
                "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
                 metadata: {{name: {name}, namespace: default}}\nspec:\n  memory: 64Mi\n  \
                 migration: {{progressSeconds: 300}}\n  placement: {placement}\n  \
                 disks:\n  - {{name: root, storage: {storage}, format: raw, \
                 existing: {{path: {name}.raw}}}}\n"
            ),
        )
    }

    /// Ticks since its last boot, and boots.
    ///
    /// # Errors
    /// The disk can't be read.
    pub fn counters(&self, cluster: &Cluster) -> Result<(u64, u64), String> {
        // Past the reader's own cache.
        let script = format!(
            "dd if={} bs=4096 count=1 skip={} iflag=direct,skip_bytes 2>/dev/null | \
             od -An -t u8 -j 512 -N 16",
            self.file, self.at
        );
        let text = sh(machine(cluster, self.reader)?, &script)?;
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(ticks), Some(boots)) => Ok((ticks, boots)),
            _ => Err(format!("not two numbers: {text:?}")),
        }
    }

    /// Waits until it counts in its boot of that number.
    ///
    /// # Errors
    /// What it does instead.
    pub fn writes(&self, cluster: &Cluster, boot: u64) -> Outcome {
        let writes = until("the guest writes", LIMIT, || match self.counters(cluster)? {
            (ticks, boots) if ticks > 0 && boots == boot => Ok(()),
            other => Err(format!("{other:?}")),
        });
        writes.map_err(said)
    }

    /// Waits until it has counted on without a boot.
    ///
    /// # Errors
    /// What it does instead.
    pub fn goes_on(&self, cluster: &Cluster) -> Outcome {
        let before = self.counters(cluster)?;
        let rises = until("the guest writes on", LIMIT, || match self.counters(cluster)? {
            now if now.0 > before.0 && now.1 == before.1 => Ok(()),
            now => Err(format!("{before:?} and then {now:?}")),
        });
        rises.map_err(said)
    }

    /// Waits until it counts, in whatever boot: its host may say that it runs before it has written
    /// for the first time.
    ///
    /// # Errors
    /// What it does instead.
    pub fn counts(&self, cluster: &Cluster) -> Outcome {
        let mut before = self.counters(cluster)?;
        let rises = until("the guest counts", LIMIT, || {
            let last = std::mem::replace(&mut before, self.counters(cluster)?);
            let counts = before.0 > last.0 && before.1 == last.1;
            if counts { Ok(()) } else { Err(format!("{last:?} and then {before:?}")) }
        });
        rises.map_err(said)
    }
}
