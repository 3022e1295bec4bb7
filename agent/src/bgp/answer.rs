//! The daemon's side of `cairn bgp`: from a request to records.

use std::net::IpAddr;
use std::sync::Arc;

use cairn_bgp::config::PeerName;
use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::{RouteQuery, TableFilter, TableKind};
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{Reset, SpeakerHandle};
use cairn_bgp::status::{MessageOctets, PeerSnapshot, SpeakerSnapshot};

use crate::control::Service;
use crate::control::protocol::{Ask, Direction, Done, HEARD_ASKED_MAX, Peer, PeerTable, Refusal};
use crate::control::server::{Answer, Broken};
use crate::disabled::DisabledPeers;
use crate::kernel_command;

/// Answers a request to its end.
pub(crate) async fn answer(
    ask: Ask,
    service: &Service,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    if ask == Ask::Status {
        return answer.record(&(service.report)().await).await;
    }
    if ask == Ask::Kernel {
        return kernel_command::answer(service.kernel.as_ref(), answer).await;
    }
    let speaker = service.speaker.borrow().clone();
    let speaker = speaker.ok_or_else(|| {
        Refusal::new("BGP has not started yet: `cairn status` says what it waits for")
    })?;
    match ask {
        Ask::Status | Ask::Kernel => Ok(()),
        Ask::Peers { peer } => peers(&speaker, peer.as_deref(), answer).await,
        Ask::Routes { family, within, peer } => {
            let peer = match peer {
                None => None,
                Some(text) => Some(named(&speaker.snapshot().await?, &text)?.0),
            };
            table(
                &speaker,
                TableFilter { table: TableKind::LocRib { peer }, family, within },
                answer,
            )
            .await
        }
        Ask::Route { destination } => route(&speaker, &destination, answer).await,
        Ask::Heard { prefixes } => heard(&speaker, &prefixes, answer).await,
        Ask::AdjIn(PeerTable { peer, family, within }) => {
            let (peer, _) = named(&speaker.snapshot().await?, &peer)?;
            let table = TableKind::AdjIn(peer);
            self::table(&speaker, TableFilter { table, family, within }, answer).await
        }
        Ask::AdjOut(PeerTable { peer, family, within }) => {
            let (peer, _) = named(&speaker.snapshot().await?, &peer)?;
            let table = TableKind::AdjOut(peer);
            self::table(&speaker, TableFilter { table, family, within }, answer).await
        }
        Ask::Errors { peer, octets } => errors(&speaker, &peer, octets, answer).await,
        Ask::History { peer } => history(&speaker, &peer, answer).await,
        Ask::Watch => watch(&speaker, answer).await,
        Ask::Reset { peer, soft } => reset(&speaker, &peer, soft, answer).await,
        Ask::SetEnabled { peer, enabled } => {
            set_enabled(&speaker, &service.disabled, &peer, enabled, answer).await
        }
    }
}

async fn peers(
    speaker: &SpeakerHandle,
    only: Option<&str>,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let snapshot = speaker.snapshot().await?;
    let only = only.map(|text| named(&snapshot, text)).transpose()?.map(|(name, _)| name);
    for (name, session) in snapshot.peers {
        if only.as_ref().is_none_or(|only| **only == *name) {
            answer.record(&Peer { name, session }).await?;
        }
    }
    Ok(())
}

async fn table(
    speaker: &SpeakerHandle,
    filter: TableFilter,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let mut table = speaker.table(filter).await?;
    while let Some(rows) = table.next().await? {
        for row in &rows {
            answer.record(row).await?;
        }
    }
    Ok(())
}

async fn heard(
    speaker: &SpeakerHandle,
    prefixes: &[Prefix],
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    if prefixes.len() > HEARD_ASKED_MAX {
        let text = format!("ask about at most {HEARD_ASKED_MAX} prefixes at once");
        return Err(Refusal::new(text).into());
    }
    let heard = speaker.heard(prefixes).await?;
    for route in &heard.routes {
        answer.record(route).await?;
    }
    match heard.left_out {
        0 => Ok(()),
        more => Err(Refusal::new(format!("{more} more routes are announced than are told")).into()),
    }
}

async fn route(
    speaker: &SpeakerHandle,
    destination: &str,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let query = match (destination.parse::<IpAddr>(), destination.parse::<Prefix>()) {
        (Ok(address), _) => RouteQuery::Address(address),
        (_, Ok(prefix)) => RouteQuery::Prefix(prefix),
        _ => {
            return Err(Refusal::new(format!(
                "\"{destination}\" is neither a prefix nor an address: write one such as \
                 10.244.0.0/26 or 10.244.0.1"
            ))
            .into());
        }
    };
    match speaker.explain(query).await? {
        Some(explanation) => answer.record(&explanation).await,
        None => Err(Refusal::new(format!("there is no route to {destination}")).into()),
    }
}

async fn errors(
    speaker: &SpeakerHandle,
    peer: &str,
    octets: bool,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let (peer, _) = named(&speaker.snapshot().await?, peer)?;
    for mut record in speaker.errors(peer).await? {
        if !octets {
            record.message = MessageOctets::default();
        }
        answer.record(&record).await?;
    }
    Ok(())
}

async fn history(
    speaker: &SpeakerHandle,
    peer: &str,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let (peer, _) = named(&speaker.snapshot().await?, peer)?;
    for record in speaker.history(peer).await? {
        answer.record(&record).await?;
    }
    Ok(())
}

async fn watch(speaker: &SpeakerHandle, answer: &mut Answer<'_>) -> Result<(), Broken> {
    let mut feed = speaker.watch().await?;
    loop {
        let event = tokio::select! {
            event = feed.recv() => event,
            () = answer.gone() => return Err(Broken::Unread),
        };
        let event = event.ok_or_else(|| Refusal::new("the speaker has ended"))?;
        answer.record(&*event).await?;
        // While this waits for the client, the feed counts what it has to leave out.
        answer.flush().await?;
    }
}

async fn reset(
    speaker: &SpeakerHandle,
    peer: &str,
    soft: Option<Direction>,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let (peer, session) = named(&speaker.snapshot().await?, peer)?;
    if session.disabled {
        let text = format!("{peer} is disabled: `cairn bgp enable {peer}` brings it back");
        return Err(Refusal::new(text).into());
    }
    if soft.is_some() && session.state != SessionState::Established {
        let text = format!("{peer} has no session over which routes could be sent again");
        return Err(Refusal::new(text).into());
    }
    let refreshes = session.negotiated.is_some_and(|negotiated| negotiated.route_refresh);
    let (reset, done) = match soft {
        None => (Reset::Hard { text: "reset by an operator".into() }, "the session begins anew"),
        Some(Direction::In) if refreshes => (
            Reset::SoftIn,
            "what it has sent is judged again, and it is asked to send everything again",
        ),
        Some(Direction::In) => (
            Reset::SoftIn,
            "what it has sent is judged again; it cannot be asked to send it again (no route refresh)",
        ),
        Some(Direction::Out) => (Reset::SoftOut, "it is sent everything again"),
    };
    speaker.reset(Arc::clone(&peer), reset).await?;
    answer.record(&Done { peer: peer.to_string(), done: done.into() }).await
}

async fn set_enabled(
    speaker: &SpeakerHandle,
    disabled: &Arc<DisabledPeers>,
    peer: &str,
    enabled: bool,
    answer: &mut Answer<'_>,
) -> Result<(), Broken> {
    let (peer, _) = named(&speaker.snapshot().await?, peer)?;
    let _turn = disabled.turn().await;
    let (name, disabled) = (Arc::clone(&peer), Arc::clone(disabled));
    let remembered = tokio::task::spawn_blocking(move || disabled.remember(&name, enabled)).await;
    let failed = match remembered {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = failed {
        let text = format!("nothing has changed: it could not be remembered: {error}");
        return Err(Refusal::new(text).into());
    }
    speaker.set_enabled(Arc::clone(&peer), enabled).await?;
    let done = match enabled {
        true => "enabled".into(),
        false => format!(
            "disabled, also after a restart of this process, until `cairn bgp enable {peer}`"
        ),
    };
    answer.record(&Done { peer: peer.to_string(), done }).await
}

/// The one peer that `text` means: by its whole name, else by its last part or its address.
fn named(snapshot: &SpeakerSnapshot, text: &str) -> Result<(PeerName, PeerSnapshot), Refusal> {
    let found = |name: &String, peer: &PeerSnapshot| (PeerName::from(name.as_str()), peer.clone());
    if let Some((name, peer)) = snapshot.peers.get_key_value(text) {
        return Ok(found(name, peer));
    }
    let address = text.parse::<IpAddr>().ok();
    let meant: Vec<_> = snapshot
        .peers
        .iter()
        .filter(|(name, peer)| {
            name.rsplit_once('/').is_some_and(|(_, last)| last == text)
                || Some(peer.address) == address
        })
        .collect();
    let refusal = |text: String, names: Vec<&String>| Refusal {
        text,
        candidates: names.into_iter().take(CANDIDATES_MAX).cloned().collect(),
    };
    match meant[..] {
        [(name, peer)] => Ok(found(name, peer)),
        [] if snapshot.peers.is_empty() => Err(Refusal::new("no peer is configured")),
        [] => {
            let all: Vec<_> = snapshot.peers.keys().collect();
            let more = all.len().saturating_sub(CANDIDATES_MAX);
            let text = match more {
                0 => format!("no peer is called \"{text}\"; there are"),
                _ => format!("no peer is called \"{text}\"; there are these and {more} more"),
            };
            Err(refusal(text, all))
        }
        _ => {
            let names = meant.into_iter().map(|(name, _)| name).collect();
            Err(refusal(format!("\"{text}\" may be one of several peers"), names))
        }
    }
}

/// Peers that a refusal names.
const CANDIDATES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn snapshot(peers: &[(&str, &str)]) -> SpeakerSnapshot {
        let peer = |address: &str| PeerSnapshot {
            address: address.parse().expect("an address"),
            interface: None,
            doubt: None,
            remote_asn: 65001,
            state: SessionState::Idle,
            since_unix_secs: 0,
            lasts_secs: 0,
            established_count: 0,
            last_down: None,
            disabled: false,
            comes_back_in_secs: None,
            last_error: None,
            errors: 0,
            turns: Vec::new(),
            negotiated: None,
            routes: BTreeMap::new(),
        };
        let peers = peers.iter().map(|(name, address)| ((*name).to_owned(), peer(address)));
        SpeakerSnapshot {
            asn: 65000,
            router_id: "192.0.2.1".into(),
            in_sync: true,
            peers: peers.collect(),
            listeners: Vec::new(),
            prefixes: 0,
            attribute_sets: 0,
        }
    }

    #[test]
    fn a_peer_is_meant_by_name_last_part_or_address() {
        let peers = snapshot(&[
            ("bgppeer/tor1", "192.0.2.1"),
            ("bgppeer/n2", "192.0.2.2"),
            ("mesh/n2", "192.0.2.3"),
            ("n2", "2001:db8::4"),
        ]);
        let name = |text: &str| named(&peers, text).map(|(name, _)| name.to_string());
        for (text, wanted) in [
            ("bgppeer/tor1", "bgppeer/tor1"),
            ("tor1", "bgppeer/tor1"),
            ("192.0.2.3", "mesh/n2"),
            ("2001:db8:0::4", "n2"),
            ("n2", "n2"),
        ] {
            assert_eq!(name(text).as_deref(), Ok(wanted), "{text}");
        }
        let unknown = named(&peers, "tor").expect_err("no such peer").to_string();
        assert!(unknown.contains("\"tor\"; there are: bgppeer/n2, bgppeer/tor1"), "{unknown}");
        let two = snapshot(&[("bgppeer/n2", "192.0.2.2"), ("mesh/n2", "192.0.2.3")]);
        let ambiguous = named(&two, "n2").expect_err("two of them").to_string();
        assert_eq!(ambiguous, "\"n2\" may be one of several peers: bgppeer/n2, mesh/n2");
        assert_eq!(
            named(&snapshot(&[]), "a").expect_err("none").to_string(),
            "no peer is configured"
        );
        let many: Vec<String> = (0..40).map(|n| format!("bgppeer/p{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), "192.0.2.9")).collect();
        let refusal = named(&snapshot(&many), "x").expect_err("no such peer");
        assert_eq!(refusal.candidates.len(), CANDIDATES_MAX);
        assert!(refusal.text.contains("8 more"), "{refusal}");
    }
}
