//! A cluster of many nodes as objects.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Nodes of a rack, which is an AS.
pub const RACK: usize = 40;

pub const BLOCKS_EACH: usize = 4;

pub fn name(number: usize) -> String {
    format!("node-{number}")
}

pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes([10, 98, 0, 0]) + number as u32)
}

pub fn asn(number: usize, racks: Racks) -> u32 {
    match racks {
        Racks::AnAsEach => 64_600 + (number / RACK) as u32,
        Racks::OneAs => 64_512,
    }
}

/// How the nodes are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Racks {
    AnAsEach,
    OneAs,
}

fn topology(number: usize) -> Value {
    json!({
        "topology.kubernetes.io/region": "region-1",
        "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
    })
}

/// As large as Nodes are: labels, conditions and the images that a kubelet lists.
pub fn node(number: usize, address: Ipv4Addr, boot_id: &str, heartbeat: usize) -> (Value, Value) {
    let mut labels = topology(number);
    labels["cairn.network/asn"] = json!(asn(number, Racks::AnAsEach).to_string());
    labels["kubernetes.io/hostname"] = json!(name(number));
    let images: Vec<Value> = (0..50)
        .map(|image| {
            let digest = format!("{image:064x}");
            json!({"names": [format!("registry.example/team/image-{image}@sha256:{digest}")],
                   "sizeBytes": 100_000_000})
        })
        .collect();
    let conditions: Vec<Value> = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .into_iter()
        .map(|kind| {
            json!({"type": kind, "status": "False", "reason": format!("Beat{heartbeat}"),
                   "message": "kubelet reports"})
        })
        .collect();
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name(number), "labels": labels},
    });
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": conditions,
        "images": images,
        "nodeInfo": {
            "architecture": "amd64", "bootID": boot_id, "containerRuntimeVersion": "containerd",
            "kernelVersion": "6.18", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3",
            "machineID": format!("{number:032x}"), "operatingSystem": "linux", "osImage": "Debian",
            "systemUUID": format!("{number:032x}"),
        },
    }});
    (object, status)
}

/// What the node's agent tells the others.
pub fn bgp_node(number: usize, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": "BGPNode",
        "metadata": {"name": name(number)},
        "spec": {
            "addresses": [address], "asn": asn(number, Racks::AnAsEach),
            "routerID": address, "topology": topology(number),
        },
    })
}

pub fn pool(name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": "IPPool",
        "metadata": {"name": name}, "spec": {"cidr": cidr, "blockSize": 26},
    })
}

/// The `number`-th block of 10.128.0.0/9.
pub fn block(number: usize, pool_uid: &str, node: usize, node_uid: &str) -> Value {
    let base = u32::from_be_bytes([10, 128, 0, 0]) + (number as u32) * 64;
    let cidr: ipnet::IpNet =
        ipnet::Ipv4Net::new(Ipv4Addr::from_bits(base), 26).map(Into::into).unwrap_or_default();
    json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": "IPBlock",
        "metadata": {
            "name": cairn_api::block_name(cidr), "finalizers": [cairn_api::FINALIZER],
        },
        "spec": {
            "cidr": cidr, "range": cairn_api::block_range(cidr),
            "pool": {"name": "default", "uid": pool_uid},
            "node": {"name": name(node), "uid": node_uid},
        },
    })
}

/// The Lease of a node's agent.
pub fn lease(number: usize, node_uid: &str, boot_id: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": format!("cairn-node-{}", name(number))},
        "spec": {"holderIdentity": format!("{node_uid}/{boot_id}"), "leaseDurationSeconds": 28_800},
    })
}

pub fn namespace(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": format!("team-{number}"), "labels": {"team": number.to_string()}},
    })
}
