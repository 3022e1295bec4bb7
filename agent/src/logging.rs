//! Logs: quiet at the default level, one line a state change, to standard error.
//!
//! ```text
//!  any thread ──line──► 1,024 places ──thread "log"──► standard error
//!                          └ full: counted, and said when there is room again
//! ```
//!
//! Who reads standard error may stop for a while, a container runtime with its disk for example. No thread
//! that speaks BGP or writes routes may wait for that.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. The level is `info`, or what the variable `CAIRN_LOG` says, for example `debug`
/// or `cairn_bgp=trace,info`. To be called once; [`flush`] is called before a panic's own words.
///
/// # Errors
/// There is no thread to be had.
pub fn start(format: Format) -> anyhow::Result<()> {
    let wanted = std::env::var("CAIRN_LOG").unwrap_or_else(|_| QUIET.into());
    let writer = Lines::to(io::stderr())?;
    let _ = QUEUE.set(writer.queue.clone());
    let panics = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        flush();
        panics(panic);
    }));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(wanted))
        .with_writer(Arc::new(writer))
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    match format {
        Format::Text => lines.init(),
        Format::Json => lines.json().init(),
    }
    Ok(())
}

/// Waits until all that was logged is written, but not for long.
pub fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let (done, written) = mpsc::sync_channel(1);
    // Without room nobody reads, and what waits is lost with the process.
    if queue.try_send(Item::Flush(done)).is_ok() {
        let _ = written.recv_timeout(FLUSH_TIME);
    }
}

/// Takes lines for a thread that writes them.
#[derive(Debug)]
struct Lines {
    queue: SyncSender<Item>,
    /// For how many there was no room since this was said last.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Lines {
    fn to(output: impl Write + Send + 'static) -> anyhow::Result<Lines> {
        let (queue, items) = mpsc::sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&lost);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write(output, &items, &told))
            .context("cannot start a thread")?;
        Ok(Lines { queue, lost })
    }
}

impl Write for &Lines {
    /// Takes a whole line, which its caller has put together.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.queue.try_send(Item::Line(line.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(mut output: impl Write, items: &Receiver<Item>, lost: &AtomicU64) {
    for item in items {
        // There is nobody to tell that nobody can be told.
        let _ = match item {
            Item::Line(line) => output.write_all(&line),
            Item::Flush(done) => {
                let written = output.flush();
                let _ = done.send(());
                written
            }
        };
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let told = format!("{lost} log lines are lost: nobody took them in time\n");
            let _ = output.write_all(told.as_bytes());
        }
    }
}

static QUEUE: OnceLock<SyncSender<Item>> = OnceLock::new();
/// The API client logs every request that fails; its callers log what that means, once.
const QUIET: &str = "info,kube_client=off,kube_runtime=off";
/// Some 200 bytes each while nobody reads.
const LINES_MAX: usize = 1024;
const FLUSH_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that takes lines when it is told to.
    struct Slow {
        may: Receiver<()>,
        taken: SyncSender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.may.recv().map_err(io::Error::other)?;
            self.taken.send(line.to_vec()).map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_who_reads_and_what_is_lost_is_said() {
        let (allow, may) = mpsc::sync_channel(3 * LINES_MAX);
        let (taken, lines) = mpsc::sync_channel(3 * LINES_MAX);
        let writer = Lines::to(Slow { may, taken }).expect("a thread");
        for number in 0..2 * LINES_MAX {
            (&writer).write_all(format!("{number}\n").as_bytes()).expect("taken");
        }
        (0..2 * LINES_MAX).for_each(|_| allow.send(()).expect("sent"));
        let next = || String::from_utf8(lines.recv().expect("a line")).expect("text");
        assert_eq!(next(), "0\n");
        // One was under way, or none yet.
        let told = next();
        let (lost, rest) = told.split_once(' ').expect("words");
        let lost: usize = lost.parse().expect("a number");
        assert!(lost == LINES_MAX || lost == LINES_MAX - 1, "{lost}");
        assert_eq!(rest, "log lines are lost: nobody took them in time\n");
        (1..2 * LINES_MAX - lost).for_each(|number| assert_eq!(next(), format!("{number}\n")));
    }
}
