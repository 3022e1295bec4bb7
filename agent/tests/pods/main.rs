//! The node's pod network in network namespaces, asked by the plugin's own code over its socket.
//!
//! Needs root.

mod addresses;
mod changes;
mod foreign;
mod node;
mod restart;
mod socket;
