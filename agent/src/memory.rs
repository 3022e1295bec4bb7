//! Gives memory that is free back to the kernel.

use std::time::Duration;

/// Has the allocator keep little of what is free. glibc raises these bounds with what it has seen, to tens of MB.
///
/// # Safety
/// There is no other thread yet that allocates.
pub unsafe fn keep_little() {
    // SAFETY: these are numbers, which nobody else reads yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_OCTETS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_OCTETS);
    }
}

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

/// Gives back what is free at the end of the calling thread's own heap, now and then, for as long as it is polled.
///
/// [`give_back`] does not: glibc does it when a piece of some size is freed on such a heap, and looks at what small
/// pieces have left then, too. Without it the thread of a speaker whose peers had withdrawn a million routes
/// kept 30 MB.
pub async fn give_back_own() {
    loop {
        tokio::time::sleep(INTERVAL).await;
        drop(std::hint::black_box(Vec::<u8>::with_capacity(PIECE_OCTETS)));
    }
}

fn trim() {
    // SAFETY: it takes no pointer and touches free memory only, under the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What is free at the end of a heap before it is given back, and from what size on an allocation is a mapping
/// of its own. Neither a table of a million routes nor many small ones take longer to come for it.
#[cfg(target_env = "gnu")]
const KEPT_OCTETS: libc::c_int = 1 << 20;
/// Enough for glibc to look at its heap, and no mapping of its own.
const PIECE_OCTETS: usize = 512 << 10;
/// About as often as the leader looks at the cluster. It takes less than a millisecond.
const INTERVAL: Duration = Duration::from_secs(60);
