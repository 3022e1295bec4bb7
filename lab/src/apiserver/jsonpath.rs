//! The part of JSONPath that printer columns and selectable fields use.

use serde_json::Value;

/// Steps of a path in one expression at most.
const STEPS_MAX: usize = 32;

/// A parsed path such as `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Filter(JsonPath, bool, Value),
}

impl JsonPath {
    /// Reads a path; `None` when it uses what is not supported here.
    pub(super) fn parse(text: &str) -> Option<JsonPath> {
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(inner);
        let mut rest = inner.strip_prefix(['$', '@']).unwrap_or(inner);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if steps.len() >= STEPS_MAX {
                return None;
            }
            let (step, after) = if let Some(tail) = rest.strip_prefix('.') {
                // `.x[...]` and `.[...]` both occur in the wild.
                if tail.starts_with('[') {
                    rest = tail;
                    continue;
                }
                field(tail)?
            } else if let Some(tail) = rest.strip_prefix('[') {
                bracket(tail)?
            } else if steps.is_empty() {
                field(rest)?
            } else {
                return None;
            };
            steps.push(step);
            rest = after;
        }
        Some(JsonPath(steps))
    }

    /// The first value that the path finds.
    pub(super) fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.all(root).into_iter().next()
    }

    fn all<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![root];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                step.walk(value, &mut next);
            }
            found = next;
        }
        found
    }
}

impl Step {
    fn walk<'a>(&self, value: &'a Value, out: &mut Vec<&'a Value>) {
        match self {
            Step::Field(name) => out.extend(value.get(name)),
            Step::Index(index) => {
                let Some(list) = value.as_array() else { return };
                let at = if *index < 0 {
                    list.len().checked_sub(index.unsigned_abs() as usize)
                } else {
                    usize::try_from(*index).ok()
                };
                out.extend(at.and_then(|at| list.get(at)));
            }
            Step::All => match value {
                Value::Array(list) => out.extend(list),
                Value::Object(map) => out.extend(map.values()),
                _ => {}
            },
            Step::Filter(path, wanted, literal) => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                out.extend(
                    items.iter().filter(|item| (path.first(item) == Some(literal)) == *wanted),
                );
            }
        }
    }
}

fn field(text: &str) -> Option<(Step, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => {
                end = at;
                break;
            }
            _ => name.push(c),
        }
    }
    let rest = text.get(end..)?;
    match name.as_str() {
        "" => None,
        "*" => Some((Step::All, rest)),
        _ => Some((Step::Field(name), rest)),
    }
}

fn bracket(text: &str) -> Option<(Step, &str)> {
    if let Some(filter) = text.strip_prefix("?(") {
        let (body, rest) = filter.split_once(")]")?;
        let (path, wanted, literal) = match (body.split_once("=="), body.split_once("!=")) {
            (Some((path, literal)), _) => (path, true, literal),
            (None, Some((path, literal))) => (path, false, literal),
            (None, None) => return None,
        };
        let literal = literal.trim();
        let literal = match literal.strip_prefix('\'').and_then(|l| l.strip_suffix('\'')) {
            Some(inner) => Value::String(inner.to_owned()),
            None => serde_json::from_str(literal).ok()?,
        };
        let path = JsonPath::parse(path.trim())?;
        return Some((Step::Filter(path, wanted, literal), rest));
    }
    for quote in ['\'', '"'] {
        if let Some(quoted) = text.strip_prefix(quote) {
            let (name, rest) = quoted.split_once(quote)?;
            return Some((Step::Field(name.to_owned()), rest.strip_prefix(']')?));
        }
    }
    let (body, rest) = text.split_once(']')?;
    let step = if body == "*" { Step::All } else { Step::Index(body.parse().ok()?) };
    Some((step, rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_what_printer_columns_ask_for() {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}},
            "status": {"conditions": [
                {"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True"},
            ]},
        });
        let cases = [
            (".status.conditions[?(@.type==\"Ready\")].status", Some(json!("True"))),
            (".status.conditions[?(@.type=='Synced')].status", Some(json!("False"))),
            (".status.conditions[0].type", Some(json!("Synced"))),
            (".status.conditions[-1].type", Some(json!("Ready"))),
            (".status.conditions[*].type", Some(json!("Synced"))),
            (".metadata.labels.a\\.b/c", Some(json!("x"))),
            (".metadata.labels['a.b/c']", Some(json!("x"))),
            ("{.metadata.labels['a.b/c']}", Some(json!("x"))),
            (".status.nothing.here", None),
        ];
        for (text, wanted) in cases {
            let path = JsonPath::parse(text).unwrap_or_else(|| panic!("{text} does not parse"));
            assert_eq!(path.first(&object).cloned(), wanted, "{text}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in [".a..b", ".a[1:2]", ".a[?(@.x>3)]", ".a[", ".", "..a"] {
            assert_eq!(JsonPath::parse(text), None, "{text}");
        }
    }
}
