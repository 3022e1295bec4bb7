//! Millions of damaged messages through the codec, and through decoder, session and RIB together:
//! nothing panics, and what comes of a message is bounded by it.
//!
//! `CAIRN_MUTATION_SEED` repeats a run; a failure prints the seed, the round and the octets.
//! `make fuzz` does the same for hours, guided by coverage.

#[path = "wire/build.rs"]
mod build;
#[path = "mutation/codec.rs"]
mod codec;
#[path = "wire/corpus.rs"]
mod corpus;
#[path = "mutation/drive.rs"]
mod drive;
#[path = "mutation/mutate.rs"]
mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};

use drive::{Scenario, Speaker};
use mutate::Random;

#[test]
fn codec() {
    let seed = seed();
    let mut random = Random::new(seed);
    let seeds = seeds();
    let attributes = mutate::attribute_pool(&seeds);
    let mut seen = codec::Seen::default();
    for round in 0..CODEC_ROUNDS {
        let octets = match random.below(2) {
            0 => random.mutated(&seeds),
            _ => random.assembled(&attributes),
        };
        let context = random.context();
        match catch_unwind(|| codec::check(&octets, &context)) {
            Ok(sort) => seen.count(sort),
            Err(_) => panic!(
                "CAIRN_MUTATION_SEED={seed} round {round}: {} in {context:?}",
                build::digits(&octets)
            ),
        }
    }
    println!("CAIRN_MUTATION_SEED={seed}: {seen:?}");
    // The mutations reach every kind of outcome, else they prove nothing.
    assert!(seen.used > CODEC_ROUNDS / 10 && seen.withdrawn > CODEC_ROUNDS / 10, "{seen:?}");
    assert!(seen.reset > CODEC_ROUNDS / 10 && seen.framing > CODEC_ROUNDS / 100, "{seen:?}");
}

#[test]
fn speaker() {
    let seed = seed();
    let seeds = seeds();
    let attributes = mutate::attribute_pool(&seeds);
    let mut all = drive::Seen::default();
    for lifetime in 0..SPEAKERS {
        let mut random = Random::new(seed.wrapping_add(lifetime));
        let bits = random.next() as u8;
        let mut octets = Vec::new();
        let mut speaker = Speaker::new(Scenario::new(bits));
        let lived = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..MESSAGES {
                octets = match random.below(5) {
                    0 | 1 => random.mutated(&seeds),
                    2 => seeds[random.below(seeds.len())].clone(),
                    _ => random.assembled(&attributes),
                };
                match random.below(64) {
                    // Before the session is established, too.
                    0 => speaker.accept(),
                    _ => speaker.connect(),
                }
                // In two parts, sometimes.
                let at = if random.below(8) == 0 { random.below(octets.len()) } else { 0 };
                let (head, tail) = octets.split_at(at);
                speaker.receive(head);
                speaker.receive(tail);
            }
        }));
        if lived.is_err() {
            let octets = build::digits(&octets);
            let seed = seed.wrapping_add(lifetime);
            panic!("CAIRN_MUTATION_SEED={seed} scenario {bits}, last message: {octets}");
        }
        all = all.and(speaker.seen);
    }
    println!("CAIRN_MUTATION_SEED={seed}: {all:?}");
    let messages = usize::try_from(SPEAKERS).unwrap() * MESSAGES;
    assert!(all.established > messages / 20 && all.malformed > messages / 20, "{all:?}");
    assert!(all.updates > messages / 10 && all.errors > messages / 20, "{all:?}");
    assert!(all.refreshes > messages / 1000 && all.notifications > messages / 1000, "{all:?}");
    assert!(all.told > messages / 20, "{all:?}");
}

fn seed() -> u64 {
    match std::env::var("CAIRN_MUTATION_SEED") {
        Ok(seed) => seed.parse().expect("CAIRN_MUTATION_SEED is a number"),
        Err(_) => 0x5eed_0001,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    corpus::ALL.iter().map(|text| corpus::octets(text)).collect()
}

/// Some seconds each at the test profile's optimization.
const CODEC_ROUNDS: usize = 1_500_000;
/// Speakers that live one after another, so that tables stay small.
const SPEAKERS: u64 = 500;
/// Messages that each of them gets.
const MESSAGES: usize = 1_000;
