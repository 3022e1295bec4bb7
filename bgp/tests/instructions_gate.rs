//! The gate of `make bench-bgp-instr` fails when it has to.

#[path = "../benches/instructions/gate.rs"]
mod gate;

use gate::{Judgement, Record, change, judge};

fn record(toolchain: &str, counts: &[(&str, u64)]) -> Record {
    let counts = counts.iter().map(|(name, count)| ((*name).into(), *count)).collect();
    Record { toolchain: toolchain.into(), counts }
}

#[test]
fn only_growth_beyond_five_percent_fails() {
    let recorded = record("a", &[("decode", 1000), ("encode", 2000), ("rib", 3000)]);
    let counted = record("a", &[("decode", 1050), ("encode", 1900), ("rib", 3000)]);
    assert_eq!(judge(&recorded, &counted), Judgement::default());

    let counted = record("a", &[("decode", 1051), ("encode", 1898), ("rib", 3000)]);
    let Judgement { failures, remarks } = judge(&recorded, &counted);
    assert!(failures.len() == 1 && remarks.len() == 1, "{failures:?} {remarks:?}");
    assert!(failures[0].starts_with("decode takes 5.1 % more: 1000 "), "{failures:?}");
    assert!(remarks[0].starts_with("encode takes 5.1 % less: 2000 "), "{remarks:?}");
    assert!(remarks[0].contains("CAIRN_BLESS=1"), "{remarks:?}");
    assert!((change(1000, 1051) - 0.051).abs() < 1e-9);
}

#[test]
fn a_workload_comes_and_goes_with_its_record() {
    let recorded = record("a", &[("decode", 1000)]);
    let counted = record("a", &[("encode", 1000)]);
    let Judgement { failures, remarks } = judge(&recorded, &counted);
    assert_eq!(
        failures,
        ["encode is not in the record", "decode is in the record and was not counted"]
    );
    assert!(remarks.is_empty(), "{remarks:?}");
}

#[test]
fn with_another_toolchain_nothing_fails_and_that_is_said() {
    let recorded = record("rustc 1.95.0", &[("decode", 1000)]);
    let counted = record("rustc 1.96.0", &[("decode", 2000)]);
    let Judgement { failures, remarks } = judge(&recorded, &counted);
    assert!(failures.is_empty(), "{failures:?}");
    assert!(remarks[0].starts_with("decode takes 100.0 % more"), "{remarks:?}");
    assert!(remarks[1].contains("rustc 1.95.0, this is rustc 1.96.0"), "{remarks:?}");
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let written = record("rustc 1.95.0 (5980 2026-04-14)", &[("decode", 1000), ("encode", 7)]);
    assert_eq!(written.to_string().parse(), Ok(written));
    for wrong in ["decode", "decode x", "decode 0", "decode -1", ""] {
        assert!(format!("toolchain a\n{wrong}\n").parse::<Record>().is_err(), "{wrong}");
    }
}

#[test]
fn the_record_of_the_tree_can_be_read() {
    let record: Record = include_str!("../benches/instructions/record.txt").parse().unwrap();
    assert!(!record.toolchain.is_empty() && !record.counts.is_empty(), "{record:?}");
}
