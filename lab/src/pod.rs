//! Pods, made as a container runtime makes them: a namespace, and the CNI plugin called for it.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;
use cairn_kernel::netns::NETNS_DIR;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;

use crate::error::Error;

/// A pod with its namespace. Dropping it removes the namespace's name.
pub struct Pod {
    /// The pod's name, unique in the lab.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Its namespace.
    pub netns: NetNs,
    /// Its addresses as the plugin returned them.
    pub addresses: Vec<IpAddr>,
    namespace: String,
}

impl Drop for Pod {
    fn drop(&mut self) {
        // A name that stays is removed by the next run of the lab.
        let _ = NetNs::delete(&self.namespace);
    }
}

/// The CNI plugin, called for the pods of one node.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The program.
    pub path: PathBuf,
    /// The socket of the node's agent.
    pub socket: PathBuf,
}

impl Plugin {
    /// Makes a pod: its namespace, then ADD. An answer that asks to come back later is followed for
    /// a while, as a kubelet does.
    ///
    /// # Errors
    /// [`Error::Cni`] when the plugin refuses; then the namespace is gone again.
    pub fn add(&self, namespace: &str, node: &str, name: &str) -> Result<Pod, Error> {
        let netns = NetNs::create(namespace).map_err(Error::kernel(format!("the pod {name}")))?;
        let mut pod = Pod {
            name: name.into(),
            node: node.into(),
            netns,
            addresses: Vec::new(),
            namespace: namespace.into(),
        };
        let deadline = Instant::now() + TRY_AGAIN;
        pod.addresses = loop {
            match self.call("ADD", &pod)? {
                Answer::Done(output) => break addresses(&pod, &output)?,
                Answer::Later(_) if Instant::now() < deadline => thread::sleep(RETRY_INTERVAL),
                Answer::Later(message) => return Err(refused("ADD", &pod, message)),
            }
        };
        Ok(pod)
    }

    /// Ends a pod: DEL, then its namespace.
    ///
    /// # Errors
    /// [`Error::Cni`] when the plugin refuses.
    pub fn delete(&self, pod: Pod) -> Result<(), Error> {
        match self.call("DEL", &pod)? {
            Answer::Done(_) => Ok(()),
            Answer::Later(message) => Err(refused("DEL", &pod, message)),
        }
    }

    fn call(&self, command: &'static str, pod: &Pod) -> Result<Answer, Error> {
        let config = json!({
            "cniVersion": CNI_VERSION,
            "name": "cairn",
            "type": "cairn-cni",
            "socket": self.socket,
            // As a runtime tells the annotations of a pod that has none.
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {}},
        });
        let failed = || format!("run the CNI plugin {}", self.path.display());
        let mut child = Command::new(&self.path)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.namespace)
            .env("CNI_NETNS", Path::new(NETNS_DIR).join(&pod.namespace))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.path.parent().unwrap_or(Path::new("/")))
            .env("CNI_ARGS", arguments(pod))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(failed()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its configuration says why itself.
            let _ = stdin.write_all(config.to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(Error::io(failed()))?;
        if output.status.success() {
            return Ok(Answer::Done(output.stdout));
        }
        match serde_json::from_slice::<Refusal>(&output.stdout) {
            Ok(refusal) if refusal.code == CODE_TRY_AGAIN => Ok(Answer::Later(refusal.text())),
            Ok(refusal) => Err(refused(command, pod, refusal.text())),
            Err(_) => {
                let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(refused(command, pod, format!("{} without a reason: {words}", output.status)))
            }
        }
    }
}

enum Answer {
    Done(Vec<u8>),
    Later(String),
}

/// What a plugin writes when it refuses (CNI specification, section 5).
#[derive(Deserialize)]
struct Refusal {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Refusal {
    fn text(self) -> String {
        if self.details.is_empty() { self.msg } else { format!("{}: {}", self.msg, self.details) }
    }
}

#[derive(Deserialize)]
struct Added {
    ips: Vec<AddedIp>,
}

#[derive(Deserialize)]
struct AddedIp {
    address: IpNet,
}

fn addresses(pod: &Pod, output: &[u8]) -> Result<Vec<IpAddr>, Error> {
    let added: Added = serde_json::from_slice(output)
        .map_err(|error| refused("ADD", pod, format!("its result is not understood: {error}")))?;
    Ok(added.ips.iter().map(|ip| ip.address.addr()).collect())
}

fn arguments(pod: &Pod) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={POD_NAMESPACE};K8S_POD_NAME={};\
         K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.name, pod.namespace, pod.namespace
    )
}

fn refused(command: &'static str, pod: &Pod, message: String) -> Error {
    Error::Cni { command, pod: pod.name.clone(), message }
}

/// The Kubernetes namespace of all pods.
pub const POD_NAMESPACE: &str = "default";
const CNI_VERSION: &str = "1.0.0";
/// "Try again later" (CNI specification, section 5).
const CODE_TRY_AGAIN: u32 = 11;
const TRY_AGAIN: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
