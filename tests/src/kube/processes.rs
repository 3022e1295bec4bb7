//! The programs of a control plane, etcd and kube-apiserver, and how they are started.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The directory with the programs, built now if it has to be.
///
/// # Panics
/// When they cannot be built; the script has said why.
pub fn programs() -> PathBuf {
    programs_of(&[])
}

/// The same with those that a whole cluster needs.
///
/// # Panics
/// As [`programs`].
pub fn programs_of_a_cluster() -> PathBuf {
    programs_of(&["--e2e"])
}

fn programs_of(arguments: &[&str]) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-kube.sh");
    let mut command = Command::new(script);
    let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.expect("scripts/build-kube.sh starts");
    assert!(output.status.success(), "scripts/build-kube.sh fails: see above");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// A port of the loopback that nobody listens on at the moment.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    // Two that start at once must not be given the same one: neither listens yet.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        if GIVEN.lock().expect("the ports").insert(port) {
            return port;
        }
    }
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
