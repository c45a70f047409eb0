//! What this host shows its peers in live moves: keys that never leave it, the certificates that
//! the controller's authority signed for them, and libvirt's settings for both.
//!
//! Two keys. libvirt's control connection is as good as root on the other host: its key is root's.
//! The memory goes between QEMUs, which must read their key themselves; a guest that breaks out
//! into its QEMU holds it, and can do nothing at a peer's libvirt, which lets in by organisation.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use stockade_crds::names::MOVE_CONTROL;
use stockade_crds::v1alpha1::{MoveIdentity, MoveRequests};

use crate::error::{HostError, HostResult};
use crate::files;

const OP: &str = "set up moves over TLS";
/// First and last line of what is ours in libvirt's settings.
const MARKS: (&str, &str) = ("# stockade: begin\n", "# stockade: end\n");

/// The group `ffdhe3072` (RFC 7919, appendix A.2), as `openssl genpkey -genparam -algorithm DH -pkeyopt
/// group:ffdhe3072` writes it. A QEMU that finds none looks for a prime of its own whenever it takes a VM
/// in (`qcrypto_tls_creds_get_dh_params_file`), which takes it up to seconds of CPU time: the move waits,
/// and nothing is safer for it.
const DH_PARAMETERS: &str = "\
-----BEGIN DH PARAMETERS-----\n\
MIIBiAKCAYEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz\n\
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a\n\
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7\n\
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi\n\
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD\n\
ssbzSibBsu/6iGtCOGEfz9zeNVs7ZRkDW7w09N75nAI4YbRvydbmyQd62R0mkff3\n\
7lmMsPrBhtkcrv4TCYUTknC0EwyTvEN5RPT9RFLi103TZPLiHnH1S/9croKrnJ32\n\
nuhtK8UiNjoNq8Uhl5sN6todv5pC1cRITgq80Gv6U93vPBsg7j/VnXwl5B0rZsYu\n\
N///////////AgEC\n\
-----END DH PARAMETERS-----\n";

/// What changed, and what the daemon must do for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Changed {
    /// Nothing.
    Nothing,
    /// Certificates alone: they are read anew.
    Certificates,
    /// Its settings: it starts anew.
    Settings,
}

/// The host's identity in live moves.
#[derive(Debug)]
pub(super) struct Identity {
    requests: MoveRequests,
    keys: (String, String),
    /// libvirt's settings: `/etc/libvirt`.
    config: PathBuf,
    /// `/etc/pki`: libvirt's usual places below it, since those alone are read anew without a
    /// restart (libvirt 9.0), and QEMU's, since its AppArmor profile lets it read those.
    pki: PathBuf,
    /// There once the files below `pki` are ours.
    ours: PathBuf,
    /// There while the daemon has not taken settings that were written.
    owed: PathBuf,
}

impl Identity {
    /// Reads the host's keys; makes them at the first time. `pki`: `/etc/pki`.
    pub(super) fn open(state: &Path, config: &Path, pki: &Path) -> HostResult<Self> {
        let folder = state.join("moves");
        fs::create_dir_all(&folder).map_err(files::failed(OP, &folder))?;
        let (control, control_request) = key(&folder.join("control.key"))?;
        let (memory, memory_request) = key(&folder.join("memory.key"))?;
        Ok(Self {
            requests: MoveRequests { control: control_request, memory: memory_request },
            keys: (control.serialize_pem(), memory.serialize_pem()),
            config: config.to_owned(),
            pki: pki.to_owned(),
            ours: folder.join("installed"),
            owed: folder.join("restart-owed"),
        })
    }

    /// What the authority is asked to sign.
    pub(super) fn requests(&self) -> &MoveRequests {
        &self.requests
    }

    /// The daemon has taken what [`Identity::install`] changed.
    pub(super) fn taken(&self) -> HostResult<()> {
        files::remove(&self.owed).map_err(files::failed(OP, &self.owed))
    }

    /// Writes certificates and settings. QEMU runs as the owner of `qemu_home`.
    pub(super) fn install(&self, signed: &MoveIdentity, qemu_home: &Path) -> HostResult<Changed> {
        if signed.requests != self.requests {
            let message = "the certificates are for other keys; the controller signs anew";
            return Err(HostError::refused(OP, "certificates", message));
        }
        let owner = fs::metadata(qemu_home).map_err(files::failed(OP, qemu_home))?.uid();
        let (authority, control, memory) =
            (signed.authority.as_str(), signed.control.as_str(), signed.memory.as_str());
        let (control_key, memory_key) = (self.keys.0.as_str(), self.keys.1.as_str());
        // Certificates before keys: a pair that does not fit is no identity at all.
        let wanted = [
            ("CA/cacert.pem", authority, None),
            ("libvirt/servercert.pem", control, None),
            ("libvirt/clientcert.pem", control, None),
            ("libvirt/private/serverkey.pem", control_key, Some(0)),
            ("libvirt/private/clientkey.pem", control_key, Some(0)),
            ("qemu/dh-params.pem", DH_PARAMETERS, None),
            ("qemu/ca-cert.pem", authority, None),
            ("qemu/server-cert.pem", memory, None),
            ("qemu/client-cert.pem", memory, None),
            ("qemu/server-key.pem", memory_key, Some(owner)),
            ("qemu/client-key.pem", memory_key, Some(owner)),
        ];
        if !self.ours.exists() {
            let mut paths = wanted.iter().map(|(name, _, _)| self.pki.join(name));
            if let Some(foreign) = paths.find(|path| path.exists()) {
                let message = "it is somebody else's; move it away, or run the agent with \
                               --insecure-migration";
                return Err(HostError::refused(OP, foreign.display().to_string(), message));
            }
            write(&self.ours, "files in /etc/pki\n", None)
                .map_err(files::failed(OP, &self.ours))?;
        }
        let mut changed = false;
        for (name, text, private) in wanted {
            let path = self.pki.join(name);
            let folder = path.parent().unwrap_or(&self.pki);
            fs::create_dir_all(folder).map_err(files::failed(OP, folder))?;
            changed |= write(&path, text, private).map_err(files::failed(OP, &path))?;
        }
        self.set("libvirtd.conf", &Self::daemon_settings())?;
        self.set("qemu.conf", &self.qemu_settings())?;
        Ok(match (self.owed.exists(), changed) {
            (true, _) => Changed::Settings,
            (false, true) => Changed::Certificates,
            (false, false) => Changed::Nothing,
        })
    }

    /// Who may connect: hosts of this cluster, by the certificate that only root holds.
    fn daemon_settings() -> String {
        format!(
            "listen_tls = 1\nlisten_tcp = 0\nauth_tls = \"none\"\ntls_no_verify_certificate = 0\n\
             tls_allowed_dn_list = [\"*O={MOVE_CONTROL}*\"]\n"
        )
    }

    fn qemu_settings(&self) -> String {
        format!(
            "migrate_tls_x509_cert_dir = \"{}\"\nmigrate_tls_x509_verify = 1\n\
             migrate_tls_force = 1\n",
            self.pki.join("qemu").display()
        )
    }

    /// Puts our settings first into a file: of two lines for one setting libvirt takes the first.
    fn set(&self, name: &str, ours: &str) -> HostResult<()> {
        let path = self.config.join(name);
        let old = found(&path)?.unwrap_or_default();
        let new = with_ours(&old, ours);
        if new == old {
            return Ok(());
        }
        // First: an agent that dies in between still knows that a restart is owed.
        write(&self.owed, "settings\n", None).map_err(files::failed(OP, &self.owed))?;
        files::replace(&path, new.as_bytes()).map_err(files::failed(OP, &path))
    }
}

/// A settings file with our block, in place of an earlier one.
fn with_ours(old: &str, ours: &str) -> String {
    let (begin, end) = MARKS;
    let rest = match (old.split_once(begin), old.split_once(end)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
        _ => old.to_owned(),
    };
    format!("{begin}{ours}{end}{rest}")
}

/// A key of this host, made and kept for root alone if there is none, and its request. No two
/// requests of one key are equal, and each is signed anew: it is kept too.
fn key(path: &Path) -> HostResult<(KeyPair, String)> {
    let failed =
        |error: rcgen::Error| HostError::failed(OP, path.display().to_string(), error.to_string());
    let asked = path.with_extension("csr");
    let key = match found(path)? {
        Some(text) => KeyPair::from_pem(&text).map_err(failed)?,
        None => {
            files::remove(&asked).map_err(files::failed(OP, &asked))?;
            let key = KeyPair::generate().map_err(failed)?;
            write(path, &key.serialize_pem(), Some(0)).map_err(files::failed(OP, path))?;
            key
        }
    };
    if let Some(request) = found(&asked)? {
        return Ok((key, request));
    }
    let request = request(&key)?;
    write(&asked, &request, None).map_err(files::failed(OP, &asked))?;
    Ok((key, request))
}

/// The text of a file, if it is there.
fn found(path: &Path) -> HostResult<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(files::failed(OP, path)(error)),
    }
}

/// A request that shows that we hold the key; the names are the controller's to choose.
fn request(key: &KeyPair) -> HostResult<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let made = params.serialize_request(key).and_then(|request| request.pem());
    made.map_err(|error| HostError::failed(OP, "request", error.to_string()))
}

/// Replaces a file if its text differs; `private`: readable for this user alone.
fn write(path: &Path, text: &str, private: Option<u32>) -> io::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    let part = path.with_extension("part");
    let mode = if private.is_some() { 0o400 } else { 0o644 };
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    file.write_all(text.as_bytes())?;
    if let Some(owner) = private {
        chown(&part, Some(owner), None)?;
    }
    file.sync_all()?;
    fs::rename(&part, path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn signed(identity: &Identity, text: &str) -> MoveIdentity {
        MoveIdentity {
            requests: identity.requests().clone(),
            control: format!("{text} control"),
            memory: format!("{text} memory"),
            authority: "authority".into(),
            ..MoveIdentity::default()
        }
    }

    #[test]
    fn settings_come_first_and_once_and_what_others_wrote_stays() {
        let once = with_ours("listen_tcp = 1\n", "listen_tcp = 0\n");
        let (begin, end) = MARKS;
        assert_eq!(once, format!("{begin}listen_tcp = 0\n{end}listen_tcp = 1\n"));
        let twice = with_ours(&once, "listen_tls = 1\n");
        assert_eq!(twice, format!("{begin}listen_tls = 1\n{end}listen_tcp = 1\n"));
    }

    #[test]
    fn keys_stay_the_same_are_private_and_the_daemon_restarts_for_settings_alone() {
        let root = std::env::temp_dir().join(format!("stockade-identity-{}", std::process::id()));
        let (state, config, pki) = (root.join("state"), root.join("libvirt"), root.join("pki"));
        for folder in [&state, &config, &pki] {
            fs::create_dir_all(folder).unwrap();
        }
        let identity = Identity::open(&state, &config, &pki).unwrap();
        let again = Identity::open(&state, &config, &pki).unwrap();
        assert_eq!(identity.keys, again.keys);
        assert_eq!(identity.requests(), again.requests(), "nothing is to be signed anew");
        fs::remove_file(state.join("moves/memory.key")).unwrap();
        let other = Identity::open(&state, &config, &pki).unwrap();
        assert_eq!(identity.requests().control, other.requests().control);
        assert_ne!(identity.requests().memory, other.requests().memory, "it is of a lost key");
        let install = |text: &str| identity.install(&signed(&identity, text), &root);
        assert_eq!(install("first").unwrap(), Changed::Settings);
        assert_eq!(install("first").unwrap(), Changed::Settings, "it is owed until it is taken");
        identity.taken().unwrap();
        assert_eq!(install("first").unwrap(), Changed::Nothing);
        assert_eq!(install("second").unwrap(), Changed::Certificates);
        let group = fs::read_to_string(pki.join("qemu/dh-params.pem")).unwrap();
        assert!(group.starts_with("-----BEGIN DH PARAMETERS-----\nMII"), "{group}");
        assert!(group.ends_with("\n-----END DH PARAMETERS-----\n"), "{group}");
        for private in ["libvirt/private/clientkey.pem", "qemu/server-key.pem"] {
            let mode = fs::metadata(pki.join(private)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o400, "{private}");
        }
        fs::remove_file(state.join("moves/installed")).unwrap();
        let why = install("second").unwrap_err().to_string();
        assert!(why.contains("somebody else's"), "{why}");
        let mut foreign = signed(&identity, "third");
        foreign.requests.memory = "another host's".into();
        assert!(identity.install(&foreign, &root).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
