//! Network settings on the running kernel.

mod support;

use cairn_kernel::route::Family;
use cairn_kernel::sysctl::{self, Ensured};
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
