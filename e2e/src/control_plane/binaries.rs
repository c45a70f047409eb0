//! Where the programs of the control plane are. The one who knows which versions fit is the
//! script `e2e/tools/build`; it is asked here and builds nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use super::Error;

/// The programs of a control plane, each as a path.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// etcd, 3.5 or newer.
    pub etcd: PathBuf,
    /// kube-apiserver, 1.32 or newer.
    pub kube_apiserver: PathBuf,
    /// kube-controller-manager of the same release.
    pub kube_controller_manager: PathBuf,
    kubectl: Option<PathBuf>,
    helm: Option<PathBuf>,
}

impl Binaries {
    /// Finds them: in `KUBEBUILDER_ASSETS`, in the cache that `e2e/tools/build` fills, or in PATH.
    ///
    /// # Errors
    /// [`Error::Missing`] with the name of the first one that is not there.
    pub fn find() -> Result<Self, Error> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/build");
        let output = Command::new(script)
            .arg("--where")
            .output()
            .map_err(Error::io("run e2e/tools/build --where"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut found: BTreeMap<&str, PathBuf> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, path)| (name, PathBuf::from(path)))
            .collect();
        let mut take =
            |name: &str| found.remove(name).ok_or_else(|| Error::Missing(name.to_owned()));
        Ok(Self {
            etcd: take("etcd")?,
            kube_apiserver: take("kube-apiserver")?,
            kube_controller_manager: take("kube-controller-manager")?,
            kubectl: take("kubectl").ok(),
            helm: take("helm").ok(),
        })
    }

    /// kubectl, within one minor version of the server.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn kubectl(&self) -> Result<&PathBuf, Error> {
        self.kubectl.as_ref().ok_or_else(|| Error::Missing("kubectl".to_owned()))
    }

    /// helm 3.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn helm(&self) -> Result<&PathBuf, Error> {
        self.helm.as_ref().ok_or_else(|| Error::Missing("helm".to_owned()))
    }
}
