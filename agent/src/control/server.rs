//! The answering side of the control socket.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use cairn_bgp::speaker::SpeakerHandle;

use super::protocol::{Line, REQUEST_OCTETS_MAX, Refusal, Request, VERSION};
use crate::bgp::answer;
use crate::disabled::DisabledPeers;
use crate::fib::FibQuestions;
use crate::report::Report;

/// What a daemon answers from.
pub struct Service {
    /// The report for `cairn status`.
    pub report: Box<dyn Fn() -> BoxFuture<'static, Report> + Send + Sync>,
    /// The speaker, once there is one.
    pub speaker: watch::Receiver<Option<SpeakerHandle>>,
    /// The peers without a session by an operator's wish.
    pub disabled: Arc<DisabledPeers>,
    /// What is wanted in the kernel; a speaker may write nothing there.
    pub kernel: Option<FibQuestions>,
}

/// Answers connections for ever, each on its own, some at once and the others refused.
pub async fn serve(listener: UnixListener, service: Arc<Service>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    converse(stream, &service).await;
                    drop(place);
                });
            }
            Err(_) => refuse(&stream),
        }
    }
}

/// Says that there are too many: what fits into a fresh socket's buffer needs no waiting.
fn refuse(stream: &UnixStream) {
    let text = format!("{CONNECTIONS_MAX} others are being answered already: try again");
    let line: Line<()> = Line::Error(Refusal::new(text));
    if let Ok(mut line) = serde_json::to_vec(&line) {
        line.push(b'\n');
        let _ = stream.try_write(&line);
    }
}

async fn converse(mut stream: UnixStream, service: &Service) {
    let request = match read_request(&mut stream).await {
        Ok(request) => request,
        Err(Unread::Gone) => return,
        Err(Unread::Silent) => {
            let report = (service.report)().await;
            if let Ok(document) = serde_json::to_vec(&report) {
                let _ = timeout(STALL_MAX, stream.write_all(&document)).await;
            }
            return;
        }
        Err(Unread::Refused(refusal)) => {
            let mut answer = Answer::new(&mut stream);
            let _ = answer.end(Err(refusal.into())).await;
            return;
        }
    };
    let mut answer = Answer::new(&mut stream);
    let result = answer::answer(request.ask, service, &mut answer).await;
    // A client that has gone hears nothing any more.
    let _ = answer.end(result).await;
}

enum Unread {
    /// The client went without a request.
    Gone,
    /// The client waits for an answer without having asked.
    Silent,
    Refused(Refusal),
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, Unread> {
    let mut line = Vec::new();
    match timeout(SILENCE, stream.read_buf(&mut line)).await {
        Err(_) => return Err(Unread::Silent),
        Ok(Ok(0) | Err(_)) => return Err(Unread::Gone),
        Ok(Ok(_)) => {}
    }
    let refused = |text: String| Err(Unread::Refused(Refusal::new(text)));
    let rest = async {
        while !line.contains(&b'\n') && line.len() <= REQUEST_OCTETS_MAX {
            match stream.read_buf(&mut line).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    if timeout(REQUEST_MAX, rest).await.is_err() {
        return refused("the request did not come to its end in time".into());
    }
    let end = line.iter().position(|octet| *octet == b'\n').unwrap_or(line.len());
    line.truncate(end);
    if line.len() >= REQUEST_OCTETS_MAX {
        return refused(format!("the request is longer than {REQUEST_OCTETS_MAX} octets"));
    }
    /// What requests of every version have.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    match serde_json::from_slice(&line) {
        Ok(Head { version: VERSION }) => {}
        Ok(Head { version }) => {
            return refused(format!(
                "the request is of version {version}, this daemon ({}) speaks version {VERSION}: \
                 use the `cairn` of the same release",
                env!("CARGO_PKG_VERSION")
            ));
        }
        Err(error) => return refused(format!("the request cannot be read: {error}")),
    }
    serde_json::from_slice(&line)
        .or_else(|error| refused(format!("the request cannot be read: {error}")))
}

/// An answer on its way. What is written is gathered; what the client does not take waits for it, up
/// to [`STALL_MAX`] a piece.
pub(crate) struct Answer<'a> {
    stream: &'a mut UnixStream,
    buffer: Vec<u8>,
    records: u64,
}

/// Why an answer ends before its end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// Nobody reads it any more.
    Unread,
    /// It cannot be given.
    Refused(Refusal),
}

impl<'a> Answer<'a> {
    fn new(stream: &'a mut UnixStream) -> Answer<'a> {
        Answer { stream, buffer: Vec::new(), records: 0 }
    }

    /// Adds a record.
    pub(crate) async fn record<T: Serialize>(&mut self, record: &T) -> Result<(), Broken> {
        self.records += 1;
        self.line(&Line::Record(record))?;
        match self.buffer.len() >= WRITE_OCTETS {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// Sends what has been gathered.
    pub(crate) async fn flush(&mut self) -> Result<(), Broken> {
        let written = timeout(STALL_MAX, self.stream.write_all(&self.buffer)).await;
        self.buffer.clear();
        match written {
            Ok(Ok(())) => Ok(()),
            _ => Err(Broken::Unread),
        }
    }

    /// Returns when the client has closed its end.
    pub(crate) async fn gone(&mut self) {
        let mut rest = [0; 64];
        while let Ok(1..) = self.stream.read(&mut rest).await {}
    }

    async fn end(&mut self, result: Result<(), Broken>) -> Result<(), Broken> {
        let last: Line<()> = match result {
            Ok(()) => Line::Done { records: self.records },
            Err(Broken::Refused(refusal)) => Line::Error(refusal),
            Err(Broken::Unread) => return Ok(()),
        };
        self.line(&last)?;
        self.flush().await
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), Broken> {
        let before = self.buffer.len();
        if let Err(error) = serde_json::to_writer(&mut self.buffer, line) {
            self.buffer.truncate(before);
            return Err(Refusal::new(format!("the answer cannot be written: {error}")).into());
        }
        self.buffer.push(b'\n');
        Ok(())
    }
}

impl From<Refusal> for Broken {
    fn from(refusal: Refusal) -> Broken {
        Broken::Refused(refusal)
    }
}

impl From<cairn_bgp::speaker::Error> for Broken {
    fn from(error: cairn_bgp::speaker::Error) -> Broken {
        Broken::Refused(Refusal::new(error.to_string()))
    }
}

/// Connections that are answered at once. Each holds at most the prefixes of one table.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take nothing of an answer. People read tables page by page.
const STALL_MAX: Duration = Duration::from_secs(300);
/// A client that has said nothing for so long is one that only listens.
const SILENCE: Duration = Duration::from_millis(300);
/// How long a request may take once it has begun.
const REQUEST_MAX: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// What is gathered for one write.
const WRITE_OCTETS: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_after_a_while() {
        let (mut ours, _theirs) = UnixStream::pair().expect("a pair");
        let mut answer = Answer::new(&mut ours);
        let line = "x".repeat(1000);
        let start = tokio::time::Instant::now();
        let unread = loop {
            match answer.record(&line).await {
                Ok(()) => assert!(answer.records < 100_000, "somebody reads"),
                Err(broken) => break broken,
            }
        };
        assert!(matches!(unread, Broken::Unread), "{unread:?}");
        assert_eq!(start.elapsed().as_secs(), STALL_MAX.as_secs());
        assert!(answer.buffer.capacity() < 4 * WRITE_OCTETS, "what is gathered is bounded");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_end_is_refused_in_time() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(b"{").await.expect("written");
        let start = tokio::time::Instant::now();
        let Err(Unread::Refused(refusal)) = read_request(&mut ours).await else {
            panic!("it is no request");
        };
        assert!(refusal.text.contains("did not come to its end in time"), "{refusal}");
        assert_eq!(start.elapsed(), REQUEST_MAX);
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        assert!(matches!(read_request(&mut ours).await, Err(Unread::Silent)));
        drop(theirs);
        assert!(matches!(read_request(&mut ours).await, Err(Unread::Gone)));
    }
}
