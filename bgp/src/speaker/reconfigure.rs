//! A new configuration, taken up: only what differs is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use hashbrown::HashMap;

use crate::config::{Password, PeerConfig, PeerName, ResetReason};
use crate::rib::RibPeerConfig;
use crate::session::{Event, Jitter, Session, SessionConfig, SessionState, StopReason};

use super::errors::ErrorHistory;
use super::history::SessionHistory;
use super::owner::{Owner, PeerKey, now};
use super::peer::{Allowance, Peer, Throttle};

impl Owner {
    pub(super) fn add_peer(
        &mut self,
        name: &PeerName,
        config: &PeerConfig,
        range: Option<PeerName>,
    ) -> PeerKey {
        let key = PeerKey(self.next_key);
        self.next_key += 1;
        let rib_id = self.rib.add_peer(RibPeerConfig::new(&self.config, name, config));
        let jitter = Jitter::new(self.seed.wrapping_add(key.0));
        let session = Session::new(SessionConfig::new(&self.config, config), self.restart, jitter);
        let peer = Peer {
            name: Arc::clone(name),
            config: config.clone(),
            session,
            rib_id,
            connections: HashMap::default(),
            connecting: HashMap::default(),
            since: SystemTime::now(),
            changed: now(),
            up_at: None,
            last_down: None,
            established_count: 0,
            warnings: Throttle::default(),
            link: None,
            accepts: Allowance::default(),
            unsayable: Throttle::default(),
            refreshes: BTreeMap::new(),
            errors: ErrorHistory::default(),
            history: SessionHistory::default(),
            disabled: self.disabled.contains(name),
            doubt: None,
            range,
            refusals: BTreeSet::new(),
        };
        self.by_rib_id.insert(rib_id, key);
        self.peers.insert(key, peer);
        self.changed = true;
        self.begin(key);
        key
    }

    pub(super) fn remove_peer(&mut self, key: PeerKey) {
        self.handle(key, Event::Stop(StopReason::Removed));
        if let Some(peer) = self.peers.remove(&key) {
            self.by_rib_id.remove(&peer.rib_id);
            self.rib.remove_peer(peer.rib_id);
        }
        self.changed = true;
    }

    /// Takes up the wanted configuration: only what differs is touched.
    pub(super) fn configure(&mut self) {
        let new = self.wanted.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.config, new.clone());
        if old == new {
            return;
        }
        let removed: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| !new.wants(peer)).map(|(key, _)| *key).collect();
        removed.into_iter().for_each(|key| self.remove_peer(key));
        self.rib.configure(new.router_id, new.multipath);
        self.rib.set_cluster_id(new.cluster_id());
        self.rib.set_origins(&new.origins);
        self.rib.await_unnamed(self.restart.restarting && !new.ranges.is_empty());
        let listen = self.listen();
        self.changed |= self.listeners.configure(now(), &new, &listen, &self.mailbox);
        let keys: BTreeMap<PeerName, PeerKey> =
            self.peers.iter().map(|(key, peer)| (Arc::clone(&peer.name), *key)).collect();
        let identity_changed = old.identity() != new.identity();
        for (name, config) in &new.peers {
            match keys.get(name) {
                None => {
                    let key = self.add_peer(name, &self.locate(config), None);
                    self.set_doubt(key);
                }
                Some(key) => {
                    self.configure_peer(*key, &self.locate(config), identity_changed);
                    self.set_doubt(*key);
                }
            }
        }
        let of_ranges = self.peers.iter().filter_map(|(key, peer)| {
            let range = new.ranges.get(peer.range.as_ref()?)?;
            Some((*key, range.peer(peer.config.address)))
        });
        let of_ranges: Vec<_> = of_ranges.collect();
        for (key, config) in of_ranges {
            self.configure_peer(key, &config, identity_changed);
        }
        self.rib.set_originated(&new.originate);
    }

    pub(super) fn configure_peer(
        &mut self,
        key: PeerKey,
        config: &PeerConfig,
        identity_changed: bool,
    ) {
        let Some(peer) = self.peers.get(&key) else { return };
        let needed = peer.config.needs_reset(config);
        // A link that comes and goes, or a peer that changes its address, ends no rest.
        let rests = peer.session.rests(now()) && Owner::only_moves(&peer.config, config);
        let reset = identity_changed || needed.is_some() && !rests;
        if peer.config == *config && !reset {
            return;
        }
        if reset {
            let same_peer = !identity_changed && needed != Some(ResetReason::Transport);
            let reason = match self.moved(&peer.config, config) {
                Some(moved) => moved,
                None => StopReason::ConfigurationChange { same_peer },
            };
            self.handle(key, Event::Stop(reason));
        } else if peer.config.password != config.password
            && let Some(password) = &config.password
        {
            self.change_password(key, password);
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        // A session that its prefix limit has ended gets another chance under a new one.
        let comes_back = peer.config.prefix_limit != config.prefix_limit
            && peer.session.state() == SessionState::Idle;
        let asks_again = !reset && peer.config.needs_refresh(config);
        peer.config = config.clone();
        let rib_config = RibPeerConfig::new(&self.config, &peer.name, config);
        self.rib.configure_peer(peer.rib_id, rib_config);
        let mut actions = Vec::new();
        peer.session.configure(now(), SessionConfig::new(&self.config, config), &mut actions);
        self.perform(key, actions);
        if comes_back {
            self.handle(key, Event::Stop(StopReason::ConfigurationChange { same_peer: true }));
        }
        if reset || comes_back {
            self.begin(key);
        }
        if asks_again {
            self.ask_again(key);
        }
    }

    /// Sets a changed key on the connections that stand; listeners have got it already. An attempt to
    /// connect is made again with it.
    fn change_password(&mut self, key: PeerKey, password: &Password) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.session.forget_suspicion();
        for connection in peer.connections.values() {
            match connection.set_password(password) {
                Ok(()) => tracing::info!(peer = %peer.name, "password changed on the connection"),
                Err(error) => {
                    tracing::warn!(peer = %peer.name, %error, "cannot change the password");
                }
            }
        }
        let connecting: Vec<_> = peer.connecting.drain().collect();
        for (connection, attempt) in connecting {
            attempt.abort();
            let error = "the password was changed meanwhile".to_owned();
            self.handle(key, Event::ConnectFailed { connection, error });
        }
    }
}
