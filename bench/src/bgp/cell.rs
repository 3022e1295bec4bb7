//! What is sent in one measurement, and what has to arrive.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use cairn_bgp::prefix::{Family, Prefix};
use cairn_bgp::wire::{Announcements, MessageFormat, NextHop, Withdrawals};

use crate::feed;
use crate::{Extent, Result};

/// One arrangement of senders and receivers. Every peer is a peer of the daemon like any other: the
/// daemon passes everything to everybody, so that senders get each other's routes, too.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// As `--only` takes it.
    pub name: &'static str,
    /// Peers that send a table and throw away what they get.
    pub senders: u32,
    /// Peers that store what they get.
    pub receivers: u32,
    /// Prefixes of one sender's table.
    pub prefixes: u32,
    /// Prefixes with equal attributes.
    pub prefixes_per_set: usize,
    /// Whether all senders' tables have the same prefixes.
    pub shared: bool,
    /// Whether each peer has a /31 of its own with the daemon, which then has another next hop for each.
    pub own_subnets: bool,
}

/// The addresses of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The peer's, which is its BGP identifier, too.
    pub peer: Ipv4Addr,
    /// The daemon's.
    pub daemon: Ipv4Addr,
}

/// The messages of a cell and the state that they lead to.
#[derive(Debug)]
pub struct Tables {
    /// Announcements, then withdrawals, of each sender.
    pub senders: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where each prefix stands in `paths`.
    pub index: HashMap<Prefix, u32>,
    /// The AS path that a receiver has to end with, for each prefix.
    pub paths: Vec<Arc<[u32]>>,
}

impl Cell {
    /// All cells, those of `--quick` a thousandth of the size.
    pub fn all(extent: Extent) -> Vec<Cell> {
        let mut cells = CELLS.to_vec();
        for cell in &mut cells {
            let fewer = extent.pick(1, 1000);
            cell.prefixes = (cell.prefixes / fewer).max(10);
            cell.prefixes_per_set = cell.prefixes_per_set.min(cell.prefixes as usize);
            cell.senders = extent.pick(cell.senders, cell.senders.min(4));
            cell.receivers = extent.pick(cell.receivers, cell.receivers.min(3));
        }
        cells
    }

    /// One of another size than those that have names, such as `1x250000/5-to-1`: senders, routes of each,
    /// prefixes with equal attributes, receivers.
    ///
    /// # Errors
    /// It is none, or larger than there are addresses.
    pub fn parse(text: &str) -> std::result::Result<Cell, String> {
        let numbers = || {
            let (senders, rest) = text.split_once('x')?;
            let (prefixes, rest) = rest.split_once('/')?;
            let (per_set, receivers) = rest.split_once("-to-")?;
            let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
            Some((number(senders)?, number(prefixes)?, number(per_set)?, number(receivers)?))
        };
        let (senders, prefixes, per_set, receivers) = numbers().ok_or(
            "--cell takes SENDERSxROUTES/PER_SET-to-RECEIVERS, such as 1x250000/5-to-1".to_owned(),
        )?;
        let routes = senders.checked_mul(prefixes).filter(|routes| *routes <= feed::PREFIXES_MAX);
        if routes.is_none() || receivers > PEERS_MAX || senders > PEERS_MAX {
            let routes_max = feed::PREFIXES_MAX;
            return Err(format!(
                "--cell {text}: there are addresses for {routes_max} routes in all, and for {PEERS_MAX} \
                 senders and receivers each"
            ));
        }
        Ok(Cell {
            // As long as the program, like those of the others.
            name: String::leak(text.to_owned()),
            senders,
            receivers,
            prefixes,
            prefixes_per_set: per_set as usize,
            shared: false,
            own_subnets: false,
        })
    }

    /// All peers; the senders come first.
    pub fn peers(&self) -> u32 {
        self.senders + self.receivers
    }

    /// The addresses of the session with a peer.
    pub fn ends(&self, peer: u32) -> Ends {
        if self.own_subnets {
            let daemon = FIRST_OWN_SUBNET.to_bits() + 2 * peer;
            return Ends { peer: Ipv4Addr::from_bits(daemon + 1), daemon: daemon.into() };
        }
        Ends::of(peer)
    }

    /// Those that the daemon listens on.
    pub fn daemon_addresses(&self) -> Vec<Ipv4Addr> {
        let mut all: Vec<Ipv4Addr> = (0..self.peers()).map(|peer| self.ends(peer).daemon).collect();
        all.dedup();
        all
    }

    /// Encodes everything.
    ///
    /// # Errors
    /// The routes cannot be encoded, which they can.
    pub fn tables(&self) -> Result<Tables> {
        let mut tables = Tables { senders: Vec::new(), index: HashMap::new(), paths: Vec::new() };
        for sender in 0..self.senders {
            let first = if self.shared { 0 } else { sender * self.prefixes };
            let numbers = first..first + self.prefixes;
            let sets = feed::table_of(
                FAMILY,
                numbers,
                self.prefixes_per_set,
                &[peer_asn(sender), TRANSIT],
            );
            tables.senders.push(encode(self.ends(sender).peer, &sets)?);
            // Of equal routes that of the lowest BGP identifier wins, which is the first sender's.
            if sender == 0 || !self.shared {
                tables.expect(&sets);
            }
        }
        Ok(tables)
    }
}

impl Ends {
    /// Those of a peer in the subnet that all share.
    pub fn of(peer: u32) -> Ends {
        Ends { peer: peer_address(peer), daemon: DAEMON_ADDRESS }
    }
}

impl Tables {
    fn expect(&mut self, sets: &[feed::AttributeSet]) {
        for set in sets {
            let path = [DAEMON_ASN].into_iter().chain(set.path.as_path().asns());
            let path: Arc<[u32]> = path.collect();
            for prefix in &set.prefixes {
                self.index.insert(*prefix, self.paths.len() as u32);
                self.paths.push(Arc::clone(&path));
            }
        }
    }
}

/// The messages that announce these routes as a peer of this address does, and those that withdraw them.
///
/// # Errors
/// The routes cannot be encoded, which they can.
pub fn encode(peer: Ipv4Addr, sets: &[feed::AttributeSet]) -> Result<(Vec<u8>, Vec<u8>)> {
    let next_hop = NextHop::new(peer.into());
    let (mut announcements, mut withdrawals) = (Vec::new(), Vec::new());
    for set in sets {
        let prefixes = set.prefixes.iter().copied();
        for update in Announcements::new(FORMAT, FAMILY, &set.path, next_hop, prefixes)? {
            announcements.extend_from_slice(&update.bytes);
        }
    }
    let all = sets.iter().flat_map(|set| set.prefixes.iter().copied());
    for message in Withdrawals::new(FORMAT, FAMILY, all) {
        withdrawals.extend_from_slice(&message);
    }
    Ok((announcements, withdrawals))
}

/// The AS of a peer: outside of two octets, as most are.
pub fn peer_asn(peer: u32) -> u32 {
    200_001 + peer
}

/// The address of a peer in the subnet that all share.
pub fn peer_address(peer: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_PEER.to_bits() + peer)
}

/// The AS of the daemon that is measured.
pub const DAEMON_ASN: u32 = 65000;
/// Its address.
pub const DAEMON_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Its port.
pub const DAEMON_PORT: u16 = 1790;

/// Of each sort; their addresses are one after the other.
const PEERS_MAX: u32 = 1000;
/// The cells that are measured.
const CELLS: [Cell; 7] = [
    Cell {
        name: "1x1M",
        senders: 1,
        receivers: 1,
        prefixes: 1_000_000,
        prefixes_per_set: 5,
        shared: false,
        own_subnets: false,
    },
    Cell {
        name: "10x100k",
        senders: 10,
        receivers: 1,
        prefixes: 100_000,
        prefixes_per_set: 5,
        shared: false,
        own_subnets: false,
    },
    Cell {
        name: "2x20k-to-50",
        senders: 2,
        receivers: 50,
        prefixes: 20_000,
        prefixes_per_set: 5,
        shared: false,
        own_subnets: false,
    },
    Cell {
        name: "50-own-subnet",
        senders: 2,
        receivers: 50,
        prefixes: 20_000,
        prefixes_per_set: 5,
        shared: false,
        own_subnets: true,
    },
    Cell {
        name: "10xsame-100k",
        senders: 10,
        receivers: 1,
        prefixes: 100_000,
        prefixes_per_set: 5,
        shared: true,
        own_subnets: false,
    },
    Cell {
        name: "50x4k",
        senders: 50,
        receivers: 1,
        prefixes: 4_000,
        prefixes_per_set: 5,
        shared: false,
        own_subnets: false,
    },
    Cell {
        name: "1x500k-large-sets",
        senders: 1,
        receivers: 1,
        prefixes: 500_000,
        prefixes_per_set: 1000,
        shared: false,
        own_subnets: false,
    },
];

/// Of all routes.
pub const FAMILY: Family = Family::Ipv4Unicast;
const TRANSIT: u32 = 64501;
const FIRST_PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
/// The even address of a /31 is the daemon's.
const FIRST_OWN_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 0);
/// What every daemon takes.
const FORMAT: MessageFormat =
    MessageFormat { octets_max: 4096, as4: true, extended_next_hop: false };
