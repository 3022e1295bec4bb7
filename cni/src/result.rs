//! The result of ADD, in the form of each CNI version.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::config::{CniVersion, Dns};
use crate::protocol::Added;

/// What plugins of a chain have made so far, in the newest form. Fields that this plugin does not
/// know are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkResult {
    /// The version of this form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_version: Option<String>,
    /// Interfaces of the host and of the container.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub ips: Vec<AssignedAddress>,
    /// Routes of the container.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub routes: Vec<ContainerRoute>,
    /// Name service settings.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub dns: Dns,
}

/// An interface of the host or of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// The name.
    pub name: String,
    /// The Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The MTU in bytes; from CNI 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of the container's network namespace; absent for an interface of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Fields of other plugins.
    #[serde(flatten)]
    pub other: serde_json::Map<String, Value>,
}

/// An address of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AssignedAddress {
    /// The family, `"4"` or `"6"`; up to CNI 0.4.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The position of its interface in the result; some plugins write -1 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    /// The address with the length of its subnet.
    pub address: String,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// A route of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerRoute {
    /// The destination prefix.
    pub dst: String,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<String>,
    /// Fields of other plugins.
    #[serde(flatten)]
    pub other: serde_json::Map<String, Value>,
}

/// What a result says of one interface of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The gateways of default routes that its addresses name.
    pub gateways: Vec<IpAddr>,
    /// Its MTU in bytes; in results of CNI 1.1.0.
    pub mtu: Option<u32>,
}

impl NetworkResult {
    /// Appends what the agent made for the container in `sandbox`.
    pub fn append(&mut self, added: &Added, ifname: &str, sandbox: &str) {
        let mtu = Some(added.mtu);
        self.interfaces.push(Interface {
            name: added.host_interface.clone(),
            mac: Some(added.host_mac.clone()),
            mtu,
            ..Interface::default()
        });
        let position = i64::try_from(self.interfaces.len()).ok();
        self.interfaces.push(Interface {
            name: ifname.into(),
            mac: Some(added.pod_mac.clone()),
            mtu,
            sandbox: Some(sandbox.into()),
            ..Interface::default()
        });
        for assigned in &added.addresses {
            let bits = if assigned.address.is_ipv4() { 32 } else { 128 };
            let gateway = Some(assigned.gateway.to_string());
            self.ips.push(AssignedAddress {
                version: None,
                interface: position,
                address: format!("{}/{bits}", assigned.address),
                gateway: gateway.clone(),
            });
            if assigned.default_route {
                self.routes.push(ContainerRoute {
                    dst: everywhere(assigned.address).into(),
                    gw: gateway,
                    ..ContainerRoute::default()
                });
            }
        }
    }

    /// What the result says of the container's interface `ifname`.
    ///
    /// # Errors
    /// What is wrong with the result, to follow its name.
    pub fn attachment(&self, ifname: &str) -> Result<Attachment, String> {
        let is_it = |interface: &Interface| {
            interface.name == ifname && interface.sandbox.as_deref().is_some_and(|s| !s.is_empty())
        };
        let Some(position) = self.interfaces.iter().position(is_it) else {
            return Err(format!("has no interface {ifname} in a sandbox"));
        };
        let mtu = self.interfaces.get(position).and_then(|interface| interface.mtu);
        let mut found = Attachment { addresses: Vec::new(), gateways: Vec::new(), mtu };
        let of_it = |ip: &&AssignedAddress| {
            ip.interface.is_some_and(|at| usize::try_from(at) == Ok(position))
        };
        for ip in self.ips.iter().filter(of_it) {
            let text = ip.address.split('/').next().unwrap_or_default();
            let address = text
                .parse::<IpAddr>()
                .map_err(|_| format!("has the address {:?}, which is none", ip.address))?;
            found.addresses.push(address);
            let leads_there = |route: &&ContainerRoute| {
                route.dst == everywhere(address) && route.gw.is_some() && route.gw == ip.gateway
            };
            let route = self.routes.iter().find(leads_there);
            let gateway = route.and_then(|route| route.gw.as_deref()?.parse::<IpAddr>().ok());
            found.gateways.extend(gateway);
        }
        match found.addresses.is_empty() {
            true => Err(format!("has no address of the interface {ifname}")),
            false => Ok(found),
        }
    }

    /// This result in the form of `version`.
    #[must_use]
    pub fn in_version(mut self, version: CniVersion) -> NetworkResult {
        self.cni_version = Some(version.as_str().into());
        for address in &mut self.ips {
            let family = if address.address.contains(':') { "6" } else { "4" };
            address.version = (version < CniVersion::V1_0_0).then(|| family.into());
        }
        if version < CniVersion::V1_1_0 {
            self.interfaces.iter_mut().for_each(|interface| interface.mtu = None);
        }
        self
    }
}

/// The destination of a default route of the family of `address`.
fn everywhere(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}

/// What plugins in Go write for an empty list.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
