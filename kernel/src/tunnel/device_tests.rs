//! Plans and messages of tunnel devices, also of the kind that this machine's kernel may lack.

use super::device::*;
use crate::batch::{Batch, attributes, read_ip, read_str};
use crate::error::Refusal;
use crate::link::{self, Link, Mac};
use crate::route::Family;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn wanted(kind: TunnelKind) -> Device {
    let vxlan = VxlanSettings { vni: 198, port: 4798, mac: MAC, dont_fragment: false };
    Device {
        local: "192.0.2.1".parse().unwrap(),
        mtu: 1450,
        addresses: vec!["10.244.1.1".parse().unwrap()],
        inner: Family::ALL.into(),
        encapsulation: match kind {
            TunnelKind::Vxlan => Encapsulation::Vxlan(vxlan),
            TunnelKind::Ipip => Encapsulation::Ipip,
        },
    }
}

fn requests(step: &Step, device: &Device) -> (Batch, Vec<String>) {
    let (mut batch, mut actions) = (Batch::new(), Vec::new());
    step.encode(device, &mut batch, &mut actions);
    assert_eq!(batch.len(), actions.len());
    (batch, actions)
}

/// What the kernel would have after the steps, as it tells of it.
fn carried_out(device: &Device) -> Present {
    let (batch, _) = requests(&Step::Create, device);
    let body = &batch.slice(0..1).unwrap()[16..];
    let link = link::parse(body).unwrap();
    Present {
        settings: parse_settings(body),
        link: Link { index: 7, flags: libc::IFF_UP as u32, alias: Some(ALIAS.into()), ..link },
        addresses: device.addresses.iter().map(|ip| (*ip).into()).collect(),
    }
}

fn refusal(errno: rustix::io::Errno) -> Refusal {
    Refusal { index: 0, errno, text: Some("no".into()) }
}

#[test]
fn an_ipip_device_is_asked_for_as_ip_link_does() {
    let (batch, actions) = requests(&Step::Create, &wanted(TunnelKind::Ipip));
    assert_eq!(actions, ["create the device cairn.ipip"]);
    let message = batch.slice(0..1).unwrap();
    assert_eq!(u16::from_ne_bytes([message[4], message[5]]), libc::RTM_NEWLINK);
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).unwrap().1;
    let link = &message[32..];
    assert_eq!(read_str(find(link, libc::IFLA_IFNAME)), "cairn.ipip");
    assert_eq!(find(link, libc::IFLA_MTU), 1450_u32.to_ne_bytes());
    assert!(!attributes(link).any(|(kind, _)| kind == libc::IFLA_ADDRESS));
    let info = find(link, libc::IFLA_LINKINFO);
    assert_eq!(find(info, libc::IFLA_INFO_KIND), b"ipip");
    let data: Vec<_> = attributes(find(info, libc::IFLA_INFO_DATA)).collect();
    // IFLA_IPTUN_LOCAL; without a remote it leads to every address.
    assert_eq!(data.len(), 1);
    assert_eq!((data[0].0, read_ip(data[0].1)), (2, Some("192.0.2.1".parse().unwrap())));
}

#[test]
fn what_was_made_as_wanted_stays() {
    for kind in TunnelKind::ALL {
        let device = wanted(kind);
        let present = carried_out(&device);
        assert_eq!(plan(&device, None), Ok(vec![Step::Create]));
        assert_eq!(plan(&device, Some(&present)), Ok(vec![]), "{kind:?}");
        assert!(present.is_ready(&device) && present.stale_addresses(&device).is_empty());
        let mut unmarked = present.clone();
        unmarked.link.alias = None;
        let mark = Step::Set { index: 7, mark: true, mtu: None, mac: None };
        assert_eq!(plan(&device, Some(&unmarked)), Ok(vec![mark]));
    }
}

#[test]
fn every_difference_has_its_step() {
    let device = wanted(TunnelKind::Vxlan);
    let set = |mtu, mac| Step::Set { index: 7, mark: false, mtu, mac };
    let edit = |change: &dyn Fn(&mut Device)| {
        let mut other = device.clone();
        change(&mut other);
        plan(&device, Some(&carried_out(&other))).unwrap()
    };
    let vxlan = |change: &dyn Fn(&mut VxlanSettings)| {
        edit(&|device| {
            if let Encapsulation::Vxlan(settings) = &mut device.encapsulation {
                change(settings);
            }
        })
    };
    let anew = [Step::Delete(7), Step::Create];
    assert_eq!(edit(&|device| device.mtu = 1400), [set(Some(1450), None)]);
    assert_eq!(edit(&|device| device.local = "192.0.2.9".parse().unwrap()), [Step::Tune(7)]);
    assert_eq!(edit(&|device| device.local = "2001:db8::9".parse().unwrap()), anew);
    assert_eq!(edit(&|device| device.encapsulation = Encapsulation::Ipip), anew);
    let address = "10.244.1.1/32".parse().unwrap();
    assert_eq!(edit(&|device| device.addresses.clear()), [Step::AddAddress(7, address)]);
    assert_eq!(vxlan(&|settings| settings.vni = 7), anew);
    assert_eq!(vxlan(&|settings| settings.port = 7), anew);
    assert_eq!(vxlan(&|settings| settings.mac = Mac([2; 6])), [set(None, Some(MAC))]);
    assert_eq!(vxlan(&|settings| settings.dont_fragment = true), [Step::Tune(7)]);
    let mut down = carried_out(&device);
    down.link.flags = 0;
    assert_eq!(plan(&device, Some(&down)), Ok(vec![Step::Up(7)]));

    let ipip = wanted(TunnelKind::Ipip);
    let mut moved = ipip.clone();
    moved.local = "192.0.2.9".parse().unwrap();
    assert_eq!(plan(&ipip, Some(&carried_out(&moved))).unwrap(), anew);
}

#[test]
fn without_our_mark_only_the_very_same_is_ours() {
    let device = wanted(TunnelKind::Vxlan);
    let mut other = device.clone();
    other.local = "192.0.2.9".parse().unwrap();
    let mut present = carried_out(&other);
    present.link.alias = Some("mine".into());
    assert!(!present.is_ours(Some(&device)) && present.is_ours(Some(&other)));
    assert!(!present.is_ours(None));
    let problem = plan(&device, Some(&present)).unwrap_err();
    assert!(problem.contains("ip link delete cairn.vxlan"), "{problem}");
}

#[test]
fn ip_in_ip_needs_an_ipv4_address() {
    let device = Device { local: "2001:db8::1".parse().unwrap(), ..wanted(TunnelKind::Ipip) };
    let problem = plan(&device, None).unwrap_err();
    assert!(problem.contains("2001:db8::1") && problem.contains("use VXLAN"), "{problem}");
}

#[test]
fn a_refusal_says_what_to_do() {
    use rustix::io::Errno;
    let [vxlan, ipip] = TunnelKind::ALL.map(wanted);
    let create = "create the device cairn.ipip";
    assert_eq!(
        explain(&ipip, create, &refusal(Errno::OPNOTSUPP), &[]),
        "this kernel cannot make ipip interfaces: load its module with `modprobe ipip`, or install \
         the kernel package that has the module"
    );
    assert_eq!(
        explain(&ipip, create, &refusal(Errno::EXIST), &[]),
        "cannot create the device cairn.ipip: another ipip device starts at 192.0.2.1 and leads to \
         every address, find it with `ip -d link show type ipip` and remove it"
    );
    let rivals = ["flannel.1".to_owned(), "vxlan.calico".to_owned()];
    assert_eq!(
        explain(&vxlan, "set up the device cairn.vxlan", &refusal(Errno::ADDRINUSE), &rivals),
        "cannot set up the device cairn.vxlan: UDP port 4798 or VNI 198 on it is taken by the VXLAN \
         device flannel.1, vxlan.calico, which does not share it: remove that, or choose another \
         VXLAN port for all nodes"
    );
    let other = explain(&vxlan, "change the device cairn.vxlan", &refusal(Errno::PERM), &[]);
    assert!(other.starts_with("cannot change the device cairn.vxlan: no ("), "{other}");
    assert!(other.contains("CAP_NET_ADMIN"), "{other}");
}
