//! The life of one process: from its end on nothing that it does has an effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio::sync::Notify;

use super::story::Story;

/// A process. Clones are the same.
#[derive(Clone, Debug)]
pub struct Life(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    dead: AtomicBool,
    /// After so many more steps the process ends; negative: it does not.
    fuse: AtomicI64,
    ended: Notify,
    story: Story,
}

impl Life {
    pub fn new(name: String, story: Story) -> Life {
        Life(Arc::new(Inner {
            name,
            dead: AtomicBool::new(false),
            fuse: AtomicI64::new(-1),
            ended: Notify::new(),
            story,
        }))
    }

    /// Ends the process at its step number `steps` from now.
    pub fn light_fuse(&self, steps: usize) {
        self.0.fuse.store(steps as i64, Ordering::Relaxed);
    }

    /// Ends the process now.
    pub fn end(&self) {
        if !self.0.dead.swap(true, Ordering::Relaxed) {
            self.0.ended.notify_waiters();
        }
    }

    pub fn is_over(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }

    /// Whether the process does this step; it may end right before it.
    pub fn takes(&self, step: &str) -> bool {
        if self.is_over() {
            return false;
        }
        let before = self.0.fuse.load(Ordering::Relaxed);
        if before >= 0 {
            self.0.fuse.store(before - 1, Ordering::Relaxed);
        }
        if before == 0 {
            self.0
                .story
                .say(format_args!("{}: the process ends before a step: {step}", self.0.name));
            self.end();
            return false;
        }
        true
    }

    /// Passes a step; for a process that ends, for ever.
    pub async fn step(&self, step: &str) {
        if !self.takes(step) {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) {
        let ended = self.0.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if !self.is_over() {
            ended.await;
        }
    }
}

impl Life {
    /// Whether it is the same process.
    pub fn is(&self, other: &Life) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
