//! What AFL++ drives at the CNI plugin's side of the node: the agent's end of the plugin's socket, and the
//! plugin's reading of what a runtime hands it. scripts/fuzz.sh calls it.
//!
//! The first octet of an input says which of them gets the rest: a stream of octets on the socket; a
//! request without its header, which spares the fuzzer the length; the network configuration for each
//! command; CNI_ARGS.

mod commands;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use cairn_cni::NetworkConfig;
use cairn_cni::plugin::{self, Patience};
use cairn_cni::protocol::{self, Request, VERSION};

fn main() -> std::io::Result<()> {
    commands::main(run, |_| {}, write_seeds)
}

fn run(input: &[u8]) {
    let Some((&selector, rest)) = input.split_first() else { return };
    match selector % 4 {
        0 => drop(receive(rest)),
        1 => {
            let request = receive(&frame(rest));
            if let Some(request) = request {
                // What was understood is understood again when it is sent on.
                let text = serde_json::to_vec(&request).expect("a request is JSON");
                assert_eq!(receive(&frame(&text)).as_ref(), Some(&request));
            }
        }
        2 => {
            let _ = NetworkConfig::parse(rest);
            let _ = NetworkConfig::parse_removal(rest);
            let _ = NetworkConfig::parse_collection(rest);
            if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(rest).is_ok() {
                ask("CHECK", "", rest);
            }
        }
        _ => ask("ADD", &String::from_utf8_lossy(rest), CONFIG),
    }
}

/// Runs the plugin as far as it goes without an agent.
fn ask(command: &str, args: &str, config: &[u8]) {
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(command.to_owned()),
        "CNI_CONTAINERID" => Some("c0ffee".to_owned()),
        "CNI_IFNAME" => Some("eth0".to_owned()),
        // Nothing is opened, and no agent is waited for.
        "CNI_NETNS" => Some("/nonexistent".to_owned()),
        "CNI_ARGS" => Some(args.to_owned()),
        _ => None,
    };
    let outcome = plugin::run(variable, config, Patience::default());
    let error = outcome.output.expect("a refusal");
    let sentence = error["msg"].as_str().expect("a sentence");
    assert!(!outcome.success && !sentence.is_empty() && sentence.len() < 20_000, "{error}");
}

fn receive(bytes: &[u8]) -> Option<Request> {
    let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
    // What is longer than the socket's buffer needs no other length to be looked at.
    far.set_nonblocking(true).expect("a socket");
    let _ = far.write(bytes);
    drop(far);
    protocol::receive_request(&near, Instant::now() + Duration::from_secs(1)).ok().map(|(r, _)| r)
}

fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&b"CRNI"[..], &VERSION.to_be_bytes(), &length, body].concat()
}

fn write_seeds(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let requests = REQUESTS.iter().map(|text| (1, text.as_bytes().to_vec()));
    let streams = REQUESTS.iter().map(|text| (0, frame(text.as_bytes())));
    let configs = [CONFIG, CONFIG_OF_CHECK, CONFIG_OF_GC].map(|text| (2, text.to_vec()));
    let arguments = [(3, ARGS.to_vec())];
    let all = requests.chain(streams).chain(configs).chain(arguments);
    for (at, (selector, rest)) in all.enumerate() {
        let seed = [&[selector], rest.as_slice()].concat();
        std::fs::write(folder.join(format!("{at:02}")), seed)?;
    }
    Ok(())
}

const REQUESTS: [&str; 5] = [
    r#"{"command":"add","containerId":"c0ffee","ifname":"eth0","network":"cairn","pod":{"namespace":"ns","name":"web-0","uid":"1-2"},"annotations":{"cairn.network/ips":"10.0.0.1"},"ips":["10.0.0.1","fd00::1"],"mac":"02:00:00:00:00:01"}"#,
    r#"{"command":"del","containerId":"c0ffee","ifname":"eth0","network":"cairn"}"#,
    r#"{"command":"check","containerId":"c0ffee","ifname":"eth0","network":"cairn","addresses":["10.0.0.1"],"gateways":["169.254.1.1"],"mtu":1450}"#,
    r#"{"command":"gc","network":"cairn","valid":[{"containerId":"c0ffee","ifname":"eth0"}]}"#,
    r#"{"command":"status"}"#,
];
const CONFIG: &[u8] = br#"{"cniVersion":"1.1.0","name":"cairn","type":"cairn-cni","socket":"/run/cairn/cni.sock","dns":{"nameservers":["10.96.0.10"]},"args":{"cni":{"ips":["10.0.0.1/32"],"mac":"02:00:00:00:00:01"}},"runtimeConfig":{"ips":["10.0.0.1"],"io.kubernetes.cri.pod-annotations":{"cairn.network/ips":"10.0.0.1"}}}"#;
const CONFIG_OF_CHECK: &[u8] = br#"{"cniVersion":"1.1.0","name":"cairn","prevResult":{"interfaces":[{"name":"eth0","sandbox":"/x","mtu":1450}],"ips":[{"interface":0,"address":"10.0.0.1/32","gateway":"169.254.1.1"}],"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]}}"#;
const CONFIG_OF_GC: &[u8] = br#"{"cniVersion":"1.1.0","name":"cairn","cni.dev/valid-attachments":[{"containerID":"c0ffee","ifname":"eth0"}],"cni.dev/attachments":null}"#;
const ARGS: &[u8] = b"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_UID=1-2;IP=10.0.0.1/32,fd00::1;MAC=02-00-00-00-00-01;X=y";
