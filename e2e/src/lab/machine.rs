//! One machine of the lab: a QEMU process, its disk, its serial line, its BMC.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::network::{self, Network};
use super::ssh::{Said, Ssh};
use super::{Image, LabError, step};
use crate::bmc::Bmc;
use crate::local_hosts::power;

/// How long one command in a machine may take unless the caller says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// What an emulated machine can do without, as its kernel is told: units that look for devices
/// which aren't there, and a driver that tries for half a minute.
const QUICKER: &str = "systemd.mask=aoe-discover.service systemd.mask=systemd-udev-settle.service \
                       modprobe.blacklist=powernow_k8,acpi_cpufreq,pcspkr";

/// What tells one machine from another.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) memory_mib: u32,
}

/// One machine.
#[derive(Debug)]
pub struct Machine {
    facts: Facts,
    image: Image,
    folder: PathBuf,
    ssh: Ssh,
    /// The child is nsenter, which waits for QEMU.
    qemu: Mutex<Option<Child>>,
    bmc: Bmc,
    network: Arc<Network>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// Makes the machine's disk and BMC; it has no power yet.
    pub(super) fn make(
        facts: Facts,
        image: &Image,
        lab: &Path,
        network: Arc<Network>,
    ) -> Result<Self, LabError> {
        let folder = lab.join(&facts.name);
        std::fs::create_dir(&folder)
            .map_err(step(format!("making the folder of {}", facts.name)))?;
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(image.root())
            .arg(folder.join("root.qcow2"))
            .stdin(Stdio::null())
            .output()
            .and_then(|output| {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                output.status.success().then_some(()).ok_or_else(|| io::Error::other(said))
            });
        output.map_err(step(format!("making the disk of {}", facts.name)))?;
        let bmc = power::bmc(&facts.name, &folder)
            .map_err(step(format!("starting the BMC of {}", facts.name)))?;
        let ssh = Ssh {
            key: image.key(),
            address: network::address(facts.index).to_string(),
            socket: folder.join("ssh"),
        };
        let image = image.clone();
        Ok(Self { facts, image, folder, ssh, qemu: Mutex::default(), bmc, network })
    }

    /// Its name, which is its hostname too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Its address on the lab's network.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.ssh.address
    }

    /// Its BMC: off is a power cut; after on it boots at the next [`Machine::tend`].
    #[must_use]
    pub const fn bmc(&self) -> &Bmc {
        &self.bmc
    }

    /// What its kernel says on the serial line.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.folder.join("serial.log")
    }

    /// Gives it power; it answers much later, see [`Machine::wait_until_it_answers`].
    ///
    /// # Errors
    /// QEMU can't be started.
    pub fn power_on(&self) -> Result<(), LabError> {
        let failed = || step(format!("giving power to {}", self.name()));
        let mut qemu = lock(&self.qemu);
        bury(&mut qemu);
        if qemu.is_some() {
            return Ok(());
        }
        self.ssh.forget(&self.network);
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.folder.join("qemu.log"))
            .map_err(failed())?;
        let mut child = self
            .network
            .enter("qemu-system-x86_64")
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed())?;
        let started = Instant::now();
        let process = loop {
            // nsenter forks, then setpriv becomes QEMU.
            if let Some(process) = Network::pid_of(&child) {
                break process;
            }
            if started.elapsed() > Duration::from_secs(10) || !matches!(child.try_wait(), Ok(None))
            {
                let _ = child.kill();
                let _ = child.wait();
                let log = self.folder.join("qemu.log");
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(failed()(io::Error::other(said)));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        *qemu = Some(child);
        power::note(&self.folder, &process).map_err(failed())
    }

    /// Cuts its power.
    ///
    /// # Errors
    /// QEMU outlived SIGKILL.
    pub fn power_cut(&self) -> Result<(), LabError> {
        let mut qemu = lock(&self.qemu);
        let Some(mut child) = qemu.take() else { return Ok(()) };
        let killed = match Network::pid_of(&child) {
            Some(process) => process.signal(rustix::process::Signal::KILL),
            None => Ok(()),
        };
        killed
            .and_then(|()| child.wait().map(drop))
            .map_err(step(format!("cutting the power of {}", self.name())))
    }

    /// True while it has power. Its BMC may take it at any time.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let mut qemu = lock(&self.qemu);
        bury(&mut qemu);
        qemu.is_some()
    }

    /// Gives it the power that its BMC was told to give, if that is so.
    ///
    /// # Errors
    /// As [`Machine::power_on`].
    pub fn tend(&self) -> Result<(), LabError> {
        if power::is_wanted(&self.folder) && !self.is_on() { self.power_on() } else { Ok(()) }
    }

    /// Has its BMC say off while the machine runs, and do nothing about it; or has it tell the
    /// truth again.
    ///
    /// # Errors
    /// The BMC's files can't be changed.
    pub fn bmc_lies(&self, lies: bool) -> Result<(), LabError> {
        power::lie(&self.folder, lies).map_err(step(format!("having {}'s BMC lie", self.name())))
    }

    /// Pulls its cable out of the switch, or puts it back.
    ///
    /// # Errors
    /// The network is gone.
    pub fn cable(&self, plugged: bool) -> Result<(), LabError> {
        let failed = || step(format!("at the cable of {}", self.name()));
        if plugged {
            // What it was to be told meanwhile, its ssh would tell it now.
            self.ssh.forget(&self.network);
        }
        let word = if plugged { "up" } else { "down" };
        let mut command = self.network.enter("ip");
        let status = command.args(["link", "set", self.name(), word]).status().map_err(failed())?;
        if status.success() { Ok(()) } else { Err(failed()(io::Error::other(status.to_string()))) }
    }

    /// Cuts it off from an address, or from one TCP port there, both ways; all else goes on. Again
    /// for each further address.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn cut_off(&self, from: IpAddr, port: Option<u16>) -> Result<(), LabError> {
        let flower = |end: &str| {
            let port = port.map(|port| format!("ip_proto tcp {end}_port {port}"));
            format!("{end}_ip {from} {}", port.unwrap_or_default())
        };
        let script = format!(
            "dev=$(basename /sys/class/net/e*); tc qdisc add dev $dev clsact 2>/dev/null; \
             tc filter add dev $dev egress protocol ip flower {} action drop && \
             tc filter add dev $dev ingress protocol ip flower {} action drop",
            flower("dst"),
            flower("src")
        );
        self.sh(&script).map(drop)
    }

    /// Undoes [`Machine::cut_off`], if it was.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn reconnect(&self) -> Result<(), LabError> {
        let script = "dev=$(basename /sys/class/net/e*); tc qdisc del dev $dev clsact 2>/dev/null";
        self.try_sh(script, COMMAND_LIMIT).map(drop)
    }

    /// Waits until a command can be run in it.
    ///
    /// # Errors
    /// [`LabError::NoAnswer`], [`LabError::Off`].
    pub fn wait_until_it_answers(&self, limit: Duration) -> Result<(), LabError> {
        let started = Instant::now();
        loop {
            if !self.is_on() {
                return Err(LabError::Off(self.name().to_owned()));
            }
            let said = self.ssh.run(&self.network, "true", &[], Duration::from_secs(60));
            if said.is_ok_and(|said| said.ok) {
                return Ok(());
            }
            if started.elapsed() > limit {
                let (name, serial) = (self.name().to_owned(), self.serial_log());
                return Err(LabError::NoAnswer { name, serial });
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Runs a shell command line in it and gives what it came to.
    ///
    /// # Errors
    /// ssh can't be run, or the machine has no power; that the command failed is in the result.
    pub fn try_sh(&self, script: &str, limit: Duration) -> Result<Said, LabError> {
        if !self.is_on() {
            return Err(LabError::Off(self.name().to_owned()));
        }
        self.ssh
            .run(&self.network, script, &[], limit)
            .map_err(step(format!("running ssh to {}", self.name())))
    }

    /// Runs a shell command line in it, which must succeed; gives its standard output.
    ///
    /// # Errors
    /// [`LabError::Command`] with what it wrote.
    pub fn sh(&self, script: &str) -> Result<String, LabError> {
        self.succeeded(script, self.try_sh(script, COMMAND_LIMIT)?)
    }

    /// Writes a file in it, whole, readable by root alone.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn write(&self, path: &str, content: &[u8]) -> Result<(), LabError> {
        let script = format!("umask 077; mkdir -p \"$(dirname '{path}')\"; cat >'{path}'");
        let said = self
            .ssh
            .run(&self.network, &script, content, COMMAND_LIMIT)
            .map_err(step(format!("running ssh to {}", self.name())))?;
        self.succeeded(&format!("write {path}"), said).map(drop)
    }

    fn succeeded(&self, command: &str, said: Said) -> Result<String, LabError> {
        if said.ok {
            return Ok(said.out);
        }
        Err(LabError::Command {
            name: self.name().to_owned(),
            command: command.to_owned(),
            said: format!("{}{}", said.out, said.err).trim().to_owned(),
        })
    }

    /// ssh's command line to it, to be run in the lab's network namespace.
    pub(super) fn ssh_words(&self) -> Vec<String> {
        self.ssh.words()
    }

    /// QEMU's command line. One vCPU: with two a machine locked up under multi-threaded
    /// emulation. `-cpu max` shows SVM, so that the machine has a /dev/kvm of its own.
    fn arguments(&self) -> Vec<String> {
        let Facts { index, name, memory_mib } = &self.facts;
        let lab = self.folder.parent().unwrap_or(&self.folder);
        let names: Vec<String> = lab_names()
            .map(|(index, name)| format!("{}={name}", network::address(index)))
            .collect();
        let drive = |id: &str, file: PathBuf, rest: &str| {
            format!("id={id},if=none,file={},{rest}", file.display())
        };
        let words = [
            format!("-name {name} -M q35 -accel tcg,thread=multi -cpu max -smp 1 -m {memory_mib}"),
            format!("-uuid 57ac4ade-0000-4000-8001-{:012x}", index + 1),
            "-nodefaults -vga none -display none -monitor none".to_owned(),
            format!("-kernel {}", self.image.kernel().display()),
            format!("-initrd {}", self.image.initrd().display()),
            format!("-serial file:{}", self.serial_log().display()),
            format!(
                "-drive {}",
                drive("root", self.folder.join("root.qcow2"), "format=qcow2,cache=unsafe")
            ),
            "-device virtio-blk-pci,drive=root".to_owned(),
            format!(
                "-drive {}",
                drive("shared", lab.join("shared.raw"), "format=raw,cache=none,file.locking=off")
            ),
            "-device virtio-blk-pci,drive=shared,share-rw=on,serial=shared".to_owned(),
            format!("-netdev tap,id=net,ifname={name},script=no,downscript=no"),
            format!("-device virtio-net-pci,netdev=net,mac=52:54:00:78:00:{:02x}", index + 1),
            "-device virtio-rng-pci".to_owned(),
            "-device i6300esb -action watchdog=reset".to_owned(),
        ];
        let words = words.iter().flat_map(|line| line.split(' ')).map(ToOwned::to_owned);
        let kernel = format!(
            // A timer that is checked on a busy machine seems broken, and the kernel panics.
            "root=LABEL=root console=ttyS0 mitigations=off no_timer_check panic=5 {QUICKER} \
             lab.name={name} lab.address={} lab.names={}",
            self.ssh.address,
            names.join(",")
        );
        words.chain(["-append".to_owned(), kernel]).collect()
    }
}

/// Every name that a machine may be asked for; more than there are machines harm nobody.
fn lab_names() -> impl Iterator<Item = (usize, String)> {
    (0..3).map(|index| (index, format!("h{}", index + 1))).chain([(3, "s1".to_owned())])
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.power_cut() {
            tracing::warn!(%error, "a machine of the lab could not be ended");
        }
    }
}

/// Forgets a QEMU that has ended: its BMC has cut the power.
fn bury(qemu: &mut Option<Child>) {
    if let Some(child) = qemu
        && !matches!(child.try_wait(), Ok(None))
    {
        *qemu = None;
    }
}
