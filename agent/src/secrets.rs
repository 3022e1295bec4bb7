//! The passwords of BGPPeers, from the Secrets of Cairn's own namespace.
//!
//! A node reads what it needs and nothing else: one watch a Secret that a BGPPeer of this node names,
//! by the Secret's name, so that a Role with `resourceNames` is enough; of the Secret only the keys
//! that are named are kept. Without the right to read them the agent goes on, and the peers with
//! passwords keep their old ones. Values are in memory only, and never in a log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_api::SecretKeyRef;
use cairn_bgp::config::Password;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::task::AbortHandle;

use crate::view::{ClusterView, WatchFailure};
use crate::watch::{Known, Recovery, Subject, Watches};

/// The keys of each Secret that the BGPPeers of this node name.
pub fn wanted(view: &ClusterView) -> BTreeMap<String, BTreeSet<String>> {
    let labels = view.node.as_ref().map(|node| node.metadata.labels.clone().unwrap_or_default());
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for peer in view.bgp_peers.values() {
        let selected = match (&peer.spec.node_selector, &labels) {
            (Some(selector), Some(labels)) => selector.matches(labels),
            // Without its Node it is not known what the node is: what was read stays.
            (None, _) | (Some(_), None) => true,
        };
        if let Some(SecretKeyRef { name, key }) = peer.spec.password_secret_ref.as_ref()
            && selected
        {
            wanted.entry(name.clone()).or_default().insert(key.clone());
        }
    }
    wanted
}

/// The watches of Secrets.
pub(crate) struct Secrets {
    watches: Watches,
    namespace: String,
    followed: BTreeMap<String, Followed>,
    /// The number of the next watch, so that what one that has ended still tells is known.
    next: u64,
}

struct Followed {
    keys: BTreeSet<String>,
    watch: u64,
    task: AbortHandle,
}

impl Secrets {
    pub(crate) fn new(watches: Watches, namespace: String) -> Secrets {
        Secrets { watches, namespace, followed: BTreeMap::new(), next: 0 }
    }

    /// Whether a watch with this number is still wanted.
    pub(crate) fn follows(&self, watch: u64) -> bool {
        self.followed.values().any(|followed| followed.watch == watch)
    }

    /// Begins and ends watches as the peers in `view` want it; what is read no more is forgotten.
    pub(crate) fn follow(&mut self, view: &mut ClusterView) {
        let mut wanted = wanted(view);
        if wanted.len() > SECRETS_MAX {
            let text = format!(
                "BGPPeers of this node name {} of them: only the first {SECRETS_MAX} are read; \
                 put more keys into one Secret",
                wanted.len()
            );
            view.unwatched.insert(ALL.into(), WatchFailure::Refused(text));
            wanted = wanted.into_iter().take(SECRETS_MAX).collect();
        } else {
            view.unwatched.remove(ALL);
        }
        self.followed.retain(|name, followed| {
            let stays = wanted.get(name) == Some(&followed.keys);
            if !stays {
                followed.task.abort();
                view.unwatched.remove(&subject(name));
            }
            // With other keys it is watched again, and what is known of it stands until then.
            stays || wanted.contains_key(name)
        });
        view.passwords.retain(|name, _| wanted.contains_key(name));
        for (name, keys) in wanted {
            if self.followed.get(&name).is_none_or(|followed| followed.keys != keys) {
                let watch = self.next;
                self.next += 1;
                let task = self.start(&name, keys.clone(), watch);
                self.followed.insert(name, Followed { keys, watch, task });
            }
        }
    }

    fn start(&self, name: &str, keys: BTreeSet<String>, watch: u64) -> AbortHandle {
        let subject = Subject {
            api: Api::namespaced(self.watches.client.clone(), &self.namespace),
            fields: Some(format!("metadata.name={name}")),
            keep: Box::new(move |found| chosen(found, &keys)),
            name: subject(name),
            remedy: ": apply the Role cairn-agent of Cairn's namespace and its binding",
            recovery: Recovery::Resume,
            secret: Some(watch),
        };
        let secret = name.to_owned();
        self.watches.follow(subject, move |known: &mut Known, change| {
            let passwords = &mut known.view.passwords;
            let new = change.into_one();
            let differs = passwords.get(&secret) != new.as_ref();
            match new {
                Some(values) => drop(passwords.insert(secret.clone(), values)),
                None => drop(passwords.remove(&secret)),
            }
            differs
        })
    }
}

/// The values of `keys` that are text.
fn chosen(secret: Secret, keys: &BTreeSet<String>) -> BTreeMap<String, Password> {
    let values = secret.data.unwrap_or_default().into_iter();
    values
        .filter(|(key, _)| keys.contains(key))
        .filter_map(|(key, value)| {
            let text = String::from_utf8(value.0).ok()?;
            Some((key, Password(Arc::from(text))))
        })
        .collect()
}

fn subject(name: &str) -> String {
    format!("Secret {name}")
}

/// Secrets that an agent reads at most: each is a watch of its own.
const SECRETS_MAX: usize = 256;
const ALL: &str = "Secrets";
