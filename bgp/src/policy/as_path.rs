//! Regular expressions over AS_PATH.

use std::cell::OnceCell;
use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use crate::wire::AsPath;

/// A regular expression over the text of an AS_PATH, as [`AsPath`] shows it: AS numbers with one
/// space between them, the members of a set in braces, nothing for an empty path.
///
/// The language is the field's usual one: `_` is a boundary (the beginning, the end, a space or a
/// brace), and an expression may match anywhere unless `^` and `$` hold it. It is a real regular
/// expression without back references: a match takes time linear in the length of the path, whatever
/// the expression is.
#[derive(Clone)]
pub struct AsPathPattern {
    text: String,
    regex: Regex,
}

/// The text of an AS_PATH, written when the first pattern asks for it: there are many rules, and many
/// routes with the same path.
#[derive(Clone, Debug, Default)]
pub struct AsPathText(OnceCell<String>);

/// Why a text is no [`AsPathPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AsPathPatternError {
    /// Longer than [`AS_PATH_PATTERN_OCTETS_MAX`].
    #[error(
        "it is longer than {AS_PATH_PATTERN_OCTETS_MAX} characters: split it into several rules"
    )]
    TooLong,
    /// A character that no AS_PATH has and that means nothing in an expression.
    #[error(
        "'{0}' never stands in an AS_PATH: use digits, a space, _ for a boundary, and \
         . ^ $ * + ? | ( ) [ ] {{ }} , - \\"
    )]
    Character(char),
    /// No expression, or one that takes too much memory.
    #[error("{0}")]
    Syntax(String),
}

impl AsPathPattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// It is none, or too large.
    pub fn new(text: &str) -> Result<AsPathPattern, AsPathPatternError> {
        if text.len() > AS_PATH_PATTERN_OCTETS_MAX {
            return Err(AsPathPatternError::TooLong);
        }
        // Without letters there are no flags and no classes such as \w that would make more of the
        // language ours to keep.
        let usable = |c: &char| c.is_ascii_digit() || " _.^$*+?|()[]{},-\\".contains(*c);
        if let Some(other) = text.chars().find(|c| !usable(c)) {
            return Err(AsPathPatternError::Character(other));
        }
        let regex = RegexBuilder::new(&expand_boundaries(text))
            .unicode(false)
            .size_limit(COMPILED_OCTETS_MAX)
            .dfa_size_limit(CACHE_OCTETS_MAX)
            .nest_limit(NESTING_MAX)
            .build()
            .map_err(|error| AsPathPatternError::Syntax(last_line(&error.to_string())))?;
        Ok(AsPathPattern { text: text.to_owned(), regex })
    }

    /// Whether it matches somewhere in `path`, whose text is kept in `text`.
    pub fn matches(&self, path: AsPath<'_>, text: &AsPathText) -> bool {
        self.regex.is_match(text.0.get_or_init(|| path.to_string()).as_bytes())
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// `_` outside of a class becomes what it stands for.
fn expand_boundaries(text: &str) -> String {
    let (mut expanded, mut escaped, mut in_class) =
        (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        match c {
            '_' if !escaped && !in_class => {
                expanded.push_str(BOUNDARY);
                continue;
            }
            '[' if !escaped => in_class = true,
            ']' if !escaped => in_class = false,
            // Nothing but a repetition begins with a brace, and a path may hold one.
            '{' if !escaped
                && !in_class
                && !expanded.ends_with(|c: char| ")]}.".contains(c) || c.is_ascii_digit()) =>
            {
                expanded.push('\\');
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        expanded.push(c);
    }
    expanded
}

/// The compiler draws the place of an error over several lines; the last one says what it is.
fn last_line(text: &str) -> String {
    let line = text.lines().next_back().unwrap_or(text);
    line.trim_start_matches("error: ").to_owned()
}

impl PartialEq for AsPathPattern {
    fn eq(&self, other: &AsPathPattern) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for AsPathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsPathPattern({:?})", self.text)
    }
}

impl fmt::Display for AsPathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Longest expression.
pub const AS_PATH_PATTERN_OCTETS_MAX: usize = 256;
/// Memory of a compiled expression: repetitions such as `{1000}` multiply.
const COMPILED_OCTETS_MAX: usize = 256 * 1024;
/// Memory of what is learned while matching.
const CACHE_OCTETS_MAX: usize = 256 * 1024;
/// Groups inside of groups.
const NESTING_MAX: u32 = 32;
const BOUNDARY: &str = "(?:^|$|[ {}])";
