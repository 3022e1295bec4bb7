//! What AFL++ drives, and how its findings are looked at. scripts/fuzz.sh calls it.
//!
//! The first octet of an input says what the peer is like and in which of two forms the rest comes: as
//! a stream of octets, or as messages without their headers, which spares the fuzzer the markers and
//! lengths. The rest goes through what `cargo test -p cairn-bgp --test mutation` puts its messages
//! through.

#![allow(dead_code, reason = "the modules are those of the tests, which use all of them")]

#[path = "../../bgp/tests/wire/build.rs"]
mod build;
#[path = "../../bgp/tests/mutation/codec.rs"]
mod codec;
mod commands;
#[path = "../../bgp/tests/wire/corpus.rs"]
mod corpus;
#[path = "../../bgp/tests/mutation/drive.rs"]
mod drive;

use std::path::Path;

use cairn_bgp::prefix::Families;
use cairn_bgp::wire::UpdateContext;

use build::{EBGP, IBGP};
use drive::{Scenario, Speaker};

fn main() -> std::io::Result<()> {
    commands::main(run, show, write_seeds)
}

/// Prints the messages of an input.
fn show(input: &[u8]) {
    for message in messages(input).unwrap_or_else(|| vec![input[1..].to_vec()]) {
        println!("{}", build::digits(&message));
    }
}

fn run(input: &[u8]) {
    let Some((&bits, stream)) = input.split_first() else { return };
    let mut speaker = Speaker::new(Scenario::new(bits));
    let Some(messages) = messages(input) else {
        speaker.connect();
        speaker.receive(stream);
        return;
    };
    for message in messages {
        for context in [EBGP, IBGP] {
            let as4 = bits & 6 != 0;
            let extended_next_hop = bits & 8 == 0;
            let path_ids = if bits & 16 == 0 { Families::NONE } else { context.families };
            let context = UpdateContext { as4, extended_next_hop, path_ids, ..context };
            codec::check(&message, &context);
        }
        speaker.connect();
        speaker.receive(&message);
    }
}

/// The messages of an input that has them without headers: type, length of the body, body.
fn messages(input: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (&bits, mut rest) = input.split_first()?;
    if bits & 0x80 == 0 {
        return None;
    }
    let mut messages = Vec::new();
    while let Some((&[code, high, low], behind)) = rest.split_first_chunk::<3>() {
        let octets =
            usize::from(u16::from_be_bytes([high, low])).min(65_535 - 19).min(behind.len());
        let (body, behind) = behind.split_at(octets);
        messages.push(build::message(code, body));
        rest = behind;
    }
    Some(messages)
}

/// Each message of the corpus in both forms.
fn write_seeds(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (at, text) in corpus::ALL.iter().enumerate() {
        let message = corpus::octets(text);
        let body = &message[19..];
        let length = u16::try_from(body.len()).expect("a message").to_be_bytes();
        let scenario = u8::try_from(at % 8).expect("below 8");
        let stream = [&[scenario], message.as_slice()].concat();
        let record = [&[scenario | 0x80, message[18]], length.as_slice(), body].concat();
        std::fs::write(folder.join(format!("{at:02}-stream")), stream)?;
        std::fs::write(folder.join(format!("{at:02}-message")), record)?;
    }
    Ok(())
}
