//! Who is at the other ends of interfaces, for peers that are known by these (unnumbered).
//!
//! ```text
//!  configuration ──interfaces──►┐
//!  kernel ──links, addresses────┼─► a LinkRouters each ──set_neighbours──► speaker
//!  routers ──advertisements────►┘          └──advertisements, solicitations──► routers
//! ```
//!
//! Without such a peer there is neither a socket nor an advertisement. Nothing is changed in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use cairn_bgp::config::{InterfaceName, SpeakerConfig};
use cairn_bgp::speaker::{Located, Neighbour, SpeakerHandle};
use cairn_kernel::link::{self, Address, Link, Mac};
use cairn_kernel::monitor::{KernelEvent, Monitor};
use cairn_kernel::router_discovery::wire::Message;
use cairn_kernel::router_discovery::{LinkEnd, LinkRouters, Received, RouterSocket, wire};
use cairn_kernel::{Errno, Error, Netlink};
use tokio::sync::watch;

use crate::until;

/// Finds the peers on interfaces of the calling thread's network namespace, until the speaker ends.
pub fn follow(speaker: SpeakerHandle) {
    tokio::spawn(async move {
        let mut changes = speaker.changes();
        let ended = async { while changes.changed().await.is_ok() {} };
        tokio::select! {
            () = ended => {}
            () = discover(&speaker) => {}
        }
    });
}

async fn discover(speaker: &SpeakerHandle) {
    let mut wanted = speaker.configuration();
    let mut discovery = Discovery::default();
    loop {
        if interfaces(&wanted.borrow_and_update()).is_empty() {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        }
        let failure = match Sources::open() {
            Ok(mut sources) => discovery.run(&mut sources, speaker, &mut wanted).await,
            Err(error) => Err(error),
        };
        if let Err(error) = failure {
            tracing::warn!(%error, "peers on interfaces cannot be found");
            // Those that are wanted by now.
            let interfaces = interfaces(&wanted.borrow());
            discovery.fail(speaker, interfaces, &explain(&error)).await;
            tokio::time::sleep(REST).await;
        }
    }
}

/// The interfaces that peers are known by.
fn interfaces(config: &SpeakerConfig) -> Vec<InterfaceName> {
    config.peers.values().filter_map(|peer| peer.interface.clone()).collect()
}

fn explain(error: &Error) -> String {
    let what = match error.errno() {
        Some(Errno::PERM | Errno::ACCESS) => ": it needs CAP_NET_RAW, run it as root",
        _ => "",
    };
    format!("router advertisements cannot be heard: {error}{what}")
}

/// Where news comes from.
struct Sources {
    socket: RouterSocket,
    monitor: Monitor,
    netlink: Netlink,
}

impl Sources {
    fn open() -> Result<Sources, Error> {
        Ok(Sources {
            socket: RouterSocket::open()?,
            // Before anything is read, so that no change falls between.
            monitor: Monitor::open_link_addresses()?,
            netlink: Netlink::open()?,
        })
    }
}

/// What is known, which outlives sources that fail: a session goes on meanwhile.
#[derive(Default)]
struct Discovery {
    links: BTreeMap<InterfaceName, LinkState>,
    told: BTreeMap<InterfaceName, Neighbour>,
    own: Own,
    /// The socket hears which addresses are on links.
    hears_addresses: bool,
}

/// What is this machine's own: where two of its interfaces are on one segment, it hears itself.
#[derive(Default)]
struct Own {
    macs: BTreeSet<Mac>,
    addresses: BTreeSet<Ipv6Addr>,
    /// Something may have changed since.
    stale: bool,
}

impl Own {
    fn read(netlink: &mut Netlink, addresses: &[Address]) -> Result<Own, Error> {
        let macs = link::list(netlink)?.into_iter().filter_map(|link| link.mac);
        let link_local = addresses.iter().filter_map(|held| match held.address.addr() {
            IpAddr::V6(own) if own.is_unicast_link_local() => Some(own),
            _ => None,
        });
        Ok(Own {
            macs: macs.filter(|mac| *mac != Mac([0; 6])).collect(),
            addresses: link_local.collect(),
            stale: false,
        })
    }

    /// Whether a message is of this machine. Link-local addresses may be the same on several links, so that of
    /// one that names its Ethernet address that counts alone.
    fn sent(&self, source: Ipv6Addr, message: &Message) -> bool {
        match message {
            Message::Advertisement { mac: Some(mac), .. } => self.macs.contains(mac),
            Message::Advertisement { mac: None, .. } => self.addresses.contains(&source),
            Message::Solicitation | Message::Present { .. } => false,
        }
    }
}

/// An interface that a peer is known by.
struct LinkState {
    routers: LinkRouters,
    /// The interface of this name, as far as there is one.
    index: Option<u32>,
    mac: Option<Mac>,
    /// Why the link cannot be used.
    problem: Option<String>,
    /// What was said last of another router on it, and when.
    crowd: Option<(Instant, String)>,
}

impl Discovery {
    /// Runs until no peer is on an interface any more.
    async fn run(
        &mut self,
        sources: &mut Sources,
        speaker: &SpeakerHandle,
        wanted: &mut watch::Receiver<SpeakerConfig>,
    ) -> Result<(), Error> {
        let mut buffer = [0; MESSAGE_OCTETS_MAX];
        // Another socket hears nothing of what the one before did.
        self.hears_addresses = false;
        self.want(sources, interfaces(&wanted.borrow_and_update()))?;
        while !self.links.is_empty() {
            let doubts = self.links.values().any(|link| link.routers.doubts());
            if doubts != self.hears_addresses {
                sources.socket.hear_addresses(doubts)?;
                self.hears_addresses = doubts;
            }
            // What was answered during a pause of this process counts before the time that it took.
            for _ in 0..ARRIVED_MAX {
                let Some(received) = sources.socket.receive_now(&mut buffer)? else { break };
                let octets = buffer.get(..received.octets).unwrap_or_default();
                self.hear(&mut sources.netlink, received, octets)?;
            }
            self.send_due(&sources.socket, speaker).await;
            self.tell(speaker).await;
            let deadline =
                self.links.values().filter_map(|link| link.routers.next_deadline()).min();
            tokio::select! {
                events = sources.monitor.next() => {
                    let events = events?;
                    self.own.stale |= !events.is_empty();
                    if events.iter().any(|event| self.concerns(event)) {
                        self.look(sources, Instant::now())?;
                    }
                }
                received = sources.socket.receive(&mut buffer) => {
                    let received = received?;
                    // Whoever floods the socket keeps nobody else on this thread waiting.
                    tokio::task::consume_budget().await;
                    let octets = buffer.get(..received.octets).unwrap_or_default();
                    self.hear(&mut sources.netlink, received, octets)?;
                }
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.want(sources, interfaces(&wanted.borrow_and_update()))?;
                }
                () = until(deadline.map(tokio::time::Instant::from_std)) => {}
            }
        }
        self.tell(speaker).await;
        Ok(())
    }

    /// Says of all interfaces why nothing more will be known of them for now.
    async fn fail(
        &mut self,
        speaker: &SpeakerHandle,
        interfaces: Vec<InterfaceName>,
        problem: &str,
    ) {
        let told = interfaces.into_iter().map(|name| {
            let located = self.told.get(&name).and_then(|known| known.located);
            (name, Neighbour { located, problem: Some(problem.to_owned()) })
        });
        self.told = told.collect();
        // One that has ended needs nothing any more.
        let _ = speaker.set_neighbours(self.told.clone()).await;
    }

    fn want(&mut self, sources: &mut Sources, interfaces: Vec<InterfaceName>) -> Result<(), Error> {
        self.links.retain(|name, link| {
            let stays = interfaces.contains(name);
            if let Some(index) = link.index.filter(|_| !stays) {
                sources.socket.leave(index);
            }
            stays
        });
        for name in interfaces {
            self.links.entry(name).or_insert_with_key(|name| LinkState {
                routers: LinkRouters::new(RandomState::new().hash_one(name)),
                index: None,
                mac: None,
                problem: None,
                crowd: None,
            });
        }
        self.look(sources, Instant::now())
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        let is_ours = |index: u32| self.links.values().any(|link| link.index == Some(index));
        match event {
            KernelEvent::Link { index, name, .. } => {
                is_ours(*index) || self.links.contains_key(name.as_str())
            }
            KernelEvent::AddressesChanged { ifindex } => is_ours(*ifindex),
            KernelEvent::Overrun => true,
            _ => false,
        }
    }

    /// Reads what the interfaces are now.
    fn look(&mut self, sources: &mut Sources, now: Instant) -> Result<(), Error> {
        let Sources { socket, netlink, .. } = sources;
        let addresses = link::addresses(netlink)?;
        self.own = Own::read(netlink, &addresses)?;
        for (name, state) in &mut self.links {
            let found = link::find(netlink, name)?;
            let index = found.as_ref().map(|link| link.index);
            if state.index != index {
                state.index.inspect(|gone| socket.leave(*gone));
                state.index = index;
            }
            // An interface that was away for a moment, in another namespace perhaps, is in no group any more.
            let joined = index.map_or(Ok(()), |index| socket.join(index));
            state.mac = found.as_ref().and_then(|link| link.mac);
            let usable = usable(name, found.as_ref(), &addresses, state.routers.end());
            // Where IPv6 is off there is no group to join, and no address either, which says more.
            let usable = usable.and_then(|end| match joined {
                Ok(()) => Ok(end),
                Err(error) => Err(error.to_string()),
            });
            state.problem = usable.as_ref().err().cloned();
            state.routers.set_end(now, usable.ok());
        }
        Ok(())
    }

    fn hear(
        &mut self,
        netlink: &mut Netlink,
        received: Received,
        octets: &[u8],
    ) -> Result<(), Error> {
        let Received { source, index, hop_limit, .. } = received;
        let mut links = self.links.iter_mut();
        let Some((name, state)) = links.find(|(_, link)| link.index == Some(index)) else {
            return Ok(());
        };
        let message = match wire::decode(octets, source, hop_limit) {
            Ok(message) => message,
            Err(why) => {
                tracing::debug!(interface = %name, %source, %why, "a message is dropped");
                return Ok(());
            }
        };
        if self.own.stale {
            let addresses = link::addresses(netlink)?;
            self.own = Own::read(netlink, &addresses)?;
        }
        match self.own.sent(source, &message) {
            true => tracing::debug!(interface = %name, %source, "an advertisement of our own"),
            false => state.routers.handle(Instant::now(), source, message),
        }
        Ok(())
    }

    async fn send_due(&mut self, socket: &RouterSocket, speaker: &SpeakerHandle) {
        for (name, state) in &mut self.links {
            let due = state.routers.poll(Instant::now());
            if due.judgement {
                // One that has ended holds nothing.
                let stands = speaker.is_established_on(name.clone()).await.unwrap_or(false);
                state.routers.judge(Instant::now(), stands);
            }
            let Some(end) = state.routers.end() else { continue };
            if let Err(error) = socket.send(end, state.mac, due) {
                tracing::debug!(interface = %name, %error, "not advertised this time");
            }
        }
    }

    /// Tells the speaker what is known, if it is something else than before.
    async fn tell(&mut self, speaker: &SpeakerHandle) {
        let now = Instant::now();
        let known: BTreeMap<InterfaceName, Neighbour> = self
            .links
            .iter_mut()
            .map(|(name, state)| (name.clone(), state.known(name, now)))
            .collect();
        if known != self.told {
            self.told.clone_from(&known);
            // One that has ended needs nothing any more.
            let _ = speaker.set_neighbours(known).await;
        }
    }
}

impl LinkState {
    fn known(&mut self, name: &str, now: Instant) -> Neighbour {
        let (end, remote) = (self.routers.end(), self.routers.neighbour());
        let located = end.zip(remote).map(|(LinkEnd { index, local }, remote)| Located {
            index,
            local,
            remote,
        });
        let problem = match remote {
            Some(remote) => {
                let said = two_routers(name, remote, &self.routers.others(now));
                // Whoever advertises from many addresses is told of once in a while.
                let lately = self.crowd.take().filter(|(at, _)| *at + TOLD_AGAIN > now);
                self.crowd = said.map(|said| lately.unwrap_or((now, said)));
                self.crowd.as_ref().map(|(_, said)| said.clone())
            }
            None => Some(self.problem.clone().unwrap_or_else(|| {
                format!(
                    "no router advertisement has been heard on {name} yet: the router at its other end has \
                     to send them, as FRR does for `neighbor IFNAME interface`"
                )
            })),
        };
        Neighbour { located, problem }
    }
}

fn two_routers(name: &str, remote: Ipv6Addr, others: &[Ipv6Addr]) -> Option<String> {
    let other = others.first()?;
    Some(format!(
        "more routers than one advertise themselves on {name}, which is to be a link between two: the peer is \
         {remote}, heard first, and not {other}; let the others not advertise, or name the peer by an address"
    ))
}

/// This end of an interface, or why it cannot be used. The address stays the same as long as the interface
/// has it.
fn usable(
    name: &str,
    found: Option<&Link>,
    addresses: &[Address],
    before: Option<LinkEnd>,
) -> Result<LinkEnd, String> {
    let link = found.ok_or_else(|| format!("there is no interface {name} yet"))?;
    if !link.is_up() {
        return Err(format!("the interface {name} is down: set it up"));
    }
    if !link.is_running() {
        return Err(format!("the interface {name} has no carrier"));
    }
    let own = addresses.iter().filter_map(|held| match held.address.addr() {
        IpAddr::V6(own) if held.ifindex == link.index && own.is_unicast_link_local() => {
            held.is_lasting().then_some(own)
        }
        _ => None,
    });
    let own: Vec<Ipv6Addr> = own.collect();
    let before = before.map(|end| end.local).filter(|local| own.contains(local));
    match before.or(own.first().copied()) {
        Some(local) => Ok(LinkEnd { index: link.index, local }),
        None => Err(format!(
            "the interface {name} has no link-local IPv6 address that can be used: one follows within two \
             seconds of its coming up, unless net.ipv6.conf.{name}.disable_ipv6 or addr_gen_mode forbids it"
        )),
    }
}

/// What is longer than any sensible advertisement.
const MESSAGE_OCTETS_MAX: usize = 1500;
/// Between two attempts to hear advertisements.
const REST: Duration = Duration::from_secs(5);
/// Messages that are read at once at most before what is due is looked at.
const ARRIVED_MAX: usize = 64;
/// Between two that are told of another router on a link.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
