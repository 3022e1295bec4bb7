//! Our speaker, as a library in the test's own thread.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use cairn_bgp::config::{
    AddPath, GracefulRestart, Multipath, Origination, PeerConfig, SpeakerConfig,
};
use cairn_bgp::policy::{Action, Changes, Match, Policy, Rule};
use cairn_bgp::rib::{CandidateInfo, FibRoute, PrefixFilter, RouteFilter, RouteInfo};
use cairn_bgp::session::SessionState;
use cairn_bgp::speaker::{FibFeed, Speaker, SpeakerHandle, SpeakerOptions};
use cairn_bgp::status::PeerSnapshot;

use crate::daemon::{Learned, OUR_HOST, Setup};
use crate::link::PATIENCE;

/// Our side, with the forwarding table that its feed describes.
pub struct Us {
    /// The speaker.
    pub handle: SpeakerHandle,
    /// What it does now.
    pub config: SpeakerConfig,
    feed: FibFeed,
    /// The forwarding table.
    pub routes: BTreeMap<String, FibRoute>,
    /// What was taken out of it, in order.
    pub removed: Vec<String>,
}

impl Us {
    /// Starts it for the peer of `setup`, which is called [`PEER`], with routes of its own.
    ///
    /// # Panics
    /// Outside of a runtime, or with a configuration that cannot work.
    #[must_use]
    pub fn start(setup: &Setup, originate: &[&str]) -> Us {
        Us::with(config(&[setup], originate), SpeakerOptions::default())
    }

    /// Starts it with any configuration.
    ///
    /// # Panics
    /// As [`Us::start`].
    #[must_use]
    pub fn with(config: SpeakerConfig, options: SpeakerOptions) -> Us {
        let (handle, feed) =
            Speaker::start(config.clone(), options).expect("a configuration that can work");
        Us { handle, config, feed, routes: BTreeMap::new(), removed: Vec::new() }
    }

    /// Makes the running speaker do what a changed configuration says.
    ///
    /// # Panics
    /// When the configuration cannot work.
    pub fn apply(&mut self, change: impl FnOnce(&mut SpeakerConfig)) {
        change(&mut self.config);
        self.handle.apply(self.config.clone()).expect("a configuration that can work");
    }

    /// The same for the settings of its peer.
    ///
    /// # Panics
    /// As [`Us::apply`].
    pub fn apply_to_peer(&mut self, change: impl FnOnce(&mut PeerConfig)) {
        self.apply(|config| change(config.peers.get_mut(PEER).expect("the peer")));
    }

    /// Waits until the forwarding table is as wanted.
    ///
    /// # Panics
    /// When it never is.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&BTreeMap<String, FibRoute>) -> bool) {
        let waiting = async {
            while !holds(&self.routes) {
                let batch = self.feed.recv().await.expect("the speaker runs");
                for change in batch.changes {
                    let prefix = change.prefix.to_string();
                    match change.route {
                        Some(route) => drop(self.routes.insert(prefix, route)),
                        None => {
                            self.routes.remove(&prefix);
                            self.removed.push(prefix);
                        }
                    }
                }
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("never: {what}: {:?}\n{}", self.routes, self.report().await);
        }
    }

    /// Waits until the forwarding table has exactly these prefixes.
    ///
    /// # Panics
    /// When it never has.
    pub async fn until_routes(&mut self, wanted: &[&str]) {
        let mut sorted = wanted.to_vec();
        sorted.sort_unstable();
        self.until(&format!("routes {wanted:?}"), |routes| {
            routes.keys().map(String::as_str).eq(sorted.iter().copied())
        })
        .await;
    }

    /// Waits until what is known about the peer is as wanted, and returns it.
    ///
    /// # Panics
    /// When it never is.
    pub async fn until_peer(
        &self,
        what: &str,
        holds: impl Fn(&PeerSnapshot) -> bool,
    ) -> PeerSnapshot {
        let mut changes = self.handle.changes();
        let waiting = async {
            loop {
                let peer = self.peer().await;
                if holds(&peer) {
                    return peer;
                }
                // Not every counter that a test waits for announces itself.
                let changed = changes.changed();
                let _ = tokio::time::timeout(std::time::Duration::from_millis(50), changed).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(peer) => peer,
            Err(_) => panic!("never: {what}\n{}", self.report().await),
        }
    }

    /// Waits until the session is established.
    ///
    /// # Panics
    /// When it never is.
    pub async fn until_established(&self) -> PeerSnapshot {
        self.until_peer("established", |peer| peer.state == SessionState::Established).await
    }

    /// What is known about the peer.
    ///
    /// # Panics
    /// When the speaker has ended.
    pub async fn peer(&self) -> PeerSnapshot {
        let mut snapshot = self.handle.snapshot().await.expect("the speaker runs");
        snapshot.peers.remove(PEER).expect("the peer")
    }

    /// What the peer has told us about a prefix.
    ///
    /// # Panics
    /// When the speaker has ended.
    pub async fn learned(&self, prefix: &str) -> Option<Learned> {
        let candidate = self.candidates(prefix).await.into_iter().find(|c| c.peer.is_some())?;
        Some(Learned {
            next_hop: candidate.next_hop.unwrap_or_default(),
            as_path: candidate.as_path,
            local_pref: Some(candidate.local_pref),
            communities: candidate.communities,
            large_communities: candidate.large_communities,
        })
    }

    /// All routes to a prefix, best first.
    ///
    /// # Panics
    /// When the speaker has ended.
    pub async fn candidates(&self, prefix: &str) -> Vec<CandidateInfo> {
        let prefix = PrefixFilter::Exact(prefix.parse().expect("a prefix"));
        let filter = RouteFilter { prefix, ..RouteFilter::default() };
        let routes = self.handle.routes(filter).await.expect("the speaker runs");
        routes.into_iter().flat_map(|route: RouteInfo| route.candidates).collect()
    }

    async fn report(&self) -> String {
        format!("{:#?}", self.handle.snapshot().await)
    }
}

/// A speaker for these peers, with routes of its own, which passes everything on.
#[must_use]
pub fn config(setups: &[&Setup], originate: &[&str]) -> SpeakerConfig {
    let origination = || Origination {
        source: "test".into(),
        communities: vec![65001 << 16 | 7],
        local_pref: None,
    };
    let names = std::iter::once(PEER.to_owned()).chain((2..).map(|n| format!("{PEER}-{n}")));
    let peers = names.zip(setups).map(|(name, setup)| (name.into(), peer(setup))).collect();
    let local = setups.iter().map(|setup| address(&setup.remote));
    let listen: std::collections::BTreeSet<_> = local.map(|a| SocketAddr::new(a, 179)).collect();
    SpeakerConfig {
        origins: Default::default(),
        ranges: Default::default(),
        asn: setups.first().map_or(65001, |setup| setup.our_asn),
        router_id: Ipv4Addr::new(10, 0, 0, OUR_HOST),
        cluster_id: None,
        listen: listen.into_iter().collect(),
        peers,
        originate: originate
            .iter()
            .map(|prefix| (prefix.parse().expect("a prefix"), origination()))
            .collect(),
        selection_deferral_secs: 10,
        multipath: Multipath { paths_max: 1, same_as_path: false },
    }
}

/// Our end of the session that `setup` describes.
fn peer(setup: &Setup) -> PeerConfig {
    let all = Arc::new(everything());
    PeerConfig {
        source_address: Some(address(&setup.remote)),
        hold_time_secs: crate::daemon::HOLD_TIME_SECS,
        connect_retry_secs: 1,
        graceful_restart: setup.graceful_restart.then(|| GracefulRestart::new(30)),
        password: setup.password.as_deref().map(password),
        ttl_security: setup.ttl_security,
        extended_next_hop: setup.extended_next_hop,
        add_path: match setup.add_path {
            true => AddPath { receive: true, send_max: 4 },
            false => AddPath::default(),
        },
        import: vec![Arc::clone(&all)],
        export: vec![all],
        ..PeerConfig::new(address(setup.local()), setup.asn)
    }
}

/// A policy that accepts every route.
#[must_use]
pub fn everything() -> Policy {
    let (matches, set) = (Match::default(), Changes::default());
    Policy { name: "all".into(), rules: vec![Rule { matches, action: Action::Accept, set }] }
}

/// A TCP MD5 key.
#[must_use]
pub fn password(text: &str) -> cairn_bgp::config::Password {
    cairn_bgp::config::Password(text.into())
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address of the link")
}

/// The name of the first peer.
pub const PEER: &str = "far";
