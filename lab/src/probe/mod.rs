//! Whether namespaces reach each other, and under which address the receiver sees the sender.
//!
//! Every endpoint listens; every probe goes from one endpoint to one address of another. A probe
//! succeeds only when the answer came back and the receiver saw the address that it must see, which is
//! the sender's own unless said otherwise: any other address translation on the way is a failure.

mod icmp;
mod tcp;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;

use crate::error::Error;

/// Somebody who sends and receives.
pub struct Endpoint<'a> {
    /// What it is called in failures.
    pub name: String,
    /// Its namespace.
    pub netns: &'a NetNs,
    /// Its addresses. It sends from the first of a family, unless its kernel chooses another.
    pub addresses: Vec<IpAddr>,
}

impl Endpoint<'_> {
    /// The endpoint's address of the family of `other`.
    fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|own| own.is_ipv4() == other.is_ipv4())
    }
}

/// The protocol of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Echo request and reply.
    Icmp,
    /// A connection.
    Tcp,
}

/// One probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The position of the sender among the endpoints.
    pub from: usize,
    /// The position of the receiver.
    pub to: usize,
    /// The protocol.
    pub protocol: Protocol,
    /// The receiver's address.
    pub address: IpAddr,
    /// The address that the receiver must see, where that is not the sender's own.
    pub seen_as: Option<IpAddr>,
}

/// How a probe went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The probe.
    pub probe: Probe,
    /// Attempts made.
    pub attempts: u32,
    /// What went wrong, if anything.
    pub failure: Option<String>,
}

/// What a sender still has to try.
struct Pending {
    probe: Probe,
    /// The address that the receiver must see.
    seen_as: IpAddr,
    attempts: u32,
    failure: Option<String>,
    done: bool,
}

/// Carries out all probes, each sender's on a thread of its own. A probe that fails is tried again
/// until `within` has passed since the beginning; usually [`WITHIN`].
///
/// # Errors
/// When an endpoint cannot listen or send at all.
pub fn run(
    endpoints: &[Endpoint<'_>],
    probes: &[Probe],
    within: Duration,
) -> Result<Vec<Outcome>, Error> {
    let stop = AtomicBool::new(false);
    let witnesses = endpoints.iter().map(icmp::Witness::open).collect::<Result<Vec<_>, _>>()?;
    let listeners = endpoints.iter().map(tcp::Listener::open).collect::<Result<Vec<_>, _>>()?;
    let mut by_sender: BTreeMap<usize, Vec<Pending>> = BTreeMap::new();
    let mut outcomes = Vec::new();
    for probe in probes {
        let own = || endpoints.get(probe.from)?.address_like(probe.address);
        match probe.seen_as.or_else(own) {
            Some(seen_as) => by_sender.entry(probe.from).or_default().push(Pending {
                probe: *probe,
                seen_as,
                attempts: 0,
                failure: None,
                done: false,
            }),
            None => outcomes.push(Outcome {
                probe: *probe,
                attempts: 0,
                failure: Some("the sender has no address of that family".into()),
            }),
        }
    }
    let deadline = Instant::now() + within;
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| listener.serve(&stop));
        }
        for witness in &witnesses {
            for family in witness.families() {
                let stop = &stop;
                scope.spawn(move || witness.watch(family, stop));
            }
        }
        let senders: Vec<_> = by_sender
            .into_iter()
            .map(|(from, pending)| {
                let (netns, witnesses) = (endpoints[from].netns, &witnesses);
                scope.spawn(move || netns.run(|| send_all(from, pending, witnesses, deadline)))
            })
            .collect();
        let sent = senders
            .into_iter()
            .map(|sender| sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let result = sent
            .map(|done| done.map_err(Error::kernel("a prober"))?)
            .try_for_each(|done| done.map(|done| outcomes.extend(done)));
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    outcomes.sort_by_key(|outcome| outcome.probe);
    Ok(outcomes)
}

/// Carries out one sender's probes; runs inside its namespace.
fn send_all(
    from: usize,
    mut pending: Vec<Pending>,
    witnesses: &[icmp::Witness],
    deadline: Instant,
) -> Result<Vec<Outcome>, Error> {
    loop {
        icmp::attempt(from, &mut pending, witnesses)?;
        for one in pending.iter_mut().filter(|one| one.probe.protocol == Protocol::Tcp) {
            if !one.done && (one.attempts == 0 || Instant::now() < deadline) {
                one.attempts += 1;
                one.failure = tcp::attempt(one.probe.address, one.seen_as).err();
                one.done = one.failure.is_none();
            }
        }
        if pending.iter().all(|one| one.done) || Instant::now() >= deadline {
            break;
        }
        thread::sleep(RETRY_INTERVAL);
    }
    Ok(pending
        .into_iter()
        .map(|one| Outcome { probe: one.probe, attempts: one.attempts, failure: one.failure })
        .collect())
}

/// What works at all works by then, on a machine of usual speed.
pub const WITHIN: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// How often receivers look whether they shall stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
