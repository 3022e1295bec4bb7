//! The command line of `cairn lab`.

use std::path::PathBuf;
use std::str::FromStr;

/// Runs a small data centre of network namespaces on this machine, proves the Kubernetes network
/// model in it, then breaks things and shows what was lost.
#[derive(Clone, Debug, clap::Args)]
pub struct LabOptions {
    /// Nodes, spread over two racks.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=32))]
    pub nodes: u8,
    /// One AS a rack, or one for all nodes with the mesh across the racks.
    #[arg(long, value_enum, default_value_t = AsnPlan::Rack)]
    pub asn: AsnPlan,
    /// IP versions of nodes and pods.
    #[arg(long, value_enum, default_value_t = Families::Dual)]
    pub families: Families,
    /// Exit with 1 when a row of the table fails.
    #[arg(long)]
    pub check: bool,
    /// How many times as long as usual things may take; for slow machines, such as emulated ones.
    #[arg(long, default_value_t = 1, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..=20))]
    pub patience: u32,
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
    fn names() {
        assert_eq!("a1".parse::<LabName>().map(|name| name.to_string()), Ok("a1".into()));
        for bad in ["", "a-b", "A", "../x", "abcdefghijklm", "ä"] {
            assert_eq!(bad.parse::<LabName>(), Err(InvalidName), "{bad:?}");
        }
    }
}
