//! The owner of the pods' addresses over a kernel of the test's own: no namespace, socket or clock.

mod annotations;
mod checks;
mod choice;
mod gc;
mod kernel;
mod node;
mod removals;
mod tunnels;
mod untold;
mod waiting;
