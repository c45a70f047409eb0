//! What crosses the lab's wires: every frame is looked at for bytes that must not be seen there.

use std::io;
use std::process::{Child, Stdio};

use rustix::process::Signal;

use super::network::Network;
use super::{Lab, LabError, step};

/// Looks at every frame on every wire until it is told to end; then says for NFS and for all else,
/// each in a line: bytes, and frames with the needle; at last how many frames it missed.
const LOOK: &str = r#"
my $needle = pack("H*", $ARGV[0]);
# Packets of every protocol, with room for a second of them.
socket(my $wire, 17, 3, unpack("n", pack("S", 3))) or die "socket: $!";
setsockopt($wire, 1, 33, pack("i", 128 << 20)) or die "setsockopt: $!";
my ($over, %bytes, %seen);
$SIG{TERM} = sub { $over = 1 };
$| = 1;
print "looks\n";
until ($over) {
    my $frame;
    defined recv($wire, $frame, 1 << 17, 0) or next;
    my ($type, $words) = unpack("x12 n C", $frame);
    my $class = "other";
    if ($type == 0x0800 && unpack("x23 C", $frame) == 6) {
        my ($from, $to) = unpack("n n", substr($frame, 14 + 4 * ($words & 15), 4));
        $class = "nfs" if $from == 2049 || $to == 2049;
    }
    $bytes{$class} += length $frame;
    $seen{$class}++ if index($frame, $needle) >= 0;
}
my (undef, $missed) = unpack("I I", getsockopt($wire, 263, 6));
printf "%d %d\n", $bytes{$_} // 0, $seen{$_} // 0 for qw(nfs other);
print "$missed\n";
"#;

/// Frames are being looked at.
#[derive(Debug)]
pub struct Capture {
    perl: Child,
}

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Frames of NFS with the bytes.
    pub in_nfs: u64,
    /// Frames of anything else with the bytes.
    pub elsewhere: u64,
    /// How much crossed that is not NFS, in bytes.
    pub elsewhere_bytes: u64,
    /// Frames that were not looked at.
    pub missed: u64,
}

impl Lab {
    /// Begins to look for these bytes in every frame on the lab's network.
    ///
    /// # Errors
    /// It can't be begun.
    pub fn capture(&self, needle: &[u8]) -> Result<Capture, LabError> {
        Capture::start(&self.network, needle).map_err(step("looking at the lab's frames"))
    }
}

impl Capture {
    fn start(network: &Network, needle: &[u8]) -> io::Result<Self> {
        use std::io::BufRead as _;
        let hex: String = needle.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut command = network.enter("perl");
        command.args(["-e", LOOK, &hex]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut perl = command.spawn()?;
        let mut first = String::new();
        if let Some(out) = perl.stdout.as_mut() {
            // A byte at a time: what comes later is read at the end.
            let mut out = io::BufReader::with_capacity(1, out);
            out.read_line(&mut first)?;
        }
        let this = Self { perl };
        if first == "looks\n" { Ok(this) } else { Err(io::Error::other(first)) }
    }

    /// Ends the look, and says what was seen.
    ///
    /// # Errors
    /// It had ended before.
    pub fn end(mut self) -> Result<Captured, LabError> {
        self.told().map_err(step("ending the look at the lab's frames"))
    }

    fn told(&mut self) -> io::Result<Captured> {
        use std::io::Read as _;
        let process = Network::pid_of(&self.perl);
        process.ok_or_else(|| io::Error::other("it has ended"))?.signal(Signal::TERM)?;
        let mut text = String::new();
        if let Some(out) = self.perl.stdout.as_mut() {
            out.read_to_string(&mut text)?;
        }
        self.perl.wait()?;
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        match numbers[..] {
            [_, in_nfs, elsewhere_bytes, elsewhere, missed] => {
                Ok(Captured { in_nfs, elsewhere, elsewhere_bytes, missed })
            }
            _ => Err(io::Error::other(format!("it says {text:?}"))),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(process) = Network::pid_of(&self.perl) {
            let _ = process.signal(Signal::KILL);
        }
        let _ = self.perl.wait();
    }
}
