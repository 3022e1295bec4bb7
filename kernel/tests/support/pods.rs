//! Nodes and pods in network namespaces.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::pod::{self, AttachError, PodSpec};
use cairn_kernel::route::Family;
use cairn_kernel::{NetNs, Netlink, sysctl};

use super::TestNetNs;

impl TestNetNs {
    /// A node: forwarding, with one address of each family on its uplink.
    pub fn node() -> TestNetNs {
        let node = TestNetNs::create();
        let mut netlink = node.netlink();
        link::create_bridge(&mut netlink, "uplink").unwrap();
        let uplink = link::find(&mut netlink, "uplink").unwrap().unwrap().index;
        link::set_up(&mut netlink, uplink).unwrap();
        for address in [format!("{NODE_V4}/24"), format!("{NODE_V6}/64")] {
            let address = address.parse().unwrap();
            link::add_address(&mut netlink, uplink, address, DuplicateDetection::Skip).unwrap();
        }
        let forwarding = |family| sysctl::enable_forwarding(family).unwrap();
        node.run(|| (forwarding(Family::V4), forwarding(Family::V6))).unwrap();
        node
    }

    /// As an agent does it: on a thread in the node's namespace.
    pub fn attach(&self, pod: &NetNs, spec: &PodSpec) -> Result<pod::Attached, AttachError> {
        self.run(|| pod::attach(&mut Netlink::open().unwrap(), pod, spec)).unwrap()
    }

    pub fn list(&self) -> Vec<pod::PodAttachment> {
        pod::list(&mut self.netlink()).unwrap()
    }
}

/// A pod of the network "cairn" with an interface eth0.
pub fn spec(container_id: &str, addresses: &[&str]) -> PodSpec {
    PodSpec {
        container_id: container_id.into(),
        ifname: "eth0".into(),
        pod_uid: Some("uid-1".into()),
        network: "cairn".into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mac: None,
        blocks: vec!["10.244.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        mtu: 1450,
        node_addresses: vec![NODE_V4.parse().unwrap(), NODE_V6.parse().unwrap()],
    }
}

/// Sends some bytes from one namespace to `to` in another and back; returns whom the server saw.
pub fn exchange(client: &NetNs, server: &NetNs, to: &str) -> IpAddr {
    let listener = server.run(|| TcpListener::bind((to, 0)).unwrap()).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
        peer.ip()
    });
    let answer = client
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(b"cairn").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .unwrap();
    assert_eq!(answer, "CAIRN");
    serving.join().unwrap()
}

pub const NODE_V4: &str = "192.0.2.1";
pub const NODE_V6: &str = "2001:db8::1";
