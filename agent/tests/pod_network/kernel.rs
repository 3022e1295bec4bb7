//! A kernel of the test's own: interfaces by name, and what else holds addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_agent::pods::{Attachment, Found, Listed, PodKernel, PodsError, Question};
use cairn_api::TunnelKind;
use cairn_cni::PodIdentity;
use cairn_ipam::AttachmentId;
use cairn_kernel::Error;
use cairn_kernel::link::Mac;
use cairn_kernel::pod::{
    Alias, AttachError, Attached, Difference, Expected, HostRoute, NetworkHash, PodAttachment,
    PodSpec, host_interface_name,
};
use futures::FutureExt;
use futures::future::BoxFuture;

/// Interfaces by name; what else holds addresses; whether removals are held up.
#[derive(Debug, Default)]
pub struct Machine {
    pub interfaces: BTreeMap<String, Alias>,
    pub foreign: BTreeSet<IpAddr>,
    pub tunnels: BTreeSet<IpAddr>,
    pub agents: usize,
    pub stuck: bool,
    /// How many interfaces went at once, each time.
    pub batches: Vec<usize>,
    /// Containers of whose interfaces the alias cannot be read.
    pub unread: BTreeSet<String>,
    /// Containers whose interfaces cannot be removed.
    pub unremovable: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Kernel(pub Arc<Mutex<Machine>>);

impl Kernel {
    pub fn listed(&self) -> Vec<PodAttachment> {
        let machine = self.0.lock().unwrap();
        let found =
            machine.interfaces.iter().zip(1..).map(|((name, alias), ifindex)| PodAttachment {
                host_ifname: name.clone(),
                ifindex,
                mtu: 1400,
                alias: Some(alias.clone()).filter(|a| !machine.unread.contains(&a.container_id)),
                alias_unread: None,
                routes: alias
                    .addresses
                    .iter()
                    .map(|a| HostRoute { address: *a, source: None })
                    .collect(),
            });
        found.collect()
    }

    pub fn held(&self) -> Vec<IpAddr> {
        let machine = self.0.lock().unwrap();
        machine.interfaces.values().flat_map(|alias| alias.addresses.clone()).collect()
    }
}

impl PodKernel for Kernel {
    type Netns = ();

    fn seize(&self) -> Result<(), PodsError> {
        let mut machine = self.0.lock().unwrap();
        machine.agents += 1;
        match machine.agents {
            1 => Ok(()),
            _ => Err(PodsError::Locked { run_dir: "/".into(), holder: String::new() }),
        }
    }

    fn read(&self) -> BoxFuture<'static, Result<Found, Error>> {
        let (foreign, tunnels) = {
            let machine = self.0.lock().unwrap();
            (machine.foreign.clone(), machine.tunnels.clone())
        };
        let attachments = self.listed();
        let tunnels = BTreeMap::from([(TunnelKind::VXLAN, tunnels)]);
        async move { Ok(Found { attachments, foreign, tunnels }) }.boxed()
    }

    fn attach(&self, (): (), spec: PodSpec, _: PodIdentity) -> BoxFuture<'static, Attachment> {
        let kernel = self.clone();
        async move {
            tokio::task::yield_now().await;
            let mut machine = kernel.0.lock().unwrap();
            let host_ifname = host_interface_name(&spec.container_id, &spec.ifname);
            let others = machine.interfaces.iter().filter(|(name, _)| **name != host_ifname);
            let taken: BTreeSet<IpAddr> =
                others.flat_map(|(_, alias)| alias.addresses.clone()).collect();
            let in_use = |a: &&IpAddr| taken.contains(a) || machine.foreign.contains(a);
            if let Some(address) = spec.addresses.iter().find(in_use) {
                let outcome = Err(AttachError::AddressInUse(*address));
                return Attachment { outcome, remains: false };
            }
            let alias = Alias {
                container_id: spec.container_id,
                ifname: spec.ifname,
                pod_uid: spec.pod_uid,
                network: NetworkHash::of(&spec.network),
                addresses: spec.addresses,
            };
            machine.interfaces.insert(host_ifname.clone(), alias);
            let mac = Mac([2, 0, 0, 0, 0, 1]);
            let made = Attached {
                host_ifname,
                host_mac: mac,
                pod_mac: mac,
                mtu: spec.mtu,
                gateways: vec![],
            };
            Attachment { outcome: Ok(made), remains: true }
        }
        .boxed()
    }

    fn detach(&self, ids: Vec<AttachmentId>) -> BoxFuture<'static, Vec<Result<(), Error>>> {
        let kernel = self.clone();
        async move {
            while kernel.0.lock().unwrap().stuck {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut machine = kernel.0.lock().unwrap();
            machine.batches.push(ids.len());
            let mut remove = |id: &AttachmentId| {
                if machine.unremovable.contains(&id.container_id) {
                    return Err(Error::Overrun);
                }
                machine.interfaces.remove(&host_interface_name(&id.container_id, &id.ifname));
                Ok(())
            };
            ids.iter().map(&mut remove).collect()
        }
        .boxed()
    }

    fn check(
        &self,
        (): (),
        expected: Expected,
    ) -> BoxFuture<'static, Result<Result<(), Difference>, Error>> {
        let host_ifname = host_interface_name(&expected.container_id, &expected.ifname);
        let machine = self.0.lock().unwrap();
        let difference = match machine.interfaces.get(&host_ifname) {
            None => Err(Difference::NoInterface(host_ifname)),
            Some(alias) if alias.addresses != expected.addresses => {
                Err(Difference::Alias { host_ifname, found: None })
            }
            Some(_) => Ok(()),
        };
        async move { Ok(difference) }.boxed()
    }

    fn list(&self, question: Question) -> BoxFuture<'static, Result<Listed, Error>> {
        let foreign = self.0.lock().unwrap().foreign.clone();
        let freed = question.foreign.into_iter().filter(|a| !foreign.contains(a)).collect();
        let attachments = self.listed();
        async move { Ok(Listed { attachments, freed, foreign, incomplete: false }) }.boxed()
    }
}
