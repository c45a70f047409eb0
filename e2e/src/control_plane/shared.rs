//! One control plane for all the tests of one test program, and a namespace of its own for each.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use super::{ControlPlane, Error, Options};

static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// The control plane that all tests of this program share: audit log on, no
/// kube-controller-manager. It goes when the program ends.
///
/// # Errors
/// As [`ControlPlane::start`].
pub async fn shared() -> Result<&'static ControlPlane, Error> {
    SHARED
        .get_or_try_init(|| ControlPlane::start(Options { audit: true, ..Options::default() }))
        .await
}

/// Runs a test body with the shared control plane and a fresh namespace, named after `test`.
/// The namespace is left to the control plane's end: nothing in it is seen by other tests.
///
/// # Errors
/// As [`ControlPlane::start`], or when the namespace can't be made.
pub async fn with_control_plane<T, F>(test: &str, body: F) -> Result<T, Error>
where
    F: AsyncFnOnce(&'static ControlPlane, &str) -> T,
{
    let plane = shared().await?;
    let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
    let namespace = format!("{}-{number}", test.replace('_', "-"));
    plane.ensure_namespace(&namespace).await?;
    Ok(body(plane, &namespace).await)
}
