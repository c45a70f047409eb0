//! A witness beside the disks of proving guests, on the machine that serves them.

use super::asks::{Outcome, ensure, machine, sh};
use super::prover::Prover;
use crate::lab::Cluster;

/// Where it writes what it sees.
const SEEN: &str = "/run/witness";

/// Looks at each disk some thirty times a second; a guest writes some five times a second. A disk
/// whose guest is at an earlier boot than before, or went back in its boot, was written by a copy
/// that should not be.
const LOOK: &str = r#"
$| = 1;
my (%file, %seen, $looks);
while (1) {
    for my $disk (@ARGV) {
        my ($path, $at) = $disk =~ /^(.*)@(\d+)$/;
        unless ($file{$path}) {
            open(my $new, "<:unix", $path) or next;
            $file{$path} = $new;
        }
        sysseek($file{$path}, $at + 512, 0);
        (sysread($file{$path}, my $bytes, 16) // 0) == 16 or next;
        my ($ticks, $boots) = unpack("Q<2", $bytes);
        if (my $old = $seen{$disk}) {
            my ($past, $before) = @$old;
            print "WRONG $disk from $past in boot $before to $ticks in boot $boots\n"
                if $boots < $before or $boots == $before && $ticks < $past;
        }
        $seen{$disk} = [$ticks, $boots];
    }
    print "looks ", $looks, "\n" if ++$looks % 100 == 0;
    select(undef, undef, undef, 0.03);
}
"#;

/// It watches until its machine ends.
#[derive(Clone, Copy, Debug)]
pub struct Witness {
    reader: &'static str,
}

impl Witness {
    /// Begins to watch the disks of these guests, which are there and of which one at least is;
    /// takes the place of the one before.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(cluster: &Cluster, provers: &[Prover<'static>]) -> Result<Self, String> {
        let reader = provers.first().map(|prover| prover.reader).unwrap_or_default();
        let disks: Vec<String> =
            provers.iter().map(|prover| format!("{}@{}", prover.file, prover.at)).collect();
        let server = machine(cluster, reader)?;
        server.write("/root/witness.pl", LOOK.as_bytes()).map_err(super::said)?;
        let script = format!(
            "systemctl stop witness 2>/dev/null; rm -f {SEEN}; systemd-run -q --unit witness \
             --property StandardOutput=file:{SEEN} perl /root/witness.pl {}",
            disks.join(" ")
        );
        sh(server, &script)?;
        Ok(Self { reader })
    }

    /// Fails if it saw what must never be seen, or did not look.
    ///
    /// # Errors
    /// What it saw.
    pub fn is_content(self, cluster: &Cluster) -> Outcome {
        let server = machine(cluster, self.reader)?;
        let seen = sh(
            server,
            &format!("systemctl is-active witness; grep WRONG {SEEN}; tail -n 1 {SEEN}"),
        )?;
        ensure(!seen.contains("WRONG"), || format!("two copies wrote: {seen}"))?;
        ensure(seen.starts_with("active\n") && seen.contains("looks "), || {
            format!("the witness did not look: {seen}")
        })
    }
}
