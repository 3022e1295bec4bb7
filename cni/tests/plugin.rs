//! The plugin's binary, run as a container runtime runs it, against an agent played by the test.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cairn_cni::Code;
use cairn_cni::plugin::Outcome;
use cairn_cni::protocol::{self, Failure, ProtocolError, REQUEST_MAX, Request, Response};
use serde_json::{Value, json};

use support::{
    Directory, Variables, added, agent, config, failure, identity, run, soon, variables,
};

fn execute(variables: &Variables, input: &str) -> (bool, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cairn-cni"))
        .env_clear()
        .envs(variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn add_passes_the_descriptor_and_prints_the_result_of_each_version() {
    let interface = |name: &str, mac: &str| json!({ "name": name, "mac": mac });
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let directory = Directory::create();
        let serving = agent(&directory, |socket| {
            let received = protocol::receive_request(&socket, soon()).unwrap();
            protocol::send_response(&socket, &Response::Added(added()), soon()).unwrap();
            received
        });
        let mut config = config(&directory.socket());
        config["cniVersion"] = version.into();
        config["dns"] = json!({ "nameservers": ["10.96.0.10"], "search": ["cluster.local"] });
        let (success, output) = execute(&variables("ADD"), &config.to_string());
        assert!(success, "{output}");

        let (request, netns) = serving.join().unwrap();
        let Request::Add(request) = request else { panic!("{request:?}") };
        assert_eq!(request.container_id.as_str(), "c0ffee");
        assert_eq!(request.ifname.as_str(), "eth0");
        assert_eq!(request.network, "cairn");
        assert_eq!(request.pod.to_string(), "default/web-0");
        assert_eq!(request.pod.uid(), Some("1-2"));
        let own = std::fs::File::open("/proc/self/ns/net").unwrap().into();
        assert_eq!(identity(&netns.unwrap()), identity(&own));

        let mut host = interface("cairnabc", "02:00:00:00:00:01");
        let mut pod = interface("eth0", "02:00:00:00:00:02");
        pod["sandbox"] = "/proc/self/ns/net".into();
        let mut v4 =
            json!({ "interface": 1, "address": "10.244.0.5/32", "gateway": "169.254.1.1" });
        let mut v6 = json!({ "interface": 1, "address": "fd00::5/128", "gateway": "fe80::1" });
        if version < "1.0.0" {
            v4["version"] = "4".into();
            v6["version"] = "6".into();
        }
        if version == "1.1.0" {
            host["mtu"] = 1450.into();
            pod["mtu"] = 1450.into();
        }
        let expected = json!({
            "cniVersion": version,
            "interfaces": [host, pod],
            "ips": [v4, v6],
            "routes": [
                { "dst": "0.0.0.0/0", "gw": "169.254.1.1" },
                { "dst": "::/0", "gw": "fe80::1" },
            ],
            "dns": { "nameservers": ["10.96.0.10"], "search": ["cluster.local"] },
        });
        assert_eq!(serde_json::from_str::<Value>(&output).unwrap(), expected, "{version}");
    }
}

#[test]
fn a_previous_result_is_passed_through() {
    let directory = Directory::create();
    let serving = agent(&directory, |socket| {
        protocol::receive_request(&socket, soon()).unwrap();
        protocol::send_response(&socket, &Response::Added(added()), soon()).unwrap();
    });
    let mut config = config(&directory.socket());
    config["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "dummy0", "socketPath": "/x" }],
        "ips": [{ "interface": 0, "address": "192.0.2.1/24" }],
        "dns": { "domain": "example" },
    });
    let outcome = run(&variables("ADD"), &config.to_string());
    serving.join().unwrap();
    let result = outcome.output.unwrap();
    assert_eq!(result["interfaces"][0], json!({ "name": "dummy0", "socketPath": "/x" }));
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][0], json!({ "interface": 0, "address": "192.0.2.1/24" }));
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["dns"], json!({ "domain": "example" }));
}

#[test]
fn del_succeeds_silently_and_needs_no_namespace() {
    for netns in [None, Some(""), Some("/var/run/netns/vanished")] {
        let directory = Directory::create();
        let serving = agent(&directory, |socket| {
            let received = protocol::receive_request(&socket, soon()).unwrap();
            protocol::send_response(&socket, &Response::Done, soon()).unwrap();
            received
        });
        let mut variables = variables("DEL");
        variables.remove("CNI_NETNS");
        variables.extend(netns.map(|netns| ("CNI_NETNS", netns.to_owned())));
        let (success, output) = execute(&variables, &config(&directory.socket()).to_string());
        assert_eq!((success, output.as_str()), (true, ""));
        let (request, netns) = serving.join().unwrap();
        assert!(matches!(request, Request::Del(_)) && netns.is_none());
    }
}

#[test]
fn version_needs_no_agent_and_no_configuration() {
    let only = Variables::from([("CNI_COMMAND", "VERSION".into())]);
    for input in ["", r#"{"cniVersion":"9.9.9"}"#] {
        let (success, output) = execute(&only, input);
        let expected = json!({
            "cniVersion": "1.1.0",
            "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        });
        assert!(success);
        assert_eq!(serde_json::from_str::<Value>(&output).unwrap(), expected);
    }
}

#[test]
fn the_agents_refusal_is_the_runtimes() {
    let directory = Directory::create();
    let serving = agent(&directory, |socket| {
        protocol::receive_request(&socket, soon()).unwrap();
        let failure = Failure {
            code: Code::TryAgainLater,
            msg: "no address".into(),
            details: Some("pool default is full".into()),
        };
        protocol::send_response(&socket, &Response::Failed(failure), soon()).unwrap();
    });
    let (success, output) = execute(&variables("ADD"), &config(&directory.socket()).to_string());
    serving.join().unwrap();
    let expected = json!({
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": "no address",
        "details": "pool default is full",
    });
    assert!(!success);
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap(), expected);
}

#[test]
fn every_missing_or_wrong_variable_is_one_sentence() {
    let good = config(Path::new("/nonexistent/cni.sock")).to_string();
    let long = "x".repeat(129);
    let args_long = format!("A={}", "x".repeat(5000));
    let name_long = format!("K8S_POD_NAME={}", "x".repeat(254));
    let cases: &[(&str, &str, Option<&str>, u64, &str)] = &[
        ("ADD", "CNI_COMMAND", None, 4, "CNI_COMMAND is not set"),
        ("ADD", "CNI_COMMAND", Some("add"), 4, "it must be ADD, DEL"),
        ("ADD", "CNI_CONTAINERID", None, 4, "ADD needs CNI_CONTAINERID, which"),
        ("ADD", "CNI_CONTAINERID", Some(""), 4, "ADD needs CNI_CONTAINERID, which"),
        ("ADD", "CNI_CONTAINERID", Some("-a"), 4, "CNI_CONTAINERID is not usable: \"-a\" is not"),
        ("ADD", "CNI_CONTAINERID", Some("a/b"), 4, "is not a container id"),
        ("ADD", "CNI_CONTAINERID", Some("a b"), 4, "is not a container id"),
        ("ADD", "CNI_CONTAINERID", Some(&long), 4, "is not a container id"),
        ("ADD", "CNI_NETNS", None, 4, "ADD needs CNI_NETNS, which"),
        ("ADD", "CNI_NETNS", Some("run/netns/a"), 4, "is not an absolute path"),
        (
            "ADD",
            "CNI_NETNS",
            Some("/nonexistent"),
            8,
            "CNI_NETNS \"/nonexistent\" cannot be opened",
        ),
        ("ADD", "CNI_IFNAME", None, 4, "ADD needs CNI_IFNAME, which"),
        ("ADD", "CNI_IFNAME", Some("sixteen-bytes-xx"), 4, "is not an interface name"),
        ("ADD", "CNI_IFNAME", Some("a/b"), 4, "is not an interface name"),
        ("ADD", "CNI_IFNAME", Some("a:b"), 4, "is not an interface name"),
        ("ADD", "CNI_IFNAME", Some("a b"), 4, "is not an interface name"),
        ("ADD", "CNI_IFNAME", Some("."), 4, "is not an interface name"),
        ("ADD", "CNI_IFNAME", Some(".."), 4, "is not an interface name"),
        ("ADD", "CNI_ARGS", Some("novalue"), 4, "is not of the form KEY=value"),
        ("ADD", "CNI_ARGS", Some("COLOUR=red"), 4, "the key \"COLOUR\" is unknown"),
        ("ADD", "CNI_ARGS", Some("IgnoreUnknown=2"), 4, "IgnoreUnknown is \"2\""),
        ("ADD", "CNI_ARGS", Some("K8S_POD_UID=a b"), 4, "is not a pod's UID"),
        ("ADD", "CNI_ARGS", Some("K8S_POD_NAMESPACE=a/b"), 4, "is not a namespace's name"),
        ("ADD", "CNI_ARGS", Some(&name_long), 4, "is not a pod's name"),
        ("ADD", "CNI_ARGS", Some(&args_long), 4, "4096 are allowed"),
        (
            "ADD",
            "CNI_ARGS",
            Some("IP=10.0.0.1/24"),
            4,
            "IP holds \"10.0.0.1/24\", but a pod is alone",
        ),
        ("ADD", "CNI_ARGS", Some("IP=ten"), 4, "IP holds \"ten\", which is no address"),
        ("ADD", "CNI_ARGS", Some("IP=10.0.0.1,10.0.0.2"), 4, "asks for 10.0.0.1 and 10.0.0.2"),
        ("ADD", "CNI_ARGS", Some("MAC=01:00:5e:00:00:01"), 4, "MAC is not usable: \"01:00:5e"),
        ("DEL", "CNI_CONTAINERID", None, 4, "DEL needs CNI_CONTAINERID, which"),
        ("DEL", "CNI_IFNAME", None, 4, "DEL needs CNI_IFNAME, which"),
        ("DEL", "CNI_IFNAME", Some("a:b"), 4, "is not an interface name"),
        ("CHECK", "CNI_NETNS", None, 4, "CHECK needs CNI_NETNS, which"),
        ("CHECK", "CNI_NETNS", Some("run/netns/a"), 4, "is not an absolute path"),
        ("CHECK", "CNI_IFNAME", Some("a:b"), 4, "is not an interface name"),
    ];
    for (command, variable, value, code, sentence) in cases {
        let mut variables = variables(command);
        match value {
            Some(value) => variables.insert(variable, (*value).to_owned()),
            None => variables.remove(variable),
        };
        let (found, message) = failure(&variables, &good);
        assert_eq!(found, *code, "{variable}={value:?}: {message}");
        assert!(message.contains(sentence), "{variable}={value:?}: {message}");
        assert!(!message.contains('\n') && message.len() < 400, "{message}");
    }
    // A pod whose ADD was refused for them ends all the same.
    for args in ["novalue", "COLOUR=red", "IP=ten", &args_long, "K8S_POD_UID=a b"] {
        let mut variables = variables("DEL");
        variables.insert("CNI_ARGS", args.to_owned());
        assert!(run(&variables, &good).success, "{args}");
    }
    let bare = Variables::from([("CNI_COMMAND", "ADD".into())]);
    let (_, message) = failure(&bare, &good);
    assert!(message.contains("CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME, which"), "{message}");
}

/// As deep as no sensible program writes.
fn nested() -> Value {
    (0..120).fold(json!(1), |inner, _| json!([inner]))
}

#[test]
fn every_wrong_configuration_is_one_sentence() {
    let base = config(Path::new("/nonexistent/cni.sock"));
    let with = |field: &str, value: Value| {
        let mut config = base.clone();
        config[field] = value;
        config.to_string()
    };
    let without = |field: &str| {
        let mut config = base.clone();
        config.as_object_mut().unwrap().remove(field);
        config.to_string()
    };
    let annotated = |annotations: Value| {
        with("runtimeConfig", json!({ "io.kubernetes.cri.pod-annotations": annotations }))
    };
    let socket_long = format!("/{}", "x".repeat(107));
    let cases = [
        (String::new(), 6, "not valid: EOF"),
        ("{".into(), 6, "line 1 column 1"),
        ("[]".into(), 6, "not valid: "),
        ("null".into(), 6, "not valid: "),
        (without("cniVersion"), 1, "cniVersion \"\"; this plugin speaks 0.3.1, 0.4.0, 1.0.0 and"),
        (with("cniVersion", json!("0.2.0")), 1, "cniVersion \"0.2.0\""),
        (with("cniVersion", json!("2.0.0")), 1, "cniVersion \"2.0.0\""),
        (with("cniVersion", json!(1)), 6, "invalid type: integer"),
        (without("name"), 7, "\"name\" is missing"),
        (with("name", json!("")), 7, "\"name\" must have 1 to 255 bytes"),
        (with("name", json!(5)), 6, "invalid type: integer"),
        (with("socket", json!("cni.sock")), 7, "\"socket\" must be an absolute path"),
        (with("socket", json!(socket_long)), 7, "\"socket\" must be an absolute path"),
        (with("socket", json!("/a\u{0}b")), 7, "\"socket\" must be an absolute path"),
        (with("socket", json!({})), 6, "invalid type: map"),
        (with("dns", json!([1])), 6, "invalid type"),
        (with("dns", json!({ "nameservers": "x" })), 6, "invalid type"),
        (with("prevResult", json!("x")), 6, "invalid type"),
        (with("ipam", json!({ "type": "host-local" })), 2, "ipam = {\"type\":\"host-local\"}"),
        (with("ipMasq", json!(true)), 2, "natOutgoing"),
        (with("name", json!("x".repeat(256))), 7, "\"name\" must have 1 to 255 bytes"),
        (with("prevResult", nested()), 6, "not valid: "),
        (
            with("runtimeConfig", json!({ "ips": "10.0.0.1" })),
            7,
            "\"runtimeConfig.ips\" must be an array",
        ),
        (with("runtimeConfig", json!({ "ips": [1] })), 7, "must be an array of strings"),
        (
            with("runtimeConfig", json!({ "ips": ["10.0.0.1/31"] })),
            7,
            "write 10.0.0.1 or 10.0.0.1/32",
        ),
        (
            with("runtimeConfig", json!({ "ips": ["fd00::1/64"] })),
            7,
            "write fd00::1 or fd00::1/128",
        ),
        (
            with("runtimeConfig", json!({ "mac": "02::1" })),
            7,
            "\"runtimeConfig.mac\" is not usable",
        ),
        (with("runtimeConfig", json!({ "mac": 2 })), 7, "\"runtimeConfig.mac\" must be a string"),
        (
            with("args", json!({ "cni": { "ips": ["fd00::1", "fd00::2"] } })),
            7,
            "\"args.cni.ips\" asks for",
        ),
        (
            with("args", json!({ "cni": { "mac": "00:00:00:00:00:00" } })),
            7,
            "\"args.cni.mac\" is not",
        ),
        (with("args", json!({ "cni": 1 })), 6, "invalid type"),
        (with("runtimeConfig", json!(3)), 6, "invalid type"),
        (annotated(json!("x")), 7, "must be an object of strings"),
        (annotated(json!({ "cairn.network/ips": 3 })), 7, "must be an object of strings"),
        (annotated(json!({ "cairn.network/ips": "1".repeat(5000) })), 7, "4096 bytes"),
        (with("filler", json!("x".repeat(3 << 20))), 7, "is longer than"),
    ];
    for (input, code, sentence) in cases {
        let (found, message) = failure(&variables("ADD"), &input);
        let input = &input[..input.len().min(200)];
        assert_eq!(found, code, "{input}: {message}");
        assert!(message.contains(sentence), "{input}: {message}");
    }
    // A pod whose ADD was refused, or whose network's configuration has changed since, ends all the same.
    let ends = [
        without("cniVersion"),
        with("cniVersion", json!("2.0.0")),
        without("name"),
        with("dns", json!([1])),
        with("prevResult", json!("x")),
        with("prevResult", nested()),
        with("ipam", json!({ "type": "host-local" })),
        with("ipMasq", json!(true)),
        with("runtimeConfig", json!({ "ips": ["10.0.0.1/8"], "mac": "02::1" })),
        with("runtimeConfig", json!(3)),
        annotated(json!("x")),
        annotated((0..9).map(|n| (format!("cairn.network/{n}"), json!("x"))).collect()),
    ];
    for input in ends {
        assert_ne!(failure(&variables("ADD"), &input).0, 11, "{input}");
        let outcome = run(&variables("DEL"), &input);
        assert_eq!(outcome, Outcome { output: None, success: true }, "{input}");
    }
    let (code, message) = failure(&variables("DEL"), "[]");
    assert_eq!(code, 6, "{message}");
    let harmless = [
        with("ipam", json!({})),
        with("ipMasq", json!(false)),
        with("runtimeConfig", json!({ "ips": [], "portMappings": [{ "hostPort": 80 }] })),
        with("unknown", nested()),
        with("args", json!({ "labels": 3, "cni": { "ips": null, "mac": "" } })),
        with("args", json!(null)),
        with("args", json!({ "cni": null })),
        with("prevResult", json!({ "interfaces": null, "ips": null, "routes": null, "dns": null })),
        with("prevResult", json!({ "ips": [{ "interface": -1, "address": "192.0.2.1/24" }] })),
        annotated(json!({ "a": "x".repeat(256 << 10) })),
    ];
    for input in harmless {
        let (code, message) = failure(&variables("ADD"), &input);
        assert_eq!(code, 11, "only the agent is missing: {message}");
    }
}

#[test]
fn of_the_annotations_that_the_runtime_tells_the_agent_hears_cairns() {
    let told = |runtime: Value| {
        let directory = Directory::create();
        let serving = agent(&directory, |socket| {
            let (request, _) = protocol::receive_request(&socket, soon()).unwrap();
            protocol::send_response(&socket, &Response::Added(added()), soon()).unwrap();
            request
        });
        let mut config = config(&directory.socket());
        config["runtimeConfig"] = runtime;
        assert!(run(&variables("ADD"), &config.to_string()).success);
        let Request::Add(request) = serving.join().unwrap() else { panic!("no ADD") };
        request.annotations
    };
    let key = "io.kubernetes.cri.pod-annotations";
    let ours = BTreeMap::from([("cairn.network/ippools".to_owned(), "a,b".to_owned())]);
    let all = json!({ "cairn.network/ippools": "a,b", "cairn.networks/x": "y", "other": "z" });
    assert_eq!(told(json!({ key: all })), Some(ours));
    assert_eq!(told(json!({ key: {"other": "z"} })), Some(BTreeMap::new()));
    assert_eq!(told(json!({ key: null })), Some(BTreeMap::new()));
    assert_eq!(told(json!({ "portMappings": [] })), None, "they are not known then");
    assert_eq!(told(json!({})), None);
}

#[test]
fn an_absent_or_hanging_agent_is_retryable_and_bounded() {
    let directory = Directory::create();
    let input = config(&directory.socket()).to_string();
    let start = Instant::now();
    let (code, message) = failure(&variables("ADD"), &input);
    assert_eq!(code, 11);
    assert!(message.contains("check that the cairn pod of this node is running"), "{message}");
    // DEL needs no agent, and the interface of this container is not there.
    let ended = Outcome { output: None, success: true };
    assert_eq!(run(&variables("DEL"), &input), ended);
    // A socket file that nobody serves any more.
    drop(UnixListener::bind(directory.socket()).unwrap());
    let (code, message) = failure(&variables("ADD"), &input);
    assert_eq!(code, 11);
    assert!(message.contains("no Cairn agent answers"), "{message}");
    assert_eq!(run(&variables("DEL"), &input), ended);
    std::fs::remove_file(directory.socket()).unwrap();

    // One that listens may be at work on this very interface.
    for command in ["ADD", "DEL"] {
        let (done, hanging) = std::sync::mpsc::channel::<()>();
        let serving = agent(&directory, move |_socket| hanging.recv());
        let (code, message) = failure(&variables(command), &input);
        assert_eq!(code, 11);
        assert!(message.contains("did not answer within the time limit"), "{message}");
        drop(done);
        let _ = serving.join().unwrap();
        std::fs::remove_file(directory.socket()).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn an_agent_that_starts_meanwhile_is_waited_for() {
    let directory = Directory::create();
    let path = directory.socket();
    let input = config(&path).to_string();
    let serving = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let listener = UnixListener::bind(path).unwrap();
        let (socket, _) = listener.accept().unwrap();
        protocol::receive_request(&socket, soon()).unwrap();
        protocol::send_response(&socket, &Response::Done, soon()).unwrap();
    });
    assert_eq!(execute(&variables("DEL"), &input), (true, String::new()));
    serving.join().unwrap();
}

#[test]
fn answers_that_are_none_are_retryable() {
    let frame = |version: u32, length: u32, body: &[u8]| {
        let mut frame = b"CRNI".to_vec();
        frame.extend(version.to_be_bytes());
        frame.extend(length.to_be_bytes());
        frame.extend(body);
        frame
    };
    let done = br#"{"answer":"done"}"#;
    for (bytes, sentence) in [
        (Vec::new(), "closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), "does not speak this protocol"),
        (frame(7, 17, done), "it speaks version 7 of the plugin's protocol, not 3"),
        (frame(3, u32::MAX, done), "65536 are allowed"),
        (frame(3, 400, done), "closed the connection"),
        (frame(3, 3, b"abc"), "not understood"),
        (frame(3, 18, br#"{"answer":"later"}"#), "not understood"),
        (frame(3, 17, done), "another request than ADD"),
    ] {
        let directory = Directory::create();
        let serving = agent(&directory, move |mut socket| {
            protocol::receive_request(&socket, soon()).unwrap();
            socket.write_all(&bytes).unwrap();
        });
        let input = config(&directory.socket()).to_string();
        let (code, message) = failure(&variables("ADD"), &input);
        serving.join().unwrap();
        assert_eq!(code, 11, "{message}");
        assert!(message.contains(sentence), "{message}");
    }
}

#[test]
fn the_agents_side_survives_whatever_is_sent() {
    let receive = |bytes: Vec<u8>| {
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let writing = thread::spawn(move || {
            let _ = far.write_all(&bytes);
        });
        let received = protocol::receive_request(&near, Instant::now() + Duration::from_secs(2));
        drop(near);
        writing.join().unwrap();
        received
    };
    let frame = |body: &[u8]| {
        let mut frame = b"CRNI\0\0\0\x03".to_vec();
        frame.extend((body.len() as u32).to_be_bytes());
        frame.extend(body);
        frame
    };
    let add = |id: &str, ifname: &str| {
        let fields = json!({
            "command": "add", "containerId": id, "ifname": ifname, "network": "n",
        });
        frame(fields.to_string().as_bytes())
    };
    assert!(matches!(receive(add("a", "eth0")).unwrap(), (Request::Add(_), None)));
    for bytes in [
        add("a b", "eth0"),
        add("", "eth0"),
        add("a", "a/b"),
        add("a", ".."),
        frame(br#"{"command":"add","containerId":"a","ifname":"b"}"#),
        frame(br#"{"command":"format"}"#),
        frame(&[b'['; 60_000]),
        frame(&[0xff; 100]),
        frame(b""),
    ] {
        let error = receive(bytes).unwrap_err();
        assert!(matches!(error, ProtocolError::Decode(_)), "{error:?}");
        assert_eq!(error.to_failure().code, Code::Decode);
    }
    let error = receive(frame(&vec![b' '; REQUEST_MAX + 1])).unwrap_err();
    assert!(matches!(error, ProtocolError::TooLong { .. }), "{error:?}");
    let mut other = frame(b"{}");
    other[7] = 1;
    assert!(matches!(receive(other).unwrap_err(), ProtocolError::Version(1)));
    // The kernel passes on as many descriptors as there is room for: one too many shows.
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let own = std::fs::File::open("/proc/self/ns/net").unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    let two = [own.as_fd(), own.as_fd()];
    assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&two)));
    let good = add("a", "eth0");
    let slices = [std::io::IoSlice::new(&good)];
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&far, &slices, &mut ancillary, flags).unwrap();
    let error = protocol::receive_request(&near, soon()).unwrap_err();
    assert!(matches!(error, ProtocolError::Descriptors), "{error:?}");
    // Every beginning of a good request, and every single byte of it changed: an answer or an
    // error, never a hang or a panic.
    for end in 0..good.len() {
        assert!(matches!(receive(good[..end].to_vec()), Err(ProtocolError::Closed)));
    }
    for at in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            let _ = receive(bytes);
        }
    }
}

#[test]
fn ethernet_addresses_are_one_interfaces() {
    for text in ["02:00:5e:10:00:01", "02-00-5E-10-00-01", "fe:ff:ff:ff:ff:ff"] {
        let mac = cairn_cni::MacAddress::parse(text).unwrap();
        assert_eq!(cairn_cni::MacAddress::parse(&mac.to_string()), Ok(mac), "{text}");
    }
    assert_eq!(
        cairn_cni::MacAddress::parse("02:00:5E:10:00:01").unwrap().octets(),
        [2, 0, 0x5e, 16, 0, 1]
    );
    for text in [
        "",
        "02:00:5e:10:00",
        "02:00:5e:10:00:01:02",
        "2:0:5e:10:0:1",
        "+2:00:5e:10:00:01",
        "00:00:00:00:00:00",
        "01:00:5e:10:00:01",
        "ff:ff:ff:ff:ff:ff",
        "02:00:5e:10:00:0g",
    ] {
        assert!(cairn_cni::MacAddress::parse(text).is_err(), "{text}");
    }
}
