//! Whose a storage is (safety §2.5).

/// Whether a storage may be used whose marker names `found`: this cluster's alone.
///
/// # Errors
/// Whose it is, and what to do.
pub fn judge_marker(found: &str, cluster_id: &str) -> Result<(), String> {
    if found == cluster_id {
        return Ok(());
    }
    Err(format!(
        "it belongs to cluster {found}, this is {cluster_id}: use another export, or take it over \
         there"
    ))
}
