//! Many sessions that have nothing to say but KEEPALIVE: what they cost a daemon in CPU time and memory.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cell::Cell;
use super::daemon::{Daemon, Places};
use super::generator::{KEEPALIVE, handshake};
use super::namespace;
use crate::process::Process;
use crate::table::{figure, median, print_aligned, sorted};
use crate::{Extent, Result};

/// As `--only` takes it.
pub const NAME: &str = "1000-idle";

/// One run of one daemon.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    sessions: u32,
    /// CPU time of the daemon for a second.
    cpu_a_second: Duration,
    /// Resident octets before the first session and with all of them.
    before: u64,
    up: u64,
}

/// One daemon: medians.
#[derive(Debug, Serialize)]
pub struct Row {
    daemon: &'static str,
    sessions: u32,
    runs: usize,
    cpu_ms_a_second: f64,
    megabytes_before: f64,
    megabytes: f64,
}

/// Brings the sessions up and lets them live for as long as each needs to send a KEEPALIVE once, in the network namespace
/// that the calling thread enters.
///
/// # Errors
/// The daemon cannot be started, or ends a session.
pub fn measure(extent: Extent, daemon: Daemon, places: &Places) -> Result<Figures> {
    namespace::enter()?;
    let sessions = extent.pick(1000, 20);
    let window = Duration::from_secs(extent.pick(HOLD_TIME_SECS / 3, 1).into());
    let cell = Cell {
        name: NAME,
        senders: 0,
        receivers: sessions,
        prefixes: 0,
        prefixes_per_set: 1,
        shared: false,
        own_subnets: false,
    };
    let process = daemon.start(&cell, places)?;
    let told = |error| format!("{error}\nthe daemon said: {}", process.log());
    // It has read its configuration when it takes the first session.
    let mut streams = vec![handshake(0, HOLD_TIME_SECS).map_err(told)?.0];
    let (before, _) = process.memory()?;
    for peer in 1..sessions {
        streams.push(handshake(peer, HOLD_TIME_SECS).map_err(told)?.0);
    }
    std::thread::sleep(SETTLED);
    let cpu = process.cpu()?;
    let started = Instant::now();
    keep_alive(&mut streams, window, &process)?;
    let cpu_a_second = (process.cpu()? - cpu).div_f64(started.elapsed().as_secs_f64());
    let (up, _) = process.memory()?;
    Ok(Figures { sessions, cpu_a_second, before, up })
}

/// One KEEPALIVE on each, spread over the time, and what has come is read.
fn keep_alive(streams: &mut [TcpStream], window: Duration, daemon: &Process) -> Result<()> {
    let pause = window / streams.len() as u32;
    let mut buffer = [0; 4096];
    let started = Instant::now();
    for (stream, number) in streams.iter_mut().zip(1..) {
        stream.write_all(&KEEPALIVE)?;
        stream.set_nonblocking(true)?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(format!("a session has ended: {}", daemon.log()).into()),
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(error.into());
            }
            _ => {}
        }
        std::thread::sleep((started + pause * number).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// The medians of all runs of each daemon.
pub fn rows(runs: &[(Daemon, Figures)]) -> Vec<Row> {
    let mut daemons: Vec<Daemon> = Vec::new();
    for (daemon, _) in runs {
        if !daemons.contains(daemon) {
            daemons.push(*daemon);
        }
    }
    daemons.into_iter().map(|daemon| row(daemon, runs)).collect()
}

fn row(daemon: Daemon, runs: &[(Daemon, Figures)]) -> Row {
    let own: Vec<Figures> =
        runs.iter().filter(|(other, _)| *other == daemon).map(|(_, run)| *run).collect();
    let median_of = |of: fn(&Figures) -> f64| median(&sorted(own.iter().map(of)));
    Row {
        daemon: daemon.name(),
        sessions: own.first().map_or(0, |run| run.sessions),
        runs: own.len(),
        cpu_ms_a_second: median_of(|run| run.cpu_a_second.as_secs_f64() * 1e3),
        megabytes_before: median_of(|run| run.before as f64 / 1e6),
        megabytes: median_of(|run| (run.up as f64 - run.before as f64) / 1e6),
    }
}

/// Writes them to standard output.
pub fn print(rows: &[Row]) {
    let mut lines = vec![HEADING.map(String::from)];
    lines.extend(rows.iter().map(|row| {
        [
            NAME.into(),
            row.daemon.into(),
            row.sessions.to_string(),
            row.runs.to_string(),
            figure(row.cpu_ms_a_second),
            figure(row.megabytes),
            figure(row.megabytes_before),
        ]
    }));
    print_aligned(&lines, &[0, 1]);
}

const HEADING: [&str; 7] =
    ["cell", "daemon", "sessions", "runs", "CPU ms a second", "MB", "MB before"];
/// Each end sends a KEEPALIVE in a third of it.
const HOLD_TIME_SECS: u16 = 90;
/// After the last session: what a daemon does after it is no rest.
const SETTLED: Duration = Duration::from_secs(2);
