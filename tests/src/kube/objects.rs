//! Objects of a real server in the words of the embedded one, for callers that wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use cairn_lab::apiserver::PatchType;
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::Refusal;

/// Reads and writes objects, each call as one request. The caller's thread waits: the requests run
/// on another one.
#[derive(Clone)]
pub struct Objects {
    runtime: Handle,
    client: Client,
    /// The version under which `plural.group` is served, once asked for.
    versions: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Objects {
    pub(super) fn new(runtime: Handle, client: Client) -> Objects {
        Objects { runtime, client, versions: Arc::default() }
    }

    /// The object `name` of a resource named `plural` or `plural.group`.
    ///
    /// # Errors
    /// As GET answers.
    pub fn get(&self, resource: &str, space: Option<&str>, name: &str) -> Result<Value, Refusal> {
        self.ask("GET", &format!("{}/{name}", self.path(resource, space)?), None, &Value::Null)
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
        let selector = label_selector.replace('=', "%3D").replace(' ', "%20");
        let path = format!("{}?labelSelector={selector}", self.path(resource, space)?);
        let mut list = self.ask("GET", &path, None, &Value::Null)?;
        let kind = list["kind"].as_str().unwrap_or_default().trim_end_matches("List").to_owned();
        let version = list["apiVersion"].clone();
        let Value::Array(mut items) = list["items"].take() else { return Ok(Vec::new()) };
        for item in &mut items {
            item["apiVersion"] = version.clone();
            item["kind"] = json!(kind);
        }
        Ok(items)
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
        self.ask("POST", &self.path(resource, space)?, None, &object)
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
        let mut path = format!("{}/{name}", self.path(resource, space)?);
        if kind == PatchType::Apply {
            path.push_str("?force=true&fieldManager=cairn-tests");
        }
        self.ask("PATCH", &path, Some(kind), patch)
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
        let path = format!("{}/{name}/status", self.path(resource, space)?);
        self.ask("PATCH", &path, Some(PatchType::Merge), patch)
    }

    /// Deletes an object; returns whether it is gone already, and not held by finalizers.
    ///
    /// # Errors
    /// As DELETE answers.
    pub fn delete(&self, resource: &str, space: Option<&str>, name: &str) -> Result<bool, Refusal> {
        let path = format!("{}/{name}?gracePeriodSeconds=0", self.path(resource, space)?);
        let answer = self.ask("DELETE", &path, None, &Value::Null)?;
        Ok(answer["kind"] == "Status" || answer["metadata"]["deletionTimestamp"].is_null())
    }

    /// Applies objects, and waits until definitions among them are served.
    ///
    /// # Errors
    /// The first that is refused.
    pub fn apply(&self, objects: &[Value]) -> Result<Vec<Value>, Refusal> {
        let mut stored = Vec::new();
        for object in objects {
            let resource = self.resource_of(object)?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let space = object["metadata"]["namespace"].as_str().or(Some("default"));
            stored.push(self.patch(&resource, space, name, PatchType::Apply, object)?);
        }
        for object in &stored {
            if object["kind"] == "CustomResourceDefinition" {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                self.until_served(name);
            }
        }
        Ok(stored)
    }

    /// Makes these the server's definitions: creates what is missing and changes what differs.
    ///
    /// # Panics
    /// When one is refused or never served.
    pub fn define(&self, definitions: &[Value]) {
        self.apply(definitions).unwrap_or_else(|refusal| panic!("{refusal}"));
    }

    /// Deletes whatever tests create: objects of every defined kind, and of the built-in kinds those
    /// that a cluster without nodes and pods lacks.
    ///
    /// # Panics
    /// When something stays.
    pub fn clear(&self) {
        let began = Instant::now();
        while self.sweep() > 0 {
            assert!(began.elapsed() < SERVED_MAX, "objects of an earlier test stay");
        }
    }

    /// The server's last resourceVersion.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn revision(&self) -> u64 {
        let list = self.ask("GET", "/api/v1/nodes?limit=1", None, &Value::Null).expect("a list");
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        version.parse().expect("a resourceVersion")
    }

    /// Deletes once, and returns how many objects there were.
    fn sweep(&self) -> usize {
        let definitions = self.list(DEFINITIONS, None, "").expect("definitions");
        let defined = definitions.iter().filter_map(|crd| crd["metadata"]["name"].as_str());
        let kinds: Vec<&str> = defined.chain(SWEPT.iter().copied()).collect();
        let mut found = 0;
        for kind in kinds {
            // A definition that is on its way out is not served.
            for object in self.list(kind, None, "").unwrap_or_default() {
                let metadata = &object["metadata"];
                let space = metadata["namespace"].as_str();
                let name = metadata["name"].as_str().unwrap_or_default();
                if space.is_some_and(|space| space.starts_with("kube-")) {
                    continue;
                }
                found += 1;
                if !metadata["finalizers"].is_null() {
                    let bare = json!({"metadata": {"finalizers": null}});
                    // It may be gone.
                    let _ = self.patch(kind, space, name, PatchType::Merge, &bare);
                }
                let _ = self.delete(kind, space, name);
            }
        }
        found
    }

    /// Waits until a definition's objects can be listed.
    fn until_served(&self, name: &str) {
        let began = Instant::now();
        while self.list(name, None, "").is_err() {
            assert!(began.elapsed() < SERVED_MAX, "{name} is not served");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `plural.group` of an object's kind, found by what the server serves.
    fn resource_of(&self, object: &Value) -> Result<String, Refusal> {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let root = if version.contains('/') { "/apis" } else { "/api" };
        let served = self.ask("GET", &format!("{root}/{version}"), None, &Value::Null)?;
        let resources = served["resources"].as_array().cloned().unwrap_or_default();
        let found = resources.iter().find(|resource| {
            resource["kind"] == object["kind"]
                && resource["name"].as_str().is_some_and(|name| !name.contains('/'))
        });
        let plural = found.and_then(|resource| resource["name"].as_str());
        let plural = plural.ok_or_else(|| Refusal::other(format!("no kind {}", object["kind"])))?;
        let group = version.split_once('/').map(|(group, _)| group);
        Ok(group.map_or_else(|| plural.to_owned(), |group| format!("{plural}.{group}")))
    }

    /// The path of a resource's collection, in a namespace if the resource has one.
    fn path(&self, resource: &str, space: Option<&str>) -> Result<String, Refusal> {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let served = self.versions.lock().expect("the versions").get(resource).cloned();
        let root = match served {
            Some(root) => root,
            None => {
                let root = self.root(plural, group)?;
                let mut versions = self.versions.lock().expect("the versions");
                versions.insert(resource.to_owned(), root.clone());
                root
            }
        };
        // The last character says whether it is namespaced.
        let (root, namespaced) = match root.strip_suffix('*') {
            Some(root) => (root.to_owned(), true),
            None => (root, false),
        };
        Ok(match space.filter(|_| namespaced) {
            Some(space) => format!("{root}/namespaces/{space}/{plural}"),
            None => format!("{root}/{plural}"),
        })
    }

    /// The path of the version that serves a resource, with a star behind it if it is namespaced.
    fn root(&self, plural: &str, group: &str) -> Result<String, Refusal> {
        let versions = if group.is_empty() {
            vec!["/api/v1".to_owned()]
        } else {
            let group = self.ask("GET", &format!("/apis/{group}"), None, &Value::Null)?;
            let versions = group["versions"].as_array().cloned().unwrap_or_default();
            let text = |version: &Value| version["groupVersion"].as_str().map(str::to_owned);
            versions.iter().filter_map(text).map(|version| format!("/apis/{version}")).collect()
        };
        for version in versions {
            let served = self.ask("GET", &version, None, &Value::Null)?;
            let resources = served["resources"].as_array().cloned().unwrap_or_default();
            if let Some(found) = resources.iter().find(|resource| resource["name"] == plural) {
                let star = if found["namespaced"] == true { "*" } else { "" };
                return Ok(format!("{version}{star}"));
            }
        }
        Err(Refusal::missing())
    }

    fn ask(
        &self,
        method: &str,
        path: &str,
        patch: Option<PatchType>,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let kind = match patch {
            Some(PatchType::Json) => "application/json-patch+json",
            Some(PatchType::Merge) => "application/merge-patch+json",
            Some(PatchType::Strategic) => "application/strategic-merge-patch+json",
            Some(PatchType::Apply) => "application/apply-patch+yaml",
            None => "application/json",
        };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = hyper::Request::builder().method(method).uri(path);
        let request = request.header("content-type", kind).body(body).expect("a request");
        let client = self.client.clone();
        on(&self.runtime, async move {
            let began = Instant::now();
            loop {
                let answer = client.request::<Value>(request.clone()).await;
                let refusal = match answer {
                    Ok(object) => return Ok(object),
                    Err(error) => Refusal::from(error),
                };
                // A server that is ready may still read what it holds of some kind.
                if refusal.code != 429 || began.elapsed() > SERVED_MAX {
                    return Err(refusal);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

/// Runs a future on a runtime whose thread this is not, and waits for what it returns.
pub(super) fn on<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let (told, answer) = mpsc::channel();
    runtime.spawn(async move {
        let _ = told.send(future.await);
    });
    answer.recv().expect("the keeper runs and nothing there panicked")
}

/// Built-in kinds of which tests create objects.
const SWEPT: [&str; 6] =
    ["nodes", "pods", "secrets", "configmaps", "events", "leases.coordination.k8s.io"];
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// How long the server may take to serve a new kind, or to delete.
const SERVED_MAX: Duration = Duration::from_secs(30);
