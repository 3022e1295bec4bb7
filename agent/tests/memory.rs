//! What the allocator keeps of what a thread had. One test: another one beside it would be counted, too.

#![cfg(target_env = "gnu")]

use std::fs::File;
use std::io::Read;

use cairn_agent::memory;

/// Resident memory in octets, without an allocation: even one that is freed at once would stand in the way.
fn resident() -> usize {
    let mut buffer = [0; 128];
    let mut file = File::open("/proc/self/statm").expect("the kernel's numbers");
    let octets = file.read(&mut buffer).expect("a line");
    let line = std::str::from_utf8(&buffer[..octets]).expect("numbers");
    let resident = line.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    resident.expect("pages") * 4096
}

/// What stays of some 50 MB in pieces that a thread had, as the one of the speaker has routes.
fn left<const OCTETS: usize>(before: usize) -> usize {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    let had = std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::spawn(memory::give_back());
            tokio::spawn(memory::give_back_own());
            // The allocator learns from it to keep twice as much, where it may.
            drop(std::hint::black_box(vec![1_u8; 30 << 20]));
            let count = (50 << 20) / OCTETS;
            let pieces: Vec<Box<[u8; OCTETS]>> =
                (0..count).map(|_| Box::new([1; OCTETS])).collect();
            assert!(resident() > before + (40 << 20), "it takes memory");
            drop(pieces);
            tokio::time::sleep(std::time::Duration::from_secs(61)).await;
            resident().saturating_sub(before)
        })
    });
    had.join().expect("it ends")
}

#[test]
fn a_thread_keeps_little_of_what_it_had() {
    // SAFETY: the only other thread waits for this one.
    unsafe { memory::keep_little() };
    let before = resident();
    for round in 0..3 {
        let left = [
            left::<40>(before),
            left::<96>(before),
            left::<200>(before),
            left::<1000>(before),
            left::<70_000>(before),
        ];
        assert!(left.iter().all(|left| *left < 4 << 20), "round {round}: {left:?}");
    }
}
