//! Pods, as the API tells of them and as processes on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use cairn_kernel::NetNs;
use serde_json::Value;

use super::cluster::Cluster;
use super::node::Node;
use super::text;

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its node's name.
    pub node: String,
    /// The address that the API tells.
    pub address: String,
    /// One of its processes.
    process: u32,
}

impl Cluster {
    /// The pods with this label `app` that run.
    ///
    /// # Panics
    /// When one has no process on this machine.
    #[must_use]
    pub fn pods(&self, app: &str) -> Vec<Pod> {
        let processes = processes_by_host_name();
        let pods = self.list(&format!("pods -l app={app} --field-selector=status.phase=Running"));
        let live = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let pod = |pod: &Value| {
            let name = text(&pod["metadata"]["name"]);
            let process = processes.get(&name).copied();
            Pod {
                node: text(&pod["spec"]["nodeName"]),
                address: text(&pod["status"]["podIP"]),
                process: process.unwrap_or_else(|| panic!("no process of {name}")),
                name,
            }
        };
        live.map(pod).collect()
    }
}

impl Pod {
    /// Its network namespace.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn netns(&self) -> NetNs {
        netns(self.process).expect("the namespace of a pod that runs")
    }

    /// What this pod's `agnhost netexec` answers on `path`, asked from where the thread is.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, path: &str) -> io::Result<String> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let address = self.address.parse().map_err(|error| invalid(format!("{error}")))?;
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), ANSWER_MAX)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| invalid(answer))
    }
}

impl Node {
    /// The process of the agent that runs on it.
    ///
    /// # Panics
    /// When the node is switched off.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        let own = self.netns().identity().expect("a namespace");
        let is_agent = |id: &u32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let here = || netns(*id)?.identity();
            line.starts_with(b"cairn\0agent\0") && here().is_ok_and(|here| here == own)
        };
        processes().find(is_agent)
    }
}

fn netns(process: u32) -> Result<NetNs, cairn_kernel::Error> {
    NetNs::open_path(Path::new(&format!("/proc/{process}/ns/net")))
}

/// Container runtimes tell each container its pod's name.
fn processes_by_host_name() -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for id in processes() {
        // It may have ended.
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        let variables = environment.split(|octet| *octet == 0);
        if let Some(name) = variables.filter_map(|it| it.strip_prefix(b"HOSTNAME=")).next_back() {
            found.insert(String::from_utf8_lossy(name).into_owned(), id);
        }
    }
    found
}

/// The ids of all processes on this machine.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// Where `agnhost netexec` listens.
const PORT: u16 = 8080;
const ANSWER_MAX: Duration = Duration::from_secs(10);
