//! The BGP-4 wire format: bytes to values and back, without IO.
//!
//! ```text
//! socket bytes ──Frame::split──► type + body ──┬─ Open::decode ─────────► Open ──► Negotiated
//!                                              ├─ Notification::decode
//!                                              ├─ RouteRefresh::decode
//!                                              └─ UpdateBody::split ─decode(UpdateContext)─► Update
//!                                                                              │
//!       prefixes, next hops (borrowed) ◄───────────────────────────────────────┤
//!       PathAttributes (canonical bytes, to be interned as Arc) ◄──────────────┤
//!       AttributeError (verdicts of RFC 7606, for the error history) ◄─────────┘
//! ```
//!
//! What arrives is hostile: nothing here panics, loops or allocates beyond a small multiple of the
//! message's size, whatever a peer sends. An error is either a [`Notification`] that ends the session
//! or, inside an UPDATE, an [`AttributeError`] with the smaller reaction that RFC 7606 asks for.
//! A decoded value says nothing yet about policy, loops or reachability: those belong to the session
//! and the RIB.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod attributes;
mod builder;
mod codes;
mod encode;
mod foreign;
mod frame;
mod negotiated;
mod nlri;
mod notification;
mod open;
mod reader;
mod refresh;
mod update;
mod validate;

pub use attributes::{
    AsPath, AsSegment, AttributeOctets, ClusterList, Communities, Community, LargeCommunity,
    Origin, PathAttributes,
};
pub use builder::{AttributesBuilder, CommunityValue};
pub use codes::{AttributeTypes, attribute_type};
pub use encode::{
    Announcements, AppendedUpdate, EncodeError, EncodedUpdate, MessageFormat, Withdrawals,
    end_of_rib, keepalive,
};
pub use frame::{
    Frame, FrameHeader, HEADER_OCTETS, MESSAGE_OCTETS_MAX, MESSAGE_OCTETS_MAX_EXTENDED, MessageType,
};
pub use negotiated::{AddPathFamilies, Negotiated};
pub use nlri::{Nlri, PathPrefix, PathsIter, Prefixes, PrefixesIter};
pub use notification::{
    CeaseReason, FsmError, HeaderError, Notification, NotificationError, OpenError,
    RouteRefreshError, UpdateError,
};
pub use open::{
    AddPathMode, Capability, ExtendedNextHop, GracefulRestart, GracefulRestartFamily,
    LongLivedFamily, Open,
};
pub use refresh::{RefreshKind, RouteRefresh};
pub use update::{
    Announcement, AttributeError, AttributeFault, AttributeVerdict, CheckedAttributes,
    LocatedUpdate, NextHop, SessionSort, Update, UpdateBody, UpdateContext,
};

/// The AS number that stands for one that does not fit into two octets (RFC 6793 section 9).
pub const AS_TRANS: u16 = 23456;
