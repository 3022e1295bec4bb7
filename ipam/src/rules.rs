//! The rules that keep an address from being given twice, each with a switch for tests.
//!
//! The simulator switches one rule off at a time and must then find an address that two pods hold: a
//! rule whose absence nothing notices is either not needed or not tested. A release build has no
//! switches: every rule holds.

/// A rule of `docs/reference/address-safety.md`, by the number of the group that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Rule {
    /// 1: after a create and before the first address, pool and overlapping blocks are read.
    VerifyAfterClaim,
    /// 1: a pool's finalizer goes only after a list that was made after its deletion.
    PoolWaitsForBlocks,
    /// 2: a block is closed in memory and on disk before its DELETE is sent.
    CloseBeforeDelete,
    /// 2: a block that was found, not claimed, is changed before it hands out.
    TakeUpBlocks,
    /// 2: reads behind a hand-out or a delete leave the resourceVersion unset.
    ConsistentReads,
    /// 2: a DELETE carries uid and resourceVersion as preconditions.
    DeletePreconditions,
    /// 3: an answer from before what was seen already drops everything that was known.
    NoticeOldHistory,
    /// 3: a block just claimed is used only when no other node announces it or a part of it.
    SecondWitness,
    /// 3: in a conflict neither side hands out.
    ConflictCloses,
    /// 4: a block under deletion hands out nothing, and its finalizer waits for its last pod.
    FinalizerWaitsForPods,
    /// 5: a node hands out only within its promise.
    OwnFence,
    /// 5: the leader waits longer than the promise.
    LeaderWaits,
    /// 5: the leader returns no block to which it knows a route.
    LeaderLooksForRoutes,
    /// 5: what was kept on disk counts under the boot id that wrote it only.
    DiskOfThisBoot,
    /// 5: an agent acts for a Node only while the Node names its boot id.
    OneMachine,
    /// 5: another machine under the same Node uses its blocks only after the promise of the first.
    OtherMachineWaits,
    /// 5: a block that was found is used only after a write of the Lease that left later.
    LeaseAfterFound,
    /// 3, 5: what another machine of the Node may hold, or another node after history went backwards, is
    /// used only by a node that hears its peers.
    HearFirst,
    /// 5: a block that another machine claimed stays in doubt until it is decided, whatever restarts.
    DoubtLasts,
    /// 3: that history went backwards is known to later processes.
    AlarmLasts,
    /// 6: the alias is written before the interface can carry traffic, and half-done ones go.
    AliasFirst,
    /// 6: a host route is created only where none is.
    ExclusiveHostRoute,
    /// 6: after a start, what aliases, host routes and neighbours name is in use.
    KernelIsRecord,
    /// 6: one agent a node.
    OneAgent,
    /// 7: an address is free only after its interface has gone.
    FreeAfterInterface,
    /// 7: blocks of a live Node without an agent return only when no pod has an address in them.
    PodsKeepBlocks,
    /// 8: a pool in which others' addresses lie is not claimed from.
    ForeignAddresses,
    /// 8: what the node's own kernel holds or routes elsewhere is not handed out.
    OwnKernel,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 28] = [
        Rule::VerifyAfterClaim,
        Rule::PoolWaitsForBlocks,
        Rule::CloseBeforeDelete,
        Rule::TakeUpBlocks,
        Rule::ConsistentReads,
        Rule::DeletePreconditions,
        Rule::NoticeOldHistory,
        Rule::SecondWitness,
        Rule::ConflictCloses,
        Rule::FinalizerWaitsForPods,
        Rule::OwnFence,
        Rule::LeaderWaits,
        Rule::LeaderLooksForRoutes,
        Rule::DiskOfThisBoot,
        Rule::OneMachine,
        Rule::OtherMachineWaits,
        Rule::LeaseAfterFound,
        Rule::HearFirst,
        Rule::DoubtLasts,
        Rule::AlarmLasts,
        Rule::AliasFirst,
        Rule::ExclusiveHostRoute,
        Rule::KernelIsRecord,
        Rule::OneAgent,
        Rule::FreeAfterInterface,
        Rule::PodsKeepBlocks,
        Rule::ForeignAddresses,
        Rule::OwnKernel,
    ];
}

/// Which rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    off: u32,
}

impl Rules {
    /// All of them: the only value outside of tests.
    pub const ALL: Rules = Rules { off: 0 };

    /// All that hold now but `rule`. Only a build with debug assertions has it.
    #[cfg(debug_assertions)]
    pub const fn without(self, rule: Rule) -> Rules {
        Rules { off: self.off | 1 << rule as u32 }
    }

    /// Whether `rule` holds.
    pub const fn hold(self, rule: Rule) -> bool {
        self.off & 1 << rule as u32 == 0
    }
}

impl Default for Rules {
    fn default() -> Rules {
        Rules::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_is_one_rule() {
        for rule in Rule::ALL {
            let rules = Rules::ALL.without(rule);
            let off: Vec<Rule> = Rule::ALL.into_iter().filter(|r| !rules.hold(*r)).collect();
            assert_eq!(off, [rule]);
        }
    }
}
