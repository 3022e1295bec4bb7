//! Bad input, end to end: the real `cairn` in network namespaces. Each case is told in one sentence
//! that says what is wrong and what to do, the rest goes on, and nothing is lost.
//!
//! Needs root; `cairn-cni` must lie beside `cairn`, where `make test` builds it.

#[path = "../runtime/mod.rs"]
mod runtime;

mod api;
mod cluster;
mod file;
mod kernel;
mod peers;
mod pods;
mod raw_peer;
mod rights;
mod site;
