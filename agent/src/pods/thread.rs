//! The pod network on a thread of its own.
//!
//! ```text
//!  plugins ──cni.sock──► thread "pods" ──threads──► kernel
//!  main thread ──PodsHandle──┘   └──API client of its own (annotations)
//! ```
//!
//! The main thread waits for the disk, decodes lists of the whole cluster and plans; a stalled disk holds it
//! up for seconds, and a view of thousands of nodes for tens of milliseconds. A pod's start must not wait for
//! it, as it needs nothing from it.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::oneshot;

use super::{ApiAnnotations, Pods, PodsHandle, PodsOptions};
use crate::{api_client, readiness};

/// A pod network that holds the lock and the socket, and does not serve yet.
#[derive(Debug)]
pub struct PodsThread {
    begin: oneshot::Sender<kube::Config>,
    ended: oneshot::Receiver<()>,
}

impl PodsThread {
    /// As [`Pods::start`], on a new thread in the network namespace of the caller.
    ///
    /// # Errors
    /// Those of [`Pods::start`], or there is no thread to be had.
    pub async fn start(options: PodsOptions) -> anyhow::Result<(PodsHandle, PodsThread)> {
        let (begin, begun) = oneshot::channel();
        let (started, ready) = oneshot::channel();
        // Dropped with the thread, however that ends.
        let (ends, ended) = oneshot::channel::<()>();
        crate::on_own_thread("pods", move || async move {
            let _ends = ends;
            let run_dir = options.run_dir.clone();
            let pods = match Pods::start(options).await {
                Ok((handle, pods)) => {
                    if started.send(Ok(handle)).is_err() {
                        return;
                    }
                    pods
                }
                Err(error) => return drop(started.send(Err(error))),
            };
            // The agent has ended before it served anybody.
            let Ok(config) = begun.await else { return };
            tokio::select! {
                () = serve(pods, config) => {}
                () = readiness::keep_current(run_dir) => {}
            }
        })?;
        let handle = ready.await.context("the pods' thread ended at its start")??;
        Ok((handle, PodsThread { begin, ended }))
    }

    /// Serves requests from now on, with annotations of the API server of `config` where a runtime tells
    /// none. Returns what ends when the thread does.
    pub fn serve(self, config: kube::Config) -> oneshot::Receiver<()> {
        // A thread that has ended is told by the other end.
        let _ = self.begin.send(config);
        self.ended
    }
}

async fn serve(pods: Pods, config: kube::Config) {
    match api_client::client(config) {
        Ok(client) => pods.with_annotations(Arc::new(ApiAnnotations::new(client))).run().await,
        Err(error) => {
            tracing::warn!(%error, "annotations of pods are known only where the runtime tells them");
            pods.run().await;
        }
    }
}
