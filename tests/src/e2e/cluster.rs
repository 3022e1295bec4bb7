//! The cluster as its users see it: through kubectl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::control::{self, ControlPlane, run};
use super::node::{FABRIC, Node};
use crate::kube::programs_of_a_cluster;
use crate::process::Process;
use crate::program::built;

/// A control plane and its nodes.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes that are switched on.
    pub nodes: Vec<Node>,
    plane: ControlPlane,
    directory: PathBuf,
    programs: PathBuf,
    images: PathBuf,
    _router: Process,
}

impl Cluster {
    /// Makes the images, and starts a control plane to which nodes of these names can be added.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn new(directory: &Path, nodes: &[&str]) -> Cluster {
        let programs = programs_of_a_cluster();
        let images = directory.join("images.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-image.sh");
        let mut command = Command::new(script);
        run(command.arg(&images).arg(&programs).arg(built("cairn")).arg(built("cairn-cni")));
        for words in [
            format!("link add {FABRIC} type bridge"),
            format!("address add {}/24 dev {FABRIC}", control::ADDRESS),
            format!("link set {FABRIC} up"),
        ] {
            run(Command::new("ip").args(words.split(' ')));
        }
        let router = directory.join("router");
        fs::create_dir(&router).expect("a directory");
        let file = router.join("router.yaml");
        fs::write(&file, include_str!("../../e2e/router.yaml")).expect("a file");
        let arguments = ["speaker", "--fib", "-f", &file.display().to_string(), "--run-dir"];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        arguments.push(router.display().to_string());
        let log = directory.join("router.log");
        let router = Process::start(&built("cairn"), &arguments, &log);
        let plane = ControlPlane::start(&programs, directory, nodes);
        Cluster {
            _router: router,
            nodes: Vec::new(),
            plane,
            directory: directory.to_owned(),
            programs,
            images,
        }
    }

    /// Switches a node on.
    ///
    /// # Panics
    /// When it does not start.
    pub fn add(&mut self, name: &str) {
        let mut node = Node::new(name, self.nodes.len() + 1, &self.directory);
        node.start(&self.plane, &self.programs, &self.images);
        self.nodes.push(node);
    }

    /// Switches a node off.
    pub fn remove(&mut self, name: &str) {
        self.nodes.retain(|node| node.name != name);
    }

    /// A node by its name.
    ///
    /// # Panics
    /// When it is not switched on.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("{name} is switched off"))
    }

    /// The directory of its files, and of those of the test.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What kubectl prints for words without spaces of their own.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl(&self, words: &str) -> String {
        self.kubectl_of(&words.split(' ').collect::<Vec<_>>())
    }

    /// What kubectl prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl_of(&self, words: &[&str]) -> String {
        match self.try_kubectl(words) {
            Ok(text) => text,
            Err(text) => panic!("kubectl {words:?}: {text}\n{}", self.report()),
        }
    }

    /// What kubectl prints, or what it says when it fails.
    ///
    /// # Errors
    /// When it fails.
    pub fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        let output = self.plane.kubectl(words);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The objects of a kind, and what else `words` choose.
    ///
    /// # Panics
    /// When kubectl fails.
    pub fn list(&self, words: &str) -> Vec<Value> {
        let text = self.kubectl(&format!("get {words} -o json"));
        let list: Value = serde_json::from_str(&text).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Applies a text of YAML.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply(&self, name: &str, text: &str) {
        let path = self.directory.join(name);
        fs::write(&path, text).expect("a file");
        self.kubectl_of(&["apply", "-f", &path.display().to_string()]);
    }

    /// What agents have asked of the API server so far, as `VERB RESOURCE`.
    #[must_use]
    pub fn asked_by_agents(&self) -> Vec<String> {
        self.plane.asked_by_agents()
    }

    /// Kubernetes' own end-to-end test, to run the cases whose names match a regular expression.
    #[must_use]
    pub fn own_test(&self, cases: &str) -> Command {
        let mut command = Command::new(self.programs.join("e2e.test"));
        command.arg(format!("--kubeconfig={}", self.plane.kubeconfig("admin").display()));
        command.arg(format!("--ginkgo.focus={cases}"));
        command.args(["--provider=skeleton", "--ginkgo.no-color", "--disable-log-dump"]);
        command
    }

    /// Waits until something is so, and returns how long that took.
    ///
    /// # Panics
    /// When it never is, with what the cluster says of itself.
    pub fn until(
        &self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut() -> bool,
    ) -> Duration {
        let began = Instant::now();
        while !holds() {
            if began.elapsed() > patience {
                panic!("not within {} s: {what}\n{}", patience.as_secs(), self.report());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        began.elapsed()
    }

    /// What a person would look at first.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::new();
        for words in [
            "get nodes -o wide",
            "get pods -A -o wide",
            "get ippools,ipblocks,bgpnodestatuses",
            "get events -A --sort-by=.lastTimestamp",
            "-n cairn-system logs -l app.kubernetes.io/name=cairn-agent --all-containers --tail=15 --prefix",
        ] {
            let said = self.try_kubectl(&words.split(' ').collect::<Vec<_>>());
            let said = said.unwrap_or_else(|error| error);
            let lines: Vec<&str> = said.lines().collect();
            let last = lines.get(lines.len().saturating_sub(REPORT_LINES)..).unwrap_or_default();
            text += &format!("--- kubectl {words}\n{}\n", last.join("\n"));
        }
        text += &super::tails(&self.directory);
        for node in &self.nodes {
            text += &node.logs();
        }
        text
    }
}

const REPORT_LINES: usize = 80;
