//! What tunnels consist of, in words: the wanted and what the kernel holds, for people who compare.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Tunnels;
use super::device::{self, Encapsulation, Present, TunnelKind};
use super::entries::{self, Forwarding, Neighbour};
use crate::TUNNEL_OBJECTS;
use crate::error::Error;
use crate::link::Mac;
use crate::nexthop::{self, Way};
use crate::objects::{self, ObjectId};
use crate::socket::Netlink;

/// The parts, by what they are and their names, with what each does. Equal parts have equal words.
pub type Inventory = BTreeMap<(Part, String), String>;

/// What a part of a tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A tunnel device.
    Device,
    /// An address of one.
    Address,
    /// A permanent neighbour entry on one.
    Neighbour,
    /// A permanent forwarding entry of one.
    Forwarding,
    /// A next-hop object, also one on an uplink ([`crate::uplink`]).
    Object,
}

impl Part {
    /// The part as a noun.
    pub fn name(self) -> &'static str {
        match self {
            Part::Device => "device",
            Part::Address => "address",
            Part::Neighbour => "neighbour",
            Part::Forwarding => "forwarding entry",
            Part::Object => "next-hop object",
        }
    }
}

impl Tunnels {
    /// What is wanted now.
    pub fn inventory(&self) -> Inventory {
        let mut all = Inventory::new();
        let mut names = BTreeMap::new();
        for (kind, state) in &self.devices {
            let Some(wanted) = &state.wanted else { continue };
            let name = kind.device_name();
            let words = match wanted.encapsulation {
                Encapsulation::Ipip => format!("ipip local {} mtu {} up", wanted.local, wanted.mtu),
                Encapsulation::Vxlan(vxlan) => format!(
                    "vxlan id {} dstport {} local {} df {} mtu {} address {} up",
                    vxlan.vni,
                    vxlan.port,
                    wanted.local,
                    df(vxlan.dont_fragment),
                    wanted.mtu,
                    vxlan.mac
                ),
            };
            all.insert((Part::Device, name.to_owned()), words);
            for address in &wanted.addresses {
                let address = IpNet::from(*address);
                all.insert((Part::Address, format!("{address} dev {name}")), String::new());
            }
            names.extend(state.index().map(|index| (index, *kind)));
        }
        neighbours(&mut all, &names, self.neighbours.wanted());
        forwarding(&mut all, &names, self.forwarding.wanted());
        objects(&mut all, &names, self.objects.wanted());
        all
    }
}

/// What of tunnels the kernel holds in the namespace of `netlink`: devices with our names, what is on
/// them, and objects in our range that are ours.
///
/// # Errors
/// Those of the dumps.
pub fn inventory(netlink: &mut Netlink) -> Result<Inventory, Error> {
    let mut all = Inventory::new();
    let mut names = BTreeMap::new();
    for kind in TunnelKind::ALL {
        let Some(present) = device::read(netlink, kind)? else { continue };
        let (name, index) = (kind.device_name(), present.link.index);
        all.insert((Part::Device, name.to_owned()), words(&present));
        if !present.has_alias() {
            continue;
        }
        for address in &present.addresses {
            all.insert((Part::Address, format!("{address} dev {name}")), String::new());
        }
        names.insert(index, kind);
        neighbours(&mut all, &names, &entries::neighbours(netlink, index)?);
        if kind == TunnelKind::Vxlan {
            forwarding(&mut all, &names, &entries::forwarding(netlink, index)?);
        }
    }
    let found = nexthop::list(netlink)?.into_iter();
    let ours = found.filter_map(|object| {
        Some((ObjectId(object.id), objects::own_way(object, &TUNNEL_OBJECTS)?))
    });
    objects(&mut all, &names, &ours.collect());
    Ok(all)
}

fn words(present: &Present) -> String {
    let (link, settings) = (&present.link, &present.settings);
    let mut words = link.kind.clone().unwrap_or_else(|| "a device of another kind".to_owned());
    if link.kind.as_deref() == Some("vxlan") {
        words += &format!(" id {} dstport {}", settings.vni, settings.port);
    }
    if let Some(local) = settings.local {
        words += &format!(" local {local}");
    }
    if link.kind.as_deref() == Some("vxlan") {
        words += &format!(" df {}", settings.dont_fragment.map_or("unknown", df));
    }
    words += &format!(" mtu {}", link.mtu);
    if link.kind.as_deref() == Some("vxlan")
        && let Some(mac) = link.mac
    {
        words += &format!(" address {mac}");
    }
    words += if link.is_up() { " up" } else { " down" };
    if settings.strange {
        words += ", with settings that Cairn does not use";
    }
    if !present.has_alias() {
        words += ", without Cairn's alias";
    }
    words
}

fn df(dont_fragment: bool) -> &'static str {
    if dont_fragment { "set" } else { "unset" }
}

fn neighbours(
    all: &mut Inventory,
    names: &BTreeMap<u32, TunnelKind>,
    found: &BTreeMap<Neighbour, Mac>,
) {
    for (key, mac) in found {
        let name = format!("{} dev {}", key.address, link(names, key.ifindex));
        all.insert((Part::Neighbour, name), mac.to_string());
    }
}

fn forwarding(
    all: &mut Inventory,
    names: &BTreeMap<u32, TunnelKind>,
    found: &BTreeMap<Forwarding, IpAddr>,
) {
    for (key, outer) in found {
        let name = format!("{} dev {}", key.mac, link(names, key.ifindex));
        all.insert((Part::Forwarding, name), format!("dst {outer}"));
    }
}

fn objects(
    all: &mut Inventory,
    names: &BTreeMap<u32, TunnelKind>,
    found: &BTreeMap<ObjectId, Way>,
) {
    for (ObjectId(id), way) in found {
        let words = objects::words(way, |index| link(names, index));
        all.insert((Part::Object, id.to_string()), words);
    }
}

fn link(names: &BTreeMap<u32, TunnelKind>, index: u32) -> String {
    match names.get(&index) {
        Some(kind) => kind.device_name().to_owned(),
        None => format!("link {index}"),
    }
}
