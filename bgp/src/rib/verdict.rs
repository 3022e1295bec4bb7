//! Why a received route is used or not.

use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::policy::RuleRef;
use crate::prefix::Prefix;

/// What import decided about a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// No policy decided, and routes of this session pass by default.
    AcceptedByDefault,
    /// A policy rule let it pass.
    Accepted {
        /// The rule.
        by: RuleRef,
        /// The rule changed its attributes.
        changed: bool,
    },
    /// A policy rule stopped it.
    Rejected {
        /// The rule.
        by: RuleRef,
    },
    /// No policy let it pass, and eBGP routes do not pass by default (RFC 8212).
    RejectedByDefault,
    /// A default route that no accepting rule names.
    DefaultRouteNotNamed,
    /// Our own AS is in AS_PATH more often than it may be.
    AsLoop {
        /// How often it may be there.
        own_as_max: u8,
    },
    /// AS_PATH is longer than the peer's limit.
    AsPathTooLong {
        /// The limit.
        len_max: u32,
    },
    /// ORIGINATOR_ID is our own identifier (RFC 4456 section 8).
    OriginatorLoop,
    /// Our own cluster is in CLUSTER_LIST (RFC 4456 section 8).
    ClusterLoop,
    /// The next hop is our own address (RFC 4271 section 5.1.3).
    OwnNextHop,
    /// The prefix lies where nobody forwards to: loopback, link-local, multicast (RFC 6890).
    Martian,
    /// The next hop cannot be reached by a route that is not from BGP (RFC 4271 section 9.1.2.1).
    NextHopUnreachable,
    /// The prefix is a connected subnet, or lies inside of one.
    ConnectedSubnet {
        /// The subnet.
        subnet: Prefix,
    },
    /// The prefix holds nothing but our own addresses.
    OwnAddresses,
    /// Another node owns the block.
    OriginInvalid {
        /// The owner.
        owner: Arc<str>,
    },
    /// Another node owns the block, but the route was in use before that was known.
    OriginInvalidKept {
        /// The owner.
        owner: Arc<str>,
    },
}

/// The verdicts in use, each once; a route holds an index.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    known: Vec<Verdict>,
    ids: HashMap<Verdict, VerdictId, FixedState>,
    /// The last one that was asked for: mostly it is the next one, too.
    last: usize,
}

/// An index into [`Verdicts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VerdictId(u16);

impl Verdict {
    /// Whether the route is a candidate for the best path.
    pub fn is_accepted(&self) -> bool {
        matches!(
            self,
            Verdict::AcceptedByDefault
                | Verdict::Accepted { .. }
                | Verdict::OriginInvalidKept { .. }
        )
    }
}

impl Verdicts {
    pub(crate) fn id(&mut self, verdict: &Verdict) -> VerdictId {
        if self.known.get(self.last) == Some(verdict)
            && let Ok(last) = u16::try_from(self.last)
        {
            return VerdictId(last);
        }
        if let Some(id) = self.ids.get(verdict) {
            self.last = usize::from(id.0);
            return *id;
        }
        // Rules are bounded by configuration; were there ever too many, the last number is shared
        // and only the text is wrong.
        let id = VerdictId(u16::try_from(self.known.len()).unwrap_or(u16::MAX));
        if self.known.len() <= usize::from(u16::MAX) {
            self.known.push(verdict.clone());
            self.ids.insert(verdict.clone(), id);
        }
        id
    }

    pub(crate) fn verdict(&self, id: VerdictId) -> Option<&Verdict> {
        self.known.get(usize::from(id.0))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::AcceptedByDefault => f.write_str("accepted: no import policy"),
            Verdict::Accepted { by, changed: false } => write!(f, "accepted by {by}"),
            Verdict::Accepted { by, changed: true } => write!(f, "accepted and changed by {by}"),
            Verdict::Rejected { by } => write!(f, "rejected by {by}"),
            Verdict::RejectedByDefault => {
                f.write_str("rejected: no import policy of this eBGP peer accepts it (RFC 8212)")
            }
            Verdict::DefaultRouteNotNamed => f.write_str(
                "rejected: a default route passes only by a rule whose prefixes name it",
            ),
            Verdict::AsLoop { own_as_max: 0 } => f.write_str("rejected: our own AS is in AS_PATH"),
            Verdict::AsLoop { own_as_max } => {
                write!(f, "rejected: our own AS is in AS_PATH more than {own_as_max} times")
            }
            Verdict::AsPathTooLong { len_max } => {
                write!(f, "rejected: AS_PATH is longer than {len_max}")
            }
            Verdict::OriginatorLoop => f.write_str("rejected: we are its ORIGINATOR_ID"),
            Verdict::ClusterLoop => f.write_str("rejected: our cluster is in CLUSTER_LIST"),
            Verdict::Martian => f.write_str(
                "rejected: nobody forwards to loopback, link-local or multicast prefixes",
            ),
            Verdict::NextHopUnreachable => f.write_str(
                "rejected: there is no route to its next hop that is not from BGP: this machine \
                 needs one",
            ),
            Verdict::ConnectedSubnet { subnet } => {
                write!(f, "rejected: it is inside of {subnet}, to which this machine is connected")
            }
            Verdict::OwnAddresses => f.write_str("rejected: these are addresses of this machine"),
            Verdict::OriginInvalid { owner } => {
                write!(f, "rejected: the block belongs to {owner}, which did not announce it")
            }
            Verdict::OriginInvalidKept { owner } => write!(
                f,
                "accepted, in conflict: the block belongs to {owner}, which did not announce it; the \
                 route was in use before and stays until the conflict ends"
            ),
            Verdict::OwnNextHop => f.write_str("rejected: its next hop is our own address"),
        }
    }
}
