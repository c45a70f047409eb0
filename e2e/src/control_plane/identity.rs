//! Who may call: the certificate authority of one control plane, its server certificate, and a
//! kubeconfig for any identity.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use super::Error;

/// The object identifier of O, which a server reads as a group.
const ORGANISATION: [u64; 4] = [2, 5, 4, 10];

/// The authority that a server trusts for its clients, and they for it.
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority of its own for the control plane in `dir`.
    pub fn new(dir: &Path) -> Result<Self, Error> {
        let make = || {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "stockade control plane");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            CertifiedIssuer::self_signed(params, KeyPair::generate()?)
        };
        let issuer = make().map_err(|source| Error::Certificate("the authority".into(), source))?;
        Ok(Self { dir: dir.to_owned(), issuer })
    }

    /// Writes what the server's flags name: the authority, the server's certificate, and the key
    /// that signs service account tokens.
    pub fn write_server_files(&self) -> Result<(), Error> {
        let make = || {
            let names = ["localhost", "127.0.0.1", "kubernetes.default.svc"];
            let mut params = CertificateParams::new(names.map(str::to_owned))?;
            params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok((certificate.pem(), key.serialize_pem(), KeyPair::generate()?))
        };
        let (certificate, key, accounts) =
            make().map_err(|source| Error::Certificate("the server".into(), source))?;
        write_private(&self.dir.join("ca.crt"), &self.issuer.pem())?;
        write_private(&self.dir.join("ca.key"), &self.issuer.key().serialize_pem())?;
        write_private(&self.dir.join("server.crt"), &certificate)?;
        write_private(&self.dir.join("server.key"), &key)?;
        write_private(&self.dir.join("sa.key"), &accounts.serialize_pem())?;
        write_private(&self.dir.join("sa.pub"), &accounts.public_key_pem())
    }

    /// Writes a kubeconfig with a client certificate, once an identity.
    pub fn kubeconfig(&self, server: &str, user: &str, groups: &[&str]) -> Result<PathBuf, Error> {
        let stem = file_stem(user, groups);
        let path = self.dir.join(format!("{stem}.kubeconfig"));
        if path.exists() {
            return Ok(path);
        }
        let (certificate, key) = self.client_certificate(user, groups)?;
        let certificate_path = self.dir.join(format!("{stem}.crt"));
        let key_path = self.dir.join(format!("{stem}.key"));
        write_private(&certificate_path, &certificate)?;
        write_private(&key_path, &key)?;
        let credentials = json!({
            "client-certificate": certificate_path,
            "client-key": key_path,
        });
        self.write_kubeconfig(&path, server, user, &credentials)?;
        Ok(path)
    }

    /// Writes a kubeconfig with a bearer token; a later one for the same name replaces it.
    pub fn token_kubeconfig(
        &self,
        server: &str,
        name: &str,
        token: &str,
    ) -> Result<PathBuf, Error> {
        let path = self.dir.join(format!("{}.kubeconfig", file_stem(name, &["token"])));
        self.write_kubeconfig(&path, server, name, &json!({ "token": token }))?;
        Ok(path)
    }

    fn client_certificate(&self, user: &str, groups: &[&str]) -> Result<(String, String), Error> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, user);
        // A name holds one value a type, so a second group needs the type spelt the other way.
        match groups {
            [] => {}
            [one] => name.push(DnType::OrganizationName, *one),
            [one, two] => {
                name.push(DnType::OrganizationName, *one);
                name.push(DnType::CustomDnType(ORGANISATION.to_vec()), *two);
            }
            _ => return Err(Error::TooManyGroups(user.to_owned())),
        }
        let make = || {
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        make().map_err(|source| Error::Certificate(user.to_owned(), source))
    }

    /// A kubeconfig is YAML, and JSON is YAML.
    fn write_kubeconfig(
        &self,
        path: &Path,
        server: &str,
        user: &str,
        credentials: &serde_json::Value,
    ) -> Result<(), Error> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stockade",
            "clusters": [{
                "name": "stockade",
                "cluster": { "server": server, "certificate-authority": self.dir.join("ca.crt") },
            }],
            "users": [{ "name": user, "user": credentials }],
            "contexts": [{
                "name": "stockade",
                "context": { "cluster": "stockade", "user": user },
            }],
        });
        write_private(path, &format!("{config:#}\n"))
    }
}

/// Writes a file that only we may read, as a whole: readers see the old or the new one.
pub fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let words = || format!("write {}", path.display());
    let part = path.with_extension("part");
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(Error::io(words()))
}

/// A file name for an identity: readable, and different for different identities.
pub fn file_stem(user: &str, groups: &[&str]) -> String {
    let mut stem = String::from("user");
    for part in std::iter::once(&user).chain(groups) {
        stem.push('_');
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' {
                stem.push(char::from(byte));
            } else {
                let _ = write!(stem, "%{byte:02x}");
            }
        }
    }
    stem
}
