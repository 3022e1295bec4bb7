//! Where a pod's addresses come from: the pools, the pod's namespace and the annotations of both
//! become requests, or a refusal that says what to do.
//!
//! ```text
//!  pools ─► usable ─► serve the namespace ─► named by the annotation, in its order ─┐
//!                                          └─► all, in the order of names ──────────┼─► requests
//!  cairn.network/ips: one address, in one of these pools ───────────────────────────┘
//! ```
//!
//! A pool with a namespaceSelector serves the namespaces that it selects and no other, whatever an
//! annotation says. A namespace that a usable pool of a family selects is served by such pools only,
//! for that family; every other by the pools without a selector.
//!
//! A pod gets an address of each family that is served. If an annotation names pools it gets the
//! families of these pools and no other: one that names IPv4 pools only asks for a pod without IPv6.
//! Nothing here falls back to what was not asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cairn_api::{ANNOTATION_IPPOOLS, ANNOTATION_IPS};
use thiserror::Error;

use crate::addresses::Family;
use crate::demand::{AddressRequest, Choice, PodPool};

/// The namespace of a pod, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub enum Home<'a> {
    /// What asks is no pod of Kubernetes: it is in no namespace.
    None,
    /// A namespace that is known.
    Namespace {
        /// Its name.
        name: &'a str,
        /// Its labels.
        labels: &'a BTreeMap<String, String>,
        /// Its annotation `cairn.network/ippools`.
        pools: Option<&'a str>,
    },
    /// A namespace of which only the name is known.
    Unknown(&'a str),
}

/// What chooses a pod's addresses: its annotations, and what the container runtime asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'a> {
    /// `cairn.network/ippools`.
    pub pools: Option<&'a str>,
    /// `cairn.network/ips`.
    pub addresses: Option<&'a str>,
    /// Addresses that the container runtime asks for, at most one a family.
    pub asked: &'a [IpAddr],
}

/// Why a pod gets no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChoiceError {
    /// The namespace is not known yet, and its labels or its annotation could matter.
    #[error(
        "the agent does not know the namespace {0} yet, whose labels and annotation choose the \
         pools of its pods"
    )]
    NamespaceUnknown(String),
    /// No pool serves the pod.
    #[error(
        "no IPPool gives pods of {home} addresses on this node: create one, or see why the existing \
         ones are not ready and which nodes and namespaces they select (kubectl get ippools)"
    )]
    NoPool {
        /// `the namespace x`, or `no namespace`.
        home: String,
    },
    /// The pools of a family that would serve the pod cannot now.
    #[error(
        "no {family} address: IPPool {pool} cannot serve ({reason}), and a pod without {family} \
         would not be what this cluster promises: mend the pool or delete it"
    )]
    Unusable {
        /// The family.
        family: Family,
        /// The first of the pools.
        pool: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An annotation cannot be read.
    #[error("the annotation {annotation} of the {of} is {text:?}: {problem}")]
    Malformed {
        /// The annotation.
        annotation: &'static str,
        /// `pod` or `namespace`.
        of: &'static str,
        /// Its beginning.
        text: String,
        /// What it should be.
        problem: String,
    },
    /// An annotation names a pool that serves the pod not.
    #[error(
        "the annotation {ANNOTATION_IPPOOLS} of the {of} names the IPPool {pool}, which {problem}: \
         name another or mend it"
    )]
    Pool {
        /// `pod` or `namespace`.
        of: &'static str,
        /// The pool.
        pool: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A fixed address lies in no pool that serves the pod.
    #[error("the pod asks for {address}, which {problem}")]
    Address {
        /// The address.
        address: IpAddr,
        /// What is wrong with it.
        problem: String,
    },
    /// The annotation and the container runtime ask for different addresses.
    #[error(
        "the annotation {ANNOTATION_IPS} and the container runtime (ips of the CNI plugin) ask for \
         different addresses: leave one of them out"
    )]
    Contradiction,
}

impl ChoiceError {
    /// Whether the next change that the agent hears of may end it, so that waiting makes sense.
    pub fn may_end_soon(&self) -> bool {
        matches!(self, ChoiceError::NamespaceUnknown(_) | ChoiceError::NoPool { .. })
    }
}

/// What a pod in `home` with `wishes` asks for, given every pool of pods. `families` are those of
/// which pods of this node get an address each: a family of them whose pools are all unusable is a
/// refusal, while one that no pool offers in this namespace is left out.
///
/// # Errors
/// [`ChoiceError`], one sentence.
pub fn choose(
    pools: &[PodPool],
    families: &[Family],
    home: Home<'_>,
    wishes: Wishes<'_>,
) -> Result<Vec<AddressRequest>, ChoiceError> {
    if let Home::Unknown(name) = home {
        return Err(ChoiceError::NamespaceUnknown(name.into()));
    }
    let mut pools: Vec<&PodPool> = pools.iter().collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let serving = Serving { pools: &pools, home };
    let fixed = match wishes.addresses.map(parse_addresses).transpose()? {
        None => wishes.asked.to_vec(),
        Some(annotated) if wishes.asked.is_empty() || same(&annotated, wishes.asked) => annotated,
        Some(_) => return Err(ChoiceError::Contradiction),
    };
    let named = match (wishes.pools, home) {
        (Some(text), _) => Some(serving.named(text, "pod")?),
        (None, Home::Namespace { pools: Some(text), .. }) => {
            Some(serving.named(text, "namespace")?)
        }
        _ => None,
    };
    let mut requests = Vec::new();
    for family in [Family::V4, Family::V6] {
        let fixed = fixed.iter().copied().find(|address| Family::of(*address) == family);
        let of_family = |pool: &&PodPool| Family::of_net(pool.cidr) == family;
        let candidates: Vec<&PodPool> = match &named {
            Some(named) => named.iter().copied().filter(of_family).collect(),
            None => serving.ordinary(family),
        };
        let choice = match fixed {
            Some(address) => {
                serving.check_address(address, &candidates, named.is_some())?;
                Choice::Address(address)
            }
            None if candidates.is_empty() => {
                if named.is_none() && families.contains(&family) {
                    serving.check_unusable(family)?;
                }
                continue;
            }
            None => Choice::Pools(candidates.iter().map(|pool| pool.name.clone()).collect()),
        };
        requests.push(AddressRequest { family, choice });
    }
    if requests.is_empty() {
        return Err(ChoiceError::NoPool { home: serving.home_text() });
    }
    Ok(requests)
}

/// The pools, in the order of names, seen from one namespace.
struct Serving<'a> {
    pools: &'a [&'a PodPool],
    home: Home<'a>,
}

impl<'a> Serving<'a> {
    /// The usable pools that serve the namespace, of one family.
    fn ordinary(&self, family: Family) -> Vec<&'a PodPool> {
        let usable = self.pools.iter().copied().filter(|pool| {
            Family::of_net(pool.cidr) == family && pool.unusable.is_none() && self.admits(pool)
        });
        let (special, general): (Vec<&PodPool>, Vec<&PodPool>) =
            usable.partition(|pool| pool.namespaces.is_some());
        if special.is_empty() { general } else { special }
    }

    /// Whether the pool's selector lets the namespace in.
    fn admits(&self, pool: &PodPool) -> bool {
        match (&pool.namespaces, self.home) {
            (None, _) => true,
            (Some(selector), Home::Namespace { labels, .. }) => selector.matches(labels),
            (Some(_), Home::None | Home::Unknown(_)) => false,
        }
    }

    /// The pools that an annotation names, in its order.
    fn named(&self, text: &str, of: &'static str) -> Result<Vec<&'a PodPool>, ChoiceError> {
        let names =
            parse_list(text).map_err(|problem| malformed(ANNOTATION_IPPOOLS, of, text, problem))?;
        let mut named: Vec<&PodPool> = Vec::new();
        for name in names {
            let refuse = |problem: String| ChoiceError::Pool { of, pool: shorten(&name), problem };
            let found = self.pools.iter().copied().find(|pool| pool.name == name);
            let pool = found.ok_or_else(|| refuse("does not exist or gives pods none".into()))?;
            if let Some(reason) = &pool.unusable {
                return Err(refuse(format!("cannot serve ({reason})")));
            }
            let family = Family::of_net(pool.cidr);
            if !self.ordinary(family).iter().any(|serves| serves.name == pool.name) {
                let home = self.home_text();
                let problem = match &pool.namespaces {
                    Some(_) => format!("does not select {home}"),
                    None => format!("does not serve {home}, which has {family} pools of its own"),
                };
                return Err(refuse(problem));
            }
            if !named.iter().any(|known| known.name == pool.name) {
                named.push(pool);
            }
        }
        Ok(named)
    }

    /// Whether a fixed address lies in one of `candidates`, else why it does not.
    fn check_address(
        &self,
        address: IpAddr,
        candidates: &[&PodPool],
        named: bool,
    ) -> Result<(), ChoiceError> {
        if candidates.iter().any(|pool| pool.cidr.contains(&address)) {
            return Ok(());
        }
        let holder = self.pools.iter().find(|pool| pool.cidr.contains(&address));
        let problem = match holder {
            None => "lies in no IPPool: ask for one that does".into(),
            Some(PodPool { name, unusable: Some(reason), .. }) => {
                format!("lies in IPPool {name}, which cannot serve ({reason})")
            }
            Some(pool) if named && self.admits(pool) => format!(
                "lies in IPPool {}, which the annotation {ANNOTATION_IPPOOLS} does not name",
                pool.name
            ),
            Some(pool) => {
                format!("lies in IPPool {}, which does not serve {}", pool.name, self.home_text())
            }
        };
        Err(ChoiceError::Address { address, problem })
    }

    /// Refuses if a pool of the family would serve the namespace but cannot.
    fn check_unusable(&self, family: Family) -> Result<(), ChoiceError> {
        for pool in self.pools.iter().filter(|pool| Family::of_net(pool.cidr) == family) {
            if let Some(reason) = &pool.unusable
                && self.admits(pool)
            {
                let (pool, reason) = (pool.name.clone(), reason.clone());
                return Err(ChoiceError::Unusable { family, pool, reason });
            }
        }
        Ok(())
    }

    fn home_text(&self) -> String {
        match self.home {
            Home::None => "no namespace".into(),
            Home::Namespace { name, .. } | Home::Unknown(name) => format!("the namespace {name}"),
        }
    }
}

/// Whether both hold the same addresses, of which each has at most one a family.
fn same(one: &[IpAddr], other: &[IpAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

/// The addresses of the annotation, at most one a family.
fn parse_addresses(text: &str) -> Result<Vec<IpAddr>, ChoiceError> {
    let malformed = |problem: String| malformed(ANNOTATION_IPS, "pod", text, problem);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for item in parse_list(text).map_err(malformed)? {
        let address: IpAddr = item
            .parse()
            .map_err(|_| malformed(format!("{:?} is no IP address", shorten(&item))))?;
        let family = Family::of(address);
        if addresses.iter().any(|known| Family::of(*known) == family) {
            return Err(malformed(format!("it names more than one {family} address")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// Items between commas, or a JSON list of strings.
fn parse_list(text: &str) -> Result<Vec<String>, String> {
    let trimmed = text.trim();
    let items: Vec<String> = if trimmed.starts_with('[') {
        serde_json::from_str(trimmed)
            .map_err(|_| "it begins as a JSON list but is no list of strings".to_owned())?
    } else {
        trimmed.split(',').map(str::to_owned).collect()
    };
    let items: Vec<String> = items.iter().map(|item| item.trim().to_owned()).collect();
    match items.len() {
        0 => Err("it names nothing: name something or remove the annotation".into()),
        _ if items.iter().any(String::is_empty) => {
            Err("it has an empty item: put names between commas, or remove the annotation".into())
        }
        1..=ITEMS_MAX => Ok(items),
        more => Err(format!("it has {more} items, {ITEMS_MAX} are allowed")),
    }
}

fn malformed(
    annotation: &'static str,
    of: &'static str,
    text: &str,
    problem: String,
) -> ChoiceError {
    ChoiceError::Malformed { annotation, of, text: shorten(text), problem }
}

/// What is wrong in a long text shows in its beginning.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Items of one annotation.
const ITEMS_MAX: usize = 16;
const SHOWN_CHARS_MAX: usize = 80;
