//! Gives memory that is free back to the kernel.

use std::time::Duration;

/// Has the allocator keep little of what is free. Called before there are threads.
///
/// glibc raises both bounds with what it has seen, to as much as 64 MiB, and [`give_back`] leaves the end of every
/// heap alone but the main thread's: a speaker whose peers had withdrawn a million routes kept 30 MB.
pub fn keep_little() {
    // SAFETY: it takes no pointer and sets numbers that nobody else reads yet.
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
/// About as often as the leader looks at the cluster. It takes less than a millisecond.
const INTERVAL: Duration = Duration::from_secs(60);

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").expect("the kernel's numbers");
        let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
        resident.expect("pages") * 4096
    }

    /// What stays of 48 MB in small pieces that a thread had, as the one of the speaker has routes.
    fn left() -> usize {
        let had = std::thread::spawn(|| {
            // The allocator learns from it to keep twice as much.
            drop(std::hint::black_box(vec![1_u8; 30 << 20]));
            let before = resident();
            let pieces: Vec<Box<[u8; 96]>> = (0..450_000).map(|_| Box::new([1; 96])).collect();
            assert!(resident() > before + (40 << 20), "it takes memory");
            drop(pieces);
            trim();
            resident().saturating_sub(before)
        });
        had.join().expect("it ends")
    }

    /// Other tests take memory meanwhile, but not each time.
    #[test]
    fn a_thread_keeps_nothing_of_what_it_had() {
        keep_little();
        let left: Vec<usize> = (0..3).map(|_| left()).collect();
        assert!(left.iter().any(|left| *left < 12 << 20), "{left:?}");
    }
}
