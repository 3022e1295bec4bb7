//! The program of `tests/cri`: what a kubelet asks of a runtime, and libcni.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::node::Node;

/// A pod's sandbox, as the runtime tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// The pod's name.
    pub name: String,
    /// The sandbox's id, which is its container id for plugins.
    pub id: String,
    /// Whether it is ready.
    pub ready: bool,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace, as the runtime sees it.
    pub netns: PathBuf,
    /// Why the call failed; empty if it did not.
    pub error: String,
}

/// An interface of a container in a network.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The container's id.
    pub container_id: String,
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// The interface's name.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
    /// What the runtime has for each capability.
    pub capabilities: Value,
}

/// What became of a call of plugins.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Answer {
    /// The result of an ADD.
    #[serde(default)]
    pub result: Value,
    /// The plugin's error code, 0 for none.
    pub code: u32,
    /// The error, empty for none.
    pub error: String,
    /// How long the whole chain took.
    pub millis: f64,
}

impl Attachment {
    /// The interface `eth0` of a pod.
    #[must_use]
    pub fn new(container_id: &str, netns: PathBuf) -> Attachment {
        let arg = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        // As containerd has them: not every plugin knows a pod's name.
        let args = [
            arg("IgnoreUnknown", "1"),
            arg("K8S_POD_NAMESPACE", "default"),
            arg("K8S_POD_NAME", container_id),
        ];
        Attachment {
            container_id: container_id.into(),
            netns,
            ifname: "eth0".into(),
            args: args.into(),
            // containerd has these of each pod; a list takes what its plugins ask for.
            capabilities: json!({"io.kubernetes.cri.pod-annotations": {}}),
        }
    }

    /// The same with what the runtime has for one more capability.
    #[must_use]
    pub fn with(mut self, capability: &str, value: Value) -> Attachment {
        self.capabilities[capability] = value;
        self
    }
}

impl Answer {
    /// The result of an ADD that succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn added(self) -> Value {
        assert_eq!((self.error.as_str(), self.code), ("", 0));
        self.result
    }
}

impl Node {
    /// Calls the plugins of a list by libcni, for all attachments at once.
    ///
    /// # Panics
    /// When the call itself is wrong.
    #[must_use]
    pub fn plug(&self, verb: &str, conflist: &Value, attachments: &[Attachment]) -> Vec<Answer> {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(program()).arg("plugins");
        command.arg(self.plugins()).arg(self.path("cni-cache"));
        let request = json!({"do": verb, "conflist": conflist, "attachments": attachments});
        ask(&mut command, &request).unwrap_or_else(|error| panic!("{verb}: {error}"))
    }
}

/// Asks the runtime behind a socket.
pub(super) fn sandboxes(
    socket: &Path,
    verb: &str,
    names: &[String],
    cgroup_parent: &str,
) -> Result<Vec<Sandbox>, String> {
    let mut command = Command::new(program());
    command.args([OsString::from("sandboxes"), socket.into()]);
    let request = json!({
        "do": verb, "names": names, "cgroupParent": cgroup_parent, "timeoutSecs": CALL_SECS_MAX,
    });
    ask(&mut command, &request)
}

fn ask<T: DeserializeOwned>(command: &mut Command, request: &Value) -> Result<T, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let written = child.stdin.take().map(|mut input| write!(input, "{request}"));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    written.transpose().map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// The program, built now if it has to be.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-cri.sh");
        let mut command = Command::new(script);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.expect("scripts/build-cri.sh starts");
        assert!(output.status.success(), "scripts/build-cri.sh fails: see above");
        PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
    })
}

/// How long a call of the runtime may take. The kubelet gives it two minutes.
const CALL_SECS_MAX: u32 = 60;
