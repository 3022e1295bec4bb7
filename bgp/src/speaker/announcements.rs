//! How far peers are with what this speaker announces.
//!
//! ```text
//!  originated ──flush──► handed to the connection ──writer──► kernel ──TCP──► acknowledged
//!                        (octets so far: the mark)             written - TIOCOUTQ >= mark
//! ```
//!
//! An acknowledgement is that of the peer's TCP: its kernel has the UPDATE. Whether its BGP has read it, and what
//! it has made of it, nobody can ask.

use std::collections::BTreeMap;

use crate::config::PeerName;
use crate::prefix::Prefix;
use crate::rib::ExportVerdict;
use crate::session::ConnectionId;

use super::owner::{Owner, PeerKey};
use super::tables::Question;
use super::{Command, Error, SpeakerHandle};

/// The announcement of one prefix, which is followed by asking for it again and again.
#[derive(Clone, Debug)]
pub struct Announcement {
    prefix: Prefix,
    reception: Reception,
    /// The octets of each peer's connection up to the end of the UPDATE.
    marks: BTreeMap<PeerKey, (ConnectionId, u64)>,
}

/// All that the peers are to be told at one moment, which is followed by asking for it again and again.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    reception: Reception,
    missing: Vec<PeerName>,
    /// The octets of each peer's connection up to the end of the last UPDATE.
    marks: BTreeMap<PeerKey, (ConnectionId, u64)>,
}

impl Delivery {
    /// What a speaker may answer: to try out its reader.
    pub fn answered(reception: Reception) -> Delivery {
        Delivery { reception, ..Delivery::default() }
    }

    /// How far the peers were when the speaker was last asked.
    pub fn reception(&self) -> &Reception {
        &self.reception
    }

    /// The peers without an established session then, but for those that an operator has disabled.
    pub fn missing(&self) -> &[PeerName] {
        &self.missing
    }
}

/// How far the peers are with an announcement, or with all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reception {
    /// The speaker has not been asked.
    #[default]
    Unknown,
    /// There is no established session, or none on which the prefix would be announced.
    Nobody,
    /// These peers with an established session have not acknowledged it, or the speaker does not
    /// originate the prefix yet.
    Awaited(Vec<PeerName>),
    /// All of the peers with an established session on which it is announced have acknowledged it.
    Acknowledged,
}

impl Announcement {
    /// That of `prefix`, of which nothing is known yet.
    pub fn new(prefix: Prefix) -> Announcement {
        Announcement { prefix, reception: Reception::Unknown, marks: BTreeMap::new() }
    }

    /// What a speaker may answer about `prefix`: to try out its reader.
    pub fn answered(prefix: Prefix, reception: Reception) -> Announcement {
        Announcement { reception, ..Announcement::new(prefix) }
    }

    /// What was announced.
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// How far the peers were when the speaker was last asked.
    pub fn reception(&self) -> &Reception {
        &self.reception
    }
}

impl SpeakerHandle {
    /// How far the peers are with each of `announcements`, with what was applied before taken up. Peers
    /// without an established session do not count, nor do those to which the prefix does not go. For as
    /// long as what was answered last is asked about, only the first UPDATE of the prefix on each connection
    /// counts.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn announcements(
        &self,
        announcements: Vec<Announcement>,
    ) -> Result<Vec<Announcement>, Error> {
        self.ask(|answer| Command::Ask(Question::Announcements(announcements, answer))).await
    }

    /// How far the peers are with all that they are to be told, with what was applied before taken up. Peers
    /// without an established session do not count. Once a connection has been handed everything, what comes
    /// later does not count on it for as long as what was answered last is asked about.
    ///
    /// # Errors
    /// The speaker has ended.
    pub async fn delivery(&self, delivery: Delivery) -> Result<Delivery, Error> {
        self.ask(|answer| Command::Ask(Question::Delivery(delivery, answer))).await
    }
}

impl Owner {
    /// Looks how far the peers are with an announcement.
    pub(super) fn follow(&self, announcement: &mut Announcement) {
        let Announcement { prefix, reception, marks } = announcement;
        let originated = self.config.originate.contains_key(prefix);
        if !originated {
            // What was said of it before has been withdrawn.
            marks.clear();
        }
        let mut counts_any = false;
        let mut awaited = Vec::new();
        for (key, peer) in &self.peers {
            let Some(session) = peer.session.established() else { continue };
            let Some(connection) = peer.connections.get(&session.connection) else { continue };
            let counts = match self.rib.export_verdict(peer.rib_id, *prefix) {
                Err(ExportVerdict::NoSession) => false,
                Err(_) => !originated,
                Ok(_) => true,
            };
            if !counts {
                continue;
            }
            counts_any = true;
            let marked = marks.get(key).filter(|(id, _)| *id == session.connection);
            let mark = marked.map(|(_, mark)| *mark).or_else(|| {
                let told = originated && self.rib.has_told(peer.rib_id, *prefix);
                told.then(|| connection.handed())
            });
            if let Some(mark) = mark {
                marks.insert(*key, (session.connection, mark));
            }
            if !mark.is_some_and(|mark| connection.has_acknowledged(mark)) {
                awaited.push(PeerName::clone(&peer.name));
            }
        }
        *reception = Reception::of(counts_any, awaited);
    }

    /// Looks how far the peers are with all that they are to be told.
    pub(super) fn follow_all(&self, delivery: &mut Delivery) {
        let Delivery { reception, missing, marks } = delivery;
        let mut counts_any = false;
        let mut awaited = Vec::new();
        missing.clear();
        for (key, peer) in &self.peers {
            let session = peer.session.established();
            let connection = session.and_then(|s| peer.connections.get(&s.connection));
            let Some((session, connection)) = session.zip(connection) else {
                if !peer.disabled {
                    missing.push(PeerName::clone(&peer.name));
                }
                continue;
            };
            counts_any = true;
            let marked = marks.get(key).filter(|(id, _)| *id == session.connection);
            let mark = marked
                .map(|(_, mark)| *mark)
                .or_else(|| self.rib.has_told_all(peer.rib_id).then(|| connection.handed()));
            if let Some(mark) = mark {
                marks.insert(*key, (session.connection, mark));
            }
            if !mark.is_some_and(|mark| connection.has_acknowledged(mark)) {
                awaited.push(PeerName::clone(&peer.name));
            }
        }
        *reception = Reception::of(counts_any, awaited);
    }
}

impl Reception {
    fn of(counts_any: bool, awaited: Vec<PeerName>) -> Reception {
        match (counts_any, awaited.is_empty()) {
            (false, _) => Reception::Nobody,
            (true, false) => Reception::Awaited(awaited),
            (true, true) => Reception::Acknowledged,
        }
    }
}
