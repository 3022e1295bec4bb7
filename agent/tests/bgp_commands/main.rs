//! `cairn speaker` and `cairn bgp` end to end: the real binary in network namespaces, asked by its
//! own commands.
//!
//! Needs root.

#[path = "../bad_input/api.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod api;
#[path = "../bad_input/pods.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod pods;
#[path = "../bad_input/raw_peer.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod raw_peer;
#[path = "../runtime/mod.rs"]
mod runtime;
#[path = "../bad_input/site.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod site;

mod agent;
mod announced;
mod ask;
mod bfd;
mod commands;
mod drain;
mod example;
mod ready;
mod remembered;
mod repairs;
mod routed;
mod signals;
mod stalled;
mod tables;
