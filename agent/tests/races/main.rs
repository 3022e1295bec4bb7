//! Many agents' IPAM against one API server: over a way that delays, loses and fails, with agents that
//! are killed between their calls, and a server whose etcd is restored. At no time do two live
//! attachments hold one address, judged from what every node has handed out, never from the API.

mod crash_points;
mod definitions;
mod fight;
#[path = "../nodes/mod.rs"]
mod nodes;
mod restore;
