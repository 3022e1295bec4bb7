//! What a rule changes in the routes that it accepts.

use crate::wire::{AttributesBuilder, Community, CommunityValue, LargeCommunity, PathAttributes};

use super::community::ExtendedCommunity;

/// Changes to a route; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// New LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// What becomes of MULTI_EXIT_DISC.
    pub med: Option<MedChange>,
    /// What becomes of COMMUNITIES.
    pub communities: CommunityChange<Community>,
    /// What becomes of EXTENDED COMMUNITIES.
    pub extended_communities: CommunityChange<ExtendedCommunity>,
    /// What becomes of LARGE_COMMUNITY.
    pub large_communities: CommunityChange<LargeCommunity>,
    /// AS number to put in front of AS_PATH, and how often.
    pub prepend: Option<Prepend>,
    /// Which next hop an exported route shows, whatever the peer's mode is; import does not look at
    /// it.
    pub next_hop: Option<NextHopChange>,
}

/// What becomes of MULTI_EXIT_DISC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MedChange {
    /// This value.
    Set(u32),
    /// It is taken away, which the decision process takes for 0.
    Remove,
}

/// Which next hop an exported route shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHopChange {
    /// The own address of the session.
    SelfAddress,
    /// As received; a route that this speaker originates still shows the own address.
    Unchanged,
}

/// What becomes of the communities of one kind: first those of `replace` alone are left, then those
/// of `remove` go, then those of `add` come.
#[derive(Clone, Debug, PartialEq)]
pub struct CommunityChange<T> {
    /// In place of all that are there; an empty list removes all.
    pub replace: Option<Vec<T>>,
    /// To remove.
    pub remove: Vec<T>,
    /// To add where they are not there yet.
    pub add: Vec<T>,
}

/// An AS number to put in front of AS_PATH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepend {
    /// The AS number.
    pub asn: u32,
    /// How often.
    pub times: u8,
}

impl Changes {
    /// The changed attributes; `None` when they stay as they are.
    pub fn apply(&self, attributes: &PathAttributes) -> Option<PathAttributes> {
        let Changes { local_pref, med, prepend, .. } = self;
        let communities = !(self.communities.is_empty()
            && self.extended_communities.is_empty()
            && self.large_communities.is_empty());
        if local_pref.is_none() && med.is_none() && prepend.is_none() && !communities {
            return None;
        }
        let mut builder = attributes.edit();
        if local_pref.is_some() {
            builder.local_pref(*local_pref);
        }
        if let Some(change) = med {
            builder.med(match change {
                MedChange::Set(med) => Some(*med),
                MedChange::Remove => None,
            });
        }
        self.communities.apply(&mut builder);
        self.extended_communities.apply(&mut builder);
        self.large_communities.apply(&mut builder);
        if let Some(Prepend { asn, times }) = prepend {
            builder.prepend(*asn, *times);
        }
        Some(builder.build()).filter(|changed| changed != attributes)
    }
}

impl<T: CommunityValue> CommunityChange<T> {
    /// Adds `communities` and leaves the others alone.
    pub fn add(communities: impl Into<Vec<T>>) -> CommunityChange<T> {
        CommunityChange { add: communities.into(), ..CommunityChange::default() }
    }

    fn is_empty(&self) -> bool {
        self.replace.is_none() && self.remove.is_empty() && self.add.is_empty()
    }

    fn apply(&self, builder: &mut AttributesBuilder<'_>) {
        if let Some(all) = &self.replace {
            builder.replace_values(all);
        }
        builder.remove_values(&self.remove);
        builder.add_values(&self.add);
    }
}

impl<T> Default for CommunityChange<T> {
    fn default() -> CommunityChange<T> {
        CommunityChange { replace: None, remove: Vec::new(), add: Vec::new() }
    }
}
