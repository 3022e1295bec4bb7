//! What this machine shows besides the API server: the kernel's interfaces of pods, and what peers
//! announce, where an agent answers.

use std::path::Path;

use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::HeardRoute;
use cairn_kernel::Netlink;
use ipnet::IpNet;

use super::snapshot::LocalSeen;
use crate::control;
use crate::control::protocol::{Ask, HEARD_ASKED_MAX};
use crate::report::Report;

/// The view of the agent's node; `None` on a machine without an agent. Blocking.
pub(super) fn look(run_dir: &Path, blocks: &[IpNet]) -> Option<LocalSeen> {
    // A router's speaker has no node.
    let report: Report = control::ask(run_dir, Ask::Status).ok()?.only().ok()?;
    let mut seen = LocalSeen { node: report.node?, ..LocalSeen::default() };
    match kernel() {
        Ok(interfaces) => seen.kernel = interfaces.into_iter().collect(),
        Err(error) => seen.unknown.push(format!("cannot read the kernel's interfaces: {error}")),
    }
    match heard(run_dir, blocks) {
        Ok(heard) => seen.heard = heard,
        Err(error) => seen.unknown.push(format!("cannot ask what peers announce: {error:#}")),
    }
    Some(seen)
}

/// What peers announce inside of these networks, asked for in parts that fit into a request.
pub(super) fn heard(run_dir: &Path, blocks: &[IpNet]) -> anyhow::Result<Vec<HeardRoute>> {
    let mut heard = Vec::new();
    for some in blocks.chunks(HEARD_ASKED_MAX) {
        let prefixes = some.iter().map(|cidr| Prefix::from(*cidr)).collect();
        for route in control::ask::<HeardRoute>(run_dir, Ask::Heard { prefixes })? {
            heard.push(route?);
        }
    }
    Ok(heard)
}

/// Every address of a pod's interface with the interface's name.
fn kernel() -> Result<Vec<(std::net::IpAddr, String)>, cairn_kernel::Error> {
    let mut netlink = Netlink::open()?;
    let attachments = cairn_kernel::pod::list(&mut netlink)?;
    let of = |attachment: &cairn_kernel::pod::PodAttachment| {
        let name = attachment.host_ifname.clone();
        attachment.addresses().into_iter().map(move |address| (address, name.clone()))
    };
    Ok(attachments.iter().flat_map(of).collect())
}
