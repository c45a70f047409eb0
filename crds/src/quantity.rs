//! Kubernetes quantities as bytes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// One MiB in bytes.
pub const MIB: i64 = 1024 * 1024;

/// The bytes that a quantity names.
///
/// # Errors
/// The text itself, with the remedy, if it is no non-negative quantity or does
/// not fit 63 bits.
pub fn bytes(quantity: &Quantity) -> Result<i64, String> {
    let text = quantity.0.trim();
    let refuse = || format!("{text:?} is no size: write it like 512Mi, 4Gi or 10G");
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor: f64 = match suffix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        _ => return Err(refuse()),
    };
    let value: f64 = number.parse().map_err(|_| refuse())?;
    let total = value * factor;
    if total.is_finite() && total < 9.0e18 { Ok(total as i64) } else { Err(refuse()) }
}

/// A quantity of whole MiB.
#[must_use]
pub fn from_mib(mib: i64) -> Quantity {
    Quantity(format!("{mib}Mi"))
}

/// The MiB that a quantity names, rounded up.
///
/// # Errors
/// As [`bytes`].
pub fn mib(quantity: &Quantity) -> Result<i64, String> {
    Ok((bytes(quantity)? + MIB - 1) / MIB)
}
