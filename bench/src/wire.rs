//! The codec against a memory copy.

use std::hint::black_box;

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::wire::{
    Announcements, AttributeTypes, FrameHeader, HEADER_OCTETS, MESSAGE_OCTETS_MAX, MessageFormat,
    SessionSort, UpdateBody, UpdateContext,
};

use crate::cpu_time::{cpu_time, nanos_each};
use crate::feed::{self, AttributeSet};
use crate::table::Row;
use crate::{Extent, Result};

/// One table to encode, and its messages to decode.
struct Case {
    family: Family,
    prefixes: usize,
    sets: Vec<AttributeSet>,
    /// All messages, one behind the other as in a socket.
    stream: Vec<u8>,
    copy: Vec<u8>,
    decode: Row,
    encode: Row,
}

/// Measures all rows of this group.
pub fn measure(extent: Extent) -> Result<Vec<Row>> {
    let prefixes = extent.pick(200_000, 2000);
    let mut cases = Vec::new();
    for family in [Family::Ipv4Unicast, Family::Ipv6Unicast] {
        for per_set in [5, 1000] {
            cases.push(Case::new(family, prefixes, per_set)?);
        }
    }
    for run in 0..extent.pick(15, 2) {
        for case in &mut cases {
            case.run(run % 2 == 0)?;
        }
    }
    Ok(cases.into_iter().flat_map(|case| [case.decode, case.encode]).collect())
}

impl Case {
    fn new(family: Family, prefixes: u32, per_set: usize) -> Result<Case> {
        let sets = feed::table(family, prefixes, per_set, &[FIRST_AS, 64502]);
        let mut stream = Vec::new();
        encode(family, &sets, |message| stream.extend_from_slice(message))?;
        let row = |action| {
            let name = format!("{action} {}, {per_set} prefixes a set", short(family));
            Row::new("wire", name, "ns/prefix", "memory copy")
        };
        Ok(Case {
            family,
            prefixes: prefixes as usize,
            sets,
            copy: vec![0; stream.len()],
            stream,
            decode: row("decode"),
            encode: row("encode"),
        })
    }

    fn run(&mut self, copy_first: bool) -> Result<()> {
        let before = copy_first.then(|| self.copy());
        let (decode_time, decoded) = cpu_time(|| decode(&self.stream));
        let (encode_time, encoded) = cpu_time(|| {
            encode(self.family, &self.sets, |message| {
                black_box(message);
            })
        });
        let copy = before.unwrap_or_else(|| self.copy());
        if (decoded?, encoded?) != (self.prefixes, self.stream.len()) {
            return Err("not every prefix was decoded and encoded".into());
        }
        self.decode.push(nanos_each(decode_time, self.prefixes), copy);
        self.encode.push(nanos_each(encode_time, self.prefixes), copy);
        Ok(())
    }

    /// Nanoseconds for each prefix.
    fn copy(&mut self) -> f64 {
        let (time, ()) = cpu_time(|| {
            for _ in 0..COPIES {
                black_box(&mut self.copy).copy_from_slice(black_box(&self.stream));
            }
        });
        nanos_each(time, COPIES * self.prefixes)
    }
}

/// The name of a family in rows.
pub fn short(family: Family) -> &'static str {
    match family {
        Family::Ipv4Unicast => "IPv4",
        Family::Ipv6Unicast => "IPv6",
    }
}

/// Looks at every prefix of the messages; says how many.
fn decode(mut stream: &[u8]) -> Result<usize> {
    let mut count = 0;
    while let Some(header) = FrameHeader::peek(stream, MESSAGE_OCTETS_MAX)? {
        let Some((message, rest)) = stream.split_at_checked(header.octets) else { break };
        stream = rest;
        let body = message.get(HEADER_OCTETS..).unwrap_or_default();
        let update = UpdateBody::split(body)?.decode(&CONTEXT)?;
        for announcement in update.announcements() {
            for prefix in announcement.prefixes {
                black_box(prefix);
                count += 1;
            }
        }
        black_box(&update.attributes);
    }
    Ok(count)
}

/// Encodes everything and passes each message to `take`; says how many octets.
fn encode(family: Family, sets: &[AttributeSet], mut take: impl FnMut(&[u8])) -> Result<usize> {
    let next_hop = feed::next_hop(family);
    let mut octets = 0;
    for set in sets {
        let prefixes = set.prefixes.iter().copied();
        for update in Announcements::new(FORMAT, family, &set.path, next_hop, prefixes)? {
            octets += update.bytes.len();
            take(&update.bytes);
        }
    }
    Ok(octets)
}

/// How messages are written on a session between modern speakers.
pub const FORMAT: MessageFormat =
    MessageFormat { octets_max: MESSAGE_OCTETS_MAX, as4: true, extended_next_hop: false };
const CONTEXT: UpdateContext = UpdateContext {
    sort: SessionSort::Ebgp,
    as4: true,
    families: Families::NONE.with(Family::Ipv4Unicast).with(Family::Ipv6Unicast),
    extended_next_hop: false,
    first_as: Some(FIRST_AS),
    discard_attributes: AttributeTypes::NONE,
    path_ids: Families::NONE,
};
const FIRST_AS: u32 = 64501;
/// One copy is too short for the clock.
const COPIES: usize = 8;
