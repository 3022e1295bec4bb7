//! The node's pod network in network namespaces, asked by the plugin's own code over its socket.
//!
//! Needs root.

#[path = "../runtime/mod.rs"]
mod runtime;

mod addresses;
mod changes;
mod foreign;
mod node;
mod restart;
mod socket;
