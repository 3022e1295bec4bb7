//! Sets of prefixes with ranges of lengths.

use std::collections::BTreeMap;
use std::fmt;

use hashbrown::HashMap;

use crate::prefix::{Family, Ipv4Prefix, Ipv6Prefix, Prefix};

/// A set of prefixes with ranges of lengths.
///
/// A lookup costs one hash per distinct length among the entries, however many entries there are.
#[derive(Clone, Default)]
pub struct PrefixList {
    /// Per length of the entries' prefixes, in each family: those prefixes, and the lengths that match
    /// under them.
    by_length:
        BTreeMap<(Family, u8), HashMap<Prefix, Vec<LengthRange>, foldhash::fast::FixedState>>,
}

/// Shortest and longest length that match.
type LengthRange = (u8, u8);

/// One entry of a [`PrefixList`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixRange {
    /// The prefix that covers what matches.
    pub prefix: Prefix,
    /// The shortest length that matches.
    pub len_min: u8,
    /// The longest length that matches.
    pub len_max: u8,
}

impl PrefixRange {
    /// What `prefix` covers with lengths from `ge` to `le`. Without both that is the prefix itself;
    /// `ge` alone means up to the family's bits, `le` alone from the prefix's own length on.
    pub fn new(prefix: Prefix, ge: Option<u8>, le: Option<u8>) -> PrefixRange {
        let bits = prefix.family().bits();
        let (len_min, len_max) = match (ge, le) {
            (None, None) => (prefix.len(), prefix.len()),
            (ge, le) => (ge.unwrap_or(prefix.len()), le.unwrap_or(bits)),
        };
        // Nothing below the prefix's own length is covered by it.
        PrefixRange { prefix, len_min: len_min.max(prefix.len()), len_max: len_max.min(bits) }
    }

    /// `prefix` and everything inside it.
    pub fn within(prefix: Prefix) -> PrefixRange {
        PrefixRange { prefix, len_min: prefix.len(), len_max: prefix.family().bits() }
    }
}

impl PrefixList {
    /// Whether an entry matches.
    pub fn matches(&self, prefix: Prefix) -> bool {
        let family = prefix.family();
        self.by_length.range((family, 0)..=(family, prefix.len())).any(|((_, len), entries)| {
            let ranges = covering(prefix, *len).and_then(|covering| entries.get(&covering));
            let within = |(min, max): &LengthRange| (*min..=*max).contains(&prefix.len());
            ranges.is_some_and(|ranges| ranges.iter().any(within))
        })
    }

    /// Whether an entry's own prefix is `prefix`: what names a default route and does not only cover
    /// it.
    pub fn names(&self, prefix: Prefix) -> bool {
        let entries = self.by_length.get(&(prefix.family(), prefix.len()));
        entries.is_some_and(|entries| entries.contains_key(&prefix)) && self.matches(prefix)
    }

    /// Whether nothing matches.
    pub fn is_empty(&self) -> bool {
        self.by_length.is_empty()
    }

    /// The entries in ascending order, each once.
    pub fn entries(&self) -> Vec<PrefixRange> {
        let all = self.by_length.values().flatten().flat_map(|(prefix, ranges)| {
            let entry = |&(len_min, len_max)| PrefixRange { prefix: *prefix, len_min, len_max };
            ranges.iter().map(entry)
        });
        let mut entries = all.collect::<Vec<_>>();
        entries.sort_unstable();
        entries
    }
}

/// The prefix of length `len` that holds `prefix`.
fn covering(prefix: Prefix, len: u8) -> Option<Prefix> {
    match prefix {
        Prefix::V4(p) => Ipv4Prefix::new(p.addr(), len).map(Prefix::V4),
        Prefix::V6(p) => Ipv6Prefix::new(p.addr(), len).map(Prefix::V6),
    }
}

impl FromIterator<PrefixRange> for PrefixList {
    fn from_iter<T: IntoIterator<Item = PrefixRange>>(entries: T) -> PrefixList {
        let mut list = PrefixList::default();
        for PrefixRange { prefix, len_min, len_max } in entries {
            let entries = list.by_length.entry((prefix.family(), prefix.len())).or_default();
            let ranges = entries.entry(prefix).or_default();
            if !ranges.contains(&(len_min, len_max)) {
                ranges.push((len_min, len_max));
            }
        }
        list
    }
}

impl PartialEq for PrefixList {
    /// The order of the entries means nothing.
    fn eq(&self, other: &PrefixList) -> bool {
        self.entries() == other.entries()
    }
}

impl fmt::Debug for PrefixList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

impl fmt::Display for PrefixRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PrefixRange { prefix, len_min, len_max } = self;
        write!(f, "{prefix}")?;
        if (*len_min, *len_max) != (prefix.len(), prefix.len()) {
            write!(f, " ge {len_min} le {len_max}")?;
        }
        Ok(())
    }
}
