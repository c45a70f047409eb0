//! The binaries.
fn main() {}
