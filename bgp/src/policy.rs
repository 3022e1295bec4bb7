//! placeholder

/// placeholder
#[derive(Clone, Debug, PartialEq)]
pub struct Policy;
