//! What simulations ask of the server: calls without a socket, copies, and a past to go back to.

use http_body_util::Full;

use bytes::Bytes;
use hyper::{Request, Response};

use super::{ApiServer, Options, Store, http, store};

/// The body of an answer: a document, or a stream of watch events.
pub type ResponseBody = http::Body;

/// The objects of a server at one moment, and how they came about.
#[derive(Clone, Debug)]
pub struct Snapshot(store::Past);

impl ApiServer {
    /// Answers one request as a connection would.
    pub async fn call(&self, request: Request<Bytes>) -> Response<ResponseBody> {
        let Ok(response) = http::answer(self.0.clone(), request.map(Full::new)).await;
        response
    }

    /// Another server with the same kinds and objects and bounds of its own. Kinds that were parsed
    /// once are shared.
    pub fn fork(&self, options: Options) -> ApiServer {
        let state = self.0.lock();
        let mut store = Store::new(options.history_max, options.watch_queue_max);
        store.restore(&state.store.past());
        ApiServer::with(options, store, state.catalog.clone())
    }

    /// Keeps the objects and their history, as `etcdctl snapshot save` does.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.0.lock().store.past())
    }

    /// Goes back to `snapshot`, as a cluster whose etcd is restored: every watch is cut, and later
    /// writes take the numbers of those that are lost. Kinds stay as they are.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut state = self.0.lock();
        state.store.restore(&snapshot.0);
        state.garbage = true;
    }

    /// As [`ApiServer::restore`], with later writes numbered `by` higher and the history before them
    /// forgotten, so that a watch from before gets 410: `etcdutl snapshot restore --bump-revision BY
    /// --mark-compacted`. Objects keep their numbers.
    pub fn restore_raised(&self, snapshot: &Snapshot, by: u64) {
        let mut state = self.0.lock();
        state.store.restore(&snapshot.0);
        state.store.raise(by);
        state.garbage = true;
    }
}
