//! Names that several parts must spell alike.

/// Prefix of a host's own namespace.
pub const HOST_NAMESPACE_PREFIX: &str = "stockade-host-";
/// Label on a host's namespace and on what lies in it; its value is the host's name.
pub const HOST_LABEL: &str = "stockade.dev/host";
/// Label on a Domain: the namespace of its VM.
pub const VM_NAMESPACE_LABEL: &str = "stockade.dev/vm-namespace";
/// Label on a Domain: the name of its VM.
pub const VM_NAME_LABEL: &str = "stockade.dev/vm-name";
/// Keeps an object until its last epoch is settled.
pub const FINALIZER: &str = "stockade.dev/settled";
/// Annotation by which a user asks for one act: `<verb>/<id>`.
pub const REQUEST_ANNOTATION: &str = "stockade.dev/request";
/// Annotation on a Host by which a person asks that every plug of it is read now; the value is an
/// id of their choice, which the FenceDevices' `status.asked` answers.
pub const FENCE_TEST_ANNOTATION: &str = "stockade.dev/fence-test";
/// Verb of a request that takes a found copy in: `adopt/<host>/<id>`, a human's word that the
/// copy on that host is the VM.
pub const ADOPT: &str = "adopt";
/// Label on a move that Stockade ordered itself: why.
pub const CAUSE_LABEL: &str = "stockade.dev/cause";
/// Label on a move that was ordered because a member of the VM's group moves: that move's name.
pub const LEADER_LABEL: &str = "stockade.dev/leader";
/// Organisation in the certificates that libvirt's own connections show in live moves.
pub const MOVE_CONTROL: &str = "stockade-control";
/// Organisation in the certificates that QEMUs show when memory moves.
pub const MOVE_MEMORY: &str = "stockade-memory";
/// Name of the heartbeat Lease and of the HostAgent in a host's namespace.
pub const AGENT_OBJECT: &str = "agent";
/// Annotation of the heartbeat Lease: the storage beats that this host sees, as JSON.
pub const BEATS_ANNOTATION: &str = "stockade.dev/beats";
/// Annotation that names a history of the API, `<uid>/<counter>` (safety §2.9): on a Domain the
/// one in which the order was given, on the heartbeat Lease the highest that the host journalled,
/// on [`LINEAGE_LEASE`] the counter alone.
pub const LINEAGE_ANNOTATION: &str = "stockade.dev/lineage";
/// Lease beside the controller's own; its counter is raised before each certificate and placement.
pub const LINEAGE_LEASE: &str = "stockade-lineage";
/// The one AvailabilityPolicy.
pub const POLICY_NAME: &str = "default";
/// Namespace of the controller, its Lease and the fence secrets.
pub const SYSTEM_NAMESPACE: &str = "stockade-system";

/// Ends the name of the folder with a disk's owner records, `<disk>.stockade`; alone it is the name
/// of Stockade's own folder on a storage.
pub const RECORDS_SUFFIX: &str = ".stockade";
/// Ends the name of the file with a guest's UEFI variables, `<first disk>.nvram`.
pub const VARIABLES_SUFFIX: &str = ".nvram";

/// Whether a path below a storage's mount names, or leads through, what is Stockade's own there: no
/// guest gets it as a disk or as an image.
#[must_use]
pub fn is_reserved_path(path: &str) -> bool {
    let own = |part: &str| part.ends_with(RECORDS_SUFFIX) || part.ends_with(VARIABLES_SUFFIX);
    path.split('/').any(own)
}

/// The namespace that belongs to one host.
#[must_use]
pub fn host_namespace(host: &str) -> String {
    format!("{HOST_NAMESPACE_PREFIX}{host}")
}

/// The host whose namespace this is, if it is one by its name.
#[must_use]
pub fn host_of_namespace(namespace: &str) -> Option<&str> {
    namespace.strip_prefix(HOST_NAMESPACE_PREFIX)
}

/// The libvirt name of a VM's domain.
#[must_use]
pub fn domain_name(namespace: &str, name: &str) -> String {
    format!("{namespace}.{name}")
}

/// The name of a VM's seed secret in the namespace of the host that is to start it.
#[must_use]
pub fn seed_secret(vm_uid: &str) -> String {
    format!("seed-{vm_uid}")
}

/// The key of such a secret that holds the user-data document.
pub const SEED_KEY: &str = "userData";

/// The name of the certificate for one boot of a host.
#[must_use]
pub fn host_fence_name(host: &str, boot_id: &str) -> String {
    let short: String = boot_id.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("{host}-{}", short.to_ascii_lowercase())
}
