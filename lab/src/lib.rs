//! `cairn lab`: a cluster of network namespaces on one machine, with an embedded API server.
//!
//! Everything in it is real but the hardware: kernels' routes and links, the agents and routers as
//! processes of their own, the CNI plugin, BGP between them. The lab only builds, looks, breaks and
//! takes down; it never writes a route or an address that is Cairn's to write. It must never run in
//! a real cluster.
//!
//! ```text
//!  options ──► layout ──► data centre (namespaces, links) ──► processes (agents, speakers)
//!                 └─────► cluster (API server, objects)            │
//!                                                                  ▼
//!  table  ◄── report ◄── rows: model, failure ◄── kernels' tables, API objects, probes, flows
//! ```

pub mod apiserver;
pub mod cluster;
pub mod datacenter;
pub mod error;
pub mod flow;
pub mod interrupt;
pub mod lab;
pub mod options;
pub mod pod;
pub mod probe;
pub mod process;
pub mod report;
mod rows;
mod run;
pub mod status;
pub mod tables;
pub mod workspace;

pub use error::Error;
pub use options::LabOptions;
pub use run::run;
