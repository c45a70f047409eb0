//! The authority for live moves: a key in a Secret of the controller's own namespace, made once,
//! that signs what hosts show each other.
//!
//! Only hosts' certificates come from it, so whoever shows one is a host of this cluster. Two for
//! each, told apart by their organisation: root's, for libvirt's control connection, and QEMU's,
//! for memory. What breaks out of a guest into its QEMU holds the second, and libvirt refuses it.

use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use stockade_crds::names::{MOVE_CONTROL, MOVE_MEMORY};
use stockade_crds::v1alpha1::{MoveIdentity, MoveRequests};
use time::{Duration, OffsetDateTime};

use crate::ControllerError;
use crate::context::{Shared, locked, request};

/// The Secret.
const SECRET: &str = "stockade-move-authority";
/// Keys of the Secret: those of the type kubernetes.io/tls.
const CERTIFICATE_FIELD: &str = "tls.crt";
const KEY_FIELD: &str = "tls.key";
/// How long the authority lasts. Its end is that of all moves, so it is out of reach.
const AUTHORITY_LASTS: Duration = Duration::days(7_300);
/// How long a host's certificate lasts: a host that was removed shows its own no longer.
const CERTIFICATE_LASTS: Duration = Duration::days(30);
/// It is renewed so long before its end: a controller may be away for a while.
const RENEWED_BEFORE: Duration = Duration::days(20);
/// Clocks of hosts may be behind by so much.
const CLOCKS: Duration = Duration::hours(1);

/// Signs both certificates of a host; the next plan writes them into its HostAgent.
pub(crate) async fn sign(
    shared: &Shared,
    host: &str,
    requests: &MoveRequests,
    names: &[String],
) -> Result<(), ControllerError> {
    let (certificate, key) = authority(shared).await?;
    let now = now(shared)?;
    let failed = |source| ControllerError::Certificate { host: host.to_owned(), source };
    let signed = || -> Result<MoveIdentity, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        let one = |request: &str, use_: &str| answer(&issuer, request, (host, use_), names, now);
        Ok(MoveIdentity {
            requests: requests.clone(),
            names: names.to_vec(),
            control: one(&requests.control, MOVE_CONTROL)?.pem(),
            memory: one(&requests.memory, MOVE_MEMORY)?.pem(),
            authority: certificate.clone(),
            renew_at_seconds: (now + CERTIFICATE_LASTS - RENEWED_BEFORE).unix_timestamp(),
        })
    };
    let signed = signed().map_err(failed)?;
    tracing::info!(host, "certificates for live moves are signed");
    locked(&shared.identities).insert(host.to_owned(), signed);
    Ok(())
}

/// The certificate that answers a request: only its key counts, and that its sender holds it.
fn answer(
    issuer: &Issuer<'_, KeyPair>,
    request: &str,
    (host, use_): (&str, &str),
    names: &[String],
    now: OffsetDateTime,
) -> Result<Certificate, rcgen::Error> {
    let mut request = CertificateSigningRequestParams::from_pem(request)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(host, use_);
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    // Each host is the server of moves that come and the client of moves that go.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - CLOCKS;
    params.not_after = now + CERTIFICATE_LASTS;
    request.params = params;
    request.signed_by(issuer)
}

fn name(common: &str, organisation: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organisation);
    name.push(DnType::CommonName, common);
    name
}

fn now(shared: &Shared) -> Result<OffsetDateTime, ControllerError> {
    let seconds = shared.context.clock.wall_millis() / 1000;
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| ControllerError::Authority("this machine's clock is out of all bounds".into()))
}

/// Certificate and key of the authority; made if there is none.
async fn authority(shared: &Shared) -> Result<(String, String), ControllerError> {
    let secrets: Api<Secret> = Api::namespaced(shared.client(), &shared.context.namespace);
    let what = || format!("reading Secret {SECRET}");
    if let Some(found) = request(what, secrets.get_opt(SECRET)).await? {
        return read(&found);
    }
    let (certificate, key) = made(now(shared)?)
        .map_err(|source| ControllerError::Certificate { host: "the authority".into(), source })?;
    let data = [(CERTIFICATE_FIELD, &certificate), (KEY_FIELD, &key)];
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(
            data.map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes())))
                .into(),
        ),
        ..Secret::default()
    };
    // Of two controllers one wins; the other reads that one's at its next try.
    let params = PostParams::default();
    let call = secrets.create(&params, &secret);
    request(|| format!("making Secret {SECRET}"), call).await?;
    tracing::info!("an authority for live moves is made");
    Ok((certificate, key))
}

fn made(now: OffsetDateTime) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("live moves", "stockade-authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - CLOCKS;
    params.not_after = now + AUTHORITY_LASTS;
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn read(secret: &Secret) -> Result<(String, String), ControllerError> {
    let text = |name: &str| {
        let found = secret.data.as_ref().and_then(|data| data.get(name));
        let text = found.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.ok_or_else(|| {
            ControllerError::Authority(format!(
                "Secret {SECRET} lacks {name}; delete it, and a new authority is made"
            ))
        })
    };
    Ok((text(CERTIFICATE_FIELD)?, text(KEY_FIELD)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn issuer() -> Issuer<'static, KeyPair> {
        let (certificate, key) = made(now()).unwrap();
        Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).unwrap()).unwrap()
    }

    /// A request that asks for another host's name, and for the control connection.
    fn request() -> String {
        let mut asked = CertificateParams::new(["other".to_owned()]).unwrap();
        asked.distinguished_name = name("other", MOVE_CONTROL);
        asked.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn a_certificate_holds_the_declared_names_whatever_the_request_says() {
        let names = ["h1".to_owned(), "10.77.88.99".to_owned()];
        let signed = answer(&issuer(), &request(), ("h1", MOVE_MEMORY), &names, now()).unwrap();
        let holds = |bytes: &[u8]| signed.der().windows(bytes.len()).any(|w| w == bytes);
        assert!(holds(MOVE_MEMORY.as_bytes()) && holds(b"h1") && holds(&[10, 77, 88, 99]));
        assert!(!holds(b"other") && !holds(MOVE_CONTROL.as_bytes()));
    }

    #[test]
    fn a_request_that_its_sender_did_not_sign_is_refused() {
        let text = request();
        let (body, end) = text.split_at(text.find("\n-----END").unwrap());
        let at = body.rfind('\n').unwrap() + 1;
        let other = if body[at..].starts_with('A') { 'B' } else { 'A' };
        let forged = format!("{}{other}{}{end}", &body[..at], &body[at + 1..]);
        let answered = |text: &str| answer(&issuer(), text, ("h1", MOVE_CONTROL), &[], now());
        assert!(answered(&text).is_ok() && answered(&forged).is_err());
    }

    #[test]
    fn a_secret_that_is_no_authority_says_what_to_do() {
        let why = read(&Secret::default()).unwrap_err().to_string();
        assert!(why.contains("tls.crt") && why.contains("delete it"), "{why}");
    }
}
