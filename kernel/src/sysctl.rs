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
/// told to go on (2): otherwise the kernel drops its advertised default route at that moment.
///
/// # Errors
/// Those of [`ensure`]. A kernel without IPv6 gives ENOENT for [`Family::V6`].
pub fn enable_forwarding(family: Family) -> Result<Ensured, Error> {
    if family == Family::V4 {
        return ensure("ipv4/ip_forward", 1);
    }
    if read(FORWARDING_V6)? == 1 {
        return Ok(Ensured::AlreadySet);
    }
    for interface in interfaces(Family::V6)? {
        let path = format!("ipv6/conf/{interface}/accept_ra");
        match read(&path) {
            // The interface may vanish at any time.
            Err(error) if error.is_absent() => {}
            // `all` has no effect of its own.
            Ok(1) if interface != "all" => match write(&path, 2) {
                Err(error) if !error.is_absent() => return Err(error),
                _ => {}
            },
            other => drop(other?),
        }
    }
    ensure(FORWARDING_V6, 1)
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
const FORWARDING_V6: &str = "ipv6/conf/all/forwarding";
