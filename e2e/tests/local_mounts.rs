//! The mounting port over this machine's mount(8), in a mount namespace of the test's own thread.
//! Needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;

use stockade_host::HostError;
use stockade_host::ports::{MountRequest, Mounts};
use stockade_host::storage::RealMounts;

/// Gives the calling thread mounts of its own: what it starts has them too.
#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of flags that are not used here"
)]
fn own_mounts() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    let flags =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).unwrap();
}

#[tokio::test]
async fn what_is_mounted_is_found_seen_and_let_go_only_when_nothing_uses_it() {
    own_mounts();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let mounts = RealMounts;
    assert_eq!(mounts.find(&path).await.unwrap(), None);
    let request = |source: &str, options: &str| MountRequest {
        kind: "tmpfs".into(),
        source: source.into(),
        path: path.clone(),
        options: vec![options.to_owned()],
    };
    mounts.mount(&request("first", "size=1m")).await.unwrap();
    let first = mounts.find(&path).await.unwrap().unwrap();
    assert_eq!((first.kind.as_str(), first.source.as_str()), ("tmpfs", "first"));
    assert!(first.options.iter().any(|option| option == "rw"), "{first:?}");
    assert!(mounts.is_on(&path, &first).await.unwrap());

    mounts.mount(&request("second", "ro")).await.unwrap();
    let second = mounts.find(&path).await.unwrap().unwrap();
    assert_eq!(second.source, "second");
    assert!(second.options.iter().any(|option| option == "ro"), "{second:?}");
    assert!(!mounts.is_on(&path, &first).await.unwrap(), "what covers it was not noticed");
    mounts.unmount(&path).await.unwrap();
    assert!(mounts.is_on(&path, &first).await.unwrap());

    let open = File::create(format!("{path}/in-use")).unwrap();
    let refused = mounts.unmount(&path).await;
    assert!(matches!(refused, Err(HostError::Refused { .. })), "{refused:?}");
    drop(open);
    mounts.unmount(&path).await.unwrap();
    assert_eq!(mounts.find(&path).await.unwrap(), None);
    let unknown = MountRequest { kind: "no-such-kind".into(), ..request("x", "rw") };
    let failed = mounts.mount(&unknown).await;
    assert!(matches!(failed, Err(HostError::Failed { .. })), "{failed:?}");
}
