//! A BGP-4 speaker: a pure core and one IO module.
//!
//! The core ([`wire`], [`stream`], [`session`], [`rib`], [`policy`]) consists of functions of their
//! arguments: the caller passes `now` and bytes, and gets back actions and the next deadline. It has
//! no sockets, no clock and no tasks. [`speaker`] (feature `speaker`) drives it on tokio.

pub mod config;
pub mod policy;
pub mod prefix;
pub mod rib;
pub mod session;
#[cfg(feature = "speaker")]
pub mod speaker;
pub mod status;
pub mod stream;
pub mod wire;
