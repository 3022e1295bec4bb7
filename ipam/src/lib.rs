//! Decisions about blocks and addresses: which block a node claims or gives back, which blocks may
//! hand out addresses, which address an attachment gets, and how long a node may go on alone.
//!
//! Everything here is a function of its arguments. Nothing reads a clock, draws a random number or
//! speaks to a server: the agent's shell passes in what it knows and the time, and carries out what
//! comes back.
//!
//! ```text
//!  pools, own blocks, RIB ──► claims ──► candidates to POST, blocks that may hand out
//!  own Lease writes ────────► fence  ──► may this node hand out at all
//!  pools, annotations ──────► choice ──► which pools or which address a pod asks for
//!  blocks + attachments ────► addresses: one address to one attachment
//!  all blocks, Leases ──────► returns: what the leader gives back of nodes that are gone
//!  nodes of an AS ──────────► reflectors: how they peer, and when it changes over
//!  others' addresses ───────► foreign ──► pool_status: may a pool be used, how full is it
//! ```

pub mod addresses;
mod candidates;
pub mod choice;
pub mod claims;
pub mod demand;
pub mod election;
pub mod fence;
pub mod foreign;
pub mod free_index;
pub mod mark;
pub mod pool;
pub mod pool_status;
pub mod reflectors;
pub mod returns;
pub mod rules;
mod wanted;

pub use addresses::{AddressBook, AssignError, AttachmentId, BlockUsage, Family, OwnedBlock};
pub use claims::{
    BlockState, Claim, Decision, Knowledge, OwnBlock, Pool, Scheduling, Standing, Verdict,
};
pub use demand::{AddressRequest, Choice, Demand, PodPool};
pub use free_index::FreeIndex;
pub use mark::{Holder, Machine};
pub use rules::{Rule, Rules};
