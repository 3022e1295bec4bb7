//! What has to be true at quiet points.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::RouteFilter;

use super::model::{Heard, Mistake, Model, Route, has_one_end, session_families};
use super::plan::peer_name;
use super::speaker::{Peer, Speaker};
use super::world::{Failure, World};

macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err(format!($($text)*));
        }
    };
}

impl World {
    pub fn speaker(&self, host: usize) -> Option<&Speaker> {
        self.hosts[host].speaker.as_ref()
    }

    fn peer(&self, host: usize, peer: usize) -> Option<&Peer> {
        let name = peer_name(peer);
        self.speaker(host)?.peers.values().find(|peer| peer.name == name)
    }

    /// Why the world has not come to rest, if it has not.
    pub fn unrest(&self) -> Option<String> {
        for host in 0..self.hosts.len() {
            if self.hosts[host].gone {
                continue;
            }
            let Some(speaker) = self.speaker(host) else { return Some(format!("h{host} is down")) };
            for to in self.plan[host].peers.keys().copied() {
                if session_families(&self.plan, host, to).is_none() {
                    if self.peer(host, to).is_some_and(|peer| peer.is_up) {
                        return Some(format!("h{host} has a session with h{to}"));
                    }
                    continue;
                }
                let here = self.peer(host, to).and_then(Peer::session_link);
                let there = self.peer(to, host).and_then(Peer::session_link);
                match (here, there) {
                    (Some(here), Some(there)) if here.wire == there.wire => {}
                    _ => return Some(format!("no session between h{host} and h{to}")),
                }
            }
            for peer in speaker.peers.values() {
                if peer.is_up && !speaker.rib.is_told(peer.rib_id) {
                    return Some(format!("h{host} owes {} End-of-RIB", peer.name));
                }
            }
            if !speaker.rib.in_sync() || speaker.rib.fib_pending() {
                return Some(format!("h{host} is not in sync"));
            }
            let routes = speaker.rib.routes(&RouteFilter::default());
            if let Some(stale) = routes.iter().find(|r| r.candidates.iter().any(|c| c.stale)) {
                return Some(format!("h{host} has a stale route to {}", stale.prefix));
            }
        }
        (!self.net.is_idle()).then(|| "octets are on their way".to_owned())
    }

    /// What a host has been told over its sessions, read off the wire.
    pub fn heard(&self, host: usize) -> Heard {
        let peers = self.plan[host].peers.keys().filter_map(|peer| {
            let this = self.peer(host, *peer)?;
            let families = this.session.established()?.families();
            let tap = this.session_link()?.tap.as_ref()?;
            Some((*peer, (families, tap.routes.clone())))
        });
        peers.collect()
    }

    /// Compares everything with the model.
    pub fn check(&self, mistake: Mistake) -> Result<(), Failure> {
        let model = Model { plan: &self.plan, mistake };
        let heard: Vec<Heard> = (0..self.hosts.len()).map(|host| self.heard(host)).collect();
        for host in 0..self.hosts.len() {
            for (peer, (families, routes)) in &heard[host] {
                let expected = model.told(*peer, host, &heard[*peer]);
                if let Some(prefix) = difference(routes, &expected) {
                    return Err(format!(
                        "h{peer} has told h{host} about {prefix}\n  {:?}\nand should have told\n  {:?}",
                        routes.get(&prefix),
                        expected.get(&prefix)
                    ));
                }
                ensure!(
                    Some(*families) == session_families(&self.plan, host, *peer),
                    "h{host} and h{peer} speak {families:?}"
                );
            }
            self.check_rib(&model, host, &heard)?;
            self.check_origins(&model, host, &heard)?;
        }
        if has_one_end(&self.plan) && mistake == Mistake::None {
            let end = model.fixpoint().ok_or("the model itself comes to no rest")?;
            for host in 0..self.hosts.len() {
                ensure!(
                    end[host] == heard[host],
                    "h{host} has heard\n  {:?}\nand from scratch it would have heard\n  {:?}",
                    heard[host],
                    end[host]
                );
            }
        }
        Ok(())
    }

    /// Counters, choice and forwarding of one speaker.
    fn check_rib(&self, model: &Model<'_>, host: usize, heard: &[Heard]) -> Result<(), Failure> {
        let Some(speaker) = self.speaker(host) else { return Ok(()) };
        let mine = &heard[host];
        for (peer, (families, routes)) in mine {
            let Some(this) = self.peer(host, *peer) else { continue };
            for family in families.iter() {
                let of_family = |p: &&Prefix| p.family() == family;
                let counts = speaker.rib.counts(this.rib_id, family);
                let told = heard[*peer].get(&host).map(|(_, routes)| routes);
                let expected = (
                    routes.keys().filter(of_family).count(),
                    model.accepted(host, *peer, mine, family),
                    told.map_or(0, |told| told.keys().filter(of_family).count()),
                );
                let have = (counts.received, counts.accepted, counts.advertised);
                ensure!(
                    have == expected,
                    "h{host} counts {have:?} of {} {family} and has {expected:?}",
                    this.name
                );
            }
        }
        let mut forwards = BTreeMap::new();
        let mut prefixes = BTreeSet::new();
        for route in speaker.rib.routes(&RouteFilter::default()) {
            prefixes.insert(route.prefix);
            let selected = model.selected(host, mine, route.prefix);
            let best = route.candidates.iter().find(|c| c.best).map(|c| c.peer.clone());
            let expected = selected.first().map(|(peer, _)| peer.map(|p| peer_name(p).to_string()));
            ensure!(
                best == expected,
                "h{host} prefers {best:?} for {} and should prefer {expected:?}: {route:#?}",
                route.prefix
            );
        }
        ensure!(
            prefixes == model.prefixes(host, mine),
            "h{host} knows {prefixes:?} and should know {:?}",
            model.prefixes(host, mine)
        );
        for prefix in &prefixes {
            let next_hops = model.forwards(host, mine, *prefix);
            if !next_hops.is_empty() {
                forwards.insert(*prefix, next_hops);
            }
        }
        let fib: BTreeMap<Prefix, Vec<IpAddr>> = self.hosts[host]
            .fib
            .iter()
            .map(|(prefix, route)| (*prefix, route.paths.iter().map(|p| p.next_hop).collect()))
            .collect();
        ensure!(fib == forwards, "h{host} forwards {fib:?} and should forward {forwards:?}");
        Ok(())
    }

    /// Every chosen route leads, speaker by speaker, to one that originates it, without a loop.
    fn check_origins(
        &self,
        model: &Model<'_>,
        host: usize,
        heard: &[Heard],
    ) -> Result<(), Failure> {
        for prefix in model.prefixes(host, &heard[host]) {
            let mut at = host;
            for hops in 0.. {
                ensure!(hops <= self.hosts.len(), "h{host}: the routes to {prefix} run in circles");
                match model.selected(at, &heard[at], prefix).first() {
                    Some((Some(next), _)) => at = *next,
                    Some((None, _)) => break,
                    None if hops == 0 => break,
                    None => return Err(format!("h{host} has {prefix}, which h{at} does not have")),
                }
            }
        }
        Ok(())
    }

    /// What every host has heard of a prefix, and whether it forwards to it.
    pub fn everywhere(&self, prefix: Prefix) -> Vec<(bool, BTreeMap<usize, Route>)> {
        let at = |host: usize| {
            let heard = self.heard(host).into_iter();
            let routes = heard.filter_map(|(peer, (_, r))| Some((peer, r.get(&prefix)?.clone())));
            (self.hosts[host].fib.contains_key(&prefix), routes.collect())
        };
        (0..self.hosts.len()).map(at).collect()
    }

    /// All prefixes that any host forwards to.
    pub fn all_prefixes(&self) -> BTreeSet<Prefix> {
        self.hosts.iter().flat_map(|host| host.fib.keys().copied()).collect()
    }
}

fn difference<T: PartialEq>(a: &BTreeMap<Prefix, T>, b: &BTreeMap<Prefix, T>) -> Option<Prefix> {
    a.keys().chain(b.keys()).find(|prefix| a.get(prefix) != b.get(prefix)).copied()
}
