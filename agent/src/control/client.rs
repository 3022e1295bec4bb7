//! The asking side of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use super::protocol::{Ask, LINE_OCTETS_MAX, Line, Request, VERSION};

/// The records of an answer, as they come.
#[derive(Debug)]
pub struct Records<T> {
    lines: BufReader<UnixStream>,
    ended: bool,
    record: PhantomData<T>,
}

/// Asks the daemon of `run_dir`. `T` is the kind of record that [`Ask`] promises.
///
/// # Errors
/// No daemon answers there.
pub fn ask<T: DeserializeOwned>(run_dir: &Path, ask: Ask) -> anyhow::Result<Records<T>> {
    let path = super::path(run_dir);
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no agent or speaker answers on {}: is it running, and is --run-dir the same?",
            path.display()
        )
    })?;
    // Who watches waits for what may not happen for hours.
    let patience = if ask == Ask::Watch { None } else { Some(ANSWER_MAX) };
    stream.set_read_timeout(patience)?;
    let mut request = serde_json::to_vec(&Request { version: VERSION, ask })?;
    request.push(b'\n');
    // A daemon that is too busy answers without reading.
    let _ = stream.write_all(&request);
    Ok(Records { lines: BufReader::new(stream), ended: false, record: PhantomData })
}

impl<T: DeserializeOwned> Records<T> {
    /// The only record of an answer that has one.
    ///
    /// # Errors
    /// The daemon refuses, or gives none.
    pub fn only(mut self) -> anyhow::Result<T> {
        self.next().unwrap_or_else(|| bail!("the daemon's answer is empty"))
    }

    fn read(&mut self) -> anyhow::Result<Option<T>> {
        let mut line = Vec::new();
        (&mut self.lines)
            .take(LINE_OCTETS_MAX)
            .read_until(b'\n', &mut line)
            .context("the daemon did not answer in time")?;
        if line.is_empty() {
            bail!("the daemon closed the connection before the end of its answer: see its log");
        }
        let line = serde_json::from_slice(&line)
            .context("the daemon's answer is not of this version of cairn")?;
        match line {
            Line::Record(record) => Ok(Some(record)),
            Line::Done { .. } => Ok(None),
            Line::Error(refusal) => Err(refusal.into()),
        }
    }
}

impl<T: DeserializeOwned> Iterator for Records<T> {
    type Item = anyhow::Result<T>;

    /// The next record; nothing more after the end or an error.
    fn next(&mut self) -> Option<anyhow::Result<T>> {
        if self.ended {
            return None;
        }
        let read = self.read();
        self.ended = !matches!(read, Ok(Some(_)));
        read.transpose()
    }
}

/// How long the daemon may be silent: its owner may be taking in a million routes.
const ANSWER_MAX: Duration = Duration::from_secs(30);
