//! Who leads: the Lease `cairn-leader`, as client-go elects.
//!
//! Whoever sees it unchanged for its duration writes itself in, and the resourceVersion decides
//! between two. It is renewed beside the duties, so that a pass which takes long never costs the
//! leadership.
//!
//! A leader that no longer hears what peers announce can return nothing. When that lasts it gives the
//! Lease up, and takes a free one only after those that hear have had the time to.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use crate::ipam::Shared;
use crate::ipam::error::{IpamError, call};

/// Until when this agent leads; `None` when it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leadership {
    until: Option<Duration>,
}

impl Leadership {
    pub(super) fn leads(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Stands for leader for as long as it is polled, and tells whether this agent leads.
pub(super) async fn run(shared: Shared, leadership: &watch::Sender<Leadership>) {
    let mut election = Election::new(shared);
    loop {
        let problems = match election.stand().await {
            Ok(()) => Vec::new(),
            Err(error) => vec![error.to_string()],
        };
        let now = election.shared.now();
        let held =
            Leadership { until: election.renewed.map(|at| at.saturating_add(election.term)) };
        let leads = held.leads(now);
        let held = if leads { held } else { Leadership::default() };
        crate::send_if_changed(leadership, held);
        election.shared.reports.change(|holdings| holdings.leads = leads);
        election.shared.reports.report("election", problems);
        let pause = match election.shared.membership() {
            Ok(_) => election.term / 3,
            // The view has not come yet, or the Node is not there: no call, only a look at it.
            Err(_) => MEMBERSHIP_INTERVAL,
        };
        tokio::time::sleep(pause).await;
    }
}

struct Election {
    shared: Shared,
    leases: Api<Lease>,
    /// The last version of the leader's Lease and since when it is unchanged.
    seen: Option<(String, Duration)>,
    /// Since when the leader's Lease has no holder.
    free: Option<Duration>,
    /// Since when this agent hears too few peers, as far as it has looked.
    deaf: Option<Duration>,
    /// When it last gave the leadership up for that.
    stood_aside: Option<Duration>,
    /// When this agent last wrote the leader's Lease with success.
    renewed: Option<Duration>,
    /// For how long the leader's Lease holds without being renewed.
    term: Duration,
}

impl Election {
    fn new(shared: Shared) -> Election {
        Election {
            leases: Api::namespaced(shared.client.clone(), &shared.options.namespace),
            term: (shared.options.offline / 2).clamp(TERM_MIN, TERM_MAX),
            seen: None,
            free: None,
            deaf: None,
            stood_aside: None,
            renewed: None,
            shared,
        }
    }

    /// Not before the other nodes are known: among few every agent would stand, and of a cluster that
    /// restarts one after the other would list everything.
    fn is_candidate(&self) -> bool {
        let view = self.shared.view.borrow();
        view.synced && view.stands
    }

    /// Takes or renews the Lease if this agent may.
    async fn stand(&mut self) -> Result<(), IpamError> {
        if self.shared.membership().is_err() || !self.is_candidate() {
            self.renewed = None;
            return Ok(());
        }
        self.listen().await;
        let now = self.shared.now();
        let what = || format!("cannot write the Lease {LEADER}");
        let old = call(what, self.leases.get_opt(LEADER)).await?;
        let version = old.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        let spec = old.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let me = format!("{}/{}", self.shared.options.node, self.shared.options.boot_id);
        if old.is_some() && !holder.is_empty() && holder != me {
            self.renewed = None;
            let since = match &self.seen {
                Some((seen, since)) if Some(seen) == version.as_ref() => *since,
                _ => {
                    self.seen = version.map(|version| (version, now));
                    return Ok(());
                }
            };
            let secs = spec.lease_duration_seconds.and_then(|secs| u64::try_from(secs).ok());
            let duration = secs.map_or(self.term, Duration::from_secs);
            if now.saturating_sub(since) < duration {
                return Ok(());
            }
        }
        let is_free = holder.is_empty();
        self.free = is_free.then_some(self.free.unwrap_or(now));
        if is_free && self.is_deaf(now) && lasts(self.free, now) < self.term * 2 {
            return Ok(());
        }
        let steps_aside = holder == me && self.steps_aside(now);
        let mut lease = old.clone().unwrap_or_default();
        lease.metadata.name = Some(LEADER.to_owned());
        let time = MicroTime(Timestamp::now());
        let taken_over = holder != me;
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(if steps_aside { String::new() } else { me }),
            lease_duration_seconds: i32::try_from(self.term.as_secs()).ok(),
            acquire_time: if taken_over { Some(time.clone()) } else { spec.acquire_time },
            renew_time: Some(time),
            lease_transitions: Some(
                spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(taken_over)),
            ),
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        let written = match old {
            None => call(what, self.leases.create(&params, &lease)).await,
            Some(_) => call(what, self.leases.replace(LEADER, &params, &lease)).await,
        };
        match written {
            Ok(_) if steps_aside => {
                tracing::warn!("this agent hears too few BGP peers and lets another lead");
                self.stood_aside = Some(now);
                self.renewed = None;
                Ok(())
            }
            Ok(_) => {
                if taken_over {
                    tracing::info!("this agent leads");
                }
                self.renewed = Some(now);
                Ok(())
            }
            // Another agent was first; the next look shows it.
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks whether this agent hears its peers.
    async fn listen(&mut self) {
        let why = self.shared.witness.why_deaf(Duration::ZERO).await;
        self.deaf = why.is_some().then_some(self.deaf.unwrap_or_else(|| self.shared.now()));
    }

    /// Whether this agent hears too few peers for so long that another should lead. A successor
    /// counts the waits of the fence anew, so a session that flaps is no reason.
    fn is_deaf(&self, now: Duration) -> bool {
        self.deaf.is_some() && lasts(self.deaf, now) >= self.shared.options.offline / DEAF_PART
    }

    /// Whether a leader gives the Lease up. It does not try that again soon: nobody else may hear
    /// either, and then it has to see the waits of the fence through to say so.
    fn steps_aside(&self, now: Duration) -> bool {
        let rest = self.shared.options.offline.saturating_mul(REST_FACTOR);
        self.is_deaf(now) && self.stood_aside.is_none_or(|at| now.saturating_sub(at) >= rest)
    }
}

fn lasts(since: Option<Duration>, now: Duration) -> Duration {
    since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
}

const LEADER: &str = "cairn-leader";
/// The leader's term: half of what a node may go on alone, since a new leader begins to count only
/// when it leads, within what Kubernetes' own components use.
const TERM_MIN: Duration = Duration::from_secs(2);
const TERM_MAX: Duration = Duration::from_secs(15);
const MEMBERSHIP_INTERVAL: Duration = Duration::from_millis(200);
/// The part of what a node may go on alone after which an agent that hears too few is deaf.
const DEAF_PART: u32 = 10;
/// How many times as long as a node may go on alone an agent leads on, deaf, after it stood aside.
const REST_FACTOR: u32 = 8;
