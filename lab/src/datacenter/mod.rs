//! The data centre: which machines it has, their namespaces and links, and the routers' files.
//!
//! ```text
//!                  spine  AS 65300
//!                 /               \
//!        tor1  AS 65201        tor2  AS 65202
//!         | bridge rack         | bridge rack      172.31.R.0/24, fd00:31:R::/64
//!       --+-----+--           --+--
//!         |     |               |
//!        n1    n2              n3                  AS 65101, AS 65102
//! ```
//! [`layout`] decides everything as plain values, [`build`] makes it, [`routers`] writes what
//! `cairn speaker` reads, [`fabric`] counts what passes.

pub mod build;
pub mod fabric;
pub mod layout;
pub mod routers;

pub use build::{DataCenter, Machine};
pub use layout::{Layout, Node, Rack, Role};
