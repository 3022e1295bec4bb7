//! What tests that span crates share.

pub mod bird;
