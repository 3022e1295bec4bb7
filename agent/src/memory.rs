//! Gives memory that is free back to the kernel.

use std::time::Duration;

/// Gives back what is free, now and then, for as long as it is polled.
///
/// Lists come and go in bursts: of every kind at the start, and of the whole cluster on the agent that
/// leads. glibc keeps what they leave between things that live on, and an agent would for ever be as
/// large as in its largest moment.
pub async fn give_back() {
    loop {
        tokio::time::sleep(INTERVAL).await;
        trim();
    }
}

fn trim() {
    // SAFETY: it takes no pointer and touches free memory only, under the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// About as often as the leader looks at the cluster. It takes less than a millisecond.
const INTERVAL: Duration = Duration::from_secs(60);
