//! Who is at the other end of a link: router advertisements (RFC 4861), sent and heard.
//!
//! Routers that peer by interface find each other so: each advertises its link-local address and takes the
//! other's from what it hears. What is sent has router lifetime 0, so that no host takes this machine for its
//! default router (RFC 4861 section 4.2), and says nothing else.
//!
//! ```text
//!  socket ──octets, source, hop limit──► wire::decode ──► LinkRouters ──► the neighbour, or a problem
//!    ▲                                                        │
//!    └────────── wire::advertisement, wire::solicitation ◄────┘ poll(now)
//! ```
//!
//! Messages and [`LinkRouters`] know neither socket nor clock. Nothing here changes a setting of the machine:
//! the socket hears advertisements whether or not the kernel itself heeds them (`accept_ra`).

mod link;
mod socket;
pub mod wire;

pub use link::{Due, LinkEnd, LinkRouters, ROUTERS_MAX};
pub use socket::{Received, RouterSocket};
