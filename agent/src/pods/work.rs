//! What the owner has threads do: everything that waits for the kernel.
//!
//! Each piece of work holds the lock while it writes, so that the next agent does not read the kernel
//! while the last write of this one is under way. None keeps a descriptor of a pod's namespace.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use cairn_cni::protocol::AddRequest;
use cairn_ipam::AttachmentId;
use cairn_kernel::pod::{self, AttachError, Attached, PodAttachment, PodSpec};
use cairn_kernel::{Error, NetNs, Netlink, link};
use rustix::time::{ClockId, clock_gettime};

use super::files::{Lock, PodNames};
use super::server::Reply;

/// What the kernel held at the start.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) attachments: Vec<PodAttachment>,
    pub(super) neighbours: BTreeSet<IpAddr>,
    pub(super) own_netns: (u64, u64),
}

/// Reads the node's pods from the kernel and removes what an earlier agent left half done.
pub(super) async fn read_kernel() -> Result<Found, Error> {
    on_thread(|| {
        let own_netns = NetNs::current()?.identity()?;
        let mut host = Netlink::open()?;
        let mut attachments = pod::list(&mut host)?;
        for half in attachments.extract_if(.., |found| found.is_half_done()) {
            pod::remove_half_done(&mut host, &half)?;
            tracing::info!(interface = half.host_ifname, "removed a half-done pod interface");
        }
        let neighbours = link::permanent_neighbours(&mut host)?.into_iter().collect();
        Ok(Found { attachments, neighbours, own_netns })
    })
    .await
}

/// An ADD under way.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) id: AttachmentId,
    pub(super) request: AddRequest,
    pub(super) netns: NetNs,
    pub(super) reply: Reply,
    /// Addresses that turned out to be in use so far.
    pub(super) refused: u32,
}

/// Work that a thread has finished.
#[derive(Debug)]
pub(super) enum Done {
    Attached { addition: Addition, outcome: Result<Attached, AttachError>, remains: bool },
    Detached { id: AttachmentId, reply: Reply, outcome: Result<(), Error> },
    Listed { generation: u64, outcome: Result<Listed, Error> },
}

#[derive(Debug)]
pub(super) struct Listed {
    pub(super) attachments: Vec<PodAttachment>,
    /// Foreign addresses that the kernel no longer uses.
    pub(super) freed: Vec<IpAddr>,
    /// Those of permanent neighbours.
    pub(super) neighbours: BTreeSet<IpAddr>,
    /// A host route is missing and could not be put back.
    pub(super) incomplete: bool,
}

/// Makes the interface of `addition`.
pub(super) fn attach(addition: Addition, spec: &PodSpec, names: &PodNames, _held: &Lock) -> Done {
    let mut remains = true;
    let outcome = Netlink::open().map_err(AttachError::from).and_then(|mut host| {
        let attached = pod::attach(&mut host, &addition.netns, spec);
        // When that is unknown the address stays taken.
        let exists = pod::exists(&mut host, &spec.container_id, &spec.ifname);
        remains = exists.unwrap_or(true);
        attached
    });
    if let Ok(attached) = &outcome {
        names.write(&attached.host_ifname, &addition.request.pod);
    }
    Done::Attached { addition, outcome, remains }
}

/// Removes the interface of `id`.
pub(super) fn detach(id: AttachmentId, reply: Reply, _held: &Lock) -> Done {
    let outcome = Netlink::open()
        .and_then(|mut host| pod::detach_container(&mut host, &id.container_id, &id.ifname));
    Done::Detached { id, reply, outcome }
}

/// Reads the node's pods, puts back host routes that somebody took away, and finds out which of the
/// `foreign` addresses are no longer in use.
pub(super) fn list(
    generation: u64,
    node_addresses: Option<&[IpAddr]>,
    foreign: &[IpAddr],
    _held: &Lock,
) -> Done {
    let outcome = Netlink::open().and_then(|mut host| {
        let attachments = pod::list(&mut host)?;
        let mut incomplete = false;
        for found in attachments.iter().filter(|found| !found.missing_routes().is_empty()) {
            incomplete |= node_addresses.is_none_or(|own| !restore(&mut host, found, own));
        }
        let neighbours: BTreeSet<IpAddr> =
            link::permanent_neighbours(&mut host)?.into_iter().collect();
        let mut freed = Vec::new();
        for address in foreign {
            if !neighbours.contains(address) && !pod::is_in_use(&mut host, *address)? {
                freed.push(*address);
            }
        }
        Ok(Listed { attachments, freed, neighbours, incomplete })
    });
    Done::Listed { generation, outcome }
}

/// Whether every host route of `found` is there again.
fn restore(host: &mut Netlink, found: &PodAttachment, node_addresses: &[IpAddr]) -> bool {
    let interface = &found.host_ifname;
    let restored = pod::restore_routes(host, found, node_addresses);
    match &restored {
        Ok(()) => {
            tracing::warn!(interface, routes = ?found.missing_routes(), "host routes restored");
        }
        Err(error) => tracing::warn!(interface, %error, "host routes cannot be restored"),
    }
    restored.is_ok()
}

/// Time since the machine's start, which goes on while it sleeps.
pub(super) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
