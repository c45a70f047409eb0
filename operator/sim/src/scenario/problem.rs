//! What is wrong with a scenario file, and the nearest known word.

use std::fmt;

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: u32,
    /// What is wrong and what would be right.
    pub text: String,
}

/// Why a scenario file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file can't be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file was read and is wrong; every mistake that was found, in file order.
    #[error("{}", lines(file, problems))]
    Invalid {
        /// The file.
        file: String,
        /// At least one.
        problems: Vec<Problem>,
    },
}

fn lines(file: &str, problems: &[Problem]) -> String {
    struct Line<'a>(&'a str, &'a Problem);
    impl fmt::Display for Line<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}:{}: {}", self.0, self.1.line, self.1.text)
        }
    }
    problems.iter().map(|p| Line(file, p).to_string()).collect::<Vec<_>>().join("\n")
}

/// The known word that is nearest to `word`, however far that is.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|k| {
            let candidate = k.to_lowercase();
            let distance = strsim::damerau_levenshtein(&lower, &candidate);
            // Of two words equally many typos away, the one that begins alike is meant.
            let likeness = strsim::jaro_winkler(&lower, &candidate);
            (k, distance, likeness)
        })
        .min_by(|a, b| a.1.cmp(&b.1).then(b.2.total_cmp(&a.2)))
        .map(|(k, _, _)| k)
}

/// "unknown WHAT `word`; did you mean `nearest`? (known: …)".
pub(crate) fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        None => format!("unknown {what} `{word}`; none is known here"),
        Some(best) if known.len() <= 24 => {
            format!("unknown {what} `{word}`; did you mean `{best}`? (known: {})", known.join(", "))
        }
        Some(best) => format!("unknown {what} `{word}`; did you mean `{best}`?"),
    }
}
