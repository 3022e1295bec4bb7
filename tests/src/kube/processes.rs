//! The processes of a control plane: etcd and kube-apiserver, which end with the test that started
//! them whatever becomes of it.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The directory with the programs, built now if it has to be.
///
/// # Panics
/// When they cannot be built; the script has said why.
pub fn programs() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-kube.sh");
    let mut command = Command::new(script);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.expect("scripts/build-kube.sh starts");
    assert!(output.status.success(), "scripts/build-kube.sh fails: see above");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// A directory that goes when it is dropped, and also when this process is killed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Removes the directory at the end of its standard input, which is the end of this process.
    janitor: Child,
}

impl Scratch {
    /// A new one with this in its name.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Scratch {
        let made = Command::new("mktemp").args(["-d", "-t", &format!("{name}.XXXXXX")]).output();
        let made = String::from_utf8(made.expect("mktemp starts").stdout).expect("a path");
        let path = PathBuf::from(made.trim());
        assert!(path.is_dir(), "no temporary directory");
        // What ends at the same moment may still write: the removal is repeated.
        let script = "cat >/dev/null; for _ in 1 2 3 4 5 6 7 8 9 10; do \
                      rm -rf -- \"$1\" 2>/dev/null && exit; sleep 0.2; done";
        let mut command = Command::new("sh");
        command.args(["-c", script, "janitor"]).arg(&path).stdin(Stdio::piped());
        // What ends the test's own group, as Ctrl-C does, must not end this one.
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Scratch { path, janitor: command.spawn().expect("sh starts") }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        // It has removed the directory then.
        let _ = self.janitor.wait();
    }
}

/// A process, killed when dropped and when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program that writes what it has to say to `log`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> Process {
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let errors = log.try_clone().expect("a log");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        // SAFETY: only a system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        Process { child }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of the loopback that nobody listens on at the moment.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// The arguments of etcdutl that make etcd's `data` of a `database`, with numbers raised by `by`.
#[must_use]
pub fn restore(database: &Path, data: &Path, peer: u16, by: u64) -> Vec<String> {
    let peer = format!("http://127.0.0.1:{peer}");
    vec![
        "snapshot".to_owned(),
        "restore".to_owned(),
        database.display().to_string(),
        // It is no file that etcd made to be kept, but its own.
        "--skip-hash-check".to_owned(),
        format!("--data-dir={}", data.display()),
        format!("--initial-cluster=default={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--bump-revision={by}"),
        "--mark-compacted".to_owned(),
    ]
}

/// etcd's arguments; it keeps what it holds in `directory`/etcd.
#[must_use]
pub fn etcd(directory: &Path, client: u16, peer: u16) -> Vec<String> {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    vec![
        format!("--data-dir={}", directory.join(ETCD_DATA).display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Nothing here has to outlive the machine.
        "--unsafe-no-fsync=true".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

/// kube-apiserver's arguments. RBAC is on, an administrator has [`ADMIN_TOKEN`], and every request
/// is in the audit log.
///
/// # Panics
/// When its files cannot be written.
#[must_use]
pub fn apiserver(directory: &Path, port: u16, etcd: u16) -> Vec<String> {
    let file = |name: &str| directory.join(name).display().to_string();
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        let written = File::create(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    };
    write("tokens.csv", &format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"));
    write("audit.yaml", AUDIT_POLICY);
    let key = file("service-account.key");
    if !Path::new(&key).exists() {
        let mut openssl = Command::new("openssl");
        openssl.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key]);
        let made = openssl.output().expect("openssl starts");
        assert!(made.status.success(), "openssl makes no key");
    }
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", file("certificates")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={key}"),
        format!("--service-account-signing-key-file={key}"),
        "--authorization-mode=RBAC".to_owned(),
        format!("--token-auth-file={}", file("tokens.csv")),
        // Its service accounts come from a controller manager, which does not run.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        format!("--audit-policy-file={}", file("audit.yaml")),
        format!("--audit-log-path={}", file(AUDIT_LOG)),
        "--audit-log-mode=blocking".to_owned(),
        // A test's load is no reason to make another one of its clients wait.
        "--enable-priority-and-fairness=false".to_owned(),
        "--max-requests-inflight=0".to_owned(),
        "--max-mutating-requests-inflight=0".to_owned(),
    ]
}

const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n\
    omitStages: [RequestReceived]\nrules:\n\
    # The administrator's own requests prove nothing.\n\
    - {level: None, users: [admin, \"system:apiserver\"]}\n- {level: Metadata}\n";
/// Who brings this token is an administrator.
pub const ADMIN_TOKEN: &str = "the-administrator-of-a-test";
/// Where etcd keeps what it holds.
pub const ETCD_DATA: &str = "etcd";
/// Requests of everybody but the administrator, a JSON line each.
pub const AUDIT_LOG: &str = "audit.log";
