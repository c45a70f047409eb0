//! The image of the lab's machines: found, or built once by `e2e/tools/lab/image`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{LabError, step};

/// The folder with the image.
#[derive(Clone, Debug)]
pub struct Image {
    folder: PathBuf,
}

impl Image {
    /// Finds it, or builds it (minutes; the script tells of its steps on stderr).
    ///
    /// # Errors
    /// The script failed.
    pub fn find_or_build() -> Result<Self, LabError> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/lab/image");
        let failed = step("building the lab's image");
        let output = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        match output {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                Ok(Self { folder: PathBuf::from(text.trim()) })
            }
            Ok(output) => Err(failed(std::io::Error::other(output.status.to_string()))),
            Err(error) => Err(failed(error)),
        }
    }

    /// The root file system, never written.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.raw")
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// Its first file system.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// The key of root's account in every machine.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.folder.join("id_ed25519")
    }

    /// Where it lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
