//! Text for a terminal: columns and ages as kubectl prints them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Columns, two spaces apart, as wide as their widest cell; the last one is not padded.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let gap = width + 2 - cell.chars().count();
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', gap));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago something was: `42s`, `7m`, `3h`, `12d`.
pub(super) fn ago(then: Option<&Time>, now_millis: i64) -> String {
    let Some(then) = then else { return "-".to_owned() };
    let seconds = (now_millis / 1000 - then.0.as_second()).max(0);
    span(seconds)
}

/// So many seconds, in the largest unit that still says something.
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The text, or a dash where there is none.
pub(super) fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let rows = vec![vec!["a".into(), "long cell".into(), "x".into()], vec!["bb".into()]];
        assert_eq!(
            table(&["NAME", "B", "C"], &rows),
            "NAME  B          C\na     long cell  x\nbb\n"
        );
    }

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        let told: Vec<String> = [0, 119, 120, 7_199, 7_200, 172_800].map(span).into();
        assert_eq!(told, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
