//! What a container runtime asks of a node: calls of the plugin.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use cairn_cni::plugin::{self, Outcome, Patience};
use serde_json::{Value, json};

/// One call about the interface `eth0` of a container, whose pod has its name and no annotations.
#[derive(Clone, Debug)]
pub struct Call {
    variables: BTreeMap<&'static str, String>,
    config: Value,
}

impl Call {
    /// A call that the agent at `socket` is to answer.
    pub fn new(socket: &Path, command: &str, container: &str, netns: impl AsRef<Path>) -> Call {
        let variables = BTreeMap::from([
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", container.to_owned()),
            ("CNI_NETNS", netns.as_ref().display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}")),
        ]);
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "cairn",
            "type": "cairn-cni",
            "socket": socket,
        });
        Call { variables, config }.annotated(json!({}))
    }

    pub fn with_variable(mut self, name: &'static str, value: &str) -> Call {
        self.variables.insert(name, value.to_owned());
        self
    }

    pub fn without_variable(mut self, name: &str) -> Call {
        assert!(self.variables.remove(name).is_some(), "{name}");
        self
    }

    /// With a field of the network configuration.
    pub fn with_field(mut self, name: &str, value: Value) -> Call {
        self.config[name] = value;
        self
    }

    pub fn without_field(mut self, name: &str) -> Call {
        let fields = self.config.as_object_mut().expect("an object");
        assert!(fields.remove(name).is_some(), "{name}");
        self
    }

    /// With what the runtime tells of the pod's annotations.
    pub fn annotated(self, annotations: Value) -> Call {
        self.with_field("runtimeConfig", json!({"io.kubernetes.cri.pod-annotations": annotations}))
    }

    /// Has the plugin's own code answer, in this process and the namespace of this thread.
    pub fn run(&self) -> Outcome {
        self.run_with(Patience::default())
    }

    /// As [`Call::run`], on a thread of its own.
    pub fn spawn(self) -> JoinHandle<Outcome> {
        std::thread::spawn(move || self.run())
    }

    pub fn run_with(&self, patience: Patience) -> Outcome {
        let variable = |name: &str| self.variables.get(name).cloned();
        plugin::run(variable, self.config.to_string().as_bytes(), patience)
    }

    /// The plugin's program, which is to read its configuration from the file `input`: a test has no
    /// second thread to write from.
    pub fn program(&self, input: &Path) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_cairn")).with_file_name("cairn-cni");
        assert!(
            program.exists(),
            "{} is missing: build it with `make build` or `cargo build -p cairn-cni`",
            program.display()
        );
        fs::write(input, self.config.to_string()).expect("a file");
        let mut command = Command::new(program);
        command.env_clear().envs(&self.variables);
        command.stdin(Stdio::from(File::open(input).expect("the input")));
        command
    }
}

/// The code and the sentence of a refusal.
pub fn failure(outcome: &Outcome) -> (u64, String) {
    assert!(!outcome.success, "{outcome:?}");
    let error = outcome.output.as_ref().expect("an error");
    let sentence = error["msg"].as_str().expect("a sentence");
    (error["code"].as_u64().expect("a number"), sentence.to_owned())
}
