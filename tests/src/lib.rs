//! What tests that span crates share: other BGP daemons, our own speaker beside them, a real
//! Kubernetes API server, a container runtime, and a virtual machine with another kernel.

pub mod bird;
pub mod daemon;
pub mod e2e;
pub mod exabgp;
pub mod frr;
pub mod gobgp;
pub mod kube;
pub mod link;
pub mod openbgpd;
pub mod process;
pub mod program;
pub mod runtime;
pub mod sockets;
pub mod us;
pub mod vm;
