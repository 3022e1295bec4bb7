//! What needs another kernel than this machine's, in a virtual machine.

use std::time::Duration;

use cairn_tests::program::built;
use cairn_tests::vm::{self, End, Job};
use serde_json::Value;

#[test]
fn a_job_has_a_kernel_with_ipip_and_its_words_and_exit_code_come_back() {
    let script = "ip link add name probe type ipip local 192.0.2.1 || exit
        ip -json -details link show probe
        echo 'not for the output' >&2
        exit 7";
    let done = vm::run(&Job { script, programs: &[], within: BOOT });
    assert_eq!(done.end, End::Exited(7), "{}", done.console);
    let links: Value = serde_json::from_str(&done.output).expect("JSON of ip");
    assert_eq!(links[0]["linkinfo"]["info_kind"], "ipip", "{links}");
    assert!(done.console.contains("not for the output"), "{}", done.console);
}

#[test]
fn a_job_that_takes_too_long_is_ended_with_its_machine() {
    let done = vm::run(&Job { script: "echo begun; sleep 600", programs: &[], within: BOOT / 3 });
    assert_eq!((done.end, done.output.as_str()), (End::TimedOut, "begun\n"), "{}", done.console);
}

#[test]
fn a_kernel_that_panics_is_told_from_a_job_that_ends() {
    let script = "echo begun; echo c >/proc/sysrq-trigger; sleep 600";
    let done = vm::run(&Job { script, programs: &[], within: BOOT });
    assert_eq!(done.end, End::Crashed, "{}", done.console);
    assert!(done.console.contains("sysrq triggered crash"), "{}", done.console);
}

#[test]
fn pods_reach_each_other_in_ipip() {
    lab("--encap ipip", &["tunnel packets between racks", "cairn.ipip of n1 deleted by hand"]);
}

#[test]
fn pods_reach_each_other_in_ipip_between_racks() {
    lab("--encap ipip-cross-subnet", &["tunnel packets within racks", "cairn.ipip of n1"]);
}

#[test]
fn pods_reach_each_other_in_vxlan() {
    lab("--encap vxlan", &["tunnel packets between racks", "cairn.vxlan of n1 deleted by hand"]);
}

#[test]
fn pods_reach_each_other_as_they_are_and_in_vxlan_without_a_break() {
    lab("--encap none", &["encapsulation changed from None to VXLAN"]);
}

/// Runs `cairn lab` with these options, dual stack; all of its rows must be as expected, and these among
/// them.
fn lab(options: &str, wanted: &[&str]) {
    let script =
        format!("cairn lab --check --output json --verbose --patience 3 --rate 200 {options}");
    let programs = ["cairn", "cairn-cni"].map(built);
    let done = vm::run(&Job { script: &script, programs: &programs, within: LAB });
    let why = || format!("cairn lab {options}: {:?}\n{}\n{}", done.end, done.output, done.console);
    assert_eq!(done.end, End::Exited(0), "{}", why());
    let report: Value = serde_json::from_str(&done.output).expect("the JSON of the lab");
    let rows = report["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["ok"] == true), "{}", why());
    // The last one says that the run came to its end.
    let always = ["pod to pod, IPv4, TCP", "node to pod, IPv6, ICMP", "gone: flow between others"];
    for part in always.iter().chain(wanted) {
        let what = |row: &Value| row["what"].as_str().is_some_and(|what| what.contains(part));
        assert!(rows.iter().any(what), "no row says {part:?}: {}", why());
    }
    println!("cairn lab {options}: {} rows in {} s", rows.len(), done.took.as_secs());
}

const BOOT: Duration = Duration::from_secs(60);
const LAB: Duration = Duration::from_secs(300);
