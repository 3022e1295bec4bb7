//! The result of ADD, in the form of each CNI version.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
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
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<AssignedAddress>,
    /// Routes of the container.
    #[serde(default)]
    pub routes: Vec<ContainerRoute>,
    /// Name service settings.
    #[serde(default)]
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
    /// The position of its interface in the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
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
        let position = u32::try_from(self.interfaces.len()).ok();
        self.interfaces.push(Interface {
            name: ifname.into(),
            mac: Some(added.pod_mac.clone()),
            mtu,
            sandbox: Some(sandbox.into()),
            ..Interface::default()
        });
        for assigned in &added.addresses {
            let (bits, everywhere) = match assigned.address {
                IpAddr::V4(_) => (32, "0.0.0.0/0"),
                IpAddr::V6(_) => (128, "::/0"),
            };
            let gateway = Some(assigned.gateway.to_string());
            self.ips.push(AssignedAddress {
                version: None,
                interface: position,
                address: format!("{}/{bits}", assigned.address),
                gateway: gateway.clone(),
            });
            self.routes.push(ContainerRoute {
                dst: everywhere.into(),
                gw: gateway,
                ..ContainerRoute::default()
            });
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
