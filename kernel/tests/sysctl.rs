//! Network settings on the running kernel.

mod support;

use cairn_kernel::route::Family;
use cairn_kernel::sysctl::{self, Ensured, NodeSettings, Settled};
use cairn_kernel::{Errno, Error};
use support::{TestNetNs, veth_up};

#[test]
fn a_setting_is_written_only_when_it_differs() {
    let netns = TestNetNs::create();
    netns
        .run(|| {
            let path = "ipv4/conf/lo/rp_filter";
            sysctl::write(path, 0).unwrap();
            assert_eq!(sysctl::ensure(path, 2).unwrap(), Ensured::Changed { from: 0 });
            assert_eq!(sysctl::ensure(path, 2).unwrap(), Ensured::AlreadySet);
            assert_eq!(sysctl::read(path).unwrap(), 2);
        })
        .unwrap();
    let other = TestNetNs::create();
    let untouched = other.run(|| sysctl::read("ipv4/conf/lo/rp_filter").unwrap()).unwrap();
    assert_ne!(untouched, 2, "the setting of one namespace is not another's");
}

#[test]
fn forwarding_keeps_router_advertisements() {
    let netns = TestNetNs::create();
    let mut netlink = netns.netlink();
    veth_up(&mut netlink, "up.7", &[]);
    netns
        .run(|| {
            sysctl::write("ipv6/conf/up.7/accept_ra", 1).unwrap();
            sysctl::write("ipv6/conf/up.7p/accept_ra", 0).unwrap();
            sysctl::write("ipv6/conf/default/accept_ra", 1).unwrap();
            sysctl::write("ipv4/ip_forward", 0).unwrap();
            sysctl::write("ipv6/conf/all/forwarding", 0).unwrap();
            for family in Family::ALL {
                let changed = Ensured::Changed { from: 0 };
                assert_eq!(sysctl::enable_forwarding(family).unwrap(), changed, "{family:?}");
                let again = sysctl::enable_forwarding(family).unwrap();
                assert_eq!(again, Ensured::AlreadySet, "{family:?}");
            }
            assert_eq!(sysctl::read("ipv6/conf/up.7/accept_ra").unwrap(), 2);
            assert_eq!(sysctl::read("ipv6/conf/up.7p/accept_ra").unwrap(), 0);
            assert_eq!(sysctl::read("ipv6/conf/default/accept_ra").unwrap(), 1);
            assert_eq!(sysctl::read("ipv4/conf/up.7/forwarding").unwrap(), 1);
            assert_eq!(sysctl::read("ipv6/conf/up.7/forwarding").unwrap(), 1);
        })
        .unwrap();
}

#[test]
fn what_is_no_setting_is_an_error() {
    let absent = sysctl::read("ipv4/conf/no-such-link/rp_filter").unwrap_err();
    assert_eq!(absent.errno(), Some(Errno::NOENT), "{absent}");
    let absent = sysctl::write("ipv4/no_such_setting", 1).unwrap_err();
    assert_eq!(absent.errno(), Some(Errno::NOENT), "{absent}");
    let several = sysctl::read("ipv4/tcp_rmem").unwrap_err();
    assert!(matches!(several, Error::NotANumber { .. }), "{several}");
    for path in ["", "/etc/passwd", "../kernel/pid_max", "ipv4/conf/../ip_forward"] {
        assert!(matches!(sysctl::read(path), Err(Error::Unencodable(_))), "{path}");
    }
}

#[test]
fn the_greater_of_two_values_decides_whether_a_reverse_path_is_loosened() {
    let netns = TestNetNs::create();
    veth_up(&mut netns.netlink(), "up.7", &["192.0.2.1/24"]);
    netns
        .run(|| {
            // all, the interface's own, the own afterwards
            for (all, own, after) in
                [(0, 0, 0), (0, 1, 2), (1, 0, 2), (1, 1, 2), (1, 2, 2), (2, 0, 0), (2, 1, 1)]
            {
                sysctl::write("ipv4/conf/all/rp_filter", all).unwrap();
                sysctl::write("ipv4/conf/up.7/rp_filter", own).unwrap();
                let expected = match own == after {
                    true => Ensured::AlreadySet,
                    false => Ensured::Changed { from: own },
                };
                assert_eq!(sysctl::loosen_reverse_path("up.7").unwrap(), expected, "{all} {own}");
                assert_eq!(sysctl::read("ipv4/conf/up.7/rp_filter").unwrap(), after, "{all} {own}");
            }
        })
        .unwrap();
}

#[test]
fn a_nodes_settings_are_set_once() {
    let netns = TestNetNs::create();
    veth_up(&mut netns.netlink(), "up.7", &["192.0.2.1/24"]);
    let settings = NodeSettings {
        forwarding: Family::ALL.to_vec(),
        loose: vec!["up.7".into(), "gone".into()],
        // The table sizes exist in the first namespace only.
        neighbours: 5000,
        bare_objects: true,
        path_mtu: true,
    };
    netns
        .run(|| {
            sysctl::write("ipv4/conf/all/rp_filter", 1).unwrap();
            sysctl::write("ipv4/conf/up.7/rp_filter", 0).unwrap();
            sysctl::write("ipv6/conf/all/forwarding", 0).unwrap();
            sysctl::write("ipv4/ip_forward", 1).unwrap();
            let changed = [
                "net/ipv6/conf/all/forwarding was 0 and is now 1",
                "net/ipv4/ip_forward_use_pmtu was 0 and is now 1",
                "net/ipv4/nexthop_compat_mode was 1 and is now 0",
                "net/ipv4/conf/up.7/rp_filter was 0 and is now 2",
            ]
            .map(str::to_owned);
            let settled = settings.settle();
            let expected = Settled {
                changed: changed.to_vec(),
                loosened: vec![("up.7".into(), 0)],
                ..Settled::default()
            };
            assert_eq!(settled, expected);
            assert_eq!(settings.settle(), Settled::default());
            assert!(sysctl::restore_reverse_path("up.7", 0).unwrap());
            assert_eq!(sysctl::read("ipv4/conf/up.7/rp_filter").unwrap(), 0);
            sysctl::write("ipv4/conf/up.7/rp_filter", 1).unwrap();
            assert!(!sysctl::restore_reverse_path("up.7", 0).unwrap(), "somebody else's");
        })
        .unwrap();
}

#[test]
fn a_setting_is_raised_and_never_lowered() {
    let netns = TestNetNs::create();
    netns
        .run(|| {
            let path = "ipv4/neigh/lo/unres_qlen_bytes";
            sysctl::write(path, 1000).unwrap();
            assert_eq!(sysctl::raise(path, 2000).unwrap(), Ensured::Changed { from: 1000 });
            assert_eq!(sysctl::raise(path, 1500).unwrap(), Ensured::AlreadySet);
            assert_eq!(sysctl::read(path).unwrap(), 2000);
        })
        .unwrap();
}
