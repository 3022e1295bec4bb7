//! Whoever asks at the agent's socket, and what becomes of what they hand over.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use cairn_agent::pods::{self, Pods};
use cairn_cni::protocol::{self, AddRequest, ProtocolError, Request, Response, VERSION};
use cairn_cni::{Code, ContainerId, InterfaceName, PodIdentity};
use cairn_kernel::{NetNs, link};

use crate::node::{Agent, Node, path_of};
use crate::runtime::failure;

#[test]
fn who_is_not_root_gets_no_address_even_where_it_may_connect() {
    let node = Node::create();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        let socket = pods::socket_path(&node.run_dir);
        // As an administrator's mistake could leave it.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let asking = tokio::task::spawn_blocking(move || {
            let asking = thread::spawn(move || {
                let nobody = rustix::process::Uid::from_raw(65_534);
                // Of this thread only.
                rustix::thread::set_thread_uid(nobody).unwrap();
                let stream = UnixStream::connect(socket).unwrap();
                let soon = std::time::Instant::now() + Duration::from_secs(5);
                protocol::exchange(&stream, &Request::Status, None, soon).unwrap()
            });
            asking.join().unwrap()
        });
        let Response::Failed(failure) = asking.await.unwrap() else { panic!("it was answered") };
        assert!(failure.msg.contains("only root may ask"), "{}", failure.msg);
        assert_eq!(failure.code, Code::InvalidEnvironment);
        agent.stop().await;
    });
}

#[test]
fn wrong_descriptors_and_wrong_bytes_are_refused() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let agent = node.ready_agent("10.244.0.0/29").await;
        for (path, words) in [
            ("/proc/self/ns/mnt".to_owned(), "is not a network namespace"),
            ("/dev/null".to_owned(), "is not a network namespace"),
            ("/etc/hostname".to_owned(), "is not a network namespace"),
            (path_of(&node.name), "it is the node's own network namespace"),
        ] {
            let (code, sentence) = failure(&node.call("ADD", "c", &path).await);
            assert_eq!(code, 8, "{path}: {sentence}");
            assert!(sentence.contains(words), "{path}: {sentence}");
        }
        let socket = pods::socket_path(&node.run_dir);
        let answers = tokio::task::spawn_blocking(move || {
            let mut silent = Vec::new();
            let header = [b"CRNI", &VERSION.to_be_bytes()[..]].concat();
            let endless = [&header[..], b"\xff\xff\xff\xff"].concat();
            for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &endless, b""] {
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.write_all(bytes).unwrap();
                silent.push(stream);
            }
            let answer = |version: u32| {
                let mut frame = [b"CRNI", &version.to_be_bytes()[..]].concat();
                let body = br#"{"command":"add","containerId":"c","ifname":"eth0","network":"n"}"#;
                frame.extend((body.len() as u32).to_be_bytes());
                frame.extend(body);
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.write_all(&frame).unwrap();
                let mut answer = Vec::new();
                // An agent that does not read the rest resets the connection after its answer.
                let _ = stream.read_to_end(&mut answer);
                String::from_utf8_lossy(&answer).into_owned()
            };
            [VERSION, VERSION - 1, VERSION + 1].map(answer)
        })
        .await
        .unwrap();
        let [same, older, newer] = answers;
        assert!(same.contains("without the descriptor"), "{same}");
        // A plugin from before or after an upgrade asks again.
        for (answer, version) in [(older, VERSION - 1), (newer, VERSION + 1)] {
            assert!(answer.contains(r#""code":11"#), "{answer}");
            assert!(
                answer.contains(&format!("speaks version {version} of the plugin's")),
                "{answer}"
            );
        }
        assert_eq!(agent.used().await, 0);
        node.add("c", &pod_name).await;
        agent.stop().await;
    });
}

/// Containerd kills its plugins when the kubelet gives up, and the namespace of a pod that has ended lives for
/// as long as anybody has it open.
#[test]
fn the_namespace_of_a_plugin_that_was_killed_is_let_go_at_once() {
    let node = Node::create();
    let pod_name = node.pod();
    node.run(|| async {
        let mut options = node.options();
        options.network.address_wait = Duration::from_secs(60);
        let (handle, pods) = Pods::start(options).await.unwrap();
        let agent = Agent { handle, task: tokio::spawn(pods.run()) };
        let mut netlink = node.netlink();
        let inside = NetNs::open(&pod_name).unwrap();
        let witness = link::Veth {
            end: link::VethEnd::named("witness"),
            peer: link::VethEnd::named("inside"),
            peer_netns: Some(inside.as_fd()),
            mtu: None,
        };
        link::create_veth(&mut netlink, &witness).unwrap();
        drop(inside);
        let request = Request::Add(AddRequest {
            container_id: ContainerId::parse("c").unwrap(),
            ifname: InterfaceName::parse("eth0").unwrap(),
            network: "cairn".into(),
            pod: PodIdentity::default(),
            annotations: None,
            ips: Vec::new(),
            mac: None,
        });
        let (socket, path) = (pods::socket_path(&node.run_dir), path_of(&pod_name));
        let ((told, hear), pod) = (std::sync::mpsc::channel(), pod_name.clone());
        let plugin = tokio::task::spawn_blocking(move || {
            let stream = UnixStream::connect(socket).unwrap();
            let netns = std::fs::File::open(path).unwrap();
            let soon = std::time::Instant::now() + Duration::from_millis(500);
            let answer = protocol::exchange(&stream, &request, Some(netns.as_fd()), soon);
            assert!(matches!(answer, Err(ProtocolError::TimedOut)), "{answer:?}");
            drop(netns);
            NetNs::delete(&pod).unwrap();
            told.send(()).unwrap();
            // The agent has it open, and nobody else.
            thread::sleep(Duration::from_millis(500));
            drop(stream);
        });
        while hear.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(link::find(&mut netlink, "witness").unwrap().is_some(), "the agent waits with it");
        plugin.await.unwrap();
        let gone = async {
            while link::find(&mut netlink, "witness").unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("it is let go");
        node.del("c").await;
        agent.stop().await;
    });
}
