//! The last good view of the cluster, for a process that starts while the API server is away.
//!
//! ```text
//! watches ──ClusterView──► keep() ──debounced──► view.json ──read()──► the next process's first view
//! ```
//!
//! It is written when every kind has been listed, and not while history is being listed anew. As
//! with [`crate::ipam::disk`], it counts under the boot id, node and format that wrote it only. Where
//! it is missing or unusable the agent starts as on the machine's first day, and waits for the API.
//! Passwords are not in it: a peer that needs one waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::ipam::Storage;
use crate::ipam::disk::{self, Found, Owner};
use crate::view::ClusterView;

/// The view that an earlier process of this boot has left.
pub fn read(storage: &dyn Storage, owner: &Owner) -> Option<ClusterView> {
    match disk::read(storage, owner, VIEW, FORMAT..=FORMAT) {
        Found::Document(view) => Some(view),
        Found::Nothing => None,
        Found::Unusable(reason) => {
            tracing::warn!(
                "{VIEW} of the run directory is not used: {reason}; nothing is known of the \
                 cluster before the API server answers"
            );
            None
        }
    }
}

/// Writes each view that differs in what is kept, at most one in `INTERVAL`, until the watches end.
pub async fn keep(
    mut views: watch::Receiver<Arc<ClusterView>>,
    storage: Arc<dyn Storage>,
    owner: Owner,
) {
    let mut written: Option<u64> = None;
    while views.changed().await.is_ok() {
        let view = views.borrow_and_update().clone();
        if !view.synced {
            continue;
        }
        // Serialising is the price of knowing whether it differs: passwords and failures do not count.
        match disk::write_if_new(storage.as_ref(), &owner, VIEW, FORMAT, view.as_ref(), written) {
            Ok(checksum) => written = Some(checksum),
            Err(error) => {
                tracing::warn!(
                    "cannot write {VIEW} in the run directory ({error}): an agent that starts while \
                     the API server is away would know an older cluster; see that the disk has room"
                );
                written = None;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Between two writes.
const INTERVAL: Duration = Duration::from_secs(2);
const VIEW: &str = "view.json";
/// Raised by every change of what stands in it.
const FORMAT: u32 = 3;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::Mutex;

    use cairn_bgp::config::Password;
    use cairn_ipam::Rules;
    use serde_json::json;

    use super::*;
    use crate::view::{Namespace, PeerNode, WatchFailure};

    /// The documents that were written, in order.
    #[derive(Debug, Default)]
    struct Writes(Mutex<Vec<Vec<u8>>>);

    impl Writes {
        fn count(&self) -> usize {
            self.0.lock().expect("no panic").len()
        }
    }

    impl Storage for Writes {
        fn read(&self, _name: &str) -> io::Result<Option<Vec<u8>>> {
            Ok(self.0.lock().expect("no panic").last().cloned())
        }

        fn write(&self, name: &str, document: &[u8]) -> io::Result<()> {
            assert_eq!(name, "view.json");
            self.0.lock().expect("no panic").push(document.to_vec());
            Ok(())
        }
    }

    fn owner(boot_id: &str) -> Owner {
        Owner { node: "n1".into(), boot_id: boot_id.into(), rules: Rules::ALL }
    }

    fn known() -> ClusterView {
        let object = |value| serde_json::from_value(value).expect("an object");
        let pool = json!({
            "apiVersion": "cairn.network/v1alpha1", "kind": "IPPool",
            "metadata": {"name": "p", "uid": "u"}, "spec": {"cidr": "10.0.0.0/16"},
        });
        let ipv4 = Some(Ipv4Addr::new(192, 0, 2, 2));
        let peer =
            PeerNode { asn: 64512, ipv4, ipv6: Some(Ipv6Addr::LOCALHOST), no_reflector: true };
        let namespace = Namespace { labels: BTreeMap::new(), pools: Some("p".into()) };
        ClusterView {
            synced: true,
            epoch: 3,
            node: object(json!({"metadata": {"name": "n1", "uid": "nu"}})),
            pools: BTreeMap::from([(
                "p".to_owned(),
                serde_json::from_value(pool).expect("an IPPool"),
            )]),
            own_bgp_node: serde_json::from_value(json!({
                "addresses": ["192.0.2.1"], "asn": 64512, "routerID": "192.0.2.1",
                "topology": {"topology.kubernetes.io/zone": "a"},
            }))
            .expect("a spec"),
            peer_nodes: Arc::new(BTreeMap::from([("n2".into(), peer)])),
            stands: true,
            namespaces: Arc::new(BTreeMap::from([("default".to_owned(), Arc::new(namespace))])),
            passwords: BTreeMap::from([(
                "tor".to_owned(),
                BTreeMap::from([("key".to_owned(), Password(Arc::from("cairn-secret")))]),
            )]),
            unwatched: BTreeMap::from([(
                "Node".to_owned(),
                WatchFailure::Unreachable("away".into()),
            )]),
            ..ClusterView::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_is_found_again_without_passwords_and_under_its_boot_only() {
        let storage = Arc::new(Writes::default());
        let (views, seen) = watch::channel(Arc::new(ClusterView::default()));
        let writer = tokio::spawn(keep(seen, storage.clone(), owner("b1")));
        views.send_replace(Arc::new(known()));
        tokio::time::sleep(INTERVAL).await;
        let whole = ClusterView {
            synced: false,
            epoch: 0,
            stands: false,
            passwords: BTreeMap::new(),
            unwatched: BTreeMap::new(),
            ..known()
        };
        assert_eq!(read(storage.as_ref(), &owner("b1")), Some(whole));
        assert_eq!(read(storage.as_ref(), &owner("b2")), None);
        let bytes = storage.0.lock().expect("no panic").concat();
        assert!(!String::from_utf8_lossy(&bytes).contains("cairn-secret"));
        let half = bytes.split_at(bytes.len() / 2).0.to_vec();
        storage.0.lock().expect("no panic").push(half);
        assert_eq!(read(storage.as_ref(), &owner("b1")), None);
        drop(views);
        writer.await.expect("it ends with the watches");
    }

    #[tokio::test(start_paused = true)]
    async fn views_that_are_not_whole_or_the_same_are_not_written_and_others_not_too_often() {
        let storage = Arc::new(Writes::default());
        let (views, seen) = watch::channel(Arc::new(ClusterView::default()));
        tokio::spawn(keep(seen, storage.clone(), owner("b1")));
        views.send_replace(Arc::new(ClusterView { synced: false, ..known() }));
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(storage.count(), 0, "not every kind is listed");
        views.send_replace(Arc::new(known()));
        tokio::time::sleep(INTERVAL).await;
        views.send_replace(Arc::new(ClusterView { passwords: BTreeMap::new(), ..known() }));
        tokio::time::sleep(INTERVAL).await;
        assert_eq!(storage.count(), 1, "nothing that is kept differs");
        for number in 0..100 {
            let pools = BTreeMap::from([(number.to_string(), known().pools["p"].clone())]);
            views.send_replace(Arc::new(ClusterView { pools, ..known() }));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(2 * INTERVAL).await;
        assert_eq!(storage.count(), 3, "the first of a burst and its last");
        let last = read(storage.as_ref(), &owner("b1")).expect("a view");
        assert!(last.pools.contains_key("99"));
    }
}
