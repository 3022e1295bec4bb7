//! What the RIB makes of the machine below it and of the owners of blocks: next hops that cannot be
//! reached, networks that are the machine's own, routes against a block's owner.

mod rib_bench;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cairn_bgp::prefix::Prefix;
use cairn_bgp::rib::{BlockOwner, LocalNetworks, OriginTable, Underlay};
use rib_bench::{Bench, Path};

#[derive(Debug)]
struct Ways {
    unreachable: BTreeSet<IpAddr>,
    networks: LocalNetworks,
}

impl Underlay for Ways {
    fn reaches(&self, next_hop: IpAddr) -> bool {
        !self.unreachable.contains(&next_hop)
    }

    fn networks(&self) -> &LocalNetworks {
        &self.networks
    }
}

fn ways(unreachable: &[&str], own: &[&str]) -> Arc<Ways> {
    let own = own.iter().map(|text| {
        let (address, _) = text.split_once('/').unwrap();
        (address.parse().unwrap(), text.parse::<Prefix>().unwrap())
    });
    Arc::new(Ways {
        unreachable: unreachable.iter().map(|text| text.parse().unwrap()).collect(),
        networks: LocalNetworks::new(own),
    })
}

const UNREACHABLE: &str =
    "rejected: there is no route to its next hop that is not from BGP: this machine needs one";

#[test]
fn the_next_best_path_is_used_while_a_next_hop_cannot_be_reached() {
    let mut bench = Bench::new();
    let (near, far) = (bench.peer(65001), bench.peer(65002));
    let receiver = bench.peer(65003);
    bench.announce(near, "10.1.0.0/16", &Path::of(&[65001]).via("192.0.2.11"));
    bench.announce(far, "10.1.0.0/16", &Path::of(&[65002, 65009]).via("192.0.2.12"));
    assert_eq!(bench.told(receiver)["10.1.0.0/16"].as_path, "65000 65001");

    bench.rib.set_underlay(ways(&["192.0.2.11"], &[]));
    assert_eq!(bench.told(receiver)["10.1.0.0/16"].as_path, "65000 65002 65009");
    let lost = bench.candidate("10.1.0.0/16", 1);
    assert_eq!((lost.verdict.as_str(), lost.best), (UNREACHABLE, false));
    // What comes while it is so is judged by it, too.
    bench.announce(near, "10.2.0.0/16", &Path::of(&[65001]).via("192.0.2.11"));
    assert_eq!(bench.candidate("10.2.0.0/16", 0).verdict, UNREACHABLE);
    assert!(!bench.told(receiver).contains_key("10.2.0.0/16"));

    bench.rib.set_underlay(ways(&[], &[]));
    let told = bench.told(receiver);
    assert_eq!(told["10.1.0.0/16"].as_path, "65000 65001");
    assert_eq!(told["10.2.0.0/16"].as_path, "65000 65001");
}

#[test]
fn no_peer_takes_a_subnet_or_an_address_of_the_machine() {
    let mut bench = Bench::new();
    let peer = bench.peer(65001);
    let path = Path::of(&[65001]).via("198.51.100.77");
    let prefixes = ["10.7.0.0/24", "10.7.0.128/25", "10.7.0.9/32", "10.8.0.1/32", "10.7.0.0/16"];
    for prefix in prefixes {
        bench.announce(peer, prefix, &path);
    }
    let verdicts = |bench: &Bench| prefixes.map(|prefix| bench.candidate(prefix, 0).verdict);
    let accepted = || "accepted by accept rule 0".to_owned();
    assert_eq!(verdicts(&bench), [(); 5].map(|()| accepted()), "nothing is known of the machine");
    bench.rib.set_underlay(ways(&[], &["10.7.0.1/24", "10.8.0.1/32"]));
    let subnet =
        || "rejected: it is inside of 10.7.0.0/24, to which this machine is connected".to_owned();
    let own = "rejected: these are addresses of this machine".to_owned();
    assert_eq!(verdicts(&bench), [subnet(), subnet(), subnet(), own, accepted()]);
    // The address moves away.
    bench.rib.set_underlay(ways(&[], &["10.8.0.1/32"]));
    assert_eq!(bench.candidate("10.7.0.9/32", 0).verdict, accepted());
}

fn owned(blocks: &[(&str, &str, u32, &str)]) -> Arc<OriginTable> {
    let blocks = blocks.iter().map(|(block, name, asn, address)| {
        let addresses = vec![address.parse().unwrap()];
        (block.parse().unwrap(), BlockOwner { name: (*name).into(), asn: *asn, addresses })
    });
    Arc::new(OriginTable { blocks: blocks.collect::<BTreeMap<_, _>>() })
}

#[test]
fn a_route_against_the_owner_of_a_block_is_not_newly_used_and_one_in_use_stays() {
    let n1 = ("10.244.3.64/26", "n1", 65101, "192.0.2.11");
    let mut bench = Bench::new();
    let (tor, mesh, late) = (bench.peer(65201), bench.peer(65000), bench.peer(65202));
    // BGP overtakes the watch: nobody is known to own it.
    let wrong = Path::of(&[65201, 65102]);
    bench.announce(tor, "10.244.3.64/26", &wrong);
    assert_eq!(bench.candidate("10.244.3.64/26", 0).verdict, "accepted by accept rule 0");

    bench.rib.set_origins(&owned(&[n1]));
    let kept = bench.candidate("10.244.3.64/26", 0);
    assert!(
        kept.best && kept.verdict.starts_with("accepted, in conflict: the block belongs to n1")
    );
    // As it was announced again, it is still the one in use.
    bench.announce(tor, "10.244.3.64/26", &wrong.clone().med(7));
    assert!(bench.candidate("10.244.3.64/26", 0).best);

    let refused = "rejected: the block belongs to n1, which did not announce it";
    bench.announce(late, "10.244.3.64/26", &Path::of(&[65202, 65103]));
    assert_eq!(bench.candidate("10.244.3.64/26", 1).verdict, refused);
    bench.announce(late, "10.244.3.70/32", &Path::of(&[65202, 65103]));
    assert_eq!(bench.candidate("10.244.3.70/32", 0).verdict, refused, "a part of it as well");

    // The owner itself: by the AS behind routers, by the next hop inside of the AS.
    bench.announce(late, "10.244.3.64/26", &Path::of(&[65202, 65101]));
    bench.announce(mesh, "10.244.3.64/26", &Path::of(&[]).via("192.0.2.11"));
    let best = bench.candidate("10.244.3.64/26", 0);
    assert_eq!((best.verdict.as_str(), best.as_path.as_str()), ("accepted by accept rule 0", ""));
    bench.announce(mesh, "10.244.3.64/26", &Path::of(&[]).via("192.0.2.12"));
    let verdicts: Vec<String> =
        (0..3).map(|n| bench.candidate("10.244.3.64/26", n).verdict).collect();
    assert!(verdicts.iter().any(|v| v.starts_with("accepted, in conflict")), "{verdicts:?}");

    // Withdrawn, it is not in use any more and does not come back against the owner.
    bench.withdraw(tor, "10.244.3.64/26");
    bench.announce(tor, "10.244.3.64/26", &wrong);
    let verdicts: Vec<String> =
        (0..3).map(|n| bench.candidate("10.244.3.64/26", n).verdict).collect();
    assert!(verdicts.iter().any(|v| v == refused), "{verdicts:?}");
    // The conflict ends: the owner has given the block up.
    bench.rib.set_origins(&owned(&[]));
    for n in 0..3 {
        assert_eq!(bench.candidate("10.244.3.64/26", n).verdict, "accepted by accept rule 0");
    }
    assert_eq!(bench.candidate("10.244.3.70/32", 0).verdict, "accepted by accept rule 0");
}
