//! Who stands for leader.

use crate::candidates::spread;

/// The agents that stand for leader at most. A Lease that every agent polled would be a load that
/// grows with the cluster for nothing.
pub const CANDIDATES_MAX: usize = 5;

/// The place of one node in the rendezvous order of all nodes' names, kept up as nodes come and go:
/// what another node's coming costs does not grow with the cluster.
#[derive(Clone, Debug)]
pub struct Candidacy {
    weight: u128,
    /// How many other nodes come before this one.
    ahead: usize,
}

impl Candidacy {
    /// The place of `node` while it is alone.
    pub fn new(node: &str) -> Candidacy {
        Candidacy { weight: weight(node), ahead: 0 }
    }

    /// Another node, which was not there, has come.
    pub fn came(&mut self, other: &str) {
        self.ahead += usize::from(weight(other) > self.weight);
    }

    /// Another node, which was there, is gone.
    pub fn went(&mut self, other: &str) {
        self.ahead = self.ahead.saturating_sub(usize::from(weight(other) > self.weight));
    }

    /// Whether the node is among the [`CANDIDATES_MAX`] first, which stand for leader.
    pub fn stands(&self) -> bool {
        self.ahead < CANDIDATES_MAX
    }
}

fn weight(name: &str) -> u128 {
    spread(&[b"leader", name.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among<'a>(node: &str, all: impl IntoIterator<Item = &'a String>) -> Candidacy {
        let mut candidacy = Candidacy::new(node);
        all.into_iter().filter(|other| *other != node).for_each(|other| candidacy.came(other));
        candidacy
    }

    fn standing(names: &[String]) -> Vec<&String> {
        names.iter().filter(|name| among(name, names).stands()).collect()
    }

    #[test]
    fn five_of_many_stand_and_all_of_few() {
        let names: Vec<String> = (0..200).map(|n| format!("node-{n}")).collect();
        assert_eq!(standing(&names).len(), 5);
        assert_eq!(standing(&names[..5]).len(), 5);
        assert_eq!(standing(&names[..3]).len(), 3);
        assert!(Candidacy::new("alone").stands());
        let (before, after) = (standing(&names), standing(&names[1..]));
        assert!(before.iter().filter(|name| **name != &names[0]).all(|name| after.contains(name)));
    }

    #[test]
    fn nodes_that_come_and_go_leave_the_place_as_it_would_be_without_them() {
        let names: Vec<String> = (0..50).map(|n| format!("node-{n}")).collect();
        let (stay, go) = names.split_at(20);
        for node in stay {
            let mut candidacy = among(node, &names);
            go.iter().for_each(|other| candidacy.went(other));
            assert_eq!(candidacy.ahead, among(node, stay).ahead, "{node}");
        }
    }
}
