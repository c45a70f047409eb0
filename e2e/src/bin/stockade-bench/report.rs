//! Figures as JSON lines.

use serde::Serialize;

/// What can go wrong while measuring.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a program.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A figure that is no JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Something of ours did not do as it should.
    #[error("{0}")]
    Ours(String),
    /// The peer ran, but not as it should.
    #[error("the peer failed: {0}")]
    Peer(String),
}

/// One measured figure.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// The row of the benchmark set.
    pub row: &'static str,
    /// What was measured.
    pub figure: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Our value.
    pub ours: f64,
    /// The peer's value in this run.
    pub peer: Option<f64>,
    /// Who the peer is.
    pub peer_name: Option<&'static str>,
    /// The peer's value divided by ours.
    pub ratio: Option<f64>,
    /// What we want.
    pub goal: Option<f64>,
    /// Whether the goal is met: `ours` is at most it, or at least where more is better.
    pub met: Option<bool>,
    /// More is better.
    #[serde(skip)]
    pub more_is_better: bool,
    /// Repetitions of ours.
    pub n: usize,
}

impl Figure {
    /// Fills in what follows from the rest, and prints the line.
    ///
    /// # Errors
    /// If the figure can't be written as JSON.
    pub fn print(mut self) -> Result<(), Error> {
        let whole = self.ours > 0.0;
        self.ratio = self.peer.filter(|_| whole).map(|peer| peer / self.ours);
        let met = |goal| if self.more_is_better { self.ours >= goal } else { self.ours <= goal };
        self.met = self.goal.map(met);
        println!("{}", serde_json::to_string(&self)?);
        Ok(())
    }
}

/// The value below which `part` (of 1) of the sorted samples lie.
pub fn quantile(samples: &mut [f64], part: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    let at = (last as f64 * part).ceil() as usize;
    samples.get(at).copied().unwrap_or_default()
}

/// Says so on stderr if other work on the machine spoils the figures.
pub fn warn_if_busy() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let busy = load.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default();
    if busy > 0.5 {
        eprintln!("bench: the machine is busy (load {busy}); the figures are worse for it");
    }
}
