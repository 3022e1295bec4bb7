//! Listening sockets: opened, watched, opened again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::{Password, SpeakerConfig};
use crate::status::ListenerSnapshot;

use super::owner::Input;
use super::{Endpoints, LISTEN_RETRY, md5, socket};

/// The listening sockets of a speaker.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    by_address: BTreeMap<SocketAddr, State>,
    keys: BTreeMap<IpNet, Password>,
}

#[derive(Debug)]
enum State {
    Open { socket: Arc<TcpListener>, accepting: JoinHandle<()> },
    Closed { error: String, retry_at: Instant },
}

impl Listeners {
    /// Opens and closes what differs of where to `listen`, and hands MD5 keys to the kernel; true when something
    /// changed.
    pub(super) fn configure(
        &mut self,
        now: Instant,
        config: &SpeakerConfig,
        listen: &[SocketAddr],
        inputs: &mpsc::Sender<Input>,
    ) -> bool {
        let before = self.by_address.len();
        self.by_address.retain(|address, state| {
            let wanted = listen.contains(address);
            if let (false, State::Open { accepting, .. }) = (wanted, state) {
                accepting.abort();
            }
            wanted
        });
        let mut changed = self.by_address.len() != before;
        let named = config.peers.values().map(|peer| (IpNet::from(peer.address), peer));
        let mut ranges: Vec<_> = config.ranges.values().collect();
        // Of what ranges share, the narrowest has the say.
        ranges.sort_by_key(|range| range.addresses.len());
        let of_ranges = ranges.into_iter().flat_map(|range| {
            let addresses = md5::without_link_local(IpNet::from(range.addresses));
            addresses.into_iter().map(|addresses| (addresses, &range.template))
        });
        let keys: BTreeMap<IpNet, Password> = (of_ranges.chain(named))
            .filter_map(|(addresses, peer)| Some((addresses, peer.password.clone()?)))
            .collect();
        let former = std::mem::replace(&mut self.keys, keys);
        for state in self.by_address.values() {
            let State::Open { socket, .. } = state else { continue };
            for address in former.keys().filter(|address| !self.keys.contains_key(address)) {
                set_key(socket, *address, None);
            }
            for (address, key) in self.keys.iter().filter(|(a, key)| former.get(a) != Some(key)) {
                set_key(socket, *address, Some(key));
            }
        }
        for address in listen {
            if !self.by_address.contains_key(address) {
                self.open(now, *address, inputs);
                changed = true;
            }
        }
        changed
    }

    /// Tries again what could not be opened; true when something changed.
    pub(super) fn tick(&mut self, now: Instant, inputs: &mpsc::Sender<Input>) -> bool {
        let due: Vec<SocketAddr> = self
            .by_address
            .iter()
            .filter(|(_, s)| matches!(s, State::Closed { retry_at, .. } if *retry_at <= now))
            .map(|(address, _)| *address)
            .collect();
        let mut changed = false;
        for address in due {
            self.open(now, address, inputs);
            changed |= matches!(self.by_address.get(&address), Some(State::Open { .. }));
        }
        changed
    }

    /// When [`Listeners::tick`] is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let retries = self.by_address.values().filter_map(|state| match state {
            State::Closed { retry_at, .. } => Some(*retry_at),
            State::Open { .. } => None,
        });
        retries.min()
    }

    /// Closes all.
    pub(super) fn close(&mut self) {
        for state in std::mem::take(&mut self.by_address).into_values() {
            if let State::Open { accepting, .. } = state {
                accepting.abort();
            }
        }
    }

    pub(super) fn snapshot(&self) -> Vec<ListenerSnapshot> {
        let listeners = self.by_address.iter().map(|(address, state)| match state {
            State::Open { socket, .. } => {
                ListenerSnapshot { address: socket.local_addr().unwrap_or(*address), error: None }
            }
            State::Closed { error, .. } => {
                ListenerSnapshot { address: *address, error: Some(error.clone()) }
            }
        });
        listeners.collect()
    }

    fn open(&mut self, now: Instant, address: SocketAddr, inputs: &mpsc::Sender<Input>) {
        let state = match socket::listen(address) {
            Ok(listener) => {
                for (peer, key) in &self.keys {
                    set_key(&listener, *peer, Some(key));
                }
                let socket = Arc::new(listener);
                tracing::info!(%address, "listening");
                let accepting = tokio::spawn(accept(Arc::clone(&socket), inputs.clone()));
                State::Open { socket, accepting }
            }
            Err(error) => {
                let error = socket::explain_listen_error(address, &error);
                let known = matches!(
                    self.by_address.get(&address),
                    Some(State::Closed { error: known, .. }) if *known == error
                );
                if !known {
                    tracing::warn!(%address, "{error}");
                }
                State::Closed { error, retry_at: now + LISTEN_RETRY }
            }
        };
        self.by_address.insert(address, state);
    }
}

fn set_key(socket: &TcpListener, peers: IpNet, key: Option<&Password>) {
    let local = socket.local_addr().map(|address| address.is_ipv4());
    if local.is_ok_and(|is_ipv4| is_ipv4 != peers.addr().is_ipv4()) {
        return;
    }
    let key = key.map(|key| &*key.0);
    if let Err(error) = md5::set_key(socket.as_raw_fd(), peers, key) {
        tracing::warn!(%peers, %error, "cannot set the MD5 key of a peer on the listening socket");
    }
}

async fn accept(socket: Arc<TcpListener>, inputs: mpsc::Sender<Input>) {
    loop {
        match socket.accept().await {
            Ok((stream, remote)) => {
                let Ok(local) = stream.local_addr() else { continue };
                let endpoints = Endpoints { local, remote };
                if inputs.send(Input::Accepted { stream, endpoints }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Out of descriptors, or a connection that was gone again: not worth spinning.
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Rest after a failed accept.
const ACCEPT_REST: Duration = Duration::from_millis(100);
