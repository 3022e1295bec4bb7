//! What a speaker is asked to do, as one value.
//!
//! The whole of a speaker's configuration is a [`SpeakerConfig`]. Applying a new value touches only
//! what differs from the old one; [`PeerConfig::needs_reset`] says beforehand whether a difference
//! ends the session. Nothing here is read from files or from the API: the agent turns its objects
//! into these types.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::policy::Policy;
use crate::prefix::{Families, Family, Prefix};
use crate::rib::OriginTable;

/// A name that is unique among a speaker's peers, such as `mesh/n2` or `bgppeer/tor`.
pub type PeerName = Arc<str>;

/// The name of a network interface.
pub type InterfaceName = Arc<str>;

/// The wanted state of one speaker.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeakerConfig {
    /// The local autonomous system number, unless a peer's `local_asn` replaces it.
    pub asn: u32,
    /// The BGP identifier (RFC 6286): not 0.
    pub router_id: Ipv4Addr,
    /// The cluster of which this speaker is a route reflector (RFC 4456 section 7): not 0; the BGP
    /// identifier when absent. Reflectors that share one do not take from each other what the other
    /// has reflected, so each of their clients needs a session with every one of them.
    pub cluster_id: Option<Ipv4Addr>,
    /// Where incoming sessions are accepted. A listener that cannot be bound is reported and retried;
    /// outgoing sessions go on without it.
    pub listen: Vec<SocketAddr>,
    /// The peers by name.
    pub peers: BTreeMap<PeerName, PeerConfig>,
    /// Peers that are not named: whoever connects from an address of a range.
    pub ranges: BTreeMap<PeerName, PeerRange>,
    /// Prefixes that this speaker originates.
    pub originate: BTreeMap<Prefix, Origination>,
    /// Who owns which block, for origin validation.
    pub origins: Arc<OriginTable>,
    /// How long after the start the first best-path run waits for End-of-RIB markers of restarting
    /// peers (RFC 4724 section 4.1, Selection_Deferral_Timer).
    pub selection_deferral_secs: u16,
    /// Which paths of equal cost share a kernel route.
    pub multipath: Multipath,
}

/// Peers that are not named, but connect from an address of a range. Each is called as the range, an `@` and
/// its address. Where ranges overlap the narrowest counts; a named peer of the address goes first.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerRange {
    /// Their addresses.
    pub addresses: Prefix,
    /// How many of them there may be at a time.
    pub peers_max: u32,
    /// What each is configured as, but for its address. None is ever connected to.
    pub template: PeerConfig,
}

impl SpeakerConfig {
    /// The cluster of which this speaker is a route reflector (RFC 4456 section 7).
    pub fn cluster_id(&self) -> Ipv4Addr {
        self.cluster_id.unwrap_or(self.router_id)
    }

    /// Who the speaker is to every peer: sessions end when that changes.
    pub(crate) fn identity(&self) -> (u32, Ipv4Addr, Ipv4Addr) {
        (self.asn, self.router_id, self.cluster_id())
    }
}

/// Which paths of equal cost share a kernel route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multipath {
    /// Paths in one kernel route, at least 1.
    pub paths_max: u16,
    /// Only paths with the same AS_PATH are equal; else its length counts, not its content.
    pub same_as_path: bool,
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
    /// The peer's address; `::` for one that is known by its interface, until the speaker is told who is
    /// there.
    pub address: IpAddr,
    /// The interface whose other end is the peer, which has no configured address: a session between
    /// link-local addresses (RFC 4291 section 2.5.6).
    pub interface: Option<InterfaceName>,
    /// The index of that interface, without which a link-local address says nothing (RFC 4007); 0 until
    /// the speaker is told.
    pub scope_id: u32,
    /// The peer's TCP port.
    pub port: u16,
    /// The autonomous system number that the peer must show in its OPEN.
    pub asn: u32,
    /// The autonomous system number shown to this peer when it is not the speaker's own (local-as,
    /// RFC 7705).
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
    /// How long TCP may take nothing of what is to be sent before the session ends (RFC 9687); at
    /// least twice the negotiated hold time is waited. 0 waits forever.
    pub send_hold_time_secs: u16,
    /// Wait between attempts to connect, jittered by 0.75 to 1.0 (RFC 4271 section 10).
    pub connect_retry_secs: u16,
    /// Graceful restart offered (RFC 4724); `None` leaves the capability out.
    pub graceful_restart: Option<GracefulRestart>,
    /// BFD with this peer (RFC 5882). Another process runs it; who runs the speaker sets it up there, and
    /// tells the speaker of a dead path.
    pub bfd: Option<Bfd>,
    /// TCP MD5 signature key (RFC 2385). A changed one is set on the live connection.
    pub password: Option<Password>,
    /// Generalized TTL security (RFC 5082): refuse packets from more than `multihop` hops away.
    pub ttl_security: bool,
    /// This peer is a client of the route reflector that we are (RFC 4456).
    pub route_reflector_client: bool,
    /// How the next hop towards this peer is chosen.
    pub next_hop: NextHopMode,
    /// The own next hop of IPv6 routes on this session; without one the local address, else the
    /// global IPv6 address of the session's interface, is used.
    pub next_hop_ipv6: Option<Ipv6Addr>,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Several paths to a prefix (RFC 7911).
    pub add_path: AddPath,
    /// Which sort of routes may go to this peer before the export policy is asked.
    pub export_scope: ExportScope,
    /// First AS of an eBGP peer's AS_PATH must be the peer's (RFC 4271 section 6.3).
    pub enforce_first_as: bool,
    /// How often our own AS may stand in a received AS_PATH (allowas-in); 0 as in RFC 4271.
    pub own_as_max: u8,
    /// Longest AS_PATH accepted, as the decision process counts it.
    pub as_path_len_max: Option<u32>,
    /// Take private AS numbers (RFC 6996) out of AS_PATH towards an eBGP peer.
    pub remove_private_as: bool,
    /// Path attributes dropped from what comes in (RFC 7606 section 8 asks for the possibility).
    pub discard_attributes: BTreeSet<u8>,
    /// Bound of what the peer may announce.
    pub prefix_limit: Option<PrefixLimit>,
    /// The session is about to go away: routes are announced with GRACEFUL_SHUTDOWN, and taken with
    /// LOCAL_PREF 0 (RFC 8326).
    pub graceful_shutdown: bool,
    /// Ordered import policies; evaluation goes on to the next one while none decides. An eBGP peer
    /// without any imports nothing (RFC 8212), an iBGP peer without any imports everything.
    pub import: Vec<Arc<Policy>>,
    /// Ordered export policies; defaults as for `import`.
    pub export: Vec<Arc<Policy>>,
}

/// What happens to routes while the software on one side of a session restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// How long the peer is asked to keep our routes, in seconds: at most 4095 (RFC 4724).
    pub restart_time_secs: u16,
    /// Routes stay, too, when a NOTIFICATION or the hold timer ends the session, unless it is a Hard
    /// Reset: the N bit of RFC 8538. It counts where both sides set it.
    pub notification: bool,
    /// What becomes of routes when the restart time has passed (RFC 9494); `None` leaves that
    /// capability out, and they go.
    pub long_lived: Option<LongLived>,
}

/// Routes that outlive the restart time as a last resort (RFC 9494).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongLived {
    /// How long the peer is asked to keep our routes after the restart time, and how long we keep its
    /// routes at most, in seconds: 1 to 16,777,215.
    pub stale_time_secs: u32,
    /// Only routes to prefixes in one of these are kept; `None` keeps all.
    pub within: Option<Arc<[Prefix]>>,
}

impl GracefulRestart {
    /// Of so many seconds, with everything else off.
    pub fn new(restart_time_secs: u16) -> GracefulRestart {
        GracefulRestart { restart_time_secs, notification: false, long_lived: None }
    }

    /// What an OPEN says of it.
    fn offered(&self) -> (u16, bool, u32) {
        let stale_time_secs = self.long_lived.as_ref().map_or(0, |long| long.stale_time_secs);
        (self.restart_time_secs, self.notification, stale_time_secs)
    }
}

/// How fast a dead path to a peer is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bfd {
    /// The interval of BFD's packets in milliseconds.
    pub interval_ms: u32,
    /// How many missing ones mean that the path is dead, at least 1.
    pub multiplier: u8,
}

/// Bound of the prefixes of a peer, counted per family before policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLimit {
    /// Prefixes of one family.
    pub prefixes_max: u32,
    /// What happens when there are more.
    pub action: PrefixLimitAction,
}

/// What happens at a [`PrefixLimit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixLimitAction {
    /// It is reported and nothing else.
    Warn,
    /// Further prefixes are not taken in; those that are there go on, also when they change.
    Drop,
    /// The session ends (RFC 4271 section 6.7).
    Stop {
        /// When it is tried again; `None` when an operator has to reset it.
        restart_after_secs: Option<u32>,
    },
}

impl PeerConfig {
    /// A peer with everything else as RFC 4271 and DESIGN have it: both families, 90 s hold time,
    /// no policies, nothing restricted.
    pub fn new(address: IpAddr, asn: u32) -> PeerConfig {
        PeerConfig {
            address,
            interface: None,
            scope_id: 0,
            port: BGP_PORT,
            asn,
            local_asn: None,
            source_address: None,
            passive: false,
            multihop: 1,
            families: Families::from_iter(Family::ALL),
            hold_time_secs: 90,
            send_hold_time_secs: 480,
            connect_retry_secs: 5,
            graceful_restart: None,
            bfd: None,
            password: None,
            ttl_security: false,
            route_reflector_client: false,
            next_hop: NextHopMode::Auto,
            next_hop_ipv6: None,
            extended_next_hop: false,
            add_path: AddPath::default(),
            export_scope: ExportScope::All,
            enforce_first_as: true,
            own_as_max: 0,
            as_path_len_max: None,
            remove_private_as: false,
            discard_attributes: BTreeSet::new(),
            prefix_limit: None,
            graceful_shutdown: false,
            import: Vec::new(),
            export: Vec::new(),
        }
    }

    /// As [`PeerConfig::new`], for whoever is at the other end of an interface. IPv4 routes have IPv6 next
    /// hops (RFC 8950), as such an interface needs no IPv4 address.
    pub fn on_interface(interface: impl Into<InterfaceName>, asn: u32) -> PeerConfig {
        PeerConfig {
            interface: Some(interface.into()),
            extended_next_hop: true,
            ..PeerConfig::new(Ipv6Addr::UNSPECIFIED.into(), asn)
        }
    }

    /// Whether it is known by its interface, and nobody has said yet who is there.
    pub fn is_unlocated(&self) -> bool {
        self.interface.is_some() && self.address.is_unspecified()
    }
}

/// Several paths to a prefix in the sessions of a peer (RFC 7911), which have to be offered by both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddPath {
    /// Offer to receive them.
    pub receive: bool,
    /// The best so many are sent, at most [`SENT_PATHS_MAX`]; 0 does not offer to send any but the best.
    pub send_max: u8,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResetReason {
    /// Another TCP connection.
    #[error(
        "address, interface, port, AS numbers, source address, multihop or TTL security changed"
    )]
    Transport,
    /// A first password, or none any more. A changed one is set on the live connection.
    #[error("a password was added or taken away")]
    Password,
    /// Something that only an OPEN can say.
    #[error("families, hold time, graceful restart, next hops or ADD-PATH changed")]
    Capabilities,
    /// What came before was read in the other way.
    #[error("the check of the first AS or the attributes to discard changed")]
    Decoding,
}

impl PeerConfig {
    /// Whether replacing `self` by `new` needs a session reset, and why. What is not asked for here is
    /// taken up by a live session.
    pub fn needs_reset(&self, new: &PeerConfig) -> Option<ResetReason> {
        let transport = |p: &PeerConfig| {
            let ends = (p.address, p.scope_id, p.port, p.source_address);
            (ends, p.asn, p.local_asn, p.multihop, p.ttl_security)
        };
        let capabilities = |p: &PeerConfig| {
            let next_hops = (p.extended_next_hop, p.next_hop_ipv6);
            let restart = p.graceful_restart.as_ref().map(GracefulRestart::offered);
            let add_path = (p.add_path.receive, p.add_path.send_max > 0);
            (p.families, p.hold_time_secs, restart, next_hops, add_path)
        };
        if transport(self) != transport(new) || self.interface != new.interface {
            Some(ResetReason::Transport)
        } else if self.password.is_some() != new.password.is_some() {
            Some(ResetReason::Password)
        } else if capabilities(self) != capabilities(new) {
            Some(ResetReason::Capabilities)
        } else if self.enforce_first_as != new.enforce_first_as
            || self.discard_attributes != new.discard_attributes
        {
            Some(ResetReason::Decoding)
        } else {
            None
        }
    }

    /// Whether the peer has to be asked for its routes again (RFC 2918) when `self` is replaced by
    /// `new`: what was beyond a limit was dropped and not stored.
    pub fn needs_refresh(&self, new: &PeerConfig) -> bool {
        let drops_from = |p: &PeerConfig| match p.prefix_limit {
            Some(PrefixLimit { prefixes_max, action: PrefixLimitAction::Drop }) => prefixes_max,
            _ => u32::MAX,
        };
        drops_from(new) > drops_from(self)
    }
}

/// Paths to one prefix that are sent to one peer: more than a router uses beside each other.
pub const SENT_PATHS_MAX: u8 = 16;
/// The TCP port of BGP (IANA).
pub const BGP_PORT: u16 = 179;
