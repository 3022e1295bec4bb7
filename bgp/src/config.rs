//! What a speaker is asked to do, as one value.
//!
//! The whole of a speaker's configuration is a [`SpeakerConfig`]. Applying a new value touches only
//! what differs from the old one; [`PeerConfig::needs_reset`] says beforehand whether a difference
//! ends the session. Nothing here is read from files or from the API: the agent turns its objects
//! into these types.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::policy::Policy;
use crate::prefix::{Families, Prefix};

/// A name that is unique among a speaker's peers, such as `mesh/n2` or `bgppeer/tor`.
pub type PeerName = Arc<str>;

/// The wanted state of one speaker.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeakerConfig {
    /// The local autonomous system number, unless a peer's `local_asn` replaces it.
    pub asn: u32,
    /// The BGP identifier (RFC 6286): not 0.
    pub router_id: Ipv4Addr,
    /// Where incoming sessions are accepted. A listener that cannot be bound is reported and retried;
    /// outgoing sessions go on without it.
    pub listen: Vec<SocketAddr>,
    /// The peers by name.
    pub peers: BTreeMap<PeerName, PeerConfig>,
    /// Prefixes that this speaker originates.
    pub originate: BTreeMap<Prefix, Origination>,
    /// How long after the start the first best-path run waits for End-of-RIB markers of restarting
    /// peers (RFC 4724 section 4.1, Selection_Deferral_Timer).
    pub selection_deferral_secs: u16,
    /// Paths of equal cost that go into one kernel route.
    pub multipath_max: u16,
}

/// A prefix that this speaker originates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origination {
    /// Who asked for it, for `cairn why`: for example `ipblock/10.244.3.64-26`.
    pub source: Arc<str>,
    /// COMMUNITIES values to attach (RFC 1997).
    pub communities: Vec<u32>,
    /// LOCAL_PREF towards iBGP peers; 100 when absent.
    pub local_pref: Option<u32>,
}

/// One configured peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerConfig {
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's TCP port.
    pub port: u16,
    /// The autonomous system number that the peer must show in its OPEN.
    pub asn: u32,
    /// The autonomous system number shown to this peer when it is not the speaker's own (local-as).
    pub local_asn: Option<u32>,
    /// The local address to bind outgoing connections to.
    pub source_address: Option<IpAddr>,
    /// Wait for the peer to connect, never connect out.
    pub passive: bool,
    /// Hops to the peer: 1 is a directly connected one (TTL 1 on eBGP); more is multihop. iBGP
    /// sessions use 255 whatever stands here.
    pub multihop: u8,
    /// Families to offer; those that both sides offer are used.
    pub families: Families,
    /// The hold time offered: 0 (none) or at least 3 (RFC 4271 section 4.2).
    pub hold_time_secs: u16,
    /// Wait between attempts to connect, jittered by 0.75 to 1.0 (RFC 4271 section 10).
    pub connect_retry_secs: u16,
    /// Restart time offered in the graceful restart capability (RFC 4724); `None` leaves it out.
    pub graceful_restart_secs: Option<u16>,
    /// TCP MD5 signature key (RFC 2385).
    pub password: Option<Password>,
    /// Generalized TTL security (RFC 5082): refuse packets from more than `multihop` hops away.
    pub ttl_security: bool,
    /// This peer is a client of the route reflector that we are (RFC 4456).
    pub route_reflector_client: bool,
    /// How the next hop towards this peer is chosen.
    pub next_hop: NextHopMode,
    /// Which sort of routes may go to this peer before the export policy is asked.
    pub export_scope: ExportScope,
    /// First AS of an eBGP peer's AS_PATH must be the peer's (RFC 4271 section 6.3).
    pub enforce_first_as: bool,
    /// Prefixes accepted at most per family, counted before policy; over it the session ends.
    pub prefixes_max: Option<u32>,
    /// Ordered import policies; evaluation goes on to the next one while none decides. An eBGP peer
    /// without any imports nothing (RFC 8212), an iBGP peer without any imports everything.
    pub import: Vec<Arc<Policy>>,
    /// Ordered export policies; defaults as for `import`.
    pub export: Vec<Arc<Policy>>,
}

/// A TCP MD5 key, kept out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub Arc<str>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// How the NEXT_HOP towards a peer is chosen (RFC 4271 section 5.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHopMode {
    /// eBGP: own address of the session. iBGP: own address for originated routes, unchanged for
    /// learned ones.
    Auto,
    /// Always the own address of the session.
    SelfAddress,
    /// As received.
    Unchanged,
}

/// Which routes are candidates for export to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportScope {
    /// Originated and learned routes, as RFC 4271 and RFC 4456 allow.
    All,
    /// Originated routes only: what a node of a mesh sends.
    OriginatedOnly,
}

/// What in a change of a peer's configuration ends its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// Address, port, AS numbers, source address, TTL or password changed: another TCP connection.
    Transport,
    /// Something that only an OPEN can say changed: families, hold time, graceful restart.
    Capabilities,
}

impl PeerConfig {
    /// Whether replacing `self` by `new` needs a session reset, and why.
    pub fn needs_reset(&self, new: &PeerConfig) -> Option<ResetReason> {
        let transport = |p: &PeerConfig| {
            (
                p.address,
                p.port,
                p.asn,
                p.local_asn,
                p.source_address,
                p.multihop,
                p.ttl_security,
                p.password.clone(),
            )
        };
        let capabilities = |p: &PeerConfig| (p.families, p.hold_time_secs, p.graceful_restart_secs);
        if transport(self) != transport(new) {
            Some(ResetReason::Transport)
        } else if capabilities(self) != capabilities(new) {
            Some(ResetReason::Capabilities)
        } else {
            None
        }
    }
}
