//! How packets reach a peer. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};

use crate::link::Mac;
use crate::route::Family;
use crate::tunnel::{Device, Encapsulation, Peer};

/// The Ethernet address of a node's VXLAN device, from the node's name alone, so that every node knows
/// every other's: locally administered, unicast, 46 bits of a hash.
pub fn mac_of(node: &str) -> Mac {
    // FNV-1a with the finalizer of MurmurHash3: names that differ in one digit differ everywhere.
    let fnv = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut hash = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let [first, b, c, d, e, f, ..] = (hash ^ (hash >> 33)).to_be_bytes();
    Mac([first & 0xfc | 0x02, b, c, d, e, f])
}

/// The IPv6 link-local address that belongs to an Ethernet address (RFC 4291 appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The gateways to a peer on a tunnel device, by the family of the packets inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gateways {
    pub(crate) v4: Option<IpAddr>,
    pub(crate) v6: Option<IpAddr>,
}

impl Gateways {
    pub(crate) fn of(self, inner: Family) -> Option<IpAddr> {
        match inner {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What peers of one device hold already, so that no two hold the same. Nodes come in the order of
/// their names.
#[derive(Debug, Default)]
pub(crate) struct Claims<'a> {
    macs: HashMap<Mac, &'a str>,
    addresses: HashMap<IpAddr, &'a str>,
}

impl<'a> Claims<'a> {
    /// The gateways to `peer`, or why there is none.
    pub(crate) fn gateways(
        &mut self,
        device: &Device,
        node: &'a str,
        peer: Peer,
    ) -> Result<Gateways, String> {
        if peer.outer.is_ipv4() != device.local.is_ipv4() {
            let (local, outer) = (device.local, peer.outer);
            return Err(format!(
                "no tunnel leads to node {node}: its address is {outer} and this node's is {local}, \
                 give both nodes addresses of the same family"
            ));
        }
        let inner = |family| device.inner.contains(&family);
        if matches!(device.encapsulation, Encapsulation::Ipip) {
            return Ok(Gateways { v4: inner(Family::V4).then_some(peer.outer), v6: None });
        }
        match self.macs.entry(peer.mac) {
            Entry::Occupied(other) => {
                let (other, mac) = (other.get(), peer.mac);
                return Err(format!(
                    "no tunnel leads to node {node}: its tunnel device would have the Ethernet \
                     address {mac} of node {other}'s, give one of them another name"
                ));
            }
            Entry::Vacant(free) => free.insert(node),
        };
        let own = IpAddr::V6(link_local(peer.mac));
        // A node that was made anew under another name may have the address of one that is still known:
        // what is sent to that address goes to one Ethernet address only.
        let first = *self.addresses.entry(peer.outer).or_insert(node) == node;
        let v4 = if peer.outer.is_ipv4() && first { peer.outer } else { own };
        Ok(Gateways { v4: inner(Family::V4).then_some(v4), v6: inner(Family::V6).then_some(own) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::tunnel::VxlanSettings;

    fn device(local: &str, encapsulation: Encapsulation) -> Device {
        Device {
            local: local.parse().unwrap(),
            mtu: 1450,
            addresses: Vec::new(),
            inner: Family::ALL.into(),
            encapsulation,
        }
    }

    fn vxlan(local: &str) -> Device {
        let mac = mac_of("here");
        let settings = VxlanSettings { vni: 198, port: 4798, mac, dont_fragment: false };
        device(local, Encapsulation::Vxlan(settings))
    }

    fn peer(outer: &str, name: &str) -> Peer {
        Peer { outer: outer.parse().unwrap(), mac: mac_of(name) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Nodes of different versions must agree for ever.
    #[test]
    fn the_ethernet_address_of_a_name_is_for_ever() {
        for (name, mac) in [
            ("", "ee:d0:1f:60:ba:99"),
            ("n1", "f6:c0:85:57:ac:1e"),
            ("n2", "06:97:13:10:a2:13"),
            ("ip-10-0-3-17.eu-central-1.compute.internal", "0e:06:4f:d2:b8:96"),
        ] {
            assert_eq!(mac_of(name).to_string(), mac, "{name:?}");
        }
        let many: HashSet<Mac> =
            (0..100_000).map(|number| mac_of(&format!("node-{number}"))).collect();
        assert_eq!(many.len(), 100_000);
        assert!(many.iter().all(|mac| mac.0[0] & 3 == 2), "locally administered and unicast");
    }

    #[test]
    fn the_link_local_address_is_the_modified_eui_64() {
        let mac = "02:1a:2b:3c:4d:5e".parse().unwrap();
        assert_eq!(IpAddr::V6(link_local(mac)), ip("fe80::1a:2bff:fe3c:4d5e"));
    }

    #[test]
    fn a_gateway_is_the_outer_address_or_what_the_ethernet_address_gives() {
        let mut claims = Claims::default();
        let here = vxlan("192.0.2.1");
        let own = |name| Some(IpAddr::V6(link_local(mac_of(name))));
        let n1 = claims.gateways(&here, "n1", peer("192.0.2.7", "n1")).unwrap();
        assert_eq!(n1, Gateways { v4: Some(ip("192.0.2.7")), v6: own("n1") });
        let again = claims.gateways(&here, "n2", peer("192.0.2.7", "n2")).unwrap();
        assert_eq!(again, Gateways { v4: own("n2"), v6: own("n2") }, "the address is n1's");
        let error = claims.gateways(&here, "n3", peer("192.0.2.9", "n1")).unwrap_err();
        assert!(error.contains("n3") && error.contains("node n1's"), "{error}");
        let error = claims.gateways(&here, "n4", peer("2001:db8::9", "n4")).unwrap_err();
        assert!(error.contains("n4") && error.contains("the same family"), "{error}");

        let here = vxlan("2001:db8::1");
        let n1 = Claims::default().gateways(&here, "n1", peer("2001:db8::7", "n1")).unwrap();
        assert_eq!(n1, Gateways { v4: own("n1"), v6: own("n1") });

        let here = device("192.0.2.1", Encapsulation::Ipip);
        let mut claims = Claims::default();
        for name in ["n1", "n2"] {
            let way = claims.gateways(&here, name, peer("192.0.2.7", name)).unwrap();
            assert_eq!(way, Gateways { v4: Some(ip("192.0.2.7")), v6: None });
        }
    }
}
