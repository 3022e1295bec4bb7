//! Tables: what `kubectl get` prints, made here as the real server makes it.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::jsonpath::JsonPath;

/// A column of a table.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) format: String,
    pub(super) description: String,
    pub(super) priority: i64,
    pub(super) cell: Cell,
}

/// Where a column's values come from.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    /// A path, printed as the column's type says.
    Path(JsonPath),
    /// A value worked out from the object.
    Computed(fn(&Value) -> Value),
}

/// What a row carries of its object (the `includeObject` parameter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl Column {
    /// A column that prints what `path` finds.
    pub(super) fn path(name: &str, kind: &str, path: &str) -> Option<Column> {
        Some(Column {
            name: name.to_owned(),
            kind: kind.to_owned(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            cell: Cell::Path(JsonPath::parse(path)?),
        })
    }

    /// A string column that `compute` fills.
    pub(super) fn computed(name: &str, compute: fn(&Value) -> Value) -> Column {
        Column {
            name: name.to_owned(),
            kind: "string".to_owned(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            cell: Cell::Computed(compute),
        }
    }

    fn definition(&self) -> Value {
        json!({
            "name": self.name, "type": self.kind, "format": self.format,
            "description": self.description, "priority": self.priority,
        })
    }

    fn value(&self, object: &Value, now: Timestamp) -> Value {
        let path = match &self.cell {
            Cell::Computed(compute) => return compute(object),
            Cell::Path(path) => path,
        };
        let Some(value) = path.first(object).filter(|value| !value.is_null()) else {
            return Value::Null;
        };
        match self.kind.as_str() {
            "integer" => match (value.as_i64(), value.as_f64()) {
                (Some(n), _) => json!(n),
                (None, Some(n)) => json!(n as i64),
                (None, None) => Value::Null,
            },
            "number" => value.as_f64().map_or(Value::Null, |n| json!(n)),
            "boolean" => value.as_bool().map_or(Value::Null, |b| json!(b)),
            "date" => json!(age(value, now)),
            _ => match value {
                Value::String(text) => json!(text),
                other => json!(other.to_string()),
            },
        }
    }
}

/// The definitions of a table's columns, NAME first.
pub(super) fn definitions(columns: &[Column]) -> Value {
    let name = json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name must be unique within a namespace.",
    });
    std::iter::once(name).chain(columns.iter().map(Column::definition)).collect()
}

/// The row of one object.
pub(super) fn row(columns: &[Column], object: &Value, include: IncludeObject) -> Value {
    let now = Timestamp::now();
    let name = object.pointer("/metadata/name").cloned().unwrap_or(Value::Null);
    let cells: Vec<Value> = std::iter::once(name)
        .chain(columns.iter().map(|column| column.value(object, now)))
        .collect();
    let mut row = json!({ "cells": cells });
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => row["object"] = partial_metadata(object),
        IncludeObject::Object => row["object"] = object.clone(),
    }
    row
}

/// A `PartialObjectMetadata` of an object.
pub(super) fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

fn age(value: &Value, now: Timestamp) -> String {
    match value.as_str().map(str::parse::<Timestamp>) {
        Some(Ok(then)) => human_duration(now.as_second().saturating_sub(then.as_second())),
        _ => "<invalid>".to_owned(),
    }
}

/// A duration in seconds as kubectl prints ages: two units while small, one when large.
pub(super) fn human_duration(secs: i64) -> String {
    let pair = |big: i64, unit: char, small: i64, sub: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{sub}") }
    };
    let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86400);
    match secs {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        1..120 => format!("{secs}s"),
        120..600 => pair(minutes, 'm', secs % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (10_860, "3h1m"),
            (90_000, "25h"),
            (176_400, "2d1h"),
            (800_000, "9d"),
            (70_000_000, "2y80d"),
            (-5, "<invalid>"),
        ];
        for (secs, wanted) in cases {
            assert_eq!(human_duration(secs), wanted, "{secs}");
        }
    }
}
