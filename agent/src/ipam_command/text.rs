//! Words for people: spans of time, lists that have an end, tables.

/// A span of time in the two largest units that matter, for example `3 h 20 min`.
pub(super) fn span(secs: i64) -> String {
    let secs = secs.max(0);
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let mut rest = secs;
    let mut parts = Vec::new();
    for (unit, size) in units {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            parts.push(format!("{count} {unit}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

/// The first few of many, with how many more there are.
pub(super) fn some<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let mut all = all.into_iter();
    let mut text = all.by_ref().take(NAMED_MAX).map(|one| one.to_string()).collect::<Vec<_>>();
    match all.count() {
        0 => text.join(", "),
        more => {
            text.push(format!("{more} more"));
            text.join(", ")
        }
    }
}

/// `one thing` or `n things`.
pub(super) fn count(number: usize, noun: &str) -> String {
    let ending = match (number, noun.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{number} {noun}{ending}")
}

/// Rows whose columns are as wide as they need to be.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    };
    line(&head);
    for row in rows {
        line(&row.each_ref().map(String::as_str));
    }
    text
}

/// What a sentence names at most.
const NAMED_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_the_two_largest_units() {
        let cases = [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_660, "1 h 1 min"), (3_601, "1 h")];
        for (secs, text) in cases {
            assert_eq!(span(secs), text);
        }
        assert_eq!(span(90_000), "1 d 1 h");
        assert_eq!(span(-5), "0 s", "a clock that is behind");
    }

    #[test]
    fn numbers_go_with_their_nouns() {
        let said = [count(1, "pod"), count(2, "pod"), count(0, "address"), count(1, "address")];
        assert_eq!(said, ["1 pod", "2 pods", "0 addresses", "1 address"]);
    }

    #[test]
    fn long_lists_end_with_how_many_more_there_are() {
        assert_eq!(some(["a", "b"]), "a, b");
        assert_eq!(some(0..12), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2 more");
    }
}
