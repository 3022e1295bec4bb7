//! What others do to a node's network, and what is in the kernel afterwards: the real threads that keep
//! routes, tunnels and packet filter, in namespaces.
//!
//! What should be there follows from a pure [`model::Model`]; what the test does as somebody else is done
//! in a twin namespace too, where nobody of ours is, so that what others made can be compared at the end.
//! `CAIRN_CHAOS_SEEDS` (how many, 2, from `CAIRN_CHAOS_FIRST` on) and `CAIRN_CHAOS_STEPS` (of each, 300) make
//! the random part longer, and `CAIRN_CHAOS_SEED` repeats one.
//!
//! Needs root.

mod chaos;
mod dice;
mod fight;
mod killed;
mod limited;
mod model;
mod node;
mod notices;
mod rows;
mod silence;
mod site;
mod uplinks;
