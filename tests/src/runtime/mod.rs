//! A node with the real agent and plugin, and those who call plugins: containerd with runc, and libcni.
//!
//! ```text
//!  the node's namespace                                        outside
//!  ┌─ cairn agent ──► the embedded API server                  192.0.2.2, 2001:db8::2
//!  │   ▲ socket in the run directory                                │
//!  │  cairn-cni and others ◄── containerd ◄── the CRI's caller      │ uplink
//!  │                   ◄── libcni                                   │
//!  └─ 192.0.2.1, 2001:db8::1 ───────────────────────────────────────┘
//! ```
//!
//! The namespaces have no names and end with their descriptors. What containerd starts, sandboxes too, is in one
//! process namespace and one mount namespace with `/run` and `/var/lib` of their own, which end with the test.

mod caller;
mod cluster;
mod containerd;
mod node;
mod reach;
mod seen;

pub use caller::{Answer, Attachment, Sandbox};
pub use containerd::Containerd;
pub use node::{NODE, NODE6, Node, OUTSIDE, OUTSIDE6, Pool, path_of};
pub use reach::{Server, Transport};
pub use seen::{addresses, fresh, on, peers, pod_routes, run};
