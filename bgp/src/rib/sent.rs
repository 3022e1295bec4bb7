//! What the stream of an update group has said about each prefix: one route, or several paths where the
//! group's sessions tell their identifiers (RFC 7911).
//!
//! A path keeps its identifier as long as it is among those that are sent. Identifiers are the lowest
//! ones that are free, so there are never more than twice as many as paths, and a set of them is a word.

use std::sync::Arc;

use crate::config::Multipath;
use crate::prefix::Prefix;

use super::attributes::RouteAttributes;
use super::decision::rank;
use super::entries::{Renumbering, RouteId};
use super::export::{ExportContext, Exported, GroupKey, Memo};
use super::peer::{PeerId, Peers};
use super::table::{Candidate, Entry, PathKey, RankContext};

/// What a group shows for a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) attributes: Arc<RouteAttributes>,
    /// This member does not get the route: it is where it came from.
    pub(crate) source: PeerId,
    /// The next hop is our own address on each session.
    pub(crate) own_next_hop: bool,
    /// The identifier under which members know it; 0 in groups that tell one route to a prefix.
    pub(crate) path_id: u8,
}

/// One of several paths that a group shows for a prefix.
#[derive(Clone, Debug)]
pub(crate) struct SentPath {
    pub(crate) sent: Sent,
    /// Which path it is, beside its source: the identifier that came with it.
    received_id: u32,
}

/// By the id of the prefix.
#[derive(Debug)]
pub(crate) enum SentRoutes {
    One(Vec<Option<Sent>>),
    Several(Vec<Box<[SentPath]>>),
}

/// A set of identifiers of paths to one prefix; 0 stands for the route of a group that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PathIds(u64);

impl Sent {
    /// Whether nothing differs that a member could see.
    pub(crate) fn is_same(&self, other: &Sent) -> bool {
        (self.source, self.own_next_hop) == (other.source, other.own_next_hop)
            && Arc::ptr_eq(&self.attributes, &other.attributes)
    }
}

impl SentPath {
    /// Which candidate it is.
    pub(crate) fn path(&self) -> PathKey {
        PathKey { source: self.sent.source, path_id: self.received_id }
    }
}

impl SentRoutes {
    pub(crate) fn new(paths_max: u8) -> SentRoutes {
        match paths_max {
            0 => SentRoutes::One(Vec::new()),
            _ => SentRoutes::Several(Vec::new()),
        }
    }

    /// Ids are below this.
    pub(crate) fn len(&self) -> usize {
        match self {
            SentRoutes::One(routes) => routes.len(),
            SentRoutes::Several(routes) => routes.len(),
        }
    }

    /// Makes room for ids below `len`.
    pub(crate) fn grow(&mut self, len: usize) {
        match self {
            SentRoutes::One(routes) if routes.len() < len => routes.resize_with(len, || None),
            SentRoutes::Several(routes) if routes.len() < len => {
                routes.resize_with(len, Box::default);
            }
            _ => {}
        }
    }

    /// What has been said about a prefix.
    pub(crate) fn of(&self, id: RouteId) -> impl Iterator<Item = &Sent> {
        let (one, several) = match self {
            SentRoutes::One(routes) => (routes.get(id.index()).and_then(Option::as_ref), None),
            SentRoutes::Several(routes) => (None, routes.get(id.index())),
        };
        one.into_iter().chain(several.into_iter().flatten().map(|path| &path.sent))
    }

    /// Which candidates the paths to a prefix are, where there are several.
    pub(crate) fn paths(&self, id: RouteId) -> &[SentPath] {
        match self {
            SentRoutes::One(_) => &[],
            SentRoutes::Several(routes) => routes.get(id.index()).map_or(&[], |paths| &**paths),
        }
    }

    /// Whether anything has been said about a prefix that still stands.
    pub(crate) fn has(&self, id: RouteId) -> bool {
        self.of(id).next().is_some()
    }

    /// The identifiers under which a prefix is known.
    pub(crate) fn path_ids(&self, id: RouteId) -> PathIds {
        self.of(id).map(|sent| sent.path_id).collect()
    }

    /// The place of a prefix in a group that tells one route.
    pub(crate) fn one_mut(&mut self, id: RouteId) -> Option<&mut Option<Sent>> {
        match self {
            SentRoutes::One(routes) => routes.get_mut(id.index()),
            SentRoutes::Several(_) => None,
        }
    }

    /// The place of a prefix in a group that tells several paths.
    pub(crate) fn several_mut(&mut self, id: RouteId) -> Option<&mut Box<[SentPath]>> {
        match self {
            SentRoutes::One(_) => None,
            SentRoutes::Several(routes) => routes.get_mut(id.index()),
        }
    }

    /// Takes back one route, and says whose it was.
    pub(crate) fn remove(&mut self, id: RouteId, path_id: u8) -> Option<PeerId> {
        match self {
            SentRoutes::One(routes) => Some(routes.get_mut(id.index())?.take()?.source),
            SentRoutes::Several(routes) => {
                let paths = routes.get_mut(id.index())?;
                let mut left = std::mem::take(paths).into_vec();
                let at = left.iter().position(|path| path.sent.path_id == path_id);
                let source = at.map(|at| left.remove(at).sent.source);
                *paths = left.into_boxed_slice();
                source
            }
        }
    }

    /// Takes up new ids, and gives memory back.
    pub(crate) fn renumber(&mut self, renumbering: &Renumbering) {
        let mut index = 0;
        let mut is_kept = || {
            index += 1;
            renumbering.new_id(RouteId::at(index - 1)).is_some()
        };
        match self {
            SentRoutes::One(routes) => {
                routes.retain(|_| is_kept());
                routes.shrink_to_fit();
            }
            SentRoutes::Several(routes) => {
                routes.retain(|_| is_kept());
                routes.shrink_to_fit();
            }
        }
    }
}

impl GroupKey {
    /// The best paths to a prefix that may go to the group, up to its number, best first and without
    /// identifiers yet. The first ones after those are told nobody: also a member that is the source of
    /// one of them gets no other in its place.
    pub(crate) fn paths(
        &self,
        context: &mut ExportContext<'_>,
        prefix: Prefix,
        entry: &Entry,
        memos: &mut [Memo],
    ) -> Vec<SentPath> {
        let mut paths = Vec::new();
        let mut candidates: Vec<&Candidate> = entry.candidates().iter().collect();
        let mut left = candidates.as_mut_slice();
        let mut place = 0;
        while paths.len() < usize::from(self.paths_max)
            && let Some((best, rest)) = split_best(context.peers, left)
        {
            let memo = place.min(memos.len().saturating_sub(1));
            let Some(memo) = memos.get_mut(memo) else { break };
            if let Some(exported) = self.export(context, prefix, best, memo) {
                let Exported { attributes, own_next_hop } = exported;
                let sent = Sent { attributes, source: best.source, own_next_hop, path_id: 0 };
                paths.push(SentPath { sent, received_id: best.path_id() });
            }
            left = rest;
            place += 1;
        }
        paths
    }
}

/// The best one of the candidates, and the others; `None` when none may be used.
pub(crate) fn split_best<'s, 'c>(
    peers: &Peers,
    candidates: &'s mut [&'c Candidate],
) -> Option<(&'c Candidate, &'s mut [&'c Candidate])> {
    let multipath = Multipath { paths_max: 1, same_as_path: false };
    let context = RankContext { peers, multipath };
    if rank(&context, candidates, multipath, |_, _| {}).selected == 0 {
        return None;
    }
    let (best, rest) = candidates.split_first_mut()?;
    Some((*best, rest))
}

/// Gives each path the identifier that it has in `old`, else the lowest one that no path of either has:
/// who still holds a path that has gone under it is to lose that path, and not to take it for another.
pub(crate) fn number(old: &[SentPath], new: &mut [SentPath]) {
    let mut taken: PathIds = old.iter().map(|path| path.sent.path_id).collect();
    taken.insert(0);
    for path in new {
        let same = old.iter().find(|other| other.path() == path.path());
        path.sent.path_id = same.map_or_else(|| taken.lowest_free(), |same| same.sent.path_id);
        taken.insert(path.sent.path_id);
    }
}

impl PathIds {
    /// The route of a group that tells one without an identifier.
    pub(crate) const ONLY: PathIds = PathIds(1);

    pub(crate) fn insert(&mut self, path_id: u8) {
        self.0 |= 1_u64.checked_shl(u32::from(path_id)).unwrap_or(0);
    }

    pub(crate) fn contains(self, path_id: u8) -> bool {
        self.0 & 1_u64.checked_shl(u32::from(path_id)).unwrap_or(0) != 0
    }

    pub(crate) fn remove(&mut self, path_id: u8) {
        *self = self.without(PathIds::from_iter([path_id]));
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn union(self, other: PathIds) -> PathIds {
        PathIds(self.0 | other.0)
    }

    pub(crate) fn without(self, other: PathIds) -> PathIds {
        PathIds(self.0 & !other.0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |path_id| self.contains(*path_id))
    }

    fn lowest_free(self) -> u8 {
        self.0.trailing_ones() as u8
    }
}

impl FromIterator<u8> for PathIds {
    fn from_iter<I: IntoIterator<Item = u8>>(path_ids: I) -> PathIds {
        let mut set = PathIds::default();
        path_ids.into_iter().for_each(|path_id| set.insert(path_id));
        set
    }
}
