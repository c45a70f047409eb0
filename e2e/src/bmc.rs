//! A BMC on loopback: OpenIPMI's `ipmi_sim`, whose power switch is a program of ours.
//!
//! Real clients speak to it (ipmitool, fence_ipmilan), and what it switches is really switched.

use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long it may take until it answers, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The user that may switch.
pub const LOGIN: &str = "stockade";

/// A running BMC; dropping it ends it.
#[derive(Debug)]
pub struct Bmc {
    child: Child,
    port: u16,
    password: String,
}

impl Bmc {
    /// Starts a BMC with its files in `folder`, which is made.
    ///
    /// `switch` is called with `get power`, and then prints `power:0` or `power:1`; with `set power`
    /// and 0 or 1; or with `set reset 1`. Its words may hold no blanks or quotes.
    ///
    /// # Errors
    /// What could not be written, started or asked.
    pub fn start(name: &str, folder: &Path, switch: &[&str]) -> io::Result<Self> {
        let state = folder.join("state");
        std::fs::create_dir_all(&state)?;
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        // IPMI takes 20 bytes at most.
        let password: String =
            random.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        // The kernel names a port that is free now; nobody else here binds ports by number.
        let port = UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let lan = folder.join("lan.conf");
        let emulation = folder.join("bmc.emu");
        private(&lan, &lan_text(name, port, &password, &switch.join(" ")))?;
        private(&emulation, EMULATION)?;
        let log = std::fs::File::create(folder.join("ipmi_sim.log"))?;
        // It goes with us, whatever way we end.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "ipmi_sim", "-n", "-c"])
            .arg(&lan)
            .arg("-f")
            .arg(&emulation)
            .arg("-s")
            .arg(&state)
            // Ctrl-C is for the owner, who ends it when nobody needs it any more.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut this = Self { child, port, password };
        let started = Instant::now();
        loop {
            let output = this.ipmitool(&["chassis", "power", "status"])?;
            if output.status.success() {
                return Ok(this);
            }
            if started.elapsed() > START_LIMIT || this.child.try_wait()?.is_some() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let log = folder.join("ipmi_sim.log");
                let why =
                    format!("{name} does not answer ({}), see {}", said.trim(), log.display());
                return Err(io::Error::other(why));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its UDP port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The Secret in `namespace` and the FenceDevice by which `host` declares it, as a person
    /// would write them; each is named `bmc-<host>`.
    #[must_use]
    pub fn manifests(&self, host: &str, namespace: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Secret\n\
             metadata: {{name: bmc-{host}, namespace: {namespace}}}\n\
             stringData: {{username: {LOGIN}, password: \"{}\"}}\n\
             ---\napiVersion: stockade.dev/v1alpha1\nkind: FenceDevice\n\
             metadata: {{name: bmc-{host}}}\nspec:\n  agent: fence_ipmilan\n  \
             parameters: {{ip: 127.0.0.1, ipport: \"{}\", lanplus: \"1\", cipher: \"3\", \
             power_wait: \"0\"}}\n  \
             plugs: {{{host}: \"1\"}}\n  secret: bmc-{host}\n",
            self.password(),
            self.port()
        )
    }

    /// The password of [`LOGIN`].
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Makes it deaf, so that it answers nothing, or has it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn deaf(&self, deaf: bool) -> io::Result<()> {
        let signal = if deaf { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).map_err(io::Error::from)
    }

    /// The beginning of a command line that asks it, for a person to go on with.
    #[must_use]
    pub fn command_line(&self) -> String {
        format!(
            "ipmitool -I lanplus -C 3 -H 127.0.0.1 -p {} -U {LOGIN} -P {}",
            self.port, self.password
        )
    }

    /// Asks it by ipmitool, as a person at a desk would.
    ///
    /// # Errors
    /// ipmitool can't be run; that it failed is in the output.
    pub fn ipmitool(&self, words: &[&str]) -> io::Result<Output> {
        // Without a cipher suite each call waits some 10 s for the BMC to name those it knows.
        Command::new("ipmitool")
            .args(["-I", "lanplus", "-C", "3", "-N", "1", "-R", "2", "-H", "127.0.0.1", "-p"])
            .arg(self.port.to_string())
            .args(["-U", LOGIN, "-E"])
            .args(words)
            .env("IPMI_PASSWORD", &self.password)
            .stdin(Stdio::null())
            .output()
    }
}

impl Drop for Bmc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One management controller that knows nothing but its chassis.
const EMULATION: &str = "mc_setbmc 0x20\n\
     mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n\
     mc_enable 0x20\n";

fn lan_text(name: &str, port: u16, password: &str, switch: &str) -> String {
    format!(
        "name \"{name}\"\n\
         set_working_mc 0x20\n\
         startlan 1\n\
         addr 127.0.0.1 {port}\n\
         priv_limit admin\n\
         allowed_auths_callback none md2 md5 straight\n\
         allowed_auths_user none md2 md5 straight\n\
         allowed_auths_operator none md2 md5 straight\n\
         allowed_auths_admin none md2 md5 straight\n\
         guid a123456789abcdefa123456789abcdef\n\
         endlan\n\
         chassis_control \"{switch}\"\n\
         user 2 true \"{LOGIN}\" \"{password}\" admin 10 none md2 md5 straight\n"
    )
}

fn private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Writes a switch that keeps its power in the file `power` of a folder, and answers its command.
///
/// # Errors
/// It could not be written.
pub fn toy_switch(folder: &Path) -> io::Result<PathBuf> {
    let path = folder.join("switch.sh");
    let text = format!(
        "#!/bin/sh\n\
         power='{}'\n\
         case \"$1 $2\" in\n\
         'get power') echo \"power:$(cat \"$power\")\" ;;\n\
         'set power') echo \"$3\" >\"$power\" ;;\n\
         esac\n",
        folder.join("power").display()
    );
    std::fs::write(folder.join("power"), "1\n")?;
    executable(&path, &text)?;
    Ok(path)
}

/// Writes a program.
pub(crate) fn executable(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}
