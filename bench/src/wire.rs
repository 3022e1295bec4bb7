//! The codec beside a memory copy and other codecs.

use std::hint::black_box;

use bytes::Bytes;
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::wire::{
    Announcements, AttributeTypes, FrameHeader, HEADER_OCTETS, MESSAGE_OCTETS_MAX, MessageFormat,
    SessionSort, UpdateBody, UpdateContext,
};

use crate::codecs::{self, Codec, Netgauze, Rustbgpd, Zettabgp};
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
    references: [Beside; 4],
}

/// What ours is measured beside, and the rows of that.
struct Beside {
    reference: Box<dyn Reference>,
    decode: Row,
    encode: Row,
}

/// What decodes and encodes the same messages.
trait Reference {
    fn name(&self) -> &'static str;

    /// How many prefixes it has decoded.
    fn decode(&mut self) -> Result<usize>;

    /// How many octets it has encoded.
    fn encode(&mut self) -> Result<usize>;

    /// How often it does what ours does once.
    fn times(&self) -> usize {
        1
    }
}

/// What both ways take at least.
struct Copy {
    from: Vec<u8>,
    to: Vec<u8>,
    prefixes: usize,
}

/// Another codec, with what it has to decode and to encode.
struct Other<C: Codec> {
    codec: C,
    messages: Vec<Bytes>,
    updates: Vec<C::Update>,
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
    let rows = cases.into_iter().flat_map(|case| case.references);
    Ok(rows.flat_map(|beside| [beside.decode, beside.encode]).collect())
}

impl Case {
    fn new(family: Family, prefixes: u32, per_set: usize) -> Result<Case> {
        let sets = feed::table(family, prefixes, per_set, &[FIRST_AS, 64502]);
        let mut stream = Vec::new();
        encode(family, &sets, |message| stream.extend_from_slice(message))?;
        let beside = |reference: Box<dyn Reference>| {
            let row = |action| {
                let name = format!("{action} {}, {per_set} prefixes a set", short(family));
                Row::new("wire", name, "ns/prefix", reference.name())
            };
            Beside { decode: row("decode"), encode: row("encode"), reference }
        };
        let (from, to) = (stream.clone(), vec![0; stream.len()]);
        let references = [
            beside(Box::new(Copy { from, to, prefixes: prefixes as usize })),
            beside(Other::<Zettabgp>::of(&stream)?),
            beside(Other::<Netgauze>::of(&stream)?),
            beside(Other::<Rustbgpd>::of(&stream)?),
        ];
        Ok(Case { family, prefixes: prefixes as usize, sets, stream, references })
    }

    fn run(&mut self, references_first: bool) -> Result<()> {
        let before = if references_first { Some(self.reference_times()?) } else { None };
        let (decode_time, decoded) = cpu_time(|| decode(&self.stream));
        let (encode_time, encoded) = cpu_time(|| {
            encode(self.family, &self.sets, |message| {
                black_box(message);
            })
        });
        if (decoded?, encoded?) != (self.prefixes, self.stream.len()) {
            return Err("not every prefix was decoded and encoded".into());
        }
        let theirs = before.map_or_else(|| self.reference_times(), Ok)?;
        for (beside, (decode, encode)) in self.references.iter_mut().zip(theirs) {
            beside.decode.push(nanos_each(decode_time, self.prefixes), decode);
            beside.encode.push(nanos_each(encode_time, self.prefixes), encode);
        }
        Ok(())
    }

    /// Nanoseconds for each prefix to decode and to encode.
    fn reference_times(&mut self) -> Result<Vec<(f64, f64)>> {
        let (prefixes, octets) = (self.prefixes, self.stream.len());
        let times = self.references.iter_mut().map(|Beside { reference, .. }| {
            let (decode_time, decoded) = cpu_time(|| reference.decode());
            let (encode_time, encoded) = cpu_time(|| reference.encode());
            let (decoded, encoded, name) = (decoded?, encoded?, reference.name());
            // Of the two ways to write an attribute's length each has its own choice.
            if decoded != prefixes || octets.abs_diff(encoded) > octets / 10 {
                return Err(format!(
                    "{name}: {decoded} prefixes and {encoded} octets, not {prefixes} and {octets}"
                )
                .into());
            }
            let each = |time| nanos_each(time, prefixes * reference.times());
            Ok((each(decode_time), each(encode_time)))
        });
        times.collect()
    }
}

impl Copy {
    fn copy(&mut self) {
        for _ in 0..COPIES {
            black_box(&mut self.to).copy_from_slice(black_box(&self.from));
        }
    }
}

impl Reference for Copy {
    fn name(&self) -> &'static str {
        "memory copy"
    }

    fn decode(&mut self) -> Result<usize> {
        self.copy();
        Ok(self.prefixes)
    }

    fn encode(&mut self) -> Result<usize> {
        self.copy();
        Ok(self.to.len())
    }

    fn times(&self) -> usize {
        COPIES
    }
}

impl<C: Codec<Update: 'static> + 'static> Other<C> {
    fn of(stream: &[u8]) -> Result<Box<dyn Reference>> {
        let (mut codec, messages) = (C::new(), codecs::split(stream)?);
        let updates = messages.iter().map(|message| codec.decode(message));
        let updates = updates.collect::<Result<_>>()?;
        Ok(Box::new(Other { codec, messages, updates }))
    }
}

impl<C: Codec> Reference for Other<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn decode(&mut self) -> Result<usize> {
        codecs::decode_all(&mut self.codec, &self.messages)
    }

    fn encode(&mut self) -> Result<usize> {
        codecs::encode_all(&mut self.codec, &self.updates)
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
