//! The embedded API server as real clients see it: kube-rs and kubectl over HTTP. What it has in
//! common with the real one runs against that, too.

use std::net::SocketAddr;
use std::time::Duration;

use cairn_lab::apiserver::{ApiServer, Options};
use cairn_tests::kube::{Api, Cluster, Server};
use cairn_tests::on_both_apis;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};

mod apply;
mod cairn;
mod garbage;
mod kubectl;
mod objects;
mod outage;
mod schema;
mod simulation;
mod tables;
mod watches;

/// Our own CRDs: a cluster-scoped Pool with rules and a namespaced Thing without.
const CRDS: &str = include_str!("crds.yaml");
/// What no local answer takes longer than.
const PATIENCE: Duration = Duration::from_secs(10);

/// A served server with the test CRDs, and a client of it.
struct World {
    cluster: Cluster,
    client: Client,
}

impl std::ops::Deref for World {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl World {
    async fn start(api: Api) -> World {
        match api {
            Api::Embedded => World::new(),
            Api::Real => World::of(Cluster::real(&definitions()).await),
        }
    }

    fn new() -> World {
        World::with(Options::default())
    }

    fn with(options: Options) -> World {
        World::of(Cluster::embedded_with(options, &definitions()))
    }

    fn of(cluster: Cluster) -> World {
        let client = client_of(cluster.serving.address());
        World { cluster, client }
    }

    /// The embedded server itself.
    fn embedded(&self) -> &ApiServer {
        match &self.server {
            Server::Embedded(server) => server,
            Server::Real(..) => panic!("this test is about the embedded server"),
        }
    }

    fn pools(&self) -> kube::Api<DynamicObject> {
        kube::Api::all_with(self.client.clone(), &pool_resource())
    }

    fn things(&self) -> kube::Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("test.cairn.network", "v1", "Thing");
        kube::Api::default_namespaced_with(
            self.client.clone(),
            &ApiResource::from_gvk_with_plural(&kind, "things"),
        )
    }

    /// Sends a request as it is and returns code, Warning headers and body.
    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Vec<String>, Value) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.serving.address()).await.unwrap();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: api\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        request.push_str(body);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.lines().any(|line| line == "transfer-encoding: chunked");
        let body = if chunked { unchunked(body) } else { body.to_owned() };
        let warnings = head
            .lines()
            .filter_map(|line| line.strip_prefix("warning: ").map(str::to_owned))
            .collect();
        (code, warnings, serde_json::from_str(&body).unwrap_or_else(|_| json!(body)))
    }
}

/// The body of an answer in chunks.
fn unchunked(mut chunks: &str) -> String {
    let mut body = String::new();
    while let Some((length, rest)) = chunks.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        body.push_str(&rest[..length]);
        chunks = &rest[(length + 2).min(rest.len())..];
    }
    body
}

fn definitions() -> Vec<Value> {
    serde_saphyr::from_multiple(CRDS).expect("the test CRDs are YAML")
}

fn client_of(address: SocketAddr) -> Client {
    let uri = format!("http://{address}").parse().unwrap();
    Client::try_from(Config::new(uri)).expect("a plain HTTP client")
}

fn pool_resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("test.cairn.network", "v1alpha1", "Pool");
    ApiResource::from_gvk_with_plural(&kind, "pools")
}

/// A Pool as a client writes it.
fn pool(name: &str, cidr: &str) -> DynamicObject {
    dynamic(json!({
        "apiVersion": "test.cairn.network/v1alpha1", "kind": "Pool",
        "metadata": {"name": name}, "spec": {"cidr": cidr},
    }))
}

fn dynamic(value: Value) -> DynamicObject {
    serde_json::from_value(value).expect("an object")
}

/// The refusal in a failed request.
fn refused<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> kube::core::Status {
    match result {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
