//! The tunnel devices themselves: what they should be, what they are, and what leads from one to the
//! other. Pure, except [`read`] and [`rivals`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::batch::{Batch, attributes, read_ip, read_u32};
use crate::error::{Error, Refusal};
use crate::feature::FeatureError;
use crate::link::{self, DuplicateDetection, Link, LinkLocal, LinkSettings, Mac};
use crate::route::Family;
use crate::socket::Netlink;

/// A kind of tunnel. There is at most one device of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelKind {
    /// Ethernet frames in UDP (RFC 7348).
    Vxlan,
    /// IPv4 in IPv4 (RFC 2003).
    Ipip,
}

impl TunnelKind {
    /// Both kinds.
    pub const ALL: [TunnelKind; 2] = [TunnelKind::Vxlan, TunnelKind::Ipip];

    /// The name of the device.
    pub fn device_name(self) -> &'static str {
        match self {
            TunnelKind::Vxlan => "cairn.vxlan",
            TunnelKind::Ipip => "cairn.ipip",
        }
    }

    /// The kind whose device has this name.
    pub fn of_device(name: &str) -> Option<TunnelKind> {
        TunnelKind::ALL.into_iter().find(|kind| kind.device_name() == name)
    }

    fn link_kind(self) -> &'static str {
        match self {
            TunnelKind::Vxlan => "vxlan",
            TunnelKind::Ipip => "ipip",
        }
    }
}

/// A wanted tunnel device. Its kind follows from its encapsulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// This node's address, from which tunnels start.
    pub local: IpAddr,
    /// The largest packet inside, in bytes.
    pub mtu: u32,
    /// This node's addresses on the device, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// The families of the packets inside.
    pub inner: BTreeSet<Family>,
    /// How packets are wrapped.
    pub encapsulation: Encapsulation,
}

/// How packets are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// With Ethernet, VXLAN and UDP headers.
    Vxlan(VxlanSettings),
    /// With an IPv4 header. Takes IPv4 only, inside and outside.
    Ipip,
}

/// The settings of a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanSettings {
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port, here and at every peer.
    pub port: u16,
    /// The device's Ethernet address ([`crate::tunnel::mac_of`]).
    pub mac: Mac,
    /// Forbid to fragment outer IPv4 packets. Without net.ipv4.ip_forward_use_pmtu=1, packets that are
    /// too long for the path vanish then.
    pub dont_fragment: bool,
}

impl Device {
    /// The device's kind.
    pub fn kind(&self) -> TunnelKind {
        match self.encapsulation {
            Encapsulation::Vxlan(_) => TunnelKind::Vxlan,
            Encapsulation::Ipip => TunnelKind::Ipip,
        }
    }
}

/// A link that has the name of a tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) link: Link,
    pub(crate) settings: Settings,
    /// The addresses that are not link-local.
    pub(crate) addresses: Vec<IpNet>,
}

/// What the driver says of a tunnel device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) local: Option<IpAddr>,
    /// Kernels before 5.0 say nothing.
    pub(crate) dont_fragment: Option<bool>,
    /// Something that ours never has: a remote, an underlying link, learning, another mode.
    pub(crate) strange: bool,
}

impl Present {
    /// Whether the alias says that Cairn made it.
    pub(crate) fn has_alias(&self) -> bool {
        self.link.alias.as_deref() == Some(ALIAS)
    }

    /// Whether what cannot be changed is as wanted.
    fn fits(&self, wanted: &Device) -> bool {
        let (found, kind) = (&self.settings, wanted.kind());
        let same_family = found.local.is_some_and(|l| l.is_ipv4() == wanted.local.is_ipv4());
        self.link.kind.as_deref() == Some(kind.link_kind())
            && !found.strange
            && match wanted.encapsulation {
                Encapsulation::Vxlan(vxlan) => {
                    (found.vni, found.port) == (vxlan.vni, vxlan.port) && same_family
                }
                Encapsulation::Ipip => found.local == Some(wanted.local),
            }
    }

    /// Whether Cairn may do what it wants with it: it says so, or is just what Cairn would make.
    pub(crate) fn is_ours(&self, wanted: Option<&Device>) -> bool {
        self.has_alias()
            || wanted.is_some_and(|wanted| {
                self.fits(wanted) && self.settings.local == Some(wanted.local)
            })
    }

    /// Whether peers can be reached through it.
    pub(crate) fn is_ready(&self, wanted: &Device) -> bool {
        self.is_ours(Some(wanted)) && self.fits(wanted) && self.link.is_up()
    }

    /// Addresses that the device should not have.
    pub(crate) fn stale_addresses(&self, wanted: &Device) -> Vec<IpNet> {
        let stale = |net: &&IpNet| !wanted.addresses.iter().any(|ip| host(*ip) == **net);
        self.addresses.iter().filter(stale).copied().collect()
    }
}

/// One step from what a device is to what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Removes the link of this index.
    Delete(u32),
    /// Makes the device. Its mark follows when it has been read back: in the same batch it would mark
    /// another's device that came in between.
    Create,
    /// Changes settings of the driver that can be changed.
    Tune(u32),
    /// Changes settings of the link, those that are given.
    Set { index: u32, mark: bool, mtu: Option<u32>, mac: Option<Mac> },
    /// Sets the device up.
    Up(u32),
    /// Adds an address.
    AddAddress(u32, IpNet),
}

/// The steps from `present` to `wanted`; those after a creation follow when it has been read back.
///
/// # Errors
/// The reason why nothing can be done, with what to do about it.
pub(crate) fn plan(wanted: &Device, present: Option<&Present>) -> Result<Vec<Step>, String> {
    let name = wanted.kind().device_name();
    if wanted.kind() == TunnelKind::Ipip && wanted.local.is_ipv6() {
        return Err(format!(
            "no device {name}: IP-in-IP tunnels start at an IPv4 address and this node's is {}, give \
             the node an IPv4 address or let the pools use VXLAN",
            wanted.local
        ));
    }
    let Some(present) = present else { return Ok(vec![Step::Create]) };
    let index = present.link.index;
    if !present.is_ours(Some(wanted)) {
        return Err(format!(
            "the interface {name} is not Cairn's and is left alone: remove it with `ip link delete \
             {name}`, or find out which program makes it"
        ));
    }
    if !present.fits(wanted) {
        return Ok(vec![Step::Delete(index), Step::Create]);
    }
    let mut steps = Vec::new();
    let (mut mac, mut tune) = (None, false);
    if let Encapsulation::Vxlan(vxlan) = wanted.encapsulation {
        mac = Some(vxlan.mac).filter(|mac| present.link.mac != Some(*mac));
        let fragment = present.settings.dont_fragment;
        tune = present.settings.local != Some(wanted.local)
            || fragment.is_some_and(|found| found != vxlan.dont_fragment);
    }
    if tune {
        steps.push(Step::Tune(index));
    }
    let mtu = Some(wanted.mtu).filter(|mtu| present.link.mtu != *mtu);
    let mark = !present.has_alias();
    if mark || mtu.is_some() || mac.is_some() {
        steps.push(Step::Set { index, mark, mtu, mac });
    }
    if !present.link.is_up() {
        steps.push(Step::Up(index));
    }
    for address in wanted.addresses.iter().map(|ip| host(*ip)) {
        if !present.addresses.contains(&address) {
            steps.push(Step::AddAddress(index, address));
        }
    }
    Ok(steps)
}

impl Step {
    /// Appends the step's requests, and to `actions` what each does, as a verb and its object.
    pub(crate) fn encode(&self, wanted: &Device, batch: &mut Batch, actions: &mut Vec<String>) {
        let name = wanted.kind().device_name();
        match self {
            Step::Delete(index) => {
                batch.delete_link(*index);
                actions.push(format!("delete the old device {name}"));
            }
            Step::Create => {
                create(batch, wanted);
                actions.push(format!("create the device {name}"));
            }
            Step::Tune(index) => {
                batch.change_link(*index);
                driver(batch, wanted, Driver::Tune);
                actions.push(format!("change the device {name}"));
            }
            Step::Set { index, mark, mtu, mac } => {
                let settings = LinkSettings {
                    alias: mark.then_some(ALIAS),
                    // Without automatic link-local addresses no packet leaves that nobody asked for.
                    // Set together with the state, this would come too late.
                    link_local: mark.then_some(LinkLocal::None),
                    mtu: *mtu,
                    mac: *mac,
                    ..LinkSettings::default()
                };
                batch.set_link(*index, &settings);
                actions.push(format!("change the device {name}"));
            }
            Step::Up(index) => {
                let settings = LinkSettings { up: Some(true), ..LinkSettings::default() };
                batch.set_link(*index, &settings);
                actions.push(format!("set up the device {name}"));
            }
            Step::AddAddress(index, address) => {
                batch.add_address(*index, *address, DuplicateDetection::Skip);
                actions.push(format!("give the device {name} the address {address}"));
            }
        }
    }
}

/// Appends the request that creates the device, down and without its mark.
fn create(batch: &mut Batch, wanted: &Device) {
    batch.begin_link(wanted.kind().device_name());
    batch.attr_u32(libc::IFLA_MTU, wanted.mtu);
    if let Encapsulation::Vxlan(vxlan) = wanted.encapsulation {
        batch.attr(libc::IFLA_ADDRESS, &vxlan.mac.0);
    }
    driver(batch, wanted, Driver::Create);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    Create,
    Tune,
}

/// Appends what the driver is told.
fn driver(batch: &mut Batch, wanted: &Device, when: Driver) {
    let info = batch.open(libc::IFLA_LINKINFO);
    batch.attr(libc::IFLA_INFO_KIND, wanted.kind().link_kind().as_bytes());
    let settings = batch.open(libc::IFLA_INFO_DATA);
    match wanted.encapsulation {
        Encapsulation::Ipip => {
            batch.attr_ip(IFLA_IPTUN_LOCAL, wanted.local);
        }
        Encapsulation::Vxlan(vxlan) => {
            let local = if wanted.local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
            batch.attr_ip(local, wanted.local);
            batch.attr(IFLA_VXLAN_DF, &[u8::from(vxlan.dont_fragment)]);
            if when == Driver::Create {
                batch.attr_u32(IFLA_VXLAN_ID, vxlan.vni);
                batch.attr(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
                batch.attr(IFLA_VXLAN_LEARNING, &[0]);
            }
        }
    }
    batch.close(settings).close(info);
}

/// The device of `kind`, or what else has its name.
///
/// # Errors
/// Those of [`Netlink::query`] and [`link::addresses`].
pub(crate) fn read(netlink: &mut Netlink, kind: TunnelKind) -> Result<Option<Present>, Error> {
    let Some(body) = link::find_body(netlink, kind.device_name())? else { return Ok(None) };
    let link = link::parse(&body)?;
    let addresses = link::addresses(netlink)?
        .into_iter()
        .filter(|own| own.ifindex == link.index && own.scope == libc::RT_SCOPE_UNIVERSE)
        .map(|own| own.address)
        .collect();
    Ok(Some(Present { settings: parse_settings(&body), link, addresses }))
}

/// The names of other VXLAN devices on the UDP port `port`.
///
/// # Errors
/// Those of [`Netlink::dump`].
pub(crate) fn rivals(netlink: &mut Netlink, port: u16) -> Result<Vec<String>, Error> {
    let mut links = link::list_with(netlink, |link, body| {
        let vxlan = link.kind.as_deref() == Some(TunnelKind::Vxlan.link_kind());
        let ours = link.name == TunnelKind::Vxlan.device_name();
        (vxlan && !ours && parse_settings(body).port == port).then_some(link.name)
    })?;
    links.sort_unstable();
    Ok(links)
}

/// Reads the driver's part of an RTM_NEWLINK message.
pub(crate) fn parse_settings(body: &[u8]) -> Settings {
    let mut settings = Settings::default();
    let nested = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted);
    let Some((_, info)) = nested(body.get(16..).unwrap_or_default(), libc::IFLA_LINKINFO) else {
        return settings;
    };
    let kind = nested(info, libc::IFLA_INFO_KIND).map(|(_, name)| name).unwrap_or_default();
    let (_, data) = nested(info, libc::IFLA_INFO_DATA).unwrap_or_default();
    let set = |value: &[u8]| value.iter().any(|octet| *octet != 0);
    if kind.starts_with(b"vxlan") {
        for (kind, value) in attributes(data) {
            match kind {
                IFLA_VXLAN_ID => settings.vni = read_u32(value).unwrap_or(0),
                IFLA_VXLAN_PORT => {
                    settings.port = value.try_into().map_or(0, u16::from_be_bytes);
                }
                IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => {
                    settings.local = read_ip(value).filter(|ip| !ip.is_unspecified());
                }
                IFLA_VXLAN_DF => settings.dont_fragment = value.first().map(|df| *df != 0),
                IFLA_VXLAN_GROUP
                | IFLA_VXLAN_GROUP6
                | IFLA_VXLAN_LINK
                | IFLA_VXLAN_LEARNING
                | IFLA_VXLAN_COLLECT_METADATA => settings.strange |= set(value),
                // Flags that are there or not.
                IFLA_VXLAN_GBP | IFLA_VXLAN_GPE => settings.strange = true,
                _ => {}
            }
        }
    } else if kind.starts_with(b"ipip") {
        for (kind, value) in attributes(data) {
            match kind {
                IFLA_IPTUN_LOCAL => {
                    settings.local = read_ip(value).filter(|ip| !ip.is_unspecified());
                }
                IFLA_IPTUN_REMOTE | IFLA_IPTUN_LINK => settings.strange |= set(value),
                IFLA_IPTUN_COLLECT_METADATA => settings.strange = true,
                _ => {}
            }
        }
    }
    settings
}

/// A refused step in words, with what to do.
pub(crate) fn explain(
    wanted: &Device,
    action: &str,
    refusal: &Refusal,
    rivals: &[String],
) -> String {
    let kind = wanted.kind();
    let taken = matches!(refusal.errno, Errno::ADDRINUSE | Errno::EXIST);
    match wanted.encapsulation {
        _ if refusal.errno == Errno::OPNOTSUPP && action.starts_with("create") => {
            let kind = kind.link_kind();
            FeatureError::NoLinkKind { kind: kind.into(), module: kind.into() }.to_string()
        }
        Encapsulation::Vxlan(VxlanSettings { vni, port, .. }) if taken => {
            let who = match rivals {
                [] => "another program".to_owned(),
                names => format!("the VXLAN device {}", names.join(", ")),
            };
            format!(
                "cannot {action}: UDP port {port} or VNI {vni} on it is taken by {who}, which does \
                 not share it: remove that, or choose another VXLAN port for all nodes"
            )
        }
        Encapsulation::Ipip if taken => format!(
            "cannot {action}: another ipip device starts at {} and leads to every address, find it \
             with `ip -d link show type ipip` and remove it",
            wanted.local
        ),
        _ => format!("cannot {action}: {refusal}"),
    }
}

fn host(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

/// The alias of tunnel devices of ours.
pub(crate) const ALIAS: &str = "cairn.network/tunnel";
/// `IFLA_VXLAN_*` and `IFLA_IPTUN_*` (linux/if_link.h, linux/if_tunnel.h).
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_VXLAN_GPE: u16 = 27;
const IFLA_VXLAN_DF: u16 = 29;
const IFLA_IPTUN_LINK: u16 = 1;
const IFLA_IPTUN_LOCAL: u16 = 2;
const IFLA_IPTUN_REMOTE: u16 = 3;
const IFLA_IPTUN_COLLECT_METADATA: u16 = 19;
