//! Bytes that no kernel sends must not end the process either.

use proptest::prelude::*;

use crate::batch::{Batch, attributes};
use crate::route::{self, NextHop, Route, Target};
use crate::{link, socket};

fn decode_all(bytes: &[u8]) {
    let _ = link::parse(bytes);
    let _ = link::parse_address(bytes);
    let _ = route::parse(bytes);
    for message in socket::messages(bytes).flatten() {
        let _ = route::parse(message.body);
        let _ = link::parse(message.body);
    }
}

fn hops() -> impl Strategy<Value = Vec<NextHop>> {
    let hop = (any::<Option<[u8; 16]>>(), 1..9u32, any::<bool>(), any::<u8>()).prop_map(
        |(gateway, ifindex, onlink, weight)| NextHop {
            gateway: gateway.map(Into::into),
            ifindex,
            onlink,
            weight,
        },
    );
    prop::collection::vec(hop, 1..5)
}

fn routes() -> impl Strategy<Value = Route> {
    let target = prop_oneof![hops().prop_map(Target::Unicast), Just(Target::Blackhole)];
    let prefix = (any::<[u8; 16]>(), 0..=128u8)
        .prop_map(|(octets, len)| ipnet::IpNet::new(octets.into(), len).unwrap());
    let prefix6 =
        (prefix, any::<u32>(), any::<u32>(), any::<u8>(), target, any::<Option<[u8; 16]>>());
    prefix6.prop_map(|(prefix, table, metric, protocol, target, prefsrc)| Route {
        prefix,
        table,
        metric,
        protocol,
        target,
        prefsrc: prefsrc.map(Into::into),
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_quietly(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_all(&bytes);
        prop_assert!(attributes(&bytes).map(|(_, value)| value.len()).sum::<usize>() <= bytes.len());
    }

    #[test]
    fn a_route_survives_the_wire(route in routes()) {
        let mut batch = Batch::new();
        route::encode_create(&mut batch, &route);
        batch.number(7);
        let bytes = batch.slice(0..1).unwrap();
        let messages: Vec<_> = socket::messages(bytes).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(messages.len(), 1);
        let back = route::parse(messages[0].body).unwrap().unwrap();
        let key = route.key();
        let sent = Route {
            prefix: key.prefix,
            table: key.table,
            metric: key.metric,
            target: route.target.normalized(),
            ..route
        };
        prop_assert_eq!(back, sent);
    }

    #[test]
    fn mutated_messages_are_refused_quietly(
        routes in prop::collection::vec(routes(), 1..4),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut batch = Batch::new();
        routes.iter().for_each(|route| route::encode_create(&mut batch, route));
        let mut bytes = batch.slice(0..routes.len()).unwrap().to_vec();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        decode_all(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        decode_all(&bytes);
    }
}

#[test]
fn an_attribute_that_does_not_fit_is_an_error() {
    let mut batch = Batch::new();
    batch.begin(libc::RTM_NEWLINK, 0, &[0; 16]).attr(libc::IFLA_IFALIAS, &vec![0; 70_000]);
    assert!(batch.slice(0..1).is_err());
    batch.clear();
    batch.begin(libc::RTM_NEWLINK, 0, &[0; 16]);
    assert!(batch.slice(0..1).is_ok());
}

#[test]
fn an_ethernet_address_is_read_as_it_is_written() {
    let mac: link::Mac = "02:00:5E:00:53:ff".parse().unwrap();
    assert_eq!(mac, link::Mac([2, 0, 0x5e, 0, 0x53, 0xff]));
    assert_eq!(mac.to_string(), "02:00:5e:00:53:ff");
    for wrong in
        ["", "02:00:5e:00:53", "02:00:5e:00:53:ff:00", "2:0:5e:0:53:ff", "+2:00:5e:00:53:ff"]
    {
        assert!(wrong.parse::<link::Mac>().is_err(), "{wrong}");
    }
}
