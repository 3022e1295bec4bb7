//! The answers of `cairn bgp` for people.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use cairn_bgp::prefix::Family;
use cairn_bgp::rib::{
    Advertised, AdvertisedRoute, BestChange, CandidateInfo, ReceivedRoute, RouteCounts,
    RouteExplanation, RouteInfo,
};
use cairn_bgp::session::SessionState;
use cairn_bgp::status::{
    ErrorRecord, MessageOctets, NegotiatedSnapshot, PeerSnapshot, SessionChange, SessionRecord,
    WatchEvent,
};
use k8s_openapi::jiff::Timestamp;

use crate::control::protocol::{Done, Peer};

/// The first line of `routes`.
pub(super) const ROUTES_HEAD: &str = concat!(
    "  PREFIX               NEXT HOP         PEER             LOCAL-PREF        MED ORIGIN     ",
    "AS PATH\n"
);
/// The first line of `adj-in`.
pub(super) const RECEIVED_HEAD: &str =
    "PREFIX               NEXT HOP         LOCAL-PREF        MED ORIGIN     AS PATH; VERDICT\n";
/// The first line of `adj-out`.
pub(super) const ADVERTISED_HEAD: &str = concat!(
    "PREFIX               NEXT HOP         FROM             LOCAL-PREF        MED ORIGIN     ",
    "AS PATH; VERDICT\n"
);

/// A table of all peers; under a session that is not up, why.
pub(super) fn peers(peers: &[Peer]) -> String {
    let mut rows = vec![
        ["PEER", "ADDRESS", "AS", "STATE", "FOR", "IPv4 IN/USED/OUT", "IPv6 IN/USED/OUT"]
            .map(str::to_owned),
    ];
    rows.extend(peers.iter().map(|Peer { name, session }| {
        [
            name.clone(),
            session.place(),
            session.remote_asn.to_string(),
            state(session),
            elapsed(session.since_unix_secs),
            counts(session, Family::Ipv4Unicast),
            counts(session, Family::Ipv6Unicast),
        ]
    }));
    let widths: Vec<usize> = (0..rows.first().map_or(0, |row| row.len()))
        .map(|column| rows.iter().map(|row| row.get(column).map_or(0, String::len)).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    let notes = std::iter::once(None).chain(peers.iter().map(|peer| note(&peer.session)));
    for (row, note) in rows.iter().zip(notes) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
        if let Some(note) = note {
            let _ = writeln!(text, "    {note}");
        }
    }
    text
}

fn state(session: &PeerSnapshot) -> String {
    match session.disabled {
        true => "Disabled".into(),
        false => format!("{:?}", session.state),
    }
}

fn counts(session: &PeerSnapshot, family: Family) -> String {
    let in_use = session.negotiated.as_ref().is_none_or(|n| n.families.contains(&family));
    match session.routes.get(&family).filter(|_| in_use) {
        Some(counts) => format!("{}/{}/{}", counts.received, counts.accepted, counts.advertised),
        None => "-".into(),
    }
}

/// Why a session is not up, or not as it was wanted.
fn note(session: &PeerSnapshot) -> Option<String> {
    if session.state == SessionState::Established {
        let missing = &session.negotiated.as_ref()?.missing;
        let texts: Vec<_> =
            missing.iter().map(|m| format!("no {}: {}", m.family, m.reason)).collect();
        return (!texts.is_empty()).then(|| texts.join("; "));
    }
    let error = session.last_error.as_ref().map(|error| error.text.clone());
    error.or_else(|| session.last_down.as_ref().map(|down| down.reason.clone()))
}

/// All that is known of one peer.
pub(super) fn peer(Peer { name, session }: &Peer) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key:<16} {value}");
    };
    line("peer", name.clone());
    line("address", session.place());
    line("as", session.remote_asn.to_string());
    line("state", format!("{} for {}", state(session), elapsed(session.since_unix_secs)));
    line("established", format!("{} times", session.established_count));
    if let Some(secs) = session.comes_back_in_secs {
        line("comes back", format!("in {secs} s"));
    }
    if let Some(doubt) = &session.doubt {
        line("in doubt", doubt.clone());
    }
    if let Some(down) = &session.last_down {
        line("last down", format!("{}: {}", time(down.at_unix_secs), down.reason));
    }
    if let Some(error) = &session.last_error {
        line("last error", format!("{}: {}", time(error.at_unix_secs), error.text));
    }
    line("errors", session.errors.to_string());
    for (family, counts) in &session.routes {
        let RouteCounts { received, accepted, advertised, dropped, too_large } = counts;
        let beyond = match dropped {
            0 => String::new(),
            dropped => format!(", {dropped} above the limit"),
        };
        let withheld = match too_large {
            0 => String::new(),
            too_large => format!(", {too_large} too large for its messages"),
        };
        let counts = format!("received {received}, accepted {accepted}, advertised {advertised}");
        line(&family.to_string(), counts + &withheld + &beyond);
    }
    if let Some(negotiated) = &session.negotiated {
        self::negotiated(negotiated, &mut line);
    }
    text
}

fn negotiated(negotiated: &NegotiatedSnapshot, line: &mut impl FnMut(&str, String)) {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let families: Vec<String> = negotiated.families.iter().map(Family::to_string).collect();
    line("local address", negotiated.local_address.to_string());
    line("remote router id", negotiated.remote_router_id.clone());
    line("hold time", format!("{} s", negotiated.hold_time_secs));
    line("families", families.join(", "));
    for missing in &negotiated.missing {
        line("", format!("no {}: {}", missing.family, missing.reason));
    }
    line(
        "graceful restart",
        match negotiated.peer_restart_time_secs {
            Some(secs) => format!("the peer may take {secs} s"),
            None => "no".into(),
        },
    );
    line(
        "route refresh",
        match (negotiated.route_refresh, negotiated.enhanced_route_refresh) {
            (_, true) => "enhanced".into(),
            (refresh, false) => yes_no(refresh),
        },
    );
    line("4-octet AS", yes_no(negotiated.four_octet_as));
    line("IPv6 next hops", format!("{} (for IPv4 routes)", yes_no(negotiated.extended_next_hop)));
    if let Some(paths) = several_paths(negotiated) {
        line("several paths", paths);
    }
    let (send, receive) = (negotiated.send_octets_max, negotiated.receive_octets_max);
    line("messages", format!("up to {send} octets sent, {receive} received"));
}

/// In which families several paths to a prefix are told (RFC 7911); `None` where in none.
fn several_paths(negotiated: &NegotiatedSnapshot) -> Option<String> {
    let ways = [("received", &negotiated.receives_paths), ("sent", &negotiated.sends_paths)];
    let ways = ways.iter().filter(|(_, families)| !families.is_empty()).map(|(way, families)| {
        let families: Vec<String> = families.iter().map(Family::to_string).collect();
        format!("{way} ({})", families.join(", "))
    });
    let ways: Vec<String> = ways.collect();
    (!ways.is_empty()).then(|| ways.join(", "))
}

/// The routes in use to one prefix.
pub(super) fn routes(route: &RouteInfo) -> String {
    let mut text = String::new();
    for candidate in &route.candidates {
        let mark = if candidate.best { '>' } else { '=' };
        let _ = writeln!(
            text,
            "{mark} {:<20} {:<16} {:<16} {:>10} {:>10} {:<10} {}{}",
            route.prefix.to_string(),
            candidate.next_hop.as_deref().unwrap_or("-"),
            from(candidate),
            candidate.local_pref,
            number(candidate.med),
            candidate.origin,
            path(&candidate.as_path),
            path_id(candidate.path_id) + &communities(candidate)
        );
    }
    text
}

/// A route that a peer has announced.
pub(super) fn received(route: &ReceivedRoute) -> String {
    let candidate = &route.received;
    format!(
        "{:<20} {:<16} {:>10} {:>10} {:<10} {}{}; {}{}\n",
        route.prefix.to_string(),
        candidate.next_hop.as_deref().unwrap_or("-"),
        candidate.local_pref,
        number(candidate.med),
        candidate.origin,
        path(&candidate.as_path),
        path_id(candidate.path_id) + &communities(candidate),
        candidate.verdict,
        if candidate.stale { " (stale)" } else { "" },
    )
}

/// A route that a peer has been told.
pub(super) fn advertised(route: &AdvertisedRoute) -> String {
    let told = &route.advertised;
    format!(
        "{:<20} {:<16} {:<16} {:>10} {:>10} {:<10} {}{}; {}\n",
        route.prefix.to_string(),
        told.next_hop.as_deref().unwrap_or("-"),
        told.from.as_deref().unwrap_or("(originated)"),
        number(told.local_pref),
        number(told.med),
        told.origin,
        path(&told.as_path),
        path_id(told.path_id)
            + &all_communities(
                &told.communities,
                &told.large_communities,
                &told.extended_communities
            ),
        told.verdict,
    )
}

/// All about one prefix.
pub(super) fn explanation(explanation: &RouteExplanation) -> String {
    let mut text = format!("{}\n", explanation.route.prefix);
    for candidate in &explanation.route.candidates {
        let standing = match (candidate.best, candidate.multipath, candidate.lost_at) {
            (true, _, _) => "best".into(),
            (_, true, _) => "used beside the best one".into(),
            (_, _, Some(step)) => format!("not used: {step}"),
            _ => "not used".into(),
        };
        let path_id = path_id(candidate.path_id);
        let _ = writeln!(text, "  from {}{path_id}: {standing}", from(candidate));
        let _ = writeln!(text, "      {}", attributes(candidate));
        if candidate.peer.is_some() {
            let stale = if candidate.stale { "; stale: the peer restarts" } else { "" };
            let _ = writeln!(text, "      {}{stale}", candidate.verdict);
        }
    }
    if explanation.told.is_empty() {
        text.push_str("  told to nobody\n");
    }
    for told in &explanation.told {
        let Advertised { next_hop, as_path, origin, local_pref, med, .. } = &told.advertised;
        let path_id = path_id(told.advertised.path_id);
        let _ = writeln!(text, "  told to {}{path_id}", told.peer);
        let mut parts = vec![format!("next hop {}", next_hop.as_deref().unwrap_or("-"))];
        parts.push(format!("AS path {}", path(as_path)));
        parts.push(format!("origin {origin}"));
        parts.extend(local_pref.map(|value| format!("local-pref {value}")));
        parts.extend(med.map(|value| format!("MED {value}")));
        let _ = writeln!(text, "      {}", parts.join(", "));
        let _ = writeln!(text, "      {}", told.advertised.verdict);
    }
    for not_told in &explanation.not_told {
        let reason = not_told.verdict.strip_prefix("not announced: ");
        let reason = reason.unwrap_or(&not_told.verdict);
        let _ = writeln!(text, "  not told to {}: {reason}", not_told.peer);
    }
    text
}

fn attributes(candidate: &CandidateInfo) -> String {
    let mut parts = Vec::new();
    parts.extend(candidate.next_hop.as_ref().map(|address| format!("next hop {address}")));
    parts.push(format!("AS path {}", path(&candidate.as_path)));
    parts.push(format!("origin {}", candidate.origin));
    parts.push(format!("local-pref {}", candidate.local_pref));
    parts.extend(candidate.med.map(|value| format!("MED {value}")));
    format!("{}{}", parts.join(", "), communities(candidate))
}

/// Behind what tells several paths of one peer apart (RFC 7911), nothing elsewhere.
fn path_id(path_id: Option<u32>) -> String {
    path_id.map(|path_id| format!(", path {path_id}")).unwrap_or_default()
}

fn path(as_path: &str) -> &str {
    if as_path.is_empty() { "empty" } else { as_path }
}

/// One entry of an error history, and under it the message.
pub(super) fn error(record: &ErrorRecord) -> String {
    let mut text = time(record.at_unix_secs);
    let kind = serde_json::to_value(record.kind).unwrap_or_default();
    let _ = write!(text, " {}", kind.as_str().unwrap_or_default());
    if record.count > 1 {
        let _ = write!(text, " ({} times since {})", record.count, time(record.first_unix_secs));
    }
    let _ = writeln!(text, "\n    {}", record.text);
    if !record.prefixes.is_empty() {
        let prefixes: Vec<String> = record.prefixes.iter().map(ToString::to_string).collect();
        let more = match record.prefixes_left_out {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        let _ = writeln!(text, "    prefixes {}{more}", prefixes.join(" "));
    }
    if record.message.is_empty() {
        if record.message_octets > 0 {
            let octets = record.message_octets;
            let _ = writeln!(text, "    message of {octets} octets: --hex shows them");
        }
    } else {
        let _ = writeln!(text, "    message of {} octets:", record.message_octets);
        text.push_str(&dump(&record.message));
    }
    text
}

/// Sixteen octets a line, behind the place of the first one.
fn dump(octets: &MessageOctets) -> String {
    let mut text = String::new();
    for (index, line) in octets.0.chunks(16).enumerate() {
        let digits: Vec<String> = line.iter().map(|octet| format!("{octet:02x}")).collect();
        let _ = writeln!(text, "      {:04x}  {}", index * 16, digits.join(" "));
    }
    text
}

/// One entry of a session's history.
pub(super) fn record(record: &SessionRecord) -> String {
    let SessionChange { at_unix_secs, from, to, reason, .. } = &record.change;
    let mut text = format!("{} {from:?} -> {to:?}", time(*at_unix_secs));
    if record.count > 1 {
        let _ = write!(text, " ({} times since {})", record.count, time(record.first_unix_secs));
    }
    let _ = match reason {
        Some(reason) => writeln!(text, "\n    {reason}"),
        None => writeln!(text),
    };
    text
}

/// An event.
pub(super) fn event(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Session(SessionChange { at_unix_secs, peer, from, to, reason }) => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{} session {peer} {from:?} -> {to:?}{reason}\n", time(*at_unix_secs))
        }
        WatchEvent::Route(BestChange { prefix, best: None }) => {
            format!("{} route {prefix} gone\n", now())
        }
        WatchEvent::Route(BestChange { prefix, best: Some(best) }) => {
            format!("{} route {prefix} from {}: {}\n", now(), from(best), attributes(best))
        }
        WatchEvent::Missed { events } => {
            format!("{} {events} events were left out: too many at once\n", now())
        }
    }
}

/// What was done.
pub(super) fn done(done: &Done) -> String {
    format!("{}: {}\n", done.peer, done.done)
}

fn from(candidate: &CandidateInfo) -> &str {
    let source = candidate.peer.as_deref().or(candidate.source.as_deref());
    source.unwrap_or("(originated)")
}

fn number(value: Option<u32>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn communities(candidate: &CandidateInfo) -> String {
    all_communities(
        &candidate.communities,
        &candidate.large_communities,
        &candidate.extended_communities,
    )
}

fn all_communities(plain: &[String], large: &[String], extended: &[String]) -> String {
    let mut text = String::new();
    for (name, values) in [("communities", plain), ("large", large), ("extended", extended)] {
        if !values.is_empty() {
            let _ = write!(text, ", {name} {}", values.join(" "));
        }
    }
    text
}

fn now() -> String {
    time(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

fn time(unix_secs: u64) -> String {
    let time = i64::try_from(unix_secs).ok().and_then(|secs| Timestamp::from_second(secs).ok());
    time.map_or("-".into(), |time| time.to_string())
}

/// The time since then in its two largest units.
fn elapsed(since_unix_secs: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    duration(now.saturating_sub(since_unix_secs))
}

fn duration(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m{}s", secs / 60, secs % 60),
        3600..86400 => format!("{}h{}m", secs / 3600, secs / 60 % 60),
        _ => format!("{}d{}h", secs / 86400, secs / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_octets_are_numbered() {
        let expected = [(59, "59s"), (61, "1m1s"), (3600, "1h0m"), (90_000, "1d1h")];
        for (secs, text) in expected {
            assert_eq!(duration(secs), text);
        }
        let octets = MessageOctets((0..18u8).collect::<Vec<_>>().into());
        let lines =
            "      0000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n      0010  10 11\n";
        assert_eq!(dump(&octets), lines);
    }
}
