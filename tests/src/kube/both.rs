//! One test, both API servers.

use std::fmt;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use cairn_lab::apiserver::{ApiError, ApiServer, Options, PatchType, Serving, Snapshot};
use kube::{Client, Config};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use super::{ControlPlane, Objects};

/// Which API server a test runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// The one in this process, `cairn_lab::apiserver`.
    Embedded,
    /// kube-apiserver with etcd.
    Real,
}

/// Makes two tests of each function `async fn name(api: Api)` of the module: `embedded::name` and
/// `real::name`. A function that is left out is never used, which the compiler reports.
#[macro_export]
macro_rules! on_both_apis {
    ($($(#[$attribute:meta])* $test:ident),+ $(,)?) => {
        mod embedded {
            $($(#[$attribute])* #[tokio::test]
            async fn $test() {
                super::$test($crate::kube::Api::Embedded).await;
            })+
        }
        mod real {
            $($(#[$attribute])* #[tokio::test]
            async fn $test() {
                super::$test($crate::kube::Api::Real).await;
            })+
        }
    };
}

/// A cluster of one test: Cairn's definitions, a namespace `cairn-system`, nothing else.
#[derive(Debug)]
pub struct Cluster {
    /// The server, asked as the administrator. Calls wait for the answer.
    pub server: Server,
    /// Where it answers.
    pub serving: Place,
    /// Of the tests that use a real one, one at a time.
    _turn: Option<MutexGuard<'static, ()>>,
}

/// A control plane that tests use in turn.
struct Shared {
    turn: Mutex<()>,
    plane: OnceLock<ControlPlane>,
}

impl Shared {
    const fn new() -> Shared {
        Shared { turn: Mutex::const_new(()), plane: OnceLock::new() }
    }
}

/// Where a server answers in plain HTTP; a request without a token is the administrator's.
#[derive(Debug)]
pub struct Place {
    address: SocketAddr,
    /// What is served here, if it is the embedded one.
    _serving: Option<Serving>,
}

impl Place {
    /// The address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An API server in the words of the embedded one.
#[derive(Clone, Debug)]
pub enum Server {
    /// The one in this process.
    Embedded(ApiServer),
    /// kube-apiserver with etcd.
    Real(Objects, &'static ControlPlane),
}

/// What a server held at one moment.
#[derive(Debug)]
pub enum Backup {
    /// The one in this process.
    Embedded(Snapshot),
    /// A copy of etcd's data, of which there is one at a time.
    Real,
}

/// Why a server did not do what was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Refusal {
    /// The HTTP status code, 0 if there was no answer.
    pub code: u16,
    /// The machine-readable reason.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl Refusal {
    pub(super) fn missing() -> Refusal {
        let message = "the server could not find the requested resource".to_owned();
        Refusal { code: 404, reason: "NotFound".to_owned(), message }
    }

    pub(super) fn other(message: String) -> Refusal {
        Refusal { code: 0, reason: String::new(), message }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal { code: error.code, reason: error.reason.to_owned(), message: error.message }
    }
}

impl From<kube::Error> for Refusal {
    fn from(error: kube::Error) -> Refusal {
        match error {
            kube::Error::Api(status) => {
                Refusal { code: status.code, reason: status.reason, message: status.message }
            }
            other => Refusal::other(other.to_string()),
        }
    }
}

impl Cluster {
    /// A new one. On the real server the test waits for its turn, which lasts as long as this
    /// value, and finds nothing of the tests before it.
    ///
    /// # Panics
    /// When a server does not start, or outside of a runtime.
    pub async fn start(api: Api) -> Cluster {
        match api {
            Api::Embedded => Cluster::embedded(),
            Api::Real => Cluster::real(&super::definitions()).await,
        }
    }

    /// As [`Cluster::start`] on the embedded server.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn embedded() -> Cluster {
        Cluster::embedded_with(Options::default(), &super::definitions())
    }

    /// On the embedded server, with these options and definitions.
    ///
    /// # Panics
    /// Outside of a runtime, or when a definition is refused.
    #[must_use]
    pub fn embedded_with(options: Options, definitions: &[Value]) -> Cluster {
        let server = ApiServer::new(options);
        for definition in definitions {
            let created = server.create(DEFINITIONS, None, definition.clone());
            created.unwrap_or_else(|refusal| panic!("{refusal}"));
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let serving = server.serve(listener).expect("a runtime is running");
        let place = Place { address: serving.address(), _serving: Some(serving) };
        let cluster = Cluster { server: Server::Embedded(server), serving: place, _turn: None };
        cluster.space();
        cluster
    }

    /// On the real server, with these definitions.
    ///
    /// # Panics
    /// When it does not start, or when a definition is refused.
    pub async fn real(definitions: &[Value]) -> Cluster {
        let (turn, plane) = tokio::select! {
            biased;
            turn = SHARED[0].turn.lock() => (turn, &SHARED[0].plane),
            turn = SHARED[1].turn.lock() => (turn, &SHARED[1].plane),
        };
        let plane = plane.get_or_init(ControlPlane::start);
        let (front, objects) = (plane.front(), plane.objects());
        // What a test before left on its way must not arrive after the sweep.
        front.pause();
        front.fail_next(0);
        tokio::time::sleep(IN_FLIGHT).await;
        front.resume();
        objects.clear();
        objects.define(definitions);
        let serving = Place { address: plane.address(), _serving: None };
        let server = Server::Real(objects, plane);
        let cluster = Cluster { server, serving, _turn: Some(turn) };
        cluster.space();
        cluster
    }

    /// The namespace of agents. On the real server it outlives a test: without a controller manager
    /// none ends.
    fn space(&self) {
        let space = serde_json::json!({"metadata": {"name": "cairn-system"}});
        match self.server.create("namespaces", None, space) {
            Err(refusal) if refusal.code != 409 => panic!("{refusal}"),
            _ => {}
        }
    }

    /// Keeps what the server holds. The real one ends for it and starts again.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn back_up(&self) -> Backup {
        match &self.server {
            Server::Embedded(server) => Backup::Embedded(server.snapshot()),
            Server::Real(_, plane) => {
                let plane: &'static ControlPlane = plane;
                work(move || {
                    plane.stop_and_save(BACKUP);
                    plane.start_again();
                })
                .await;
                Backup::Real
            }
        }
    }

    /// Puts back what was kept, as a restore of etcd does: with later writes numbered `raised_by` higher
    /// and the history before forgotten, or with 0 as if nothing had been written since.
    ///
    /// # Panics
    /// When the backup is not this server's, or it does not start.
    pub async fn restore(&self, backup: &Backup, raised_by: u64) {
        match (&self.server, backup, raised_by) {
            (Server::Embedded(server), Backup::Embedded(kept), 0) => server.restore(kept),
            (Server::Embedded(server), Backup::Embedded(kept), by) => {
                server.restore_raised(kept, by);
            }
            (Server::Real(_, plane), Backup::Real, by) => {
                let plane: &'static ControlPlane = plane;
                work(move || {
                    plane.stop();
                    if by == 0 {
                        plane.restore(BACKUP)
                    } else {
                        plane.restore_raised(BACKUP, by)
                    }
                    plane.start_again();
                })
                .await;
            }
            _ => panic!("the backup is of the other API server"),
        }
    }

    /// A client that is the administrator.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn client(&self) -> Client {
        let uri = format!("http://{}", self.serving.address()).parse().expect("a URI");
        Client::try_from(Config::new(uri)).expect("a plain HTTP client")
    }
}

impl Server {
    /// The object `name` of a resource named `plural` or `plural.group`.
    ///
    /// # Errors
    /// As GET answers.
    pub fn get(&self, resource: &str, space: Option<&str>, name: &str) -> Result<Value, Refusal> {
        match self {
            Server::Embedded(server) => Ok(server.get(resource, space, name)?),
            Server::Real(objects, _) => objects.get(resource, space, name),
        }
    }

    /// The objects of a resource that a label selector (may be empty) selects.
    ///
    /// # Errors
    /// As GET answers.
    pub fn list(
        &self,
        resource: &str,
        space: Option<&str>,
        label_selector: &str,
    ) -> Result<Vec<Value>, Refusal> {
        match self {
            Server::Embedded(server) => Ok(server.list(resource, space, label_selector)?),
            Server::Real(objects, _) => objects.list(resource, space, label_selector),
        }
    }

    /// Creates an object.
    ///
    /// # Errors
    /// As POST answers.
    pub fn create(
        &self,
        resource: &str,
        space: Option<&str>,
        object: Value,
    ) -> Result<Value, Refusal> {
        match self {
            Server::Embedded(server) => Ok(server.create(resource, space, object)?),
            Server::Real(objects, _) => objects.create(resource, space, object),
        }
    }

    /// Patches an object.
    ///
    /// # Errors
    /// As PATCH answers.
    pub fn patch(
        &self,
        resource: &str,
        space: Option<&str>,
        name: &str,
        kind: PatchType,
        patch: &Value,
    ) -> Result<Value, Refusal> {
        match self {
            Server::Embedded(server) => Ok(server.patch(resource, space, name, kind, patch)?),
            Server::Real(objects, _) => objects.patch(resource, space, name, kind, patch),
        }
    }

    /// Merge-patches an object's status: `patch` is the patch of the whole object.
    ///
    /// # Errors
    /// As PATCH of the status subresource answers.
    pub fn patch_status(
        &self,
        resource: &str,
        space: Option<&str>,
        name: &str,
        patch: &Value,
    ) -> Result<Value, Refusal> {
        match self {
            Server::Embedded(server) => Ok(server.patch_status(resource, space, name, patch)?),
            Server::Real(objects, _) => objects.patch_status(resource, space, name, patch),
        }
    }

    /// Deletes an object; returns whether it is gone already, and not held by finalizers.
    ///
    /// # Errors
    /// As DELETE answers.
    pub fn delete(&self, resource: &str, space: Option<&str>, name: &str) -> Result<bool, Refusal> {
        match self {
            Server::Embedded(server) => Ok(server.delete(resource, space, name)?),
            Server::Real(objects, _) => objects.delete(resource, space, name),
        }
    }

    /// Applies every document of a YAML stream, in order, and returns the objects as stored.
    ///
    /// # Errors
    /// What cannot be read or is refused, in words; earlier documents stay.
    pub fn load_yaml(&self, text: &str) -> Result<Vec<Value>, String> {
        match self {
            Server::Embedded(server) => server.load_yaml(text).map_err(|error| error.to_string()),
            Server::Real(objects, _) => {
                let documents = serde_saphyr::from_multiple::<Value>(text);
                let documents = documents.map_err(|error| error.to_string())?;
                objects.apply(&documents).map_err(|refusal| refusal.to_string())
            }
        }
    }

    /// The resourceVersion of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match self {
            Server::Embedded(server) => server.revision(),
            Server::Real(objects, _) => objects.revision(),
        }
    }

    /// Goes away for clients: connections are dropped, new ones closed at once. Calls of this type
    /// go on.
    pub fn pause(&self) {
        match self {
            Server::Embedded(server) => server.pause(),
            Server::Real(_, plane) => plane.front().pause(),
        }
    }

    /// Comes back after [`Server::pause`].
    pub fn resume(&self) {
        match self {
            Server::Embedded(server) => server.resume(),
            Server::Real(_, plane) => plane.front().resume(),
        }
    }

    /// Answers the next `count` requests with 500.
    pub fn fail_next(&self, count: u64) {
        match self {
            Server::Embedded(server) => server.fail_next(count),
            Server::Real(_, plane) => plane.front().fail_next(count),
        }
    }
}

/// Does what blocks, while everything else goes on.
async fn work(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.expect("nothing there panicked");
}

/// The name of the one backup of the real server.
const BACKUP: &str = "backup";
/// Longer than the server takes for one write.
const IN_FLIGHT: Duration = Duration::from_millis(20);
/// Control planes of this process, started when they are needed: tests wait for time to pass more than they
/// compute.
static SHARED: [Shared; 2] = [const { Shared::new() }; 2];
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
