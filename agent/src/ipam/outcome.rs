//! What the calls have brought, taken in.

use std::time::Duration;

use ipnet::IpNet;

use super::api::Verification;
use super::blocks::{Blocks, GIVEN_UP, Refused};
use super::calls::{Assertion, Claimed, Done};
use super::disk::KeptBlock;
use super::error::IpamError;
use super::events::{self, Reason};
use super::held::{Backoff, Held, Phase};

impl Blocks {
    /// Takes in what a call has brought.
    pub(super) fn take_in(&mut self, done: Done, now: Duration) {
        match done {
            // Of an earlier term: asked again.
            Done::Verified { term, .. } if term != self.term => {}
            Done::Verified { cidr, uid, answer, .. } => self.verified(cidr, &uid, answer, now),
            Done::Claimed(claim) => self.claimed(*claim, now),
            // Of an earlier history: what went in it may be there again.
            Done::Returned { term, .. } if term.history != self.term.history => {}
            Done::Returned { cidr, uid, answer, .. } => {
                let Some(held) = self.ledger.held.get_mut(&cidr).filter(|held| held.uid == uid)
                else {
                    return;
                };
                let key = format!("return {cidr}");
                match answer {
                    Ok(true) => {
                        tracing::info!(block = %cidr, "block given back");
                        self.errors.remove(&key);
                        held.phase = Phase::Gone;
                        if !held.seen {
                            self.ledger.held.remove(&cidr);
                        }
                    }
                    // Another finalizer, or a conflict: tried again, never handed out from.
                    Ok(false) => held.backoff.fail(now),
                    Err(error) => {
                        held.backoff.fail(now);
                        if !error.is_conflict() {
                            self.errors.insert(key, error.to_string());
                        }
                    }
                }
            }
            Done::Looked { cidr, uid, answer } => {
                let Some(held) = self.ledger.held.get_mut(&cidr).filter(|held| held.uid == uid)
                else {
                    return;
                };
                held.backoff.fail(now);
                if let Ok(found) = answer
                    && found.as_ref() != Some(&uid)
                {
                    if held.may_be_kept(now) {
                        self.shared.history.lost_a_write();
                    }
                    self.ledger.lose(cidr);
                }
            }
            Done::Asserted { cidr, answer } => self.asserted(cidr, answer, now),
            Done::Heard { blocks } => {
                for (cidr, foreign) in blocks {
                    if let Some(held) = self.ledger.held.get_mut(&cidr) {
                        held.hear(foreign, now);
                    }
                }
            }
        }
    }

    /// An object that was created again is taken up and verified as one that was found: it gives no
    /// permission to hand out (IPAM rule 3).
    fn asserted(&mut self, cidr: IpNet, answer: Result<Assertion, IpamError>, now: Duration) {
        let key = format!("assert {cidr}");
        let Some(lost) = self.ledger.lost.get_mut(&cidr) else { return };
        match answer {
            Ok(Assertion::Ours(block)) => {
                self.errors.remove(&key);
                if self.ledger.node_uid.as_ref() != Some(&block.spec.node.uid) {
                    return;
                }
                tracing::info!(block = %cidr, "block asserted again: pods live in it");
                let uid = block.metadata.uid.clone().unwrap_or_default();
                self.ledger.lost.remove(&cidr);
                self.ledger.held.insert(cidr, Held::new(&block, uid, now));
            }
            Ok(Assertion::Theirs(owner)) => {
                lost.backoff.fail(now);
                lost.conflict = Some(owner);
                self.errors.remove(&key);
            }
            Err(error) => {
                lost.backoff.fail(now);
                self.errors.insert(key, error.to_string());
            }
        }
    }

    fn verified(
        &mut self,
        cidr: IpNet,
        uid: &str,
        answer: Result<Verification, IpamError>,
        now: Duration,
    ) {
        let key = format!("verify {cidr}");
        let Some(held) = self.ledger.held.get_mut(&cidr).filter(|held| held.uid == uid) else {
            return;
        };
        let unfit = |held: &Held, other: Phase| {
            // Nothing was ever handed out from a block claimed just now: it goes back at once.
            if held.newly_claimed { Phase::Releasing { sent: false } } else { other }
        };
        match answer {
            // Nobody else uses it: it goes as one of this machine's.
            Ok(Verification::Sole) if held.terminating => {
                held.decided = true;
                self.errors.remove(&key);
            }
            Ok(Verification::JustHeard) => {
                held.backoff.fail(now);
                self.errors.remove(&key);
            }
            Ok(Verification::Sole) => {
                tracing::info!(block = %cidr, pool = held.pool.name, "block confirmed");
                let kept = KeptBlock { uid: held.uid.clone(), pool: held.pool.clone() };
                let node_uid = self.ledger.node_uid.as_deref().unwrap_or_default();
                // A block that is not on the disk hands out all the same: the next process asks first.
                let written = self.shared.disk.keep(cidr, kept, node_uid, self.term.fence);
                match written {
                    Ok(()) => self.errors.remove("disk"),
                    Err(error) => self.errors.insert("disk".to_owned(), error.to_string()),
                };
                held.phase = Phase::Confirmed;
                held.forgotten = false;
                held.backoff = Backoff::default();
                self.errors.remove(&key);
            }
            Ok(Verification::Gone) => {
                held.backoff.fail(now);
                held.phase = Phase::Unfit("its IPBlock is gone or is being deleted".to_owned());
                // What the watch has shown it will take away.
                if !held.seen {
                    self.ledger.lose(cidr);
                }
                self.errors.remove(&key);
            }
            Ok(Verification::PoolUnfit(reason)) => {
                held.phase = unfit(held, Phase::Unfit(reason));
                held.backoff.fail(now);
                self.claims.fail(now);
                self.errors.remove(&key);
            }
            Ok(Verification::Overlaps(with)) => {
                held.heard = held.is_inherited().then_some(now);
                if held.newly_claimed {
                    self.errors.insert(
                        format!("{GIVEN_UP}{cidr}"),
                        format!("the claim of {cidr} was given up: it overlaps {with}"),
                    );
                }
                let newly_claimed = held.newly_claimed;
                held.phase = unfit(held, Phase::Conflict(with.clone()));
                if matches!(held.phase, Phase::Conflict(_)) {
                    let note = format!("block {cidr} overlaps {with}: it gives no new addresses");
                    events::tell_of_this_node(&self.shared, Reason::BlockConflict, note);
                }
                held.backoff.fail(now);
                self.claims.fail(now);
                self.errors.remove(&key);
                if newly_claimed {
                    self.refuse(cidr, Some(format!("block {cidr} overlaps {with}")), now);
                }
            }
            Err(error) => {
                held.backoff.fail(now);
                // What is not heard meanwhile is no silence.
                if matches!(error, IpamError::Deaf { .. }) && held.is_inherited() {
                    held.heard = Some(now);
                }
                // A status write came between: the next try reads the new version.
                if !error.is_conflict() {
                    self.errors.insert(key, error.to_string());
                }
            }
        }
    }

    /// Notes that somebody else has the block.
    fn refuse(&mut self, cidr: IpNet, reason: Option<String>, now: Duration) {
        let wait = if reason.is_some() { OWNED_FOR } else { REFUSED_FOR };
        self.refused.insert(cidr, Refused { until: now.saturating_add(wait), reason });
    }

    fn claimed(&mut self, claim: Claimed, now: Duration) {
        for cidr in claim.refused {
            self.refuse(cidr, None, now);
        }
        let found_none = claim.full.len() < claim.pools.len() || claim.pools.is_empty();
        self.full.retain(|pool, _| !claim.pools.contains(pool));
        let until = now.saturating_add(FULL_FOR);
        self.full.extend(claim.full.into_iter().map(|pool| (pool, until)));
        if let Some((cidr, reason)) = claim.owned {
            self.errors.remove("claim");
            return self.refuse(cidr, Some(reason), now);
        }
        match (claim.claimed, claim.error) {
            (Some((cidr, block)), _) => {
                tracing::info!(block = %cidr, pool = block.spec.pool.name, "block claimed");
                // For a Node that is gone meanwhile: the watch shows it, the leader returns it.
                if self.ledger.node_uid.as_ref() == Some(&block.spec.node.uid) {
                    let uid = block.metadata.uid.clone().unwrap_or_default();
                    let newly_claimed = claim.term == self.term;
                    let held = Held { newly_claimed, ..Held::new(&block, uid, now) };
                    self.ledger.held.insert(cidr, held);
                }
                self.claims = Backoff::default();
                self.errors.remove("claim");
            }
            // Pools that are full are left alone for a while, others need not wait for that.
            (None, None) if !found_none => {
                self.errors.remove("claim");
            }
            (None, error) => {
                self.claims.fail(now);
                match error {
                    Some(error) => self.errors.insert("claim".to_owned(), error.to_string()),
                    None => self.errors.remove("claim"),
                };
            }
        }
        if let Some((cidr, pool)) = claim.unclear {
            self.pending.insert(cidr, (now.saturating_add(PENDING_FOR), pool));
        }
    }
}

/// A refused candidate is believed to be taken this long; then its owner may have returned it.
const REFUSED_FOR: Duration = Duration::from_secs(300);
/// The same where a pod waits for this very block.
const OWNED_FOR: Duration = Duration::from_secs(10);
/// A pool without a free block is asked again after this time.
const FULL_FOR: Duration = Duration::from_secs(10);
/// A claim without a clear answer is waited for this long before another is sent. One that lands
/// later is safe: the watch shows it and it is verified; short, since pods may be waiting.
const PENDING_FOR: Duration = Duration::from_secs(2);
