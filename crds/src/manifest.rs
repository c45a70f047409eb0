//! Manifests as text that every YAML reader understands alike.

use serde::Serialize;

/// A value that can't be written as YAML.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The value has no JSON form.
    #[error("the object has no JSON form")]
    Json(#[source] serde_json::Error),
    /// The emitter refused it.
    #[error("the object can't be written as YAML")]
    Yaml(#[source] serde_saphyr::ser_error::Error),
}

/// `value` as one YAML document that ends in a newline.
///
/// Words that YAML 1.1 reads as a boolean, a number or a date (`on`, `no`,
/// `1_000`, `2026-01-01`) are quoted: kubectl and Helm still read YAML 1.1.
///
/// # Errors
/// If `value` has no JSON form or holds what YAML can't.
pub fn to_yaml<T: Serialize>(value: &T) -> Result<String, ManifestError> {
    // By JSON, so that an enum with data becomes a map and never a tag.
    let json = serde_json::to_value(value).map_err(ManifestError::Json)?;
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let mut text =
        serde_saphyr::to_string_with_options(&json, options).map_err(ManifestError::Yaml)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Every CustomResourceDefinition as a file: its name and its text.
///
/// # Errors
/// As [`to_yaml`].
pub fn yaml() -> Result<Vec<(String, String)>, ManifestError> {
    crate::all_crds()
        .iter()
        .map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), to_yaml(crd)?)))
        .collect()
}
