//! Damaged messages out of whole ones, the same for the same seed.

use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::wire::{AttributeTypes, SessionSort, UpdateBody, UpdateContext};

use super::build::{self, EBGP};

/// Xorshift: the same messages on every machine.
pub struct Random(u64);

impl Random {
    /// A seed of 0 would yield nothing but zeros.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub fn context(&mut self) -> UpdateContext {
        let bits = self.next();
        let families = match bits & 0x300 {
            0x100 => Families::NONE,
            _ => EBGP.families,
        };
        UpdateContext {
            sort: if bits & 1 == 0 { SessionSort::Ebgp } else { SessionSort::Ibgp },
            as4: bits & 6 != 0,
            families,
            extended_next_hop: bits & 8 == 0,
            first_as: (bits & 0x70 == 0).then_some(65001),
            discard_attributes: match bits & 0xc00 {
                0xc00 => AttributeTypes::discardable((0..=u8::MAX).filter(|t| t % 3 == 2)),
                _ => AttributeTypes::NONE,
            },
            path_ids: match bits & 0x7000 {
                0x7000 => EBGP.families,
                0x6000 => Families::NONE.with(Family::Ipv4Unicast),
                _ => Families::NONE,
            },
        }
    }

    /// A seed with a few octets changed, wherever they stand.
    pub fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut octets = seeds[self.below(seeds.len())].clone();
        self.mutate(&mut octets, seeds);
        octets
    }

    /// An UPDATE with right lengths around attributes in any order, some of them damaged inside: what
    /// gets by the outer checks.
    pub fn assembled(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut attributes = build::hex(PLAIN);
        for _ in 0..self.below(5) {
            let mut attribute = pool[self.below(pool.len())].clone();
            let head = if attribute[0] & 0x10 == 0 { 3 } else { 4 };
            match self.below(4) {
                0 => attribute[0] ^= 0x80 >> self.below(3),
                1 if attribute.len() > head => {
                    let at = head + self.below(attribute.len() - head);
                    attribute[at] = INTERESTING[self.below(8)];
                }
                2 if attribute.len() > head => {
                    attribute.truncate(attribute.len() - 1);
                    attribute[head - 1] -= 1;
                }
                _ => {}
            }
            match self.below(8) {
                0 => attributes = [attribute, attributes].concat(),
                _ => attributes.extend(attribute),
            }
        }
        let mut prefixes = Vec::new();
        // With the identifiers of paths in front (RFC 7911).
        let path_ids = self.below(8) == 0;
        for _ in 0..self.below(4) {
            let len = u8::try_from(self.below(33)).unwrap();
            if path_ids {
                prefixes.extend(self.next().to_be_bytes().split_at(4).0);
            }
            prefixes.push(len);
            prefixes.extend((0..len.div_ceil(8)).map(|_| self.next() as u8));
        }
        let withdrawn = if self.below(3) == 0 { prefixes.as_slice() } else { &[] };
        let nlri = if self.below(4) == 0 { &[] } else { prefixes.as_slice() };
        build::message(2, &build::body(withdrawn, &attributes, nlri))
    }

    fn mutate(&mut self, octets: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        for _ in 0..1 + self.below(4) {
            // The header stays mostly whole, or few messages would get beyond it.
            let head = if self.below(30) == 0 { 0 } else { 19 };
            let at = head + self.below(octets.len().saturating_sub(head));
            match self.below(6) {
                0 => octets.insert(at.min(octets.len()), INTERESTING[self.below(8)]),
                1 if at < octets.len() => drop(octets.remove(at)),
                2 if at < octets.len() => octets[at] = INTERESTING[self.below(8)],
                3 if at < octets.len() => octets[at] ^= 1 << self.below(8),
                4 => {
                    let donor = &seeds[self.below(seeds.len())];
                    let from = self.below(donor.len());
                    let to = (from + 1 + self.below(24)).min(donor.len());
                    octets.splice(
                        at.min(octets.len())..at.min(octets.len()),
                        donor[from..to].iter().copied(),
                    );
                }
                _ => {
                    let end = (at + self.below(16)).min(octets.len());
                    let piece = octets.get(at..end).unwrap_or_default().to_vec();
                    octets.extend(piece);
                }
            }
        }
        self.repair(octets);
    }

    /// Mostly makes the lengths right again, so that what is behind them is reached.
    fn repair(&mut self, octets: &mut [u8]) {
        if octets.len() < 19 || self.below(20) == 0 {
            return;
        }
        let total = u16::try_from(octets.len()).unwrap();
        octets[16..18].copy_from_slice(&total.to_be_bytes());
        if octets[18] == 2 && octets.len() >= 23 && self.below(4) != 0 {
            let withdrawn = usize::from(u16::from_be_bytes([octets[19], octets[20]]));
            let at = 21 + withdrawn;
            if at + 2 <= octets.len() {
                let rest = octets.len() - at - 2;
                // The prefixes of the seeds take up to seven octets.
                let attributes = u16::try_from(rest - self.below(8).min(rest)).unwrap();
                octets[at..at + 2].copy_from_slice(&attributes.to_be_bytes());
            }
        }
    }
}

/// The attributes of the seeds' UPDATEs, and some that none of them has.
pub fn attribute_pool(seeds: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let updates = seeds.iter().filter(|seed| seed[18] == 2);
    let mut pool: Vec<Vec<u8>> = updates
        .flat_map(|update| {
            let body = UpdateBody::split(&update[19..]).unwrap();
            build::split_attributes(body.attributes)
        })
        .collect();
    for more in [
        "400600",
        "c00708 0000fde9 0a000001",
        "c01008 0002fde900000064",
        "c01914 0002 20010db8000000000000000000000001 0064",
        "c02304 0000fde9",
        "c01609 0006000000 0a000001",
        "c01710 0002 000c 060a 00000000 0001 0a000009",
        "801a0b 01000b 0000000000000064",
        "801d05 0400000100",
        "c0280a 010007 00000000000064",
        "c08008 0000fde9 400101 00",
        "40020c 02010000fde9 01010000fdea",
        "400206 03010000fde9",
        "c06300",
        "806300",
        "406300",
    ] {
        pool.push(build::hex(more));
    }
    pool
}

const INTERESTING: [u8; 8] = [0, 1, 2, 4, 0x7f, 0x80, 0xc0, 0xff];
/// The attributes that every route has.
pub const PLAIN: &str = "400101 00 400206 02010000fde9 400304 0a000001";
