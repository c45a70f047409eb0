//! What the simulated world saw.

use std::fmt;

/// Defines the kinds of events with their word in scenario files.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)+) => {
        /// A kind of event; its word is that of scenario files.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum What { $($(#[$doc])* $name,)+ }
        impl What {
            /// The word of scenario files.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ }
            }
        }
    };
}

kinds! {
    /// A copy of a VM runs.
    Start = "start",
    /// A start failed.
    StartFailed = "start-failed",
    /// A guest was asked to shut down.
    Stop = "stop",
    /// A process was killed.
    Kill = "kill",
    /// A stop or a kill did not end the process.
    StopFailed = "stop-failed",
    /// A process ended by itself.
    Exit = "exit",
    /// vCPUs were suspended.
    Pause = "pause",
    /// A live move began.
    Migrate = "migrate",
    /// A live move is complete.
    Migrated = "migrated",
    /// A live move failed.
    MigrateFailed = "migrate-failed",
    /// A fence device was told to cut a host's power.
    FenceOff = "fence-off",
    /// A fence device was asked for the power.
    FenceRead = "fence-read",
    /// A watchdog fired.
    SelfFence = "self-fence",
    /// A host is up.
    Boot = "boot",
    /// A host lost its power.
    PowerOff = "power-off",
    /// A lock was taken.
    LockTake = "lock-take",
    /// A lock was let go.
    LockRelease = "lock-release",
    /// A lock was broken at its server.
    LockBreak = "lock-break",
    /// An API write.
    Write = "write",
}

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doer {
    /// The agent of the event's host.
    Agent,
    /// A controller.
    Controller,
    /// Someone who uses libvirt behind Stockade's back.
    Virsh,
    /// A user, or a hand on a switch.
    User,
}

impl Doer {
    /// The word of scenario files.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
            Self::Virsh => "virsh",
            Self::User => "user",
        }
    }
}

/// One event. Absent fields do not apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Milliseconds since second 0.
    pub at: u64,
    /// What happened.
    pub what: What,
    /// Name of the VM.
    pub vm: Option<String>,
    /// Name of the host.
    pub host: Option<String>,
    /// Name of the host that a move goes to.
    pub to: Option<String>,
    /// Who did it; nobody if it happened by itself.
    pub by: Option<Doer>,
    /// The fence device.
    pub device: Option<String>,
    /// Who held the lock.
    pub holder: Option<String>,
    /// More for people.
    pub detail: String,
}

impl Seen {
    /// An event of this kind; the world fills in the time.
    #[must_use]
    pub fn of(what: What) -> Self {
        Self {
            at: 0,
            what,
            vm: None,
            host: None,
            to: None,
            by: None,
            device: None,
            holder: None,
            detail: String::new(),
        }
    }

    /// Of this VM.
    #[must_use]
    pub fn vm(mut self, vm: &str) -> Self {
        self.vm = Some(vm.to_owned());
        self
    }

    /// At this host.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// Towards this host.
    #[must_use]
    pub fn to(mut self, to: &str) -> Self {
        self.to = Some(to.to_owned());
        self
    }

    /// By someone.
    #[must_use]
    pub fn by(mut self, by: Doer) -> Self {
        self.by = Some(by);
        self
    }

    /// Through this fence device.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.device = Some(device.to_owned());
        self
    }

    /// With this holder of the lock.
    #[must_use]
    pub fn holder(mut self, holder: &str) -> Self {
        self.holder = Some(holder.to_owned());
        self
    }

    /// With more for people.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |name: &str, value: &Option<String>| {
            value.as_ref().map_or_else(String::new, |v| format!(" {name}={v}"))
        };
        write!(
            f,
            "{}.{:03} {}{}{}{}{}{}",
            self.at / 1000,
            self.at % 1000,
            self.what.word(),
            part("vm", &self.vm),
            part("host", &self.host),
            part("to", &self.to),
            part("device", &self.device),
            part("holder", &self.holder),
        )?;
        if let Some(by) = self.by {
            write!(f, " by={}", by.word())?;
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}
