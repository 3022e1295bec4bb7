//! Annotations that the runtime does not tell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_agent::pods::AnnotationSource;
use cairn_cni::protocol::{AddRequest, Response};
use cairn_cni::{Code, PodIdentity};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::node::{IntoAddresses, Node, POOLS, dual, ip, removal, request, v4};

/// Answers what it was told, and counts.
#[derive(Debug)]
struct Source(Mutex<(Annotations, u32)>);

type Annotations = Result<BTreeMap<String, String>, String>;

impl AnnotationSource for Source {
    fn annotations(&self, _: &PodIdentity) -> BoxFuture<'static, Annotations> {
        let mut told = self.0.lock().unwrap();
        told.1 += 1;
        std::future::ready(told.0.clone()).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn annotations_that_the_runtime_does_not_tell_are_asked_for_and_never_guessed() {
    let source = Arc::new(Source(Mutex::new((Err("the API server does not answer".into()), 0))));
    let Node { kernel, calls, .. } = &Node::asking(source.clone(), dual()).await;
    let (code, msg) = calls.add(request("c1", None), ()).await.into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(msg.contains("the API server does not answer"), "{msg}");
    assert!(kernel.held().is_empty());
    source.0.lock().unwrap().0 = Ok(BTreeMap::from([(POOLS.to_owned(), "b".to_owned())]));
    let held = calls.add(request("c1", None), ()).await.into_addresses();
    assert_eq!(held, Ok(vec![ip("10.1.0.0")]));
    assert_eq!(calls.add(request("c1", None), ()).await.into_addresses(), held);
    assert_eq!(source.0.lock().unwrap().1, 2, "an interface that is there needs no answer");
    // Told ones need no question, and what is no pod has none.
    assert!(calls.add(request("c2", Some(&[])), ()).await.into_addresses().is_ok());
    let no_pod = AddRequest { pod: PodIdentity::default(), ..request("c3", None) };
    assert!(calls.add(no_pod, ()).await.into_addresses().is_ok());
    assert_eq!(source.0.lock().unwrap().1, 2);
}

/// Answers never.
#[derive(Debug)]
struct Silent;

impl AnnotationSource for Silent {
    fn annotations(&self, _: &PodIdentity) -> BoxFuture<'static, Annotations> {
        std::future::pending().boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn neither_waits_an_add_for_annotations_that_nobody_needs() {
    let Node { kernel, calls, .. } = &Node::asking(Arc::new(Silent), v4("10.0.0.0/30")).await;
    let add = |pod: &str| {
        let (calls, request) = (calls.clone(), request(pod, None));
        tokio::spawn(async move { calls.add(request, ()).await })
    };
    let (deleted, hung_up) = (add("c1"), add("c2"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!deleted.is_finished());
    hung_up.abort();
    for pod in ["c1", "c2"] {
        let removed = tokio::time::timeout(Duration::from_secs(1), calls.del(removal(pod))).await;
        assert_eq!(removed, Ok(Response::Done), "{pod}");
    }
    let (code, _) = deleted.await.unwrap().into_addresses().unwrap_err();
    assert_eq!(code, Code::TryAgainLater);
    assert!(kernel.held().is_empty());
}

/// Tells that there are none, after a time.
#[derive(Debug)]
struct Late(Duration);

impl AnnotationSource for Late {
    fn annotations(&self, _: &PodIdentity) -> BoxFuture<'static, Annotations> {
        tokio::time::sleep(self.0).map(|()| Ok(BTreeMap::new())).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_that_annotations_take_is_not_given_twice() {
    for (late, refused) in [(6, 10), (14, 14)] {
        let source = Arc::new(Late(Duration::from_secs(late)));
        let node = Node::asking(source, v4("10.0.0.0/32")).await;
        node.add("held", &[]).await.unwrap();
        let start = tokio::time::Instant::now();
        let outcome = node.calls.add(request("c1", None), ()).await.into_addresses();
        let (code, msg) = outcome.unwrap_err();
        assert_eq!((code, start.elapsed().as_secs()), (Code::TryAgainLater, refused));
        assert!(msg.contains("are in use"), "{msg}");
        // Late as it may be, who can be served is.
        let served = node.calls.clone();
        let served = tokio::spawn(async move { served.add(request("c2", None), ()).await });
        node.del("held").await;
        assert_eq!(served.await.unwrap().into_addresses(), Ok(vec![ip("10.0.0.0")]));
    }
}
