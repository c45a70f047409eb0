//! The closed sets of words of the format, each an enum that knows its spelling.

/// Defines an enum whose variants each have one word in scenario files.
macro_rules! words {
    ($($(#[$meta:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`")] $variant,)+
        }

        impl Word for $name {
            const WORDS: &'static [&'static str] = &[$($word),+];

            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    )+};
}

/// A closed set of words.
pub trait Word: Sized + Copy + 'static {
    /// All words, in the order of the format's text.
    const WORDS: &'static [&'static str];
    /// How this one is spelled.
    fn word(self) -> &'static str;
    /// The one that is spelled so.
    fn from_word(word: &str) -> Option<Self>;
}

words! {
    /// What a host's spec asks of it.
    HostMode { Active = "Active", Cordoned = "Cordoned", Maintenance = "Maintenance" }
    /// What a host's watchdog does when it is not fed.
    Watchdog { Reset = "reset", Poweroff = "poweroff", Absent = "absent", Dead = "dead" }
    /// The kinds of shared storage.
    StorageKind { Nfs = "NFS", Ocfs2 = "OCFS2", SharedDirectory = "SharedDirectory" }
    /// The lock managers.
    LockManagerKind { Virtlockd = "virtlockd", Sanlock = "sanlock", None = "none" }
    /// Run policy of a VM.
    Run { Always = "Always", RerunOnFailure = "RerunOnFailure", Manual = "Manual", Halted = "Halted" }
    /// What a VM's host's death does with it.
    Recovery { Restart = "Restart", None = "None" }
    /// The networks of a host.
    NetPath {
        Api = "api", Peers = "peers", Storage = "storage", Bmc = "bmc", Migration = "migration",
    }
    /// Which direction of a network is cut, seen from the host.
    Way { Both = "both", In = "in", Out = "out" }
    /// Stockade's processes on a host.
    Process { Agent = "agent", Beat = "beat", Feeder = "feeder", All = "all" }
    /// What someone does with libvirt behind Stockade's back.
    VirshAction { Start = "start", Destroy = "destroy", Shutdown = "shutdown", Migrate = "migrate" }
    /// Operations that can be made to fail.
    FailOp {
        Start = "start", Stop = "stop", Kill = "kill", Migrate = "migrate", Journal = "journal",
    }
    /// Where a migration fails.
    Stage { Before = "before", Copying = "copying", Switched = "switched" }
    /// How an operation fails.
    FailAs {
        Error = "error", Hang = "hang", Unknown = "unknown", Lost = "lost", Stuck = "stuck",
        Deaf = "deaf",
    }
    /// What a fence device does from now on.
    BmcIs {
        Ok = "ok", Timeout = "timeout", LiesOn = "lies-on", LiesOff = "lies-off",
        AlreadyOff = "already-off", WrongHost = "wrong-host", BadCredentials = "bad-credentials",
        DiesWithHost = "dies-with-host",
    }
    /// What a storage does from now on.
    StorageIs {
        Up = "up", Down = "down", Slow = "slow", ReadOnly = "read-only", Foreign = "foreign",
    }
    /// What a lock manager does from now on.
    UpDown { Up = "up", Down = "down" }
    /// What the API server does from now on.
    ApiIs {
        Up = "up", Down = "down", Slow = "slow", Stale = "stale", Errors = "errors",
        ReplyLost = "reply-lost", Restored = "restored",
    }
    /// What happens to the controller.
    ControllerIs {
        Crash = "crash", Stop = "stop", Start = "start", Restart = "restart",
        SecondLeader = "second-leader",
    }
    /// State words of a VM (its STATUS column).
    VmWord {
        Running = "Running", Stopped = "Stopped", Starting = "Starting", Stopping = "Stopping",
        Migrating = "Migrating", Recovering = "Recovering", Unplaceable = "Unplaceable",
        Blocked = "Blocked", Error = "Error", Unmanaged = "Unmanaged", Held = "Held",
    }
    /// State words of a host (its STATUS column).
    HostWord {
        Ready = "Ready", Suspect = "Suspect", Isolated = "Isolated", Lost = "Lost",
        Fencing = "Fencing", Fenced = "Fenced", AwaitingProof = "AwaitingProof",
        Cordoned = "Cordoned", Maintenance = "Maintenance", ShuttingDown = "ShuttingDown",
        Stopped = "Stopped", Joining = "Joining",
    }
    /// The proofs of a boot's death.
    Proof { Power = "power", Elapsed = "elapsed", Human = "human" }
    /// Whether a host's agent runs.
    AgentIs { Running = "running", Stopped = "stopped" }
    /// Who did something.
    By { Agent = "agent", Controller = "controller", Virsh = "virsh", User = "user" }
    /// What became of a user's order.
    Outcome {
        Accepted = "Accepted", Refused = "Refused", Succeeded = "Succeeded", Failed = "Failed",
        Aborted = "Aborted", Pending = "Pending",
    }
    /// Status of a Kubernetes condition.
    ConditionStatus { True = "True", False = "False", Unknown = "Unknown" }
    /// What the simulated world saw (lower case events).
    WorldEvent {
        Start = "start", StartFailed = "start-failed", Stop = "stop", Kill = "kill",
        StopFailed = "stop-failed", Exit = "exit", Pause = "pause", Migrate = "migrate",
        Migrated = "migrated", MigrateFailed = "migrate-failed", FenceOff = "fence-off",
        FenceRead = "fence-read", SelfFence = "self-fence", Boot = "boot",
        PowerOff = "power-off", LockTake = "lock-take", LockRelease = "lock-release",
        LockBreak = "lock-break", Write = "write",
    }
}

impl StorageKind {
    /// What a SharedStorage object declares.
    #[must_use]
    pub fn declared(object: &serde_json::Value) -> Self {
        let spec = &object["spec"];
        if spec["ocfs2"].is_object() {
            Self::Ocfs2
        } else if spec["directory"].is_object() {
            Self::SharedDirectory
        } else {
            Self::Nfs
        }
    }

    /// The lock manager of a storage that names none: on OCFS2 virtlockd's locks bind nobody but
    /// their own host.
    #[must_use]
    pub const fn usual_lock(self) -> LockManagerKind {
        match self {
            Self::Nfs | Self::SharedDirectory => LockManagerKind::Virtlockd,
            Self::Ocfs2 => LockManagerKind::Sanlock,
        }
    }
}
