//! Whether a watch fails for longer than a moment.

use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

use super::feed::{FeedError, QUIET};
use crate::view::{ClusterView, WatchFailure};

/// Whether a watch fails for longer than a moment. A connection that ends, or history that is
/// forgotten, is repaired by the next attempt and is no news.
pub(super) struct Outage {
    remedy: &'static str,
    in_a_row: u32,
    last: Option<Instant>,
    told: Option<WatchFailure>,
}

impl Outage {
    /// `remedy` says what to do about a missing right.
    pub(super) fn new(remedy: &'static str) -> Outage {
        Outage { remedy, in_a_row: 0, last: None, told: None }
    }

    /// Takes a failure in; what to tell about it.
    pub(super) fn failed(&mut self, error: &FeedError) -> Option<WatchFailure> {
        let now = Instant::now();
        let in_a_row = self.last.is_some_and(|last| now.duration_since(last) < QUIET);
        self.in_a_row = if in_a_row { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(now);
        if self.in_a_row < 2 || self.told.is_some() {
            return None;
        }
        self.told = Some(explain(error, self.remedy));
        self.told.clone()
    }

    /// Returns when what was told is over. A watch that goes on where it was cut says nothing until
    /// something changes, so the server itself is asked.
    pub(super) async fn end(&self, client: &Client) {
        match &self.told {
            None => std::future::pending().await,
            Some(WatchFailure::Refused(_)) => tokio::time::sleep(QUIET).await,
            Some(WatchFailure::Unreachable(_)) => loop {
                tokio::time::sleep(PROBE_INTERVAL).await;
                let asked = tokio::time::timeout(PROBE_TIMEOUT, client.apiserver_version()).await;
                if matches!(asked, Ok(Ok(_))) {
                    return;
                }
            },
        }
    }

    /// The watch runs: whether something was told that is over with it.
    pub(super) fn over(&mut self) -> bool {
        (self.in_a_row, self.last) = (0, None);
        self.told.take().is_some()
    }
}

/// Puts into the view that `subject` cannot be watched. Whether that is news.
pub(super) fn begins(view: &mut ClusterView, subject: String, failure: WatchFailure) -> bool {
    let old = view.unwatched.insert(subject, failure.clone());
    old.as_ref() != Some(&failure)
}

/// Takes out of the view that `subject` cannot be watched. Whether it was in it.
pub(super) fn ends(view: &mut ClusterView, subject: &str) -> bool {
    view.unwatched.remove(subject).is_some()
}

fn explain(error: &FeedError, remedy: &'static str) -> WatchFailure {
    if let Some(status) = error.status() {
        let remedy = match status.code {
            403 => remedy,
            404 => ": apply the definitions that `cairn crds` prints",
            _ => "",
        };
        return WatchFailure::Refused(format!("{} ({}){remedy}", status.message, status.code));
    }
    match error {
        // The innermost error is the system's reason; those around it say how requests are made.
        FeedError::Api(error) => {
            let mut reason: &dyn std::error::Error = error;
            while let Some(source) = reason.source() {
                reason = source;
            }
            WatchFailure::Unreachable(reason.to_string())
        }
        FeedError::Ended(_) | FeedError::Silent => {
            WatchFailure::Unreachable("it does not answer in time".into())
        }
        FeedError::NoVersion => WatchFailure::Refused("objects have no resourceVersion".into()),
    }
}

/// How often the API server is asked whether it is back, and how long it may take to answer.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
