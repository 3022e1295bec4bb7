//! A real kube-apiserver with etcd, and one parameter ([`Api`]) by which a test runs against it or
//! against the embedded one.
//!
//! ```text
//!  test thread ──► Server::create, get, ... (blocking) ─┐
//!  kube clients of the test, raw HTTP, kubectl ─────────┴─► front (plain HTTP) ──TLS──► kube-apiserver ──► etcd
//!                                                           on the keeper thread, which starts and ends the two
//! ```
//!
//! Everything listens on the loopback and lives in one temporary directory. The processes end with
//! the keeper thread, which ends when the [`ControlPlane`] is dropped or this process ends in any
//! way. Tests of one binary share a control plane and use it one after the other.

mod both;
mod front;
mod objects;
mod processes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::AuthInfo;
use kube::{Client, Config};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

pub use both::{Api, Backup, Cluster, Refusal, Server};
use front::{Behind, Front};
pub use objects::Objects;
use processes::{ADMIN_TOKEN, AUDIT_LOG, ETCD_DATA, free_port};
pub use processes::{programs, programs_of_a_cluster};

use crate::process::{Process, Scratch};

/// A running etcd and kube-apiserver with Cairn's definitions. Ended, and its files removed, when
/// dropped.
#[derive(Debug)]
pub struct ControlPlane {
    front: Arc<Front>,
    runtime: Handle,
    running: Arc<Mutex<Running>>,
    /// Told, or dropped, it ends the keeper.
    end: Option<oneshot::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    /// The last to go.
    scratch: Scratch,
}

/// What the keeper has started.
#[derive(Debug)]
struct Running {
    programs: PathBuf,
    ports: Ports,
    apiserver: Option<Process>,
    etcd: Option<Process>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    apiserver: u16,
    etcd: u16,
    etcd_peer: u16,
}

impl ControlPlane {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// When the programs cannot be built or do not start; the message has what they logged.
    #[must_use]
    pub fn start() -> ControlPlane {
        let scratch = Scratch::new("cairn-kube");
        let ports = Ports { apiserver: free_port(), etcd: free_port(), etcd_peer: free_port() };
        let running = Running { programs: programs(), ports, apiserver: None, etcd: None };
        let running = Arc::new(Mutex::new(running));
        let (end, ended) = oneshot::channel::<()>();
        let (told, started) = mpsc::channel();
        let (processes, directory) = (Arc::clone(&running), scratch.path().to_owned());
        let keeper = std::thread::Builder::new().name("kube-keeper".to_owned());
        let keeper = keeper.spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                launch(&processes, &directory).await;
                let clients = Behind {
                    bare: client(ports, &directory, None),
                    admin: client(ports, &directory, Some(ADMIN_TOKEN)),
                };
                let front = Front::start(clients).await;
                let _ = told.send((front, Handle::current()));
                // Dropped is told, too.
                let _ = ended.await;
            });
            let mut running = processes.lock().expect("the processes");
            (running.apiserver, running.etcd) = (None, None);
        });
        let keeper = keeper.expect("a thread");
        let Ok((front, runtime)) = started.recv() else { panic!("no control plane: see above") };
        let plane =
            ControlPlane { front, runtime, running, end: Some(end), keeper: Some(keeper), scratch };
        plane.objects().define(&definitions());
        plane
    }

    /// Where it answers in plain HTTP. A request without a token is the administrator's.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// A client that is the administrator.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn client(&self) -> Client {
        plain(self.address(), AuthInfo::default())
    }

    /// A client that is a service account, by a token that the server gave for it.
    ///
    /// # Panics
    /// When there is no such service account.
    pub async fn client_of_service_account(&self, namespace: &str, name: &str) -> Client {
        let token = self.token_of_service_account(namespace, name).await;
        plain(self.address(), AuthInfo { token: Some(token.into()), ..AuthInfo::default() })
    }

    /// A token of a service account.
    ///
    /// # Panics
    /// When there is no such service account.
    pub async fn token_of_service_account(&self, namespace: &str, name: &str) -> String {
        let accounts: kube::Api<ServiceAccount> = kube::Api::namespaced(self.client(), namespace);
        let asked = TokenRequest::default();
        let answer = accounts.create_token_request(name, &Default::default(), &asked).await;
        let status = answer.expect("a token").status;
        status.and_then(|status| status.token).expect("a token")
    }

    /// Objects as the administrator reads and writes them, without a runtime.
    #[must_use]
    pub fn objects(&self) -> Objects {
        let ports = self.running.lock().expect("the processes").ports;
        let directory = self.scratch.path().to_owned();
        // Not through the front, which can be away.
        let client = async move { client(ports, &directory, Some(ADMIN_TOKEN)) };
        Objects::new(self.runtime.clone(), objects::on(&self.runtime, client))
    }

    /// The way to the server, which can fail.
    pub(crate) fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// The directory of its files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The ids of what runs.
    ///
    /// # Panics
    /// When the keeper has panicked.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let running = self.running.lock().expect("the processes");
        running.etcd.iter().chain(&running.apiserver).map(Process::id).collect()
    }

    /// What was asked of it, a JSON line each, but for the administrator's own requests.
    ///
    /// # Panics
    /// Without a log.
    #[must_use]
    pub fn audit_log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.scratch.path().join(AUDIT_LOG)).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Ends both processes and keeps a copy of what etcd holds under `name`, in the place of an earlier
    /// one; nothing runs then.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn stop_and_save(&self, name: &str) {
        // What is only in its log no restore of a database would bring back.
        std::thread::sleep(ETCD_COMMITS);
        self.stop();
        let _ = std::fs::remove_dir_all(self.scratch.path().join(name));
        copy(&self.scratch.path().join(ETCD_DATA), &self.scratch.path().join(name));
    }

    /// Ends both processes, as a power cut does.
    pub fn stop(&self) {
        let mut running = self.running.lock().expect("the processes");
        (running.apiserver, running.etcd) = (None, None);
    }

    /// Puts back what [`ControlPlane::stop_and_save`] kept; nothing may run.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn restore(&self, name: &str) {
        let data = self.scratch.path().join(ETCD_DATA);
        std::fs::remove_dir_all(&data).expect("etcd's data");
        copy(&self.scratch.path().join(name), &data);
    }

    /// As [`ControlPlane::restore`], with later writes numbered `by` higher and the history before them
    /// forgotten, by etcd's own tool.
    ///
    /// # Panics
    /// When it refuses.
    pub fn restore_raised(&self, name: &str, by: u64) {
        let data = self.scratch.path().join(ETCD_DATA);
        std::fs::remove_dir_all(&data).expect("etcd's data");
        let (tool, peer) = {
            let running = self.running.lock().expect("the processes");
            (running.programs.join("etcdutl"), running.ports.etcd_peer)
        };
        let database = self.scratch.path().join(name).join("member/snap/db");
        let arguments = processes::restore(&database, &data, peer, by);
        let output = std::process::Command::new(tool).args(arguments).output();
        let output = output.expect("etcdutl starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts both again and waits until they are ready.
    ///
    /// # Panics
    /// When they do not start.
    pub fn start_again(&self) {
        let (running, directory) = (Arc::clone(&self.running), self.scratch.path().to_owned());
        objects::on(&self.runtime, async move { launch(&running, &directory).await });
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(keeper) = self.keeper.take() {
            // Its panic was printed.
            let _ = keeper.join();
        }
    }
}

/// Starts what does not run and waits until the server is ready. Runs on the keeper's thread, with
/// which the processes end.
async fn launch(running: &Mutex<Running>, directory: &Path) {
    let ports = {
        let mut running = running.lock().expect("the processes");
        let ports = running.ports;
        let etcd = processes::etcd(directory, ports.etcd, ports.etcd_peer);
        let program = running.programs.join("etcd");
        running.etcd = Some(Process::start(&program, &etcd, &directory.join("etcd.log")));
        let apiserver = processes::apiserver(directory, ports.apiserver, ports.etcd);
        let program = running.programs.join("kube-apiserver");
        let log = directory.join("apiserver.log");
        running.apiserver = Some(Process::start(&program, &apiserver, &log));
        ports
    };
    let began = std::time::Instant::now();
    while !is_ready(ports, directory).await {
        let ended = {
            let mut running = running.lock().expect("the processes");
            running.apiserver.as_mut().is_none_or(Process::has_ended)
                || running.etcd.as_mut().is_none_or(Process::has_ended)
        };
        if ended || began.elapsed() > START_MAX {
            let log = |name: &str| {
                let text = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
                text.lines().rev().take(15).collect::<Vec<_>>().join("\n")
            };
            panic!("not ready, newest first:\n{}\n\n{}", log("apiserver.log"), log("etcd.log"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn is_ready(ports: Ports, directory: &Path) -> bool {
    // The server makes its certificate when it starts.
    if !certificate(directory).exists() {
        return false;
    }
    let request = hyper::Request::get("/readyz").body(Vec::new()).expect("a request");
    client(ports, directory, Some(ADMIN_TOKEN)).request_text(request).await.is_ok()
}

fn certificate(directory: &Path) -> PathBuf {
    directory.join("certificates/apiserver.crt")
}

/// A client straight to the server.
fn client(ports: Ports, directory: &Path, token: Option<&str>) -> Client {
    let uri = format!("https://127.0.0.1:{}", ports.apiserver).parse().expect("a URI");
    let mut config = Config::new(uri);
    config.root_cert_file = Some(certificate(directory));
    config.auth_info.token = token.map(|token| token.to_owned().into());
    (config.default_retry, config.write_timeout) = (false, None);
    Client::try_from(config).expect("a client")
}

fn plain(address: SocketAddr, who: AuthInfo) -> Client {
    let mut config = Config::new(format!("http://{address}").parse().expect("a URI"));
    config.auth_info = who;
    Client::try_from(config).expect("a plain HTTP client")
}

/// Cairn's definitions as a client writes them.
fn definitions() -> Vec<serde_json::Value> {
    let value = |crd| serde_json::to_value(crd).expect("a CRD is JSON");
    cairn_api::crds().into_iter().map(value).collect()
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp starts").success(), "{} cannot be copied", from.display());
}

/// Twice the time in which etcd writes what it took in to its database.
const ETCD_COMMITS: Duration = Duration::from_millis(200);
/// How long the two may take to start on a machine that is busy.
const START_MAX: Duration = Duration::from_secs(120);
