//! Network settings under `/proc/sys/net`.
//!
//! Every function acts in the network namespace of the calling thread; run it inside
//! [`crate::NetNs::run`] to reach another. Paths are relative to `/proc/sys/net` and have slashes
//! (`ipv4/conf/eth0.7/rp_filter`), because interface names may hold dots.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::error::Error;
use crate::route::Family;

/// What [`ensure`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The setting had another value, this one, and was changed.
    Changed {
        /// The value before.
        from: i64,
    },
    /// The setting already had the wanted value; nothing was written.
    AlreadySet,
}

/// Reads a setting.
///
/// # Errors
/// [`Error::System`] when it does not exist in this kernel or namespace, [`Error::NotANumber`] when
/// it holds something else than one number.
pub fn read(path: &str) -> Result<i64, Error> {
    let file = file_of(path)?;
    let value = fs::read_to_string(&file)
        .map_err(|error| Error::io(format!("read {}", file.display()), &error))?;
    value.trim().parse().map_err(|_| Error::NotANumber {
        path: file.display().to_string(),
        value: value.trim().to_owned(),
    })
}

/// Writes a setting.
///
/// # Errors
/// [`Error::System`]; with EROFS where a container may not change it.
pub fn write(path: &str, value: i64) -> Result<(), Error> {
    let file = file_of(path)?;
    // Opened without creating: a missing setting is ENOENT and not EACCES.
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut open| std::io::Write::write_all(&mut open, value.to_string().as_bytes()))
        .map_err(|error| Error::io(format!("set {} to {value}", file.display()), &error))
}

/// Brings a setting to `value` and writes only when it differs, so that a value set beforehand is
/// enough where writing is forbidden.
///
/// # Errors
/// Those of [`read()`] and [`write()`].
pub fn ensure(path: &str, value: i64) -> Result<Ensured, Error> {
    let from = read(path)?;
    if from == value {
        return Ok(Ensured::AlreadySet);
    }
    write(path, value)?;
    Ok(Ensured::Changed { from })
}

/// Turns on forwarding for every interface, present and future.
///
/// For IPv6 every interface that accepts router advertisements as a host (`accept_ra` 1) is first
/// told to go on (2): otherwise the kernel drops its advertised default route at that moment. What new
/// interfaces begin with stays as it is: those of pods must not accept any.
///
/// # Errors
/// Those of [`ensure`]. A kernel without IPv6 gives ENOENT for [`Family::V6`].
pub fn enable_forwarding(family: Family) -> Result<Ensured, Error> {
    if family == Family::V4 {
        return ensure(FORWARDING_V4, 1);
    }
    if read(FORWARDING_V6)? == 1 {
        return Ok(Ensured::AlreadySet);
    }
    for interface in interfaces(Family::V6)? {
        let path = format!("ipv6/conf/{interface}/accept_ra");
        match read(&path) {
            // The interface may vanish at any time.
            Err(error) if error.is_absent() => {}
            // `all` has no effect of its own, and new interfaces begin with `default`.
            Ok(1) if !matches!(interface.as_str(), "all" | "default") => match write(&path, 2) {
                Err(error) if !error.is_absent() => return Err(error),
                _ => {}
            },
            other => drop(other?),
        }
    }
    ensure(FORWARDING_V6, 1)
}

/// What a node needs of its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSettings {
    /// The families that are forwarded.
    pub forwarding: Vec<Family>,
    /// Interfaces on which a packet may come whose answer would leave by another one: tunnel
    /// devices, and uplinks while packets come partly through a tunnel. Loose filtering is strict on
    /// an interface without IPv4 address, so it must have one.
    pub loose: Vec<String>,
    /// How many neighbours of a family this node may talk to at a time.
    pub neighbours: u32,
    /// Whether routes through next-hop objects are shown without the objects' next hops, so that a change
    /// of an object takes no time however many routes lead through it.
    pub bare_objects: bool,
    /// Whether senders behind this node are told how long their packets may be: tunnel packets that
    /// must not be fragmented vanish otherwise where the path is narrower.
    pub path_mtu: bool,
}

/// What [`NodeSettings::settle`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What was changed: the setting, its value before and its value now.
    pub changed: Vec<String>,
    /// Interfaces that were loosened, each with its value before: for [`restore_reverse_path`].
    pub loosened: Vec<(String, i64)>,
    /// What is not as it must be, each with what that does and why it could not be changed.
    pub deviations: Vec<String>,
    /// Families that are not forwarded though they should be.
    pub not_forwarded: Vec<Family>,
}

impl NodeSettings {
    /// Brings the settings in order and writes only those that differ. What is set is not set back,
    /// as it is not known who else relies on it by then; of reverse paths the caller may know.
    pub fn settle(&self) -> Settled {
        let mut settled = Settled::default();
        for &family in &self.forwarding {
            let (path, effect) = match family {
                Family::V4 => (FORWARDING_V4, "pods are cut off for IPv4"),
                Family::V6 => (FORWARDING_V6, "pods are cut off for IPv6"),
            };
            let done = enable_forwarding(family);
            if done.is_err() {
                settled.not_forwarded.push(family);
            }
            settled.note(path, 1, effect, done);
        }
        if self.path_mtu {
            let effect = "packets that are too long for a tunnel's path vanish";
            settled.note(FORWARD_USE_PMTU, 1, effect, ensure(FORWARD_USE_PMTU, 1));
        }
        if self.bare_objects {
            match ensure(NEXTHOP_COMPAT, 0) {
                // The kernel is older than the setting.
                Err(error) if error.is_absent() => {}
                done => {
                    let effect = "a change of a node's address takes long with many routes to it";
                    settled.note(NEXTHOP_COMPAT, 0, effect, done);
                }
            }
        }
        for interface in &self.loose {
            let path = reverse_path(interface);
            match loosen_reverse_path(interface) {
                // It went, and takes its settings with it.
                Err(error) if error.is_absent() => {}
                done => {
                    let effect =
                        "packets that come through a tunnel, or back from one, are dropped";
                    if let Ok(Ensured::Changed { from }) = done {
                        settled.loosened.push((interface.clone(), from));
                    }
                    settled.note(&path, LOOSE, effect, done);
                }
            }
        }
        for family in Family::ALL {
            for (path, wanted) in neighbour_thresholds(family, self.neighbours) {
                match raise(&path, wanted) {
                    // Only the first network namespace has them, for all; or there is no IPv6.
                    Err(error) if error.is_absent() => {}
                    done => settled.note(&path, wanted, "neighbours do not find room", done),
                }
            }
        }
        settled
    }
}

impl Settled {
    fn note(&mut self, path: &str, wanted: i64, effect: &str, done: Result<Ensured, Error>) {
        match done {
            Ok(Ensured::AlreadySet) => {}
            Ok(Ensured::Changed { from }) => {
                self.changed.push(format!("net/{path} was {from} and is now {wanted}"));
            }
            Err(error) => {
                self.deviations.push(format!("net/{path} must be {wanted}, or {effect}: {error}"));
            }
        }
    }
}

/// Has `interface` accept packets whose answer would leave by another interface, unless it does.
///
/// The kernel takes the greater of an interface's value and that of `all`: 1 is strict, 2 is loose.
///
/// # Errors
/// Those of [`read()`] and [`write()`].
pub fn loosen_reverse_path(interface: &str) -> Result<Ensured, Error> {
    let path = reverse_path(interface);
    let own = read(&path)?;
    if own.max(read("ipv4/conf/all/rp_filter")?) != STRICT {
        return Ok(Ensured::AlreadySet);
    }
    write(&path, LOOSE)?;
    Ok(Ensured::Changed { from: own })
}

/// Gives `interface` back the value that it had before it was loosened, unless somebody else has changed
/// it since. Returns whether it was written.
///
/// # Errors
/// Those of [`read()`] and [`write()`].
pub fn restore_reverse_path(interface: &str, before: i64) -> Result<bool, Error> {
    let path = reverse_path(interface);
    if read(&path)? != LOOSE {
        return Ok(false);
    }
    write(&path, before)?;
    Ok(true)
}

/// Raises a setting to `least` if it is lower.
///
/// # Errors
/// Those of [`read()`] and [`write()`].
pub fn raise(path: &str, least: i64) -> Result<Ensured, Error> {
    let from = read(path)?;
    if from >= least {
        return Ok(Ensured::AlreadySet);
    }
    write(path, least)?;
    Ok(Ensured::Changed { from })
}

fn reverse_path(interface: &str) -> String {
    format!("ipv4/conf/{interface}/rp_filter")
}

/// The sizes of a neighbour table: below the first nothing is collected, the third is the most there
/// can be. Room for what comes and goes is left above `neighbours`. The greatest first, so that they
/// are in order at any moment.
fn neighbour_thresholds(family: Family, neighbours: u32) -> [(String, i64); 3] {
    let directory = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    [(3, 4), (2, 2), (1, 1)].map(|(number, factor)| {
        let path = format!("{directory}/neigh/default/gc_thresh{number}");
        // The kernel reads them as 32 bits with a sign.
        (path, (i64::from(neighbours) * factor).min(i64::from(i32::MAX)))
    })
}

/// The names that have settings of their own: `all`, `default` and every interface.
///
/// # Errors
/// [`Error::System`] when the kernel lacks the family.
pub fn interfaces(family: Family) -> Result<Vec<String>, Error> {
    let directory = Path::new(ROOT).join(match family {
        Family::V4 => "ipv4/conf",
        Family::V6 => "ipv6/conf",
    });
    let listing =
        |error: std::io::Error| Error::io(format!("list {}", directory.display()), &error);
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).map_err(listing)? {
        names.extend(entry.map_err(listing)?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

fn file_of(path: &str) -> Result<PathBuf, Error> {
    // An interface name is part of the path and comes from outside.
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.is_empty() {
        return Err(Error::Unencodable("a setting's path must stay below /proc/sys/net"));
    }
    Ok(Path::new(ROOT).join(path))
}

const ROOT: &str = "/proc/sys/net";
/// Whether what this node forwards heeds what it has learned of the path.
pub const FORWARD_USE_PMTU: &str = "ipv4/ip_forward_use_pmtu";
const FORWARDING_V4: &str = "ipv4/ip_forward";
const FORWARDING_V6: &str = "ipv6/conf/all/forwarding";
const NEXTHOP_COMPAT: &str = "ipv4/nexthop_compat_mode";
/// Values of rp_filter.
const STRICT: i64 = 1;
const LOOSE: i64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbour_tables_have_room_above_the_neighbours() {
        let path = |number| format!("ipv6/neigh/default/gc_thresh{number}");
        assert_eq!(
            neighbour_thresholds(Family::V6, 5000),
            [(path(3), 20_000), (path(2), 10_000), (path(1), 5_000)]
        );
        assert_eq!(neighbour_thresholds(Family::V4, u32::MAX)[0].1, i64::from(i32::MAX));
    }

    #[test]
    fn a_deviation_says_what_it_does_and_why_it_stays() {
        let mut settled = Settled::default();
        let error =
            Error::system("set /proc/sys/net/ipv4/ip_forward to 1", rustix::io::Errno::ROFS);
        settled.note(FORWARDING_V4, 1, "pods are cut off for IPv4", Err(error));
        settled.note("x", 2, "nothing", Ok(Ensured::AlreadySet));
        assert_eq!(
            settled.deviations,
            ["net/ipv4/ip_forward must be 1, or pods are cut off for IPv4: cannot set \
              /proc/sys/net/ipv4/ip_forward to 1: Read-only file system (os error 30); mount \
              /proc/sys writable, as a privileged container has it"]
        );
        assert_eq!(settled.changed, Vec::<String>::new());
    }
}
