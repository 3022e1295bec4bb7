//! What the routers' `cairn speaker -f` reads: the same kinds as the cluster's, in one YAML file.

use cairn_api::{
    Action, AddressFamily, BGPAdvertisement, BGPAdvertisementSpec, BGPConfiguration,
    BGPConfigurationSpec, BGPPeer, BGPPolicy, BGPPolicySpec, Bfd, GracefulRestart, PolicyRule,
    Timers, Topology,
};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;

use super::layout::{Layout, Rack, SPINE, SPINE_ASN};
use crate::error::Error;
use crate::options::Families;

/// The timers of every session: where BFD does not watch, a dead machine is noticed within the hold time
/// of 3 s.
pub fn timers(layout: &Layout) -> Timers {
    let hold_time_secs = 3 * layout.patience;
    Timers { hold_time_secs, connect_retry_secs: 1, send_hold_time_secs: 480 }
}

/// BFD on every link: a dead one is noticed within 300 ms. A machine that asks for patience may not run a process
/// for as long.
pub fn bfd(layout: &Layout) -> Bfd {
    let interval_ms = if layout.patience > 1 { 300 * u32::from(layout.patience) } else { 100 };
    Bfd { enabled: true, interval_ms, multiplier: 3 }
}

/// When BFD notices that a link is dead, at the latest.
pub fn detection(layout: &Layout) -> Duration {
    let bfd = bfd(layout);
    Duration::from_millis(u64::from(bfd.interval_ms) * u64::from(bfd.multiplier))
}

/// How long routes of a restarting speaker are kept; blocks of a lost node return no sooner.
pub fn graceful_restart(layout: &Layout) -> GracefulRestart {
    GracefulRestart { restart_time_secs: 5 * layout.patience, ..GracefulRestart::default() }
}

/// The routers' names with the contents of their files.
///
/// # Errors
/// [`Error::Api`] when an object cannot be written as YAML.
pub fn files(layout: &Layout) -> Result<Vec<(String, String)>, Error> {
    let mut files = vec![(SPINE.to_owned(), spine(layout)?)];
    for rack in &layout.racks {
        files.push((rack.tor(), tor(layout, rack)?));
    }
    Ok(files)
}

fn spine(layout: &Layout) -> Result<String, Error> {
    let listen: Vec<IpAddr> = layout.racks.iter().flat_map(Rack::spine_end).collect();
    let links = layout.racks.iter().flat_map(Rack::uplinks).collect();
    let mut file = RouterFile::new(layout, SPINE_ASN, &listen, links)?;
    for rack in &layout.racks {
        file.peer(&rack.tor(), rack.tor_end()[0], rack.tor_asn, Connect::Await)?;
    }
    Ok(file.text)
}

fn tor(layout: &Layout, rack: &Rack) -> Result<String, Error> {
    let listen = [rack.gateways(), rack.tor_end()].concat();
    let nets = [rack.subnets(), rack.uplinks()].concat();
    let mut file = RouterFile::new(layout, rack.tor_asn, &listen, nets)?;
    file.peer(SPINE, rack.spine_end()[0], SPINE_ASN, Connect::Dial)?;
    for node in rack.nodes.iter().filter(|_| layout.fabric_knows_pods()) {
        file.peer(&node.name(), node.addresses()[0], node.asn, Connect::Await)?;
    }
    Ok(file.text)
}

/// Who opens the TCP connection.
enum Connect {
    Dial,
    Await,
}

struct RouterFile {
    text: String,
    families: Vec<AddressFamily>,
    bfd: Bfd,
}

impl RouterFile {
    fn new(
        layout: &Layout,
        asn: u32,
        listen: &[IpAddr],
        nets: Vec<IpNet>,
    ) -> Result<RouterFile, Error> {
        let (families, bfd) = (families(layout.families), bfd(layout));
        let mut file = RouterFile { text: String::new(), families, bfd };
        let router_id = listen.iter().find(|address| address.is_ipv4()).map(IpAddr::to_string);
        let speaks = |address: &&IpAddr| layout.speaks(address);
        let configuration = BGPConfigurationSpec {
            asn,
            topology: Topology::Disabled,
            timers: timers(layout),
            graceful_restart: graceful_restart(layout),
            router_id,
            listen_addresses: listen.iter().filter(speaks).map(IpAddr::to_string).collect(),
            ..BGPConfigurationSpec::default()
        };
        file.add(&BGPConfiguration::new("default", configuration))?;
        let everything = PolicyRule { match_: None, action: Action::Accept, set: None };
        file.add(&BGPPolicy::new(POLICY, BGPPolicySpec { rules: vec![everything] }))?;
        let subnets = BGPAdvertisementSpec {
            node_selector: None,
            cidrs: (nets.iter().filter(|net| layout.speaks(&net.addr())))
                .map(IpNet::to_string)
                .collect(),
            communities: Vec::new(),
            local_pref: None,
        };
        file.add(&BGPAdvertisement::new("subnets", subnets))?;
        Ok(file)
    }

    fn peer(
        &mut self,
        name: &str,
        address: IpAddr,
        asn: u32,
        connect: Connect,
    ) -> Result<(), Error> {
        let spec = json!({
            "address": address.to_string(),
            "asn": asn,
            "passive": matches!(connect, Connect::Await),
            "families": self.families,
            "bfd": self.bfd,
            "importPolicies": [POLICY],
            "exportPolicies": [POLICY],
        });
        let spec = serde_json::from_value(spec)
            .map_err(|error| Error::Api(format!("the peer {name}: {error}")))?;
        self.add(&BGPPeer::new(name, spec))
    }

    fn add(&mut self, object: &impl Serialize) -> Result<(), Error> {
        let document = serde_saphyr::to_string(object)
            .map_err(|error| Error::Api(format!("an object of a router's file: {error}")))?;
        if !self.text.is_empty() {
            self.text.push_str("---\n");
        }
        self.text.push_str(document.trim_end());
        self.text.push('\n');
        Ok(())
    }
}

/// The families that a session carries.
pub fn families(families: Families) -> Vec<AddressFamily> {
    match families {
        Families::Dual => vec![AddressFamily::IPv4Unicast, AddressFamily::IPv6Unicast],
        Families::Ipv4 => vec![AddressFamily::IPv4Unicast],
    }
}

const POLICY: &str = "everything";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{AsnPlan, Encap};

    #[test]
    fn a_router_peers_with_the_spine_and_each_of_its_nodes() -> Result<(), Error> {
        let layout = Layout::new("lab", 3, AsnPlan::Rack, Families::Dual);
        let files = files(&layout)?;
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["spine", "tor1", "tor2"]);
        let text = &files[1].1;
        assert_eq!(text.matches("kind: BGPPeer").count(), 3, "{text}");
        assert_eq!(text.matches("passive: true").count(), 2, "{text}");
        for part in ["asn: 65201", "172.31.1.11", "asn: 65101", "\"172.31.0.2\"", "172.31.1.0/24"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        Ok(())
    }

    #[test]
    fn a_fabric_that_knows_no_pods_hears_no_node() -> Result<(), Error> {
        let layout =
            Layout::new("lab", 3, AsnPlan::Single, Families::Dual).with_encap(Encap::Vxlan);
        for (name, text) in files(&layout)? {
            let peers = if name == SPINE { 2 } else { 1 };
            assert_eq!(text.matches("kind: BGPPeer").count(), peers, "{name}:\n{text}");
        }
        Ok(())
    }

    #[test]
    fn an_ipv4_lab_has_no_ipv6_in_its_files() -> Result<(), Error> {
        let layout = Layout::new("lab", 3, AsnPlan::Rack, Families::Ipv4);
        for (name, text) in files(&layout)? {
            assert!(!text.contains("fd00:") && !text.contains("IPv6"), "{name}:\n{text}");
        }
        Ok(())
    }
}
