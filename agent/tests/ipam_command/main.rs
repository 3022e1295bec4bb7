//! `cairn ipam` end to end: the real binary against the embedded API server.
//!
//! Needs root.

#[path = "../bad_input/api.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod api;
#[path = "../bad_input/site.rs"]
#[allow(dead_code, reason = "shared with the tests of bad input")]
mod site;

mod check;
mod fence;
mod objects;
mod release;
mod show;
