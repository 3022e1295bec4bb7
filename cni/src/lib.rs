//! The CNI plugin of Cairn and what it and the agent say to each other.
//!
//! ```text
//! kubelet / containerd ──environment, stdin──► cairn-cni ──Request + netns descriptor──► agent
//!                      ◄──result or error on stdout──    ◄──────────Response───────────
//! ```
//!
//! The plugin decides nothing and changes nothing: it checks what the runtime handed it, opens the
//! container's network namespace (which the agent, in its own mount namespace, cannot), passes the
//! descriptor to the agent and prints the agent's answer in the form of the asked CNI version. The one
//! exception is a DEL while there is no agent ([`orphan`]). It must stay a small static binary: no async
//! runtime.

pub mod asked;
pub mod config;
pub mod error;
pub mod invocation;
pub mod names;
pub mod orphan;
pub mod plugin;
pub mod protocol;
pub mod result;
pub mod served;

pub use config::{CniVersion, NetworkConfig};
pub use error::{Code, Error};
pub use names::{ContainerId, InterfaceName, MacAddress, PodIdentity};

/// Where the agent listens unless the network configuration says otherwise.
pub const SOCKET_PATH: &str = "/run/cairn/cni.sock";
