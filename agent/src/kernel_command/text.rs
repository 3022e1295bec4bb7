//! The answers of `cairn kernel` for people.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use cairn_kernel::route::TABLE_MAIN;

use super::compare::{Finding, Provenance, Row, State};
use super::record::{Origin, WriteFailure};

/// The first line of `routes`.
pub(super) const ROUTES_HEAD: &str =
    "  PREFIX               TABLE METRIC TO                                       FROM\n";

/// One route; under one that is not as wanted, why.
pub(super) fn row(row: &Row) -> String {
    let mark = if row.state == State::Installed { ' ' } else { '!' };
    let table = if row.table == TABLE_MAIN { "main".into() } else { row.table.to_string() };
    let from = row.origin.as_ref().map_or_else(|| "nobody".into(), provenance);
    let mut text = format!(
        "{mark} {:<20} {table:<5} {:>6} {:<40} {from}\n",
        row.prefix.to_string(),
        row.metric,
        row.to
    );
    let state = match row.state {
        State::Installed => None,
        State::Missing => Some("not in the kernel".to_owned()),
        State::Differs => {
            let wanted = row.wanted.as_deref().unwrap_or("otherwise");
            Some(format!("not as wanted: {wanted}"))
        }
        State::Extra => Some("in the kernel, and not wanted".to_owned()),
    };
    let failure = row.failure.as_ref().map(failure);
    for line in [state, row.why.clone(), failure].into_iter().flatten() {
        let _ = writeln!(text, "    {line}");
    }
    text
}

fn provenance(origin: &Provenance) -> String {
    match origin {
        Provenance::Pod(pod) => match (&pod.uid, &pod.container) {
            (Some(uid), _) => format!("pod {uid}"),
            (None, Some(container)) => format!("container {container}"),
            (None, None) => format!("pod behind {}", pod.interface),
        },
        Provenance::Daemon(Origin::OwnBlock) => "own block".into(),
        Provenance::Daemon(Origin::Bgp { paths, tunnel }) => {
            let peers: Vec<&str> = paths.iter().map(|path| path.peer.as_str()).collect();
            let peers = peers.join(", ");
            match tunnel {
                Some(tunnel) => format!("{peers}; {:?} to node {}", tunnel.kind, tunnel.node),
                None => peers,
            }
        }
    }
}

/// A refusal in words.
pub(super) fn failure(failure: &WriteFailure) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let secs = now.saturating_sub(failure.since_unix_secs);
    format!("{} (for {secs} s, tried {} times)", failure.reason, failure.attempts)
}

/// One thing that is not as wanted.
pub(super) fn finding(finding: &Finding) -> String {
    let state = match finding.state {
        State::Installed => "as wanted",
        State::Missing => "missing",
        State::Differs => "differs",
        State::Extra => "extra",
    };
    let mut text = format!("{state:<8} {} {}\n", finding.what, finding.name);
    let lines = [
        ("wanted ", finding.wanted.as_ref()),
        ("present", finding.present.as_ref()),
        ("why    ", finding.why.as_ref()),
    ];
    for (word, line) in lines {
        if let Some(line) = line.filter(|line| !line.is_empty()) {
            let _ = writeln!(text, "    {word} {line}");
        }
    }
    text
}
