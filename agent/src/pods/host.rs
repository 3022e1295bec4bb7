//! The machine's kernel: everything that waits for it happens on threads.
//!
//! Each piece of work holds the lock while it writes, so that the next agent does not read the kernel
//! while the last write of this one is under way. None keeps a descriptor of a pod's namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cairn_api::TunnelKind;
use cairn_cni::PodIdentity;
use cairn_ipam::AttachmentId;
use cairn_kernel::pod::{
    self, AttachError, Difference, Expected, PodAttachment, PodSpec, Restored,
};
use cairn_kernel::{Error, NetNs, Netlink, link};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::PodsError;
use super::files::{Lock, PodNames};
use super::kernel::{Attachment, Found, Listed, PodKernel, Question, TunnelsFound};
use crate::tunnels;

/// The kernel of this machine, of which one agent at a time is in charge.
#[derive(Clone, Debug)]
pub(super) struct HostKernel {
    run_dir: PathBuf,
    names: PodNames,
    lock: Arc<OnceLock<Lock>>,
}

impl HostKernel {
    pub(super) fn new(run_dir: &Path, names: PodNames) -> HostKernel {
        HostKernel { run_dir: run_dir.to_owned(), names, lock: Arc::default() }
    }

    /// Runs `work` on a thread that holds the lock, also when nobody waits for it any more.
    fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let lock = Arc::clone(&self.lock);
        let task = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(lock);
            done
        });
        let joined = async {
            match task.await {
                Ok(done) => done,
                Err(error) => match error.try_into_panic() {
                    // A panic in a thread is one in here.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime ends, and with it whoever waits.
                    Err(_) => std::future::pending().await,
                },
            }
        };
        joined.boxed()
    }
}

impl PodKernel for HostKernel {
    type Netns = Arc<NetNs>;

    fn seize(&self) -> Result<(), PodsError> {
        if self.lock.get().is_none() {
            let _ = self.lock.set(Lock::take(&self.run_dir)?);
        }
        Ok(())
    }

    fn read(&self) -> BoxFuture<'static, Result<Found, Error>> {
        self.on_thread(|| {
            let mut host = Netlink::open()?;
            let mut attachments = pod::list(&mut host)?;
            for half in attachments.extract_if(.., |found| found.is_half_done()) {
                pod::remove_half_done(&mut host, &half)?;
                tracing::info!(interface = half.host_ifname, "removed a half-done pod interface");
            }
            let (foreign, tunnels) = node_addresses(&mut host)?;
            Ok(Found { attachments, foreign, tunnels })
        })
    }

    fn attach(
        &self,
        netns: Arc<NetNs>,
        spec: PodSpec,
        pod: PodIdentity,
    ) -> BoxFuture<'static, Attachment> {
        let names = self.names.clone();
        self.on_thread(move || {
            let mut remains = true;
            let outcome = Netlink::open().map_err(AttachError::from).and_then(|mut host| {
                let attached = pod::attach(&mut host, &netns, &spec);
                if attached.is_err() {
                    // When that is unknown the address stays taken.
                    let exists = pod::exists(&mut host, &spec.container_id, &spec.ifname);
                    remains = exists.unwrap_or(true);
                }
                attached
            });
            if let Ok(attached) = &outcome {
                names.write(&attached.host_ifname, &pod);
            }
            drop(netns);
            Attachment { outcome, remains }
        })
    }

    fn detach(&self, ids: Vec<AttachmentId>) -> BoxFuture<'static, Vec<Result<(), Error>>> {
        self.on_thread(move || match Netlink::open() {
            Ok(mut host) => {
                let named = ids.iter().map(|id| (id.container_id.as_str(), id.ifname.as_str()));
                pod::detach_many(&mut host, &named.collect::<Vec<_>>())
            }
            // Each of them has an outcome of its own.
            Err(_) => ids.iter().map(detach_alone).collect(),
        })
    }

    fn check(
        &self,
        netns: Arc<NetNs>,
        expected: Expected,
    ) -> BoxFuture<'static, Result<Result<(), Difference>, Error>> {
        self.on_thread(move || pod::check(&mut Netlink::open()?, &netns, &expected))
    }

    fn list(&self, question: Question) -> BoxFuture<'static, Result<Listed, Error>> {
        self.on_thread(move || {
            let mut host = Netlink::open()?;
            let attachments = pod::list(&mut host)?;
            let own = question.node_addresses.as_deref();
            let mut incomplete = false;
            for found in &attachments {
                incomplete |= match own {
                    None => !found.missing_routes().is_empty(),
                    Some(own) if found.wrong_routes(own).is_empty() => false,
                    Some(own) => !restore(&mut host, found, own),
                };
            }
            let (foreign, _) = node_addresses(&mut host)?;
            let mut freed = Vec::new();
            for address in question.foreign {
                let held = foreign.contains(&address)
                    || pod::elsewhere(&mut host, address, &question.blocks)?.is_some();
                if !held {
                    freed.push(address);
                }
            }
            Ok(Listed { attachments, freed, foreign, incomplete })
        })
    }
}

fn detach_alone(id: &AttachmentId) -> Result<(), Error> {
    pod::detach_container(&mut Netlink::open()?, &id.container_id, &id.ifname)
}

/// What the kernel holds for others than pods, and what the node's own tunnel devices have. Addresses
/// of links that are down or in a VRF are found by no route lookup.
fn node_addresses(host: &mut Netlink) -> Result<(BTreeSet<IpAddr>, TunnelsFound), Error> {
    let mut devices = BTreeMap::new();
    for kind in [TunnelKind::VXLAN, TunnelKind::IPIP] {
        let found = link::find(host, tunnels::device_name(kind))?;
        devices.extend(found.filter(tunnels::is_ours).map(|link| (link.index, kind)));
    }
    let mut foreign: BTreeSet<IpAddr> = link::permanent_neighbours(host)?.into_iter().collect();
    let mut own = TunnelsFound::new();
    for held in link::addresses(host)? {
        let address = held.address.addr();
        match devices.get(&held.ifindex) {
            // The link-local one is the peers' gateway.
            Some(_) if tunnels::is_link_local(address) => {}
            Some(kind) => drop(own.entry(*kind).or_default().insert(address)),
            None => drop(foreign.insert(address)),
        }
    }
    Ok((foreign, own))
}

/// Whether every host route of `found` is there again, with its source.
fn restore(host: &mut Netlink, found: &PodAttachment, node_addresses: &[IpAddr]) -> bool {
    let interface = &found.host_ifname;
    let restored = pod::restore_routes(host, found, node_addresses);
    match restored {
        Ok(Restored { written, sourceless }) => {
            if !written.is_empty() {
                tracing::warn!(interface, routes = ?written, "host routes restored");
            }
            sourceless.is_empty()
        }
        Err(error) => {
            tracing::warn!(interface, %error, "host routes cannot be restored");
            false
        }
    }
}
