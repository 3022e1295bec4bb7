//! Bytes that no kernel sends must not end the process either.

use proptest::prelude::*;

use crate::batch::{Batch, attributes};
use crate::nexthop::{Object, Way};
use crate::route::{self, NextHop, Route, Target};
use crate::{link, nexthop, socket, tunnel};

fn decode_all(bytes: &[u8]) {
    let _ = link::parse(bytes);
    let _ = link::parse_address(bytes);
    let _ = route::parse(bytes);
    let _ = nexthop::parse(bytes);
    let _ = tunnel::parse_forwarding(bytes);
    let _ = tunnel::parse_settings(bytes);
    for message in socket::messages(bytes).flatten() {
        let _ = route::parse(message.body);
        let _ = link::parse(message.body);
        let _ = nexthop::parse(message.body);
        let _ = tunnel::parse_settings(message.body);
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

fn objects() -> impl Strategy<Value = Object> {
    let hop = (any::<[u8; 4]>(), 1..9u32, any::<bool>()).prop_map(|(gateway, ifindex, onlink)| {
        Way::Hop(NextHop { onlink, ..NextHop::via(gateway.into(), ifindex) })
    });
    let group = prop::collection::vec((any::<u32>(), 1..=u16::MAX), 1..9).prop_map(Way::Group);
    let way = prop_oneof![hop, group, Just(Way::Blackhole)];
    (any::<u32>(), any::<u8>(), way).prop_map(|(id, protocol, way)| Object { id, protocol, way })
}

fn routes() -> impl Strategy<Value = Route> {
    let target = prop_oneof![
        hops().prop_map(Target::Unicast),
        any::<u32>().prop_map(Target::Object),
        Just(Target::Blackhole)
    ];
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
        batch.add_route(&route);
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
    fn a_next_hop_object_survives_the_wire(object in objects()) {
        let mut batch = Batch::new();
        batch.create_object(&object);
        let bytes = batch.slice(0..1).unwrap();
        prop_assert_eq!(nexthop::parse(&bytes[16..]).unwrap(), object);
    }

    #[test]
    fn mutated_messages_are_refused_quietly(
        routes in prop::collection::vec(routes(), 1..4),
        objects in prop::collection::vec(objects(), 0..4),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut batch = Batch::new();
        for route in &routes {
            batch.add_route(route);
        }
        for object in &objects {
 batch.create_object(object);
}
        let mut bytes = batch.slice(0..batch.len()).unwrap().to_vec();
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
