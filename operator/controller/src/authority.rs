//! The authority for live moves: a key in a Secret of the controller's own namespace that signs what
//! hosts show each other. Another takes over every year, and whenever a person asks for it.
//!
//! Only hosts' certificates come from it, so whoever shows one is a host of this cluster. Two for
//! each, told apart by their organisation: root's, for libvirt's control connection, and QEMU's,
//! for memory. What breaks out of a guest into its QEMU holds the second, and libvirt refuses it.

use std::collections::BTreeMap;
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
use stockade_core::certificates::{Authority, AuthorityStage};
use stockade_core::world::Millis;
use stockade_crds::names::{MOVE_CONTROL, MOVE_MEMORY, REQUEST_ANNOTATION};
use stockade_crds::v1alpha1::{MoveIdentity, MoveRequests};
use time::{Duration, OffsetDateTime};

use crate::ControllerError;
use crate::context::{Shared, locked, request};

/// The Secret.
const SECRET: &str = "stockade-move-authority";
/// Keys of the Secret: those of the type kubernetes.io/tls.
const CERTIFICATE_FIELD: &str = "tls.crt";
const KEY_FIELD: &str = "tls.key";
/// Fields that are there while one authority takes over from another: certificate and key of the
/// next, and the certificate of the last.
const NEXT_FIELDS: (&str, &str) = ("next.crt", "next.key");
const LAST_FIELD: &str = "last.crt";
/// When the authority that signs began to.
const SINCE_ANNOTATION: &str = "stockade.dev/authority-since";
/// The request that was last obeyed.
const HANDLED_ANNOTATION: &str = "stockade.dev/last-handled-request";
/// Another authority takes over after so long.
const CHANGED_AFTER: Duration = Duration::days(365);
/// The Secret is read again after so long, in milliseconds, for what a person wrote there.
const READ_AGAIN: Millis = 30_000;
/// How long the authority lasts. Its end is that of all moves, so it is out of reach.
const AUTHORITY_LASTS: Duration = Duration::days(7_300);
/// How long a host's certificate lasts: a host that was removed shows its own no longer.
const CERTIFICATE_LASTS: Duration = Duration::days(30);
/// It is renewed so long before its end: a controller may be away for a while.
const RENEWED_BEFORE: Duration = Duration::days(20);
/// Clocks of hosts may be behind by so much.
const CLOCKS: Duration = Duration::hours(1);

/// Signs both certificates of a host; the next plan writes them into its HostAgent. Their serial is
/// above the one given.
pub(crate) async fn sign(
    shared: &Shared,
    host: &str,
    (requests, names): (&MoveRequests, &[String]),
    above: i64,
) -> Result<(), ControllerError> {
    let kept = authority(shared).await?;
    let (certificate, key) = &kept.signer;
    let now = now(shared)?;
    let failed = |source| ControllerError::Certificate { host: host.to_owned(), source };
    let signed = || -> Result<MoveIdentity, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        let one = |request: &str, use_: &str| answer(&issuer, request, (host, use_), names, now);
        Ok(MoveIdentity {
            requests: requests.clone(),
            names: names.to_vec(),
            control: one(&requests.control, MOVE_CONTROL)?.pem(),
            memory: one(&requests.memory, MOVE_MEMORY)?.pem(),
            authority: kept.told().trusted,
            signer: certificate.clone(),
            serial: shared.context.clock.wall_millis().max(above.saturating_add(1)),
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

/// What the Secret holds.
struct Kept {
    /// Certificate and key of who signs.
    signer: (String, String),
    /// Certificate and key of who takes over next.
    next: Option<(String, String)>,
    /// Certificate of who signed before, and is still believed.
    last: Option<String>,
    /// When the one that signs was made, seconds since the Unix epoch.
    since: i64,
    /// A person asks for another.
    asked: bool,
}

impl Kept {
    fn of(secret: &Secret) -> Result<Self, ControllerError> {
        let text = |name: &str| {
            let found = secret.data.as_ref().and_then(|data| data.get(name));
            found.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
        };
        let must = |name: &str| {
            text(name).ok_or_else(|| {
                ControllerError::Authority(format!(
                    "Secret {SECRET} lacks {name}; delete it, and a new authority is made"
                ))
            })
        };
        let annotations = secret.metadata.annotations.as_ref();
        let note = |name: &str| annotations.and_then(|notes| notes.get(name));
        let made = secret.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second());
        let since = note(SINCE_ANNOTATION).and_then(|text| text.parse().ok()).or(made);
        let request = note(REQUEST_ANNOTATION).filter(|text| text.starts_with("rotate/"));
        Ok(Self {
            signer: (must(CERTIFICATE_FIELD)?, must(KEY_FIELD)?),
            next: text(NEXT_FIELDS.0).zip(text(NEXT_FIELDS.1)),
            last: text(LAST_FIELD),
            since: since.unwrap_or_default(),
            asked: request.is_some_and(|id| note(HANDLED_ANNOTATION) != Some(id)),
        })
    }

    fn told(&self) -> Authority {
        let others = [self.next.as_ref().map(|(certificate, _)| certificate), self.last.as_ref()];
        let mut trusted = self.signer.0.clone();
        for other in others.into_iter().flatten() {
            trusted.push_str(other);
        }
        let stage = match (&self.next, &self.last) {
            (_, Some(_)) => AuthorityStage::Parting,
            (Some(_), None) => AuthorityStage::Announced,
            (None, None) => AuthorityStage::Alone,
        };
        Authority {
            stage,
            trusted,
            signer: self.signer.0.clone(),
            due_seconds: self.since.saturating_add(CHANGED_AFTER.whole_seconds()),
            asked: self.asked,
        }
    }

    /// The next stage; `fresh`: an authority that was made for it.
    fn changed(self, fresh: (String, String), now: i64) -> Self {
        match (self.next, self.last) {
            (_, Some(_)) => Self { next: None, last: None, ..self },
            (Some(next), None) => {
                Self { last: Some(self.signer.0), signer: next, next: None, since: now, ..self }
            }
            (None, None) => Self { next: Some(fresh), last: None, asked: false, ..self },
        }
    }

    /// The fields of the Secret.
    fn data(&self) -> BTreeMap<String, ByteString> {
        let next = self.next.as_ref();
        let fields = [
            (CERTIFICATE_FIELD, Some(&self.signer.0)),
            (KEY_FIELD, Some(&self.signer.1)),
            (NEXT_FIELDS.0, next.map(|(certificate, _)| certificate)),
            (NEXT_FIELDS.1, next.map(|(_, key)| key)),
            (LAST_FIELD, self.last.as_ref()),
        ];
        let bytes = |text: &String| ByteString(text.clone().into_bytes());
        let set = fields.into_iter().filter_map(|(name, text)| Some((name, bytes(text?))));
        set.map(|(name, bytes)| (name.to_owned(), bytes)).collect()
    }
}

/// What is known of the authority, if it was read lately.
pub(crate) fn known(shared: &Shared) -> Option<Authority> {
    let read = locked(&shared.authority).clone();
    read.filter(|(_, at)| shared.now().saturating_sub(*at) < READ_AGAIN).map(|(known, _)| known)
}

/// Reads the authority; makes it if there is none.
pub(crate) async fn read(shared: &Shared) -> Result<(), ControllerError> {
    authority(shared).await.map(drop)
}

fn secrets(shared: &Shared) -> Api<Secret> {
    Api::namespaced(shared.client(), &shared.context.namespace)
}

fn learn(shared: &Shared, secret: &Secret) -> Result<Kept, ControllerError> {
    let kept = Kept::of(secret)?;
    *locked(&shared.authority) = Some((kept.told(), shared.now()));
    Ok(kept)
}

/// Goes on from this stage of a change-over, if it still is the one.
pub(crate) async fn change(shared: &Shared, from: AuthorityStage) -> Result<(), ControllerError> {
    let what = || format!("reading Secret {SECRET}");
    let mut secret = request(what, secrets(shared).get(SECRET)).await?;
    let kept = learn(shared, &secret)?;
    if kept.told().stage != from {
        return Ok(());
    }
    let now = now(shared)?;
    let fresh = made(now).map_err(made_by)?;
    // What is asked for in the middle of one is another one, after it.
    let begins = kept.asked && from == AuthorityStage::Alone;
    let kept = kept.changed(fresh, now.unix_timestamp());
    secret.data = Some(kept.data());
    let notes = secret.metadata.annotations.get_or_insert_default();
    notes.insert(SINCE_ANNOTATION.to_owned(), kept.since.to_string());
    if let Some(id) = notes.get(REQUEST_ANNOTATION).cloned().filter(|_| begins) {
        notes.insert(HANDLED_ANNOTATION.to_owned(), id);
    }
    // With the version that was read: of two controllers one wins.
    let params = PostParams::default();
    let api = secrets(shared);
    let call = api.replace(SECRET, &params, &secret);
    let answer = request(|| format!("changing Secret {SECRET}"), call).await?;
    let stage = learn(shared, &answer)?.told().stage;
    tracing::info!(?from, to = ?stage, "the authority for live moves changes over");
    Ok(())
}

/// The authority as it is kept; made if there is none.
async fn authority(shared: &Shared) -> Result<Kept, ControllerError> {
    let what = || format!("reading Secret {SECRET}");
    if let Some(found) = request(what, secrets(shared).get_opt(SECRET)).await? {
        return learn(shared, &found);
    }
    let now = now(shared)?;
    let kept = Kept {
        signer: made(now).map_err(made_by)?,
        next: None,
        last: None,
        since: now.unix_timestamp(),
        asked: false,
    };
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            annotations: Some([(SINCE_ANNOTATION.to_owned(), kept.since.to_string())].into()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(kept.data()),
        ..Secret::default()
    };
    // Of two controllers one wins; the other reads that one's at its next try.
    let params = PostParams::default();
    let api = secrets(shared);
    let call = api.create(&params, &secret);
    let answer = request(|| format!("making Secret {SECRET}"), call).await?;
    tracing::info!("an authority for live moves is made");
    learn(shared, &answer)
}

fn made_by(source: rcgen::Error) -> ControllerError {
    ControllerError::Certificate { host: "the authority".into(), source }
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
        let why = Kept::of(&Secret::default()).err().unwrap().to_string();
        assert!(why.contains("tls.crt") && why.contains("delete it"), "{why}");
    }

    #[test]
    fn another_takes_over_in_three_steps_and_the_last_is_forgotten() {
        let pair = |name: &str| (format!("{name} "), format!("{name} key"));
        let secret = |kept: &Kept, request: &str| Secret {
            data: Some(kept.data()),
            metadata: ObjectMeta {
                annotations: Some(
                    [
                        (SINCE_ANNOTATION.to_owned(), kept.since.to_string()),
                        (REQUEST_ANNOTATION.to_owned(), request.to_owned()),
                    ]
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        };
        let kept = Kept { signer: pair("old"), next: None, last: None, since: 5, asked: false };
        assert!(!Kept::of(&secret(&kept, "restart/1")).unwrap().asked);
        let mut kept = Kept::of(&secret(&kept, "rotate/1")).unwrap();
        assert!(kept.asked);
        let mut told = Vec::new();
        for now in 10..13 {
            kept = Kept::of(&secret(&kept.changed(pair("new"), now), "")).unwrap();
            let said = kept.told();
            told.push((said.stage, said.trusted, said.signer, said.due_seconds));
        }
        let year = CHANGED_AFTER.whole_seconds();
        let row = |stage, trusted: &str, signer: &str, since: i64| {
            (stage, trusted.to_owned(), signer.to_owned(), since + year)
        };
        assert_eq!(
            told,
            [
                row(AuthorityStage::Announced, "old new ", "old ", 5),
                row(AuthorityStage::Parting, "new old ", "new ", 11),
                row(AuthorityStage::Alone, "new ", "new ", 11),
            ]
        );
        assert_eq!(kept.signer, pair("new"));
    }
}
