//! The control plane: etcd, kube-apiserver, the controllers and the scheduler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::Process;

/// A running control plane, which ends with the thread that started it.
#[derive(Debug)]
pub struct ControlPlane {
    programs: PathBuf,
    directory: PathBuf,
    _processes: Vec<Process>,
}

impl ControlPlane {
    /// Starts one that nodes of these names may join, and waits until it answers. It keeps its files in
    /// `directory`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(programs: &Path, directory: &Path, nodes: &[&str]) -> ControlPlane {
        let mut plane = ControlPlane {
            programs: programs.to_owned(),
            directory: directory.to_owned(),
            _processes: Vec::new(),
        };
        plane.write_tokens(nodes);
        let key = directory.join("service-accounts.key");
        run(Command::new("openssl")
            .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
            .arg(&key));
        plane.launch(
            "etcd",
            &[
                format!("--data-dir={}", directory.join("etcd").display()),
                "--unsafe-no-fsync=true".into(),
                "--log-level=warn".into(),
            ],
        );
        let key = key.display();
        let policy = directory.join("audit.yaml");
        std::fs::write(&policy, AUDIT_POLICY).expect("a policy");
        plane.launch(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379".into(),
                format!("--advertise-address={ADDRESS}"),
                "--secure-port=6443".into(),
                format!("--cert-dir={}", directory.join("certificates").display()),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={key}"),
                format!("--service-account-signing-key-file={key}"),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                format!("--token-auth-file={}", directory.join("tokens.csv").display()),
                "--allow-privileged".into(),
                "--kubelet-preferred-address-types=InternalIP".into(),
                format!("--audit-policy-file={}", policy.display()),
                format!("--audit-log-path={}", directory.join(AUDIT_LOG).display()),
                "--audit-log-mode=blocking".into(),
            ],
        );
        let began = Instant::now();
        while !plane.kubectl(&["get", "--raw", "/readyz"]).status.success() {
            assert!(began.elapsed() < START_MAX, "no API server: see {}", directory.display());
            std::thread::sleep(Duration::from_millis(200));
        }
        let ours = |user: &str| {
            ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
                .map(|name| format!("--{name}={}", plane.kubeconfig(user).display()))
        };
        let mut controllers = ours("controllers").to_vec();
        controllers.extend([
            "--use-service-account-credentials=true".into(),
            format!("--service-account-private-key-file={key}"),
            format!("--root-ca-file={}", plane.certificate().display()),
            "--leader-elect=false".into(),
        ]);
        let mut scheduler = ours("scheduler").to_vec();
        scheduler.push("--leader-elect=false".into());
        plane.launch("kube-controller-manager", &controllers);
        plane.launch("kube-scheduler", &scheduler);
        plane
    }

    /// The kubeconfig of one of its users: `admin`, `proxy`, or a node.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.join(format!("{user}.kubeconfig"))
    }

    /// What kubectl says, as the administrator.
    ///
    /// # Panics
    /// When it does not start.
    pub fn kubectl(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.kubeconfig("admin")).args(arguments);
        command.output().expect("kubectl starts")
    }

    /// What agents have asked of it since it started, as `VERB RESOURCE`.
    ///
    /// # Panics
    /// Without a log.
    #[must_use]
    pub fn asked_by_agents(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join(AUDIT_LOG)).expect("a log");
        // The last line may not be whole.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let event = |event: Value| {
            let resource = [&event["objectRef"]["resource"], &event["objectRef"]["subresource"]];
            let [resource, subresource] = resource.map(super::text);
            format!("{} {resource} {subresource}", super::text(&event["verb"]))
                .trim_end()
                .to_owned()
        };
        events.map(event).collect()
    }

    fn certificate(&self) -> PathBuf {
        self.directory.join("certificates/apiserver.crt")
    }

    /// Who may come, by which token, and a kubeconfig for each.
    fn write_tokens(&self, nodes: &[&str]) {
        let mut users = vec![
            ("admin".to_owned(), "admin".to_owned(), "system:masters"),
            ("controllers".to_owned(), "system:kube-controller-manager".to_owned(), ""),
            ("scheduler".to_owned(), "system:kube-scheduler".to_owned(), ""),
            ("proxy".to_owned(), "system:kube-proxy".to_owned(), ""),
        ];
        let node =
            |name: &&str| ((*name).to_owned(), format!("system:node:{name}"), "system:nodes");
        users.extend(nodes.iter().map(node));
        let mut tokens = String::new();
        for (user, name, group) in users {
            tokens += &format!("token-of-{user},{name},{user},{group}\n");
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {
                    "server": format!("https://{ADDRESS}:6443"),
                    "certificate-authority": self.certificate(),
                }}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": format!("token-of-{user}")}}],
            });
            std::fs::write(self.kubeconfig(&user), config.to_string()).expect("a kubeconfig");
        }
        std::fs::write(self.directory.join("tokens.csv"), tokens).expect("the tokens");
    }

    fn launch(&mut self, name: &str, arguments: &[String]) {
        let log = self.directory.join(format!("{name}.log"));
        let process = Process::start(&self.programs.join(name), arguments, &log);
        self._processes.push(process);
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it fails, with what it said.
pub(super) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Where the nodes reach it: on the fabric.
pub const ADDRESS: &str = "192.0.2.1";
const AUDIT_LOG: &str = "agents.audit";
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - {level: Metadata, users: [\"system:serviceaccount:cairn-system:cairn-agent\"]}
  - {level: None}
";
const START_MAX: Duration = Duration::from_secs(120);
