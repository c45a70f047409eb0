//! The door: one TLS listener, and whoever comes through it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::server::TlsStream;

use super::{OP, Tickets};
use crate::error::HostError;
use crate::libvirt::Libvirt;

/// How long whoever comes may take to show a ticket.
const GREETING: Duration = Duration::from_secs(10);
/// So many may be on the doorstep at once.
const DOORSTEP: usize = 16;
/// The first words of a person's plugin, before the ticket's id and the ticket.
const HELLO: &str = "stockade-console 1";
/// Longest line that shows a ticket.
const LINE: usize = 256;
/// A peer that is silent for so long is asked whether it is there.
const ALIVE: Duration = Duration::from_secs(30);

/// A listener that is open; closed when it is dropped, which ends no console.
pub(super) struct Door {
    /// The address as the Host declares it.
    pub(super) declared: String,
    /// Where it listens.
    pub(super) at: SocketAddr,
    task: AbortHandle,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Door {
    /// Opens it on this address alone.
    pub(super) async fn open(
        libvirt: Arc<Libvirt>,
        tickets: Arc<Tickets>,
        declared: &str,
        port: u16,
    ) -> Result<Self, String> {
        let acceptor = acceptor(libvirt.pki())?;
        let bare = declared.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((bare, port)).await;
        let at = found.ok().and_then(|mut all| all.next());
        let at = at.ok_or_else(|| format!("{declared} is no address of a host"))?;
        if at.ip().is_unspecified() {
            return Err(format!("{declared} stands for every address; declare one"));
        }
        let listener = TcpListener::bind(at).await;
        let listener = listener.map_err(|error| format!("can't listen on {at}: {error}"))?;
        let at = listener.local_addr().map_err(|error| error.to_string())?;
        let task = tokio::spawn(answer(listener, acceptor, libvirt, tickets)).abort_handle();
        Ok(Self { declared: declared.to_owned(), at, task })
    }
}

/// TLS 1.3 with the host's own certificate, the one that it shows its peers in live moves.
fn acceptor(pki: Option<&Path>) -> Result<TlsAcceptor, String> {
    let pki = pki.ok_or("this agent runs with --insecure-migration and has no certificate")?;
    let no = |what: &Path, why: String| format!("{}: {why}", what.display());
    let path = pki.join("libvirt/servercert.pem");
    let chain = CertificateDer::pem_file_iter(&path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| no(&path, error.to_string()))?;
    let path = pki.join("libvirt/private/serverkey.pem");
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| no(&path, error.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| error.to_string())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn answer(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    libvirt: Arc<Libvirt>,
    tickets: Arc<Tickets>,
) {
    let doorstep = Arc::new(Semaphore::new(DOORSTEP));
    loop {
        let Ok(place) = Arc::clone(&doorstep).acquire_owned().await else { return };
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "nobody can come for a console");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let (acceptor, libvirt) = (acceptor.clone(), Arc::clone(&libvirt));
        let tickets = Arc::clone(&tickets);
        tokio::spawn(async move {
            let shown = tokio::time::timeout(GREETING, greet(acceptor, socket)).await;
            drop(place);
            match shown {
                Ok(Ok((stream, id, ticket))) => {
                    serve(stream, &libvirt, &tickets, (&id, &ticket), peer).await;
                }
                Ok(Err(why)) => tracing::warn!(%peer, why, "no ticket was shown"),
                Err(_) => tracing::warn!(%peer, "no ticket was shown in time"),
            }
        });
    }
}

/// Reads the line that shows a ticket: its id, and the ticket.
async fn greet(
    acceptor: TlsAcceptor,
    socket: TcpStream,
) -> Result<(TlsStream<TcpStream>, String, String), String> {
    let alive = sockopt::set_socket_keepalive(&socket, true)
        .and_then(|()| sockopt::set_tcp_keepidle(&socket, ALIVE))
        .and_then(|()| sockopt::set_tcp_keepintvl(&socket, ALIVE / 3))
        .and_then(|()| sockopt::set_tcp_keepcnt(&socket, 3));
    alive.map_err(|error| error.to_string())?;
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut stream = acceptor.accept(socket).await.map_err(|error| error.to_string())?;
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await.map_err(|error| error.to_string())? {
            b'\n' => break,
            _ if line.len() >= LINE => return Err("its line is too long".to_owned()),
            byte => line.push(byte),
        }
    }
    let line = String::from_utf8(line).map_err(|error| error.to_string())?;
    let words = line.strip_prefix(HELLO).map(str::trim_start);
    let (id, ticket) = words.and_then(|words| words.split_once(' ')).ok_or("it is no plugin")?;
    Ok((stream, id.to_owned(), ticket.to_owned()))
}

/// Opens what the ticket is for, and stays until one side is over.
async fn serve(
    mut stream: TlsStream<TcpStream>,
    libvirt: &Libvirt,
    tickets: &Tickets,
    (id, ticket): (&str, &str),
    peer: SocketAddr,
) {
    let (console, over) = match tickets.take(id, ticket) {
        Ok(taken) => taken,
        Err(why) => {
            tracing::warn!(%peer, id, "a wrong ticket was shown");
            refuse(&mut stream, why).await;
            return;
        }
    };
    let opened = libvirt.open_console(&console.vm_uid, console.epoch, console.device).await;
    let opened = opened.and_then(|socket| {
        let failed = |error: std::io::Error| HostError::failed(OP, id, error.to_string());
        socket.set_nonblocking(true).map_err(failed)?;
        UnixStream::from_std(socket).map_err(failed)
    });
    let mut socket = match opened {
        Ok(socket) => socket,
        Err(error) => {
            let why = error.to_string();
            refuse(&mut stream, &why).await;
            tickets.close(id, &why);
            return;
        }
    };
    tracing::info!(vm = console.vm_uid, device = ?console.device, %peer, "a console is open");
    let carried = async {
        stream.write_all(b"ok\n").await?;
        copy_bidirectional(&mut stream, &mut socket).await
    };
    tokio::select! {
        biased;
        () = over.notified() => {}
        _ = carried => {}
    }
    // The other side may be gone.
    let _ = tokio::time::timeout(GREETING, stream.shutdown()).await;
    tracing::info!(vm = console.vm_uid, device = ?console.device, %peer, "a console is closed");
    tickets.close(id, "it is over");
}

async fn refuse(stream: &mut TlsStream<TcpStream>, why: &str) {
    let text = format!("refused: {}\n", why.replace('\n', " "));
    let said = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    };
    // The other side may be gone.
    let _ = tokio::time::timeout(GREETING, said).await;
}
