//! What tests that span crates share: other BGP daemons, and our own speaker beside them.

pub mod bird;
pub mod daemon;
pub mod exabgp;
pub mod frr;
pub mod gobgp;
pub mod link;
pub mod openbgpd;
pub mod program;
pub mod sockets;
pub mod us;
