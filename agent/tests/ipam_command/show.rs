//! Pools, blocks, and who has an address.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::objects::Scene;

#[test]
fn pools_and_blocks_are_shown_for_people_and_for_programs() {
    let scene = Scene::new();
    scene.block("10.1.0.64/26", "n2", &[]);
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/a"), ("10.1.0.2", "default/b")]);
    let said = scene.run(&["show"]);
    assert_eq!(
        said.text,
        "POOL  CIDR         SIZE  BLOCKS  USED  FREE  STATE\n\
         pods  10.1.0.0/16  /26   2/1024  2     126   -\n\
         \n\
         BLOCK         POOL  NODE  USED  FREE  STATE\n\
         10.1.0.0/26   pods  n1    2     62    advertised\n\
         10.1.0.64/26  pods  n2    0     64    advertised\n",
        "{said:?}"
    );
    let all = scene.json(&["show", "--pool", "pods"]);
    assert_eq!(all["pools"][0]["blocksTotal"], "1024");
    assert_eq!(all["blocks"].as_array().map(Vec::len), Some(2));
    let of_n2 = scene.json(&["show", "--node", "n2"]);
    assert_eq!(of_n2["blocks"][0]["cidr"], "10.1.0.64/26");
    assert_eq!((of_n2["blocks"].as_array().map(Vec::len), &of_n2["pools"]), (Some(1), &json!([])));
    let nobody = scene.run(&["show", "--pool", "none"]);
    assert_eq!(nobody.code, Some(1));
    assert_eq!(nobody.errors, "cairn: there is no pool \"none\"; there are: pods\n");
}

#[test]
fn an_address_is_followed_to_its_pod() {
    let scene = Scene::new();
    scene.block("10.1.0.0/26", "n1", &[("10.1.0.1", "default/a")]);
    scene.pod("a", "n1", "10.1.0.1");
    scene.pod("late", "n1", "10.1.0.9");
    let reservation = json!({
        "apiVersion": "cairn.network/v1alpha1", "kind": "IPReservation",
        "metadata": {"name": "routers"}, "spec": {"cidrs": ["10.1.0.0/30"]},
    });
    scene.cluster.api.create("ipreservations.cairn.network", None, reservation).expect("created");
    let said = scene.run(&["show", "--address", "10.1.0.1"]);
    assert_eq!(
        said.text,
        "address      10.1.0.1\n\
         pool         pods\n\
         block        10.1.0.0/26 of node n1\n\
         pod          default/a\n\
         container    c0ffee\n\
         reserved by  routers\n"
    );
    let late = scene.json(&["show", "--address", "10.1.0.9"]);
    assert_eq!((&late["inUse"], &late["pods"]), (&json!(false), &json!(["default/late"])));
    let free = scene.json(&["show", "--address", "10.1.7.1"]);
    assert_eq!((&free["pool"], free.get("block")), (&json!("pods"), None));
    let elsewhere = scene.run(&["show", "--address", "192.0.2.7"]).text;
    assert!(elsewhere.contains("pool         none\nblock        none\n"), "{elsewhere}");
    for bad in [&["show", "--address", "10.1.0"][..], &["show", "--address", "::1", "--node", "n"]]
    {
        assert_eq!(scene.run(bad).code, Some(2), "{bad:?}");
    }
}

/// Passes connections on to the API server, and counts requests for a further page.
fn counting(scene: &Scene) -> Arc<AtomicUsize> {
    let pages = Arc::new(AtomicUsize::new(0));
    let kubeconfig = std::fs::read_to_string(scene.site.path("kubeconfig")).expect("a file");
    let (_, rest) = kubeconfig.split_once("http://").expect("a server");
    let server = rest.split('"').next().expect("an address").to_owned();
    let listener = scene
        .site
        .netns
        .run(|| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .expect("entered");
    let address = listener.local_addr().expect("bound").to_string();
    scene.site.write("counted", &kubeconfig.replace(&server, &address));
    let netns = cairn_kernel::NetNs::open(&scene.site.name).expect("the namespace");
    let counted = Arc::clone(&pages);
    // The threads end with the process; the listener has no other use.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut client = stream.expect("a client");
            let connect = || TcpStream::connect(&server).expect("the API server");
            let mut upstream = netns.run(connect).expect("entered");
            let mut back = (upstream.try_clone().expect("a copy"), client.try_clone().expect("it"));
            std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(octets @ 1..) = client.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..octets]).into_owned();
                    counted.fetch_add(text.matches("&continue=").count(), Ordering::Relaxed);
                    if upstream.write_all(&buffer[..octets]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    pages
}

#[test]
fn two_thousand_blocks_come_in_pages() {
    let scene = Scene::new();
    let uid = scene.uid("nodes", "n2");
    let pool = json!({"name": "pods", "uid": scene.uid("ippools.cairn.network", "pods")});
    for number in 0..2000_u32 {
        let cidr = format!("10.1.{}.{}/29", number / 32, number % 32 * 8);
        let block = json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": "IPBlock",
            "metadata": {"name": cidr.replace('/', "-")},
            "spec": {
                "cidr": cidr, "range": "10.1.0.0/16", "pool": pool,
                "node": {"name": "n2", "uid": uid},
            },
        });
        scene.cluster.api.create(crate::objects::BLOCKS, None, block).expect("a block");
    }
    let pages = counting(&scene);
    let said = scene.run_by("counted", &["show"]);
    assert_eq!(said.code, Some(0), "{}", said.errors);
    assert_eq!(said.text.lines().count(), 2 + 1 + 1 + 2000);
    assert_eq!(pages.load(Ordering::Relaxed), 3, "four pages of 500");
}
