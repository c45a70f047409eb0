//! A ticket for one console of one VM, and the way to what it opens.
//!
//! The API gets a hash; the ticket itself goes over TLS to the host that the API names, whose
//! certificate must be signed by the authority that the API names.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DeleteParams};
use ring::rand::{SecureRandom as _, SystemRandom};
use stockade_crds::conditions::READY;
use stockade_crds::v1alpha1::{
    ConsoleDevice, ConsoleState, VirtualMachineConsole, VirtualMachineConsoleSpec,
    VirtualMachineConsoleStatus,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::error::PluginError;
use super::session::{Session, fresh_id, make};

/// How long a host may take to get ready, and then to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest answer of a host.
const LINE: usize = 2_048;

/// What a console is reached through.
pub(super) type Line = TlsStream<TcpStream>;

/// A ticket; worth nothing once it is given back.
pub(super) struct Ticket {
    api: Api<VirtualMachineConsole>,
    name: String,
    secret: String,
}

impl Ticket {
    /// Asks for one. Whether this person may is the API server's to say.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn ask(
        session: &Session,
        vm: &str,
        device: ConsoleDevice,
    ) -> Result<Self, PluginError> {
        let secret = secret()?;
        let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
        let spec = VirtualMachineConsoleSpec {
            vm: vm.to_owned(),
            device,
            ticket_hash: hex(digest.as_ref()),
        };
        let short: String = vm.chars().take(200).collect();
        let name = format!("{short}-{}", fresh_id());
        let mut wanted = VirtualMachineConsole::new(&name, spec);
        wanted.metadata.namespace = Some(session.namespace.clone());
        let api = session.namespaced::<VirtualMachineConsole>();
        make(&api, &wanted, format!("ask for a console of VM {vm}")).await?;
        Ok(Self { api, name, secret })
    }

    /// Shows it to its VM's host; back once the console is open.
    ///
    /// # Errors
    /// There is nothing to open, or the host can't be reached, shows a wrong certificate, or says
    /// no.
    pub(super) async fn show(&self) -> Result<Line, PluginError> {
        let (id, status) = self.waiting().await?;
        let refused = |why: &str| PluginError::Refused(why.to_owned());
        let address = status.address.ok_or_else(|| refused("the host names no address"))?;
        let host = status.host.unwrap_or_default();
        let authority = status.authority.unwrap_or_default();
        let no = |why: String| PluginError::Refused(format!("{host} at {address}: {why}"));
        let connect = async {
            let connector = connector(&authority)?;
            let name = ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
            let socket = TcpStream::connect(&address).await.map_err(|e| e.to_string())?;
            socket.set_nodelay(true).map_err(|e| e.to_string())?;
            let mut line = connector.connect(name, socket).await.map_err(|e| e.to_string())?;
            let words = format!("stockade-console 1 {id} {}\n", self.secret);
            line.write_all(words.as_bytes()).await.map_err(|e| e.to_string())?;
            line.flush().await.map_err(|e| e.to_string())?;
            answer(&mut line).await?;
            Ok(line)
        };
        match timeout(LIMIT, connect).await {
            Ok(line) => line.map_err(no),
            Err(_) => Err(no(format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    /// Waits until its host takes it.
    async fn waiting(&self) -> Result<(String, VirtualMachineConsoleStatus), PluginError> {
        let end = Instant::now() + LIMIT;
        loop {
            let found = self.api.get(&self.name).await;
            let found = found.map_err(PluginError::api(format!("read {}", self.name)))?;
            let status = found.status.unwrap_or_default();
            match status.state {
                ConsoleState::Waiting => {
                    return Ok((found.metadata.uid.unwrap_or_default(), status));
                }
                ConsoleState::Closed => return Err(PluginError::Refused(why(&status))),
                ConsoleState::Pending | ConsoleState::Open => {}
            }
            if Instant::now() >= end {
                let what = match why(&status) {
                    why if why.is_empty() => "the controller has not answered".to_owned(),
                    why => why,
                };
                return Err(PluginError::NotInTime { what, seconds: LIMIT.as_secs() });
            }
            sleep(PAUSE).await;
        }
    }

    /// Gives it back: what it opened is closed.
    pub(super) async fn give_back(self) {
        // One that is left goes by itself.
        let _ = self.api.delete(&self.name, &DeleteParams::default()).await;
    }
}

fn why(status: &VirtualMachineConsoleStatus) -> String {
    let ready = status.conditions.iter().find(|c| c.type_ == READY);
    ready.map(|c| c.message.clone()).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 256 bits that nobody guesses.
fn secret() -> Result<String, PluginError> {
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| PluginError::Refused("this machine has no randomness".to_owned()))?;
    Ok(hex(&bytes))
}

/// TLS 1.3 that believes this authority and no other.
fn connector(authority: &str) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Reads the host's first line: whether it opened the console.
async fn answer(line: &mut Line) -> Result<(), String> {
    let mut text = Vec::new();
    loop {
        match line.read_u8().await.map_err(|error| error.to_string())? {
            b'\n' => break,
            _ if text.len() >= LINE => return Err("it answers too much".to_owned()),
            byte => text.push(byte),
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    if text == "ok" { Ok(()) } else { Err(text) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn tickets_are_long_and_no_two_are_alike() {
        let (one, other) = (secret().unwrap(), secret().unwrap());
        assert!(one.len() == 64 && one != other);
    }

    #[test]
    fn what_is_no_certificate_is_not_believed() {
        assert!(
            connector("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err()
        );
    }
}
