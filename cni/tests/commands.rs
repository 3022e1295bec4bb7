//! What each command makes of its input, and what the agent is asked.

mod support;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use cairn_cni::Code;
use cairn_cni::plugin::{Outcome, Patience};
use cairn_cni::protocol::{self, Failure, Request, Response};
use cairn_cni::served::{AWAY_MAX, READY_FILE};
use serde_json::{Value, json};

use support::{
    Directory, Variables, added, agent, config, failure, identity, run, soon, variables,
};

/// Serves one request by `response`, and returns the outcome of the plugin and what the agent saw.
fn asked(
    variables: &Variables,
    change: impl FnOnce(&mut Value),
    response: Response,
) -> (Outcome, Request, Option<OwnedFd>) {
    let directory = Directory::create();
    let serving = agent(&directory, move |socket| {
        let received = protocol::receive_request(&socket, soon()).unwrap();
        protocol::send_response(&socket, &response, soon()).unwrap();
        received
    });
    let mut config = config(&directory.socket());
    change(&mut config);
    let outcome = run(variables, &config.to_string());
    let (request, netns) = serving.join().unwrap();
    (outcome, request, netns)
}

#[test]
fn commands_of_later_versions_say_so() {
    let old = |version: &str| json!({ "cniVersion": version, "name": "cairn" }).to_string();
    for (command, version, sentence) in [
        ("CHECK", "0.3.1", "CHECK needs cniVersion 0.4.0"),
        ("GC", "1.0.0", "GC needs cniVersion 1.1.0"),
        ("STATUS", "1.0.0", "STATUS needs cniVersion 1.1.0"),
    ] {
        let (code, message) = failure(&variables(command), &old(version));
        assert!(code == 1 && message.contains(sentence), "{command}: {code} {message}");
    }
}

#[test]
fn addresses_that_the_runtime_asks_for_reach_the_agent() {
    let ask = |args: &str, change: fn(&mut Value)| {
        let mut variables = variables("ADD");
        variables.insert("CNI_ARGS", args.into());
        let (outcome, request, _) = asked(&variables, change, Response::Added(added()));
        assert!(outcome.success, "{outcome:?}");
        let Request::Add(request) = request else { panic!("{request:?}") };
        let ips = request.ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        (ips, request.mac.map(|mac| mac.to_string()))
    };
    let none: fn(&mut Value) = |_| {};
    assert_eq!(ask("IgnoreUnknown=1", none), (vec![], None));
    let both = || vec!["10.244.0.7".to_owned(), "fd00::7".to_owned()];
    let mac = || Some("02:00:5e:10:00:01".to_owned());
    assert_eq!(ask("IP=fd00::7/128,10.244.0.7;MAC=02-00-5E-10-00-01", none), (both(), mac()));
    let runtime: fn(&mut Value) = |config| {
        config["runtimeConfig"] =
            json!({ "ips": ["10.244.0.7/32", "fd00::7"], "mac": "02:00:5e:10:00:01" });
    };
    assert_eq!(ask("", runtime), (both(), mac()));
    let args: fn(&mut Value) = |config| {
        config["args"] = json!({ "cni": { "ips": ["fd00::7"], "mac": "02:00:5e:10:00:01" } });
    };
    assert_eq!(ask("", args), (vec!["fd00::7".into()], mac()));
    assert_eq!(ask("IP=10.244.0.7,fd00::7", runtime), (both(), mac()), "two that say the same");

    let contradicts = |args: &str, change: fn(&mut Value), sentence: &str| {
        let mut variables = variables("ADD");
        variables.insert("CNI_ARGS", args.into());
        let mut config = config(Path::new("/nonexistent/cni.sock"));
        change(&mut config);
        let (code, message) = failure(&variables, &config.to_string());
        assert!(code == 7 && message.contains(sentence), "{code} {message}");
    };
    contradicts("IP=10.244.0.8", runtime, "runtimeConfig.ips and IP in CNI_ARGS ask for different");
    contradicts(
        "MAC=02:00:00:00:00:01",
        args,
        "args.cni.mac and MAC in CNI_ARGS ask for different",
    );
    let two: fn(&mut Value) = |config| {
        config["runtimeConfig"] = json!({ "ips": ["10.244.0.7"] });
        config["args"] = json!({ "cni": { "ips": ["10.244.0.8"] } });
    };
    contradicts(
        "",
        two,
        "runtimeConfig.ips and args.cni.ips ask for different addresses: leave one",
    );
}

#[test]
fn a_default_route_that_is_anothers_is_not_in_the_result() {
    let mut second = added();
    second.addresses[0].default_route = false;
    let (outcome, ..) = asked(&variables("ADD"), |_| {}, Response::Added(second));
    let result = outcome.output.unwrap();
    assert_eq!(result["routes"], json!([{ "dst": "::/0", "gw": "fe80::1" }]));
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);
}

/// The result of an ADD, as the runtime hands it back.
fn previous() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": "eth0", "mac": "02:00:00:00:00:09" },
            { "name": "cairnabc", "mac": "02:00:00:00:00:01", "mtu": 1450 },
            { "name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/x" },
            { "name": "net1", "sandbox": "/run/netns/x" },
        ],
        "ips": [
            { "interface": 2, "address": "10.244.0.5/32", "gateway": "169.254.1.1" },
            { "interface": 3, "address": "192.0.2.5/24", "gateway": "192.0.2.1" },
            { "interface": -1, "address": "192.0.2.6/24" },
            { "address": "192.0.2.7/24" },
            { "interface": 2, "address": "fd00::5/128", "gateway": "fe80::1" },
        ],
        "routes": [
            { "dst": "0.0.0.0/0", "gw": "169.254.1.1" },
            { "dst": "::/0", "gw": "fe80::9" },
            { "dst": "198.51.100.0/24", "gw": "169.254.1.1" },
        ],
    })
}

#[test]
fn check_asks_about_what_the_result_says_of_this_interface() {
    let set = |config: &mut Value| config["prevResult"] = previous();
    let (outcome, request, netns) = asked(&variables("CHECK"), set, Response::Done);
    assert_eq!(outcome, Outcome { output: None, success: true });
    let Request::Check(request) = request else { panic!("{request:?}") };
    assert_eq!(request.container_id.as_str(), "c0ffee");
    assert_eq!((request.ifname.as_str(), request.network.as_str()), ("eth0", "cairn"));
    let addresses = request.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(addresses, ["10.244.0.5", "fd00::5"]);
    assert_eq!(request.gateways, ["169.254.1.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(request.mtu, Some(1450));
    let own = std::fs::File::open("/proc/self/ns/net").unwrap().into();
    assert_eq!(identity(&netns.unwrap()), identity(&own));

    let different =
        Failure { code: Code::Other(999), msg: "the pod is down".into(), details: None };
    let (outcome, ..) = asked(&variables("CHECK"), set, Response::Failed(different));
    assert_eq!(outcome.output.unwrap()["msg"], "the pod is down");
}

#[test]
fn check_without_a_result_to_compare_with_is_refused() {
    let base = config(Path::new("/nonexistent/cni.sock"));
    let with = |change: fn(&mut Value)| {
        let mut config = base.clone();
        config["prevResult"] = previous();
        change(&mut config);
        config.to_string()
    };
    for (input, code, sentence) in [
        (base.to_string(), 7, "\"prevResult\" is missing, with which CHECK compares"),
        (with(|c| c["prevResult"] = Value::Null), 7, "\"prevResult\" is missing"),
        (
            with(|c| c["prevResult"] = json!({})),
            7,
            "\"prevResult\" has no interface eth0 in a sandbox",
        ),
        (
            with(|c| c["prevResult"]["interfaces"][2]["sandbox"] = json!("")),
            7,
            "has no interface eth0 in a sandbox",
        ),
        (with(|c| c["prevResult"]["ips"] = Value::Null), 7, "has no address of the interface eth0"),
        (
            with(|c| c["prevResult"]["ips"][0]["address"] = json!("ten")),
            7,
            "has the address \"ten\", which is none",
        ),
        (with(|c| c["cniVersion"] = json!("0.3.1")), 1, "CHECK needs cniVersion 0.4.0"),
        (with(|_| {}), 11, "no Cairn agent answers"),
    ] {
        let (found, message) = failure(&variables("CHECK"), &input);
        assert!(found == code && message.contains(sentence), "{found} {message}");
    }
    let mut nowhere = variables("CHECK");
    nowhere.insert("CNI_NETNS", "/nonexistent".into());
    assert_eq!(failure(&nowhere, &with(|_| {})).0, 8);
}

const VALID: &str = "cni.dev/valid-attachments";
const VALID_OLD: &str = "cni.dev/attachments";

#[test]
fn gc_tells_the_agent_what_to_spare() {
    let of = |container: &str, ifname: &str| json!({ "containerID": container, "ifname": ifname });
    let collect = |lists: Value| {
        let only = Variables::from([("CNI_COMMAND", "GC".into()), ("CNI_PATH", "/opt".into())]);
        let change = |config: &mut Value| {
            config["cniVersion"] = "1.1.0".into();
            for (key, list) in lists.as_object().unwrap() {
                config[key] = list.clone();
            }
        };
        let (outcome, request, netns) = asked(&only, change, Response::Done);
        assert_eq!(outcome, Outcome { output: None, success: true });
        let Request::Gc(request) = request else { panic!("{request:?}") };
        assert!(request.network == "cairn" && netns.is_none());
        let valid = request.valid.iter();
        valid.map(|valid| format!("{} {}", valid.container_id, valid.ifname)).collect::<Vec<_>>()
    };
    assert_eq!(collect(json!({ VALID: [of("b", "eth0"), of("a", "net1")] })), ["a net1", "b eth0"]);
    assert_eq!(collect(json!({ VALID_OLD: [of("a", "eth0")] })), ["a eth0"]);
    let both = json!({ VALID: [of("a", "eth0")], VALID_OLD: [of("a", "eth0"), of("b", "eth0")] });
    assert_eq!(collect(both), ["a eth0", "b eth0"], "what either spares is spared");
    assert_eq!(collect(json!({ VALID: null })), [""; 0], "what Go makes of an empty list");
    assert_eq!(collect(json!({ VALID: [], VALID_OLD: null })), [""; 0]);
    assert_eq!(collect(json!({ VALID: [of("", "eth0"), of("a/b", "eth0")] })), [""; 0]);
    // As many as a node may have: no other request is as long.
    let many = (0..1_000).map(|n| of(&format!("{n:064x}"), "eth0")).collect::<Vec<_>>();
    assert_eq!(collect(json!({ VALID: many, VALID_OLD: many })).len(), 1_000);
}

#[test]
fn gc_that_does_not_know_what_to_spare_is_refused() {
    let mut base = config(Path::new("/nonexistent/cni.sock"));
    base["cniVersion"] = "1.1.0".into();
    let with = |key: &str, value: Value| {
        let mut config = base.clone();
        config[VALID] = json!([]);
        config[key] = value;
        config.to_string()
    };
    for (input, code, sentence) in [
        (base.to_string(), 7, "\"cni.dev/valid-attachments\" is missing: GC would not know"),
        (with(VALID, json!({})), 7, "must be an array"),
        (with(VALID_OLD, json!("x")), 7, "must be an array"),
        (with(VALID, json!([{ "containerID": "a" }])), 7, "must hold objects with containerID and"),
        (with(VALID, json!([3])), 7, "must hold objects with containerID and ifname"),
        (with("name", Value::Null), 7, "\"name\" must have 1 to 255 bytes"),
        (with("socket", json!("cni.sock")), 7, "\"socket\" must be an absolute path"),
        (with("ipam", json!({ "type": "x" })), 11, "no Cairn agent answers"),
    ] {
        let (found, message) = failure(&variables("GC"), &input);
        assert!(found == code && message.contains(sentence), "{found} {message}");
    }
}

#[test]
fn status_without_an_agent_means_that_there_is_no_network() {
    let directory = Directory::create();
    let mut config = config(&directory.socket());
    config["cniVersion"] = "1.1.0".into();
    let only = Variables::from([("CNI_COMMAND", "STATUS".into())]);
    let (code, message) = failure(&only, &config.to_string());
    assert!(code == 50 && message.contains("no Cairn agent answers"), "{code} {message}");
    let serving = agent(&directory, drop);
    let (code, message) = failure(&only, &config.to_string());
    serving.join().unwrap();
    assert!(code == 50 && message.contains("gave no usable answer"), "{code} {message}");
    // What the agent says itself stays.
    for code in [Code::NotAvailable, Code::LimitedConnectivity, Code::TryAgainLater] {
        let refusal = Failure { code, msg: "no route yet".into(), details: None };
        let change = |config: &mut Value| config["cniVersion"] = "1.1.0".into();
        let (outcome, ..) = asked(&only, change, Response::Failed(refusal));
        assert_eq!(outcome.output.unwrap()["code"], u32::from(code));
    }
    // DEL and STATUS have another way, and wait less.
    let patience = Patience::default();
    let waits = [patience.connect_del, patience.connect, patience.connect_status];
    assert_eq!(waits, [1, 5, 1].map(Duration::from_secs));
}

#[test]
fn status_allows_an_agent_to_be_away_for_an_upgrade() {
    let directory = Directory::create();
    let mut config = config(&directory.socket());
    config["cniVersion"] = "1.1.0".into();
    let only = Variables::from([("CNI_COMMAND", "STATUS".into())]);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let this = json!({ "version": 1, "bootId": boot_id.trim_end() }).to_string();
    let other = json!({ "version": 1, "bootId": "another" }).to_string();
    let recent = AWAY_MAX - Duration::from_secs(60);
    let long = AWAY_MAX + Duration::from_secs(60);
    for (text, age, succeeds) in [
        (this.as_str(), Duration::ZERO, true),
        (&this, recent, true),
        (&this, long, false),
        (&other, Duration::ZERO, false),
        ("{", Duration::ZERO, false),
    ] {
        let path = directory.socket().with_file_name(READY_FILE);
        std::fs::write(&path, text).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
        let outcome = run(&only, &config.to_string());
        assert_eq!(outcome.success, succeeds, "{text} {age:?}: {outcome:?}");
    }
    // One that is there and says no is right.
    std::fs::write(directory.socket().with_file_name(READY_FILE), &this).unwrap();
    let serving = agent(&directory, drop);
    assert_eq!(failure(&only, &config.to_string()).0, 50);
    serving.join().unwrap();
}
