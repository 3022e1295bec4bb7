//! The command line of `cairn lab`.

use std::path::PathBuf;
use std::str::FromStr;

use cairn_api::Encapsulation;
use cairn_kernel::tunnel::TunnelKind;

use crate::error::Error;

/// Runs a small data centre of network namespaces on this machine, proves the Kubernetes network
/// model in it, then breaks things and shows what was lost.
#[derive(Clone, Debug, clap::Args)]
pub struct LabOptions {
    /// Nodes, spread over two racks.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=32))]
    pub nodes: u8,
    /// One AS a rack, or one for all nodes with the mesh across the racks, as --encap needs it.
    /// [default: what is needed, else rack]
    #[arg(long, value_enum)]
    pub asn: Option<AsnPlan>,
    /// How packets between pods travel between nodes. In a tunnel they pass routers that know no pods
    /// and drop their addresses. IPv6 pools take VXLAN instead of IP-in-IP.
    #[arg(long, value_enum, default_value_t = Encap::None)]
    pub encap: Encap,
    /// IP versions of nodes and pods.
    #[arg(long, value_enum, default_value_t = Families::Dual)]
    pub families: Families,
    /// Exit with 1 when a row of the table fails.
    #[arg(long)]
    pub check: bool,
    /// How many times as long as usual things may take, and all timers are; for slow machines, such as
    /// emulated ones.
    #[arg(long, default_value_t = 1, value_name = "TIMES", value_parser = clap::value_parser!(u16).range(1..=20))]
    pub patience: u16,
    /// Packets a second of each of the two flows, while things are broken.
    #[arg(long, default_value_t = 1000, value_name = "PACKETS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// What is printed at the end.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Leave the lab running until Ctrl-C and say what to try.
    #[arg(long)]
    pub keep: bool,
    /// The lab's name: labs of different names run side by side.
    #[arg(long, default_value_t = LabName::default())]
    pub name: LabName,
    /// Show every step, and let the agents log at debug level.
    #[arg(long)]
    pub verbose: bool,
    /// The CNI plugin; beside this program by default.
    #[arg(long, value_name = "FILE")]
    pub cni_plugin: Option<PathBuf>,
}

impl LabOptions {
    /// How autonomous systems are given to nodes.
    ///
    /// # Errors
    /// [`Error::NoMesh`] when that cannot be with tunnels.
    pub fn asn_plan(&self) -> Result<AsnPlan, Error> {
        match (self.asn, self.encap) {
            (asn, Encap::None) => Ok(asn.unwrap_or(AsnPlan::Rack)),
            (Some(AsnPlan::Rack), _) => Err(Error::NoMesh),
            _ => Ok(AsnPlan::Single),
        }
    }
}

/// How packets between pods travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Encap {
    /// As they are.
    None,
    /// In VXLAN.
    Vxlan,
    /// In VXLAN between racks.
    VxlanCrossSubnet,
    /// In IP-in-IP.
    Ipip,
    /// In IP-in-IP between racks.
    IpipCrossSubnet,
}

impl Encap {
    /// Whether neighbours on the same subnet do without.
    pub fn is_cross_subnet(self) -> bool {
        matches!(self, Encap::VxlanCrossSubnet | Encap::IpipCrossSubnet)
    }

    /// What a pool of a family has for it.
    pub fn of_pool(self, v4: bool) -> Encapsulation {
        match (self, v4) {
            (Encap::None, _) => Encapsulation::None,
            (Encap::Ipip, true) => Encapsulation::IPIP,
            (Encap::IpipCrossSubnet, true) => Encapsulation::IPIPCrossSubnet,
            (Encap::Vxlan | Encap::Ipip, _) => Encapsulation::VXLAN,
            (Encap::VxlanCrossSubnet | Encap::IpipCrossSubnet, _) => {
                Encapsulation::VXLANCrossSubnet
            }
        }
    }

    /// The tunnel that packets of a family take.
    pub fn tunnel(self, v4: bool) -> Option<TunnelKind> {
        match self.of_pool(v4) {
            Encapsulation::None => None,
            Encapsulation::IPIP | Encapsulation::IPIPCrossSubnet => Some(TunnelKind::Ipip),
            Encapsulation::VXLAN | Encapsulation::VXLANCrossSubnet => Some(TunnelKind::Vxlan),
        }
    }
}

/// How autonomous systems are given to nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AsnPlan {
    /// Each rack is an AS, by the Node label `cairn.network/asn`.
    Rack,
    /// All nodes are one AS.
    Single,
}

/// The IP versions of nodes and pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 only.
    Ipv4,
}

/// What is printed at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// One JSON object.
    Json,
}

/// The name of a lab: 1 to 12 lower-case letters and digits.
///
/// Namespaces carry it before a hyphen, so that no lab's prefix is the beginning of another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabName(String);

impl LabName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the name that a lab has unless told otherwise.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT_NAME
    }
}

impl Default for LabName {
    fn default() -> LabName {
        LabName(DEFAULT_NAME.into())
    }
}

impl std::fmt::Display for LabName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<LabName, InvalidName> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(plain) {
            Ok(LabName(text.into()))
        } else {
            Err(InvalidName)
        }
    }
}

/// A lab's name that cannot be part of namespace names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a lab's name has 1 to {NAME_MAX} lower-case letters and digits")]
pub struct InvalidName;

const DEFAULT_NAME: &str = "lab";
const NAME_MAX: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_need_a_mesh_across_racks() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: LabOptions,
        }
        let plan = |line: &str| {
            let line =
                <Line as clap::Parser>::try_parse_from(line.split(' ')).map_err(|e| e.to_string());
            line.and_then(|line| line.options.asn_plan().map_err(|e| e.to_string()))
        };
        assert_eq!(plan("lab"), Ok(AsnPlan::Rack));
        assert_eq!(plan("lab --asn single"), Ok(AsnPlan::Single));
        assert_eq!(plan("lab --encap ipip-cross-subnet"), Ok(AsnPlan::Single));
        assert_eq!(plan("lab --encap vxlan --asn single"), Ok(AsnPlan::Single));
        let refused = plan("lab --encap vxlan --asn rack");
        assert!(refused.as_ref().is_err_and(|why| why.contains("--asn single")), "{refused:?}");
    }

    #[test]
    fn ipv6_takes_vxlan_instead_of_ipip() {
        let encap = Encap::IpipCrossSubnet;
        assert_eq!(encap.of_pool(true), Encapsulation::IPIPCrossSubnet);
        assert_eq!(encap.of_pool(false), Encapsulation::VXLANCrossSubnet);
        let tunnels = [true, false].map(|v4| Encap::Ipip.tunnel(v4));
        assert_eq!(tunnels, [Some(TunnelKind::Ipip), Some(TunnelKind::Vxlan)]);
        assert_eq!(Encap::None.tunnel(true), None);
    }

    #[test]
    fn names() {
        assert_eq!("a1".parse::<LabName>().map(|name| name.to_string()), Ok("a1".into()));
        for bad in ["", "a-b", "A", "../x", "abcdefghijklm", "ä"] {
            assert_eq!(bad.parse::<LabName>(), Err(InvalidName), "{bad:?}");
        }
    }
}
