//! Taking pods' interfaces away: one, or many at the price of one.

use std::collections::HashSet;

use super::{Alias, PodAttachment, host_interface_name, is_host_interface_name, is_ours};
use crate::batch::Batch;
use crate::error::Error;
use crate::link::{self, Link, LinkSettings};
use crate::socket::{Acknowledge, Netlink};

/// Removes a pod's host interface, and with it the pod's and all routes through them. One that does
/// not exist is fine. Takes about 30 ms, in which the kernel waits for readers.
///
/// # Errors
/// [`Error::Unencodable`] for a name that is not a pod's, and those of [`Netlink::request`].
pub fn detach(host: &mut Netlink, host_ifname: &str) -> Result<(), Error> {
    if !is_host_interface_name(host_ifname) {
        return Err(Error::Unencodable("the interface's name is not that of a pod's interface"));
    }
    match link::find(host, host_ifname)? {
        Some(link) if is_ours(&link) => link::delete(host, link.index),
        _ => Ok(()),
    }
}

/// As [`detach`], for interface `ifname` of container `container_id`: an interface whose alias names
/// another container stays.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn detach_container(host: &mut Netlink, container_id: &str, ifname: &str) -> Result<(), Error> {
    match link::find(host, &host_interface_name(container_id, ifname))? {
        Some(link) if belongs_to(&link, container_id, ifname) => link::delete(host, link.index),
        _ => Ok(()),
    }
}

/// As [`detach_container`] for each pair of container id and interface name. The kernel waits for its
/// readers once for all of them and not for each, so that a hundred take little longer than one.
///
/// They become a group of links that no other link is in, and that group is deleted. Returns the outcome
/// of each in order; where the kernel does not let it be done so, each is removed by itself.
pub fn detach_many(host: &mut Netlink, interfaces: &[(&str, &str)]) -> Vec<Result<(), Error>> {
    if interfaces.len() > 1
        && let Ok(true) = detach_as_group(host, interfaces)
    {
        return interfaces.iter().map(|_| Ok(())).collect();
    }
    let single =
        |(container_id, ifname): &(&str, &str)| detach_container(host, container_id, ifname);
    interfaces.iter().map(single).collect()
}

/// Removes the rest of an interrupted creation, unless it has become whole since it was listed.
/// Returns whether it was removed.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn remove_half_done(host: &mut Netlink, attachment: &PodAttachment) -> Result<bool, Error> {
    let Some(link) = link::find_index(host, attachment.ifindex)? else { return Ok(false) };
    let unchanged = is_ours(&link) && link.name == attachment.host_ifname;
    let bare = link.alias.is_none_or(|alias| alias.is_empty());
    if !unchanged || !bare || !attachment.routes.is_empty() {
        return Ok(false);
    }
    link::delete(host, link.index)?;
    Ok(true)
}

/// Whether `link` may go when interface `ifname` of container `container_id`, whose name it has, goes.
fn belongs_to(link: &Link, container_id: &str, ifname: &str) -> bool {
    let alias = link.alias.as_deref().and_then(|text| text.parse::<Alias>().ok());
    let others =
        alias.is_some_and(|alias| alias.container_id != container_id || alias.ifname != ifname);
    is_ours(link) && !others
}

/// Whether all that were there are gone; `false` when it cannot be done this way.
fn detach_as_group(host: &mut Netlink, interfaces: &[(&str, &str)]) -> Result<bool, Error> {
    let links = link::list(host)?;
    let mut ours = HashSet::new();
    for (container_id, ifname) in interfaces {
        let name = host_interface_name(container_id, ifname);
        let found = links.iter().find(|link| link.name == name);
        ours.extend(
            found.filter(|link| belongs_to(link, container_id, ifname)).map(|link| link.index),
        );
    }
    if ours.is_empty() {
        return Ok(true);
    }
    let taken: HashSet<u32> = links.iter().map(|link| link.group).collect();
    let Some(group) = (GROUP_MIN..=GROUP_MAX).find(|group| !taken.contains(group)) else {
        return Ok(false);
    };
    let mut batch = Batch::new();
    for &index in &ours {
        let joins = LinkSettings { group: Some(group), ..LinkSettings::default() };
        batch.set_link(index, &joins);
    }
    // One that went meanwhile is refused, and is not missed below.
    host.execute(&mut batch, Acknowledge::Each)?;
    delete_if_only(host, group, &ours)
}

/// Deletes the links of `group` unless others than those of `ours` are in it, or one of `ours` is not.
fn delete_if_only(host: &mut Netlink, group: u32, ours: &HashSet<u32>) -> Result<bool, Error> {
    // Read again: somebody may have put a link into the group since it was chosen.
    let links = link::list(host)?;
    let as_wanted = |link: &Link| (link.group == group) == ours.contains(&link.index);
    if !links.iter().all(as_wanted) {
        return Ok(false);
    }
    link::delete_group(host, group)?;
    Ok(true)
}

/// Groups that the node's administrator hardly uses: `ip link set group` takes small numbers and names.
const GROUP_MIN: u32 = 0x4341_0000;
const GROUP_MAX: u32 = GROUP_MIN + 15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Veth, VethEnd};
    use crate::netns;

    #[test]
    fn a_group_that_a_stranger_joined_is_not_deleted() {
        netns::in_scratch(|| {
            let mut host = Netlink::open().unwrap();
            for (name, peer) in [("ours", "ours-peer"), ("foreign", "foreign-peer")] {
                let (end, peer) = (VethEnd::named(name), VethEnd::named(peer));
                link::create_veth(&mut host, &Veth { end, peer, peer_netns: None, mtu: None })
                    .unwrap();
            }
            let index_of = |host: &Netlink, name: &str| host.index_of(name).unwrap();
            let (ours, foreign) = (index_of(&host, "ours"), index_of(&host, "foreign"));
            let joins = LinkSettings { group: Some(GROUP_MIN), ..LinkSettings::default() };
            link::set(&mut host, ours, &joins).unwrap();
            link::set(&mut host, foreign, &joins).unwrap();
            let known = HashSet::from([ours]);
            assert!(!delete_if_only(&mut host, GROUP_MIN, &known).unwrap());
            assert!(host.index_of("ours").is_some() && host.index_of("foreign").is_some());
            // One of ours that is not in it means that the kernel did not let it in.
            let more = HashSet::from([ours, foreign, index_of(&host, "ours-peer")]);
            assert!(!delete_if_only(&mut host, GROUP_MIN, &more).unwrap());
            let leaves = LinkSettings { group: Some(0), ..LinkSettings::default() };
            link::set(&mut host, foreign, &leaves).unwrap();
            assert!(delete_if_only(&mut host, GROUP_MIN, &known).unwrap());
            assert!(host.index_of("ours").is_none() && host.index_of("foreign").is_some());
        })
        .unwrap();
    }
}
