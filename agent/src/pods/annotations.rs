//! The annotations of pods, for runtimes that do not tell them to the plugin.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use cairn_cni::PodIdentity;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

/// Who knows the annotations of a pod.
pub trait AnnotationSource: fmt::Debug + Send + Sync {
    /// The annotations of `pod`; none when it does not exist. The error is the reason, in a few
    /// words. Takes a few seconds at most.
    fn annotations(
        &self,
        pod: &PodIdentity,
    ) -> BoxFuture<'static, Result<BTreeMap<String, String>, String>>;
}

/// Nobody knows them.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoSource;

impl AnnotationSource for NoSource {
    fn annotations(
        &self,
        _pod: &PodIdentity,
    ) -> BoxFuture<'static, Result<BTreeMap<String, String>, String>> {
        std::future::ready(Err("nobody can be asked for them".to_owned())).boxed()
    }
}

/// The API server, asked for one pod's metadata.
#[derive(Clone)]
pub struct ApiAnnotations(Client);

impl ApiAnnotations {
    /// Asks by `client`.
    pub fn new(client: Client) -> ApiAnnotations {
        ApiAnnotations(client)
    }
}

impl fmt::Debug for ApiAnnotations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiAnnotations")
    }
}

impl AnnotationSource for ApiAnnotations {
    fn annotations(
        &self,
        pod: &PodIdentity,
    ) -> BoxFuture<'static, Result<BTreeMap<String, String>, String>> {
        let (client, pod) = (self.0.clone(), pod.clone());
        async move {
            let (Some(namespace), Some(name)) = (pod.namespace(), pod.name()) else {
                return Ok(BTreeMap::new());
            };
            let pods: Api<Pod> = Api::namespaced(client, namespace);
            let asked = tokio::time::timeout(ANSWER_MAX, pods.get_metadata_opt(name)).await;
            let found = match asked {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => return Err(format!("the API server answers: {error}")),
                Err(_) => return Err("the API server does not answer".into()),
            };
            let Some(found) = found else { return Ok(BTreeMap::new()) };
            let annotations = found.metadata.annotations.unwrap_or_default();
            // The object of a static pod stands for it under another UID.
            let is_mirror = annotations.contains_key("kubernetes.io/config.mirror");
            match (pod.uid(), found.metadata.uid.as_deref()) {
                (Some(asked), Some(found)) if asked != found && !is_mirror => {
                    Err(format!("the pod of that name is another one now, {found}"))
                }
                _ => Ok(annotations),
            }
        }
        .boxed()
    }
}

/// Shorter than a runtime waits for the plugin.
const ANSWER_MAX: Duration = Duration::from_secs(5);
