//! `stockade crds`: the CustomResourceDefinitions, to a terminal or a folder.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `stockade crds`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Write one file a kind into this folder instead of one stream to stdout.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum CrdsError {
    #[error(transparent)]
    Manifest(#[from] stockade_crds::ManifestError),
    #[error("can't write {path}")]
    Write { path: String, source: std::io::Error },
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match print(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::failed(&error),
    }
}

fn print(arguments: &Arguments) -> Result<(), CrdsError> {
    let files = stockade_crds::yaml()?;
    let Some(folder) = &arguments.output else {
        let mut stdout = std::io::stdout().lock();
        for (_, text) in files {
            write!(stdout, "---\n{text}")
                .map_err(|source| CrdsError::Write { path: "stdout".to_owned(), source })?;
        }
        return Ok(());
    };
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|source| CrdsError::Write { path: path.display().to_string(), source })?;
    }
    Ok(())
}
