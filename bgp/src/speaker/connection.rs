//! One TCP connection: a task that reads and decodes, and a task that writes.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::config::Password;
use crate::rib::Chunk;
use crate::session::{ConnectionId, LocalAddresses};
use crate::stream::{self, Decoder, Item, ReaderConfig};
use crate::wire::Open;

use super::owner::{Input, InputKind, PeerKey};
use super::{
    CATCH_UP_QUEUE_OCTETS_MAX, Endpoints, FAREWELL_WAIT, WRITE_QUEUE_OCTETS_MAX, md5, socket,
};

/// The owner's end of a connection. Dropping it writes what is queued, then closes.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) endpoints: Endpoints,
    stream: Arc<TcpStream>,
    writer: mpsc::UnboundedSender<Write>,
    /// Octets of all messages that were handed to the writer.
    handed: AtomicU64,
    progress: Arc<Progress>,
    /// Reads whose content the owner has not taken in yet.
    unheard: Arc<AtomicUsize>,
    /// Our OPEN for the reader, until it is sent.
    reader: Option<oneshot::Sender<Open>>,
    /// Ends the reader when dropped.
    _reading: oneshot::Sender<()>,
    /// Bounds the time of the last writes when dropped, and ends them at once when sent to.
    writing: oneshot::Sender<()>,
    /// The interface that the peer is next to.
    link: Option<u32>,
    /// Octets that the peer had acknowledged at the last look.
    acknowledged: u64,
}

/// How far the writer is.
#[derive(Debug, Default)]
struct Progress {
    /// Octets of routes handed to the writer and not written yet.
    queued: AtomicUsize,
    /// Octets of all messages that the socket has taken.
    written: AtomicU64,
}

#[derive(Debug)]
enum Write {
    Bytes(Bytes),
    Chunk(Arc<Chunk>),
}

/// How a task of a connection reaches the owner.
#[derive(Clone, Debug)]
pub(super) struct Mailbox {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) peer: PeerKey,
    pub(super) connection: ConnectionId,
}

impl Mailbox {
    async fn send(&self, kind: InputKind) -> bool {
        let input = Input::Connection { peer: self.peer, connection: self.connection, kind };
        self.inputs.send(input).await.is_ok()
    }
}

impl Connection {
    /// Starts the tasks of a connection.
    pub(super) fn start(
        stream: TcpStream,
        endpoints: Endpoints,
        addresses: LocalAddresses,
        config: ReaderConfig,
        mailbox: Mailbox,
    ) -> Connection {
        // Batches are written as a whole; waiting for more would only delay the last one.
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let progress = Arc::<Progress>::default();
        let (writer, writes) = mpsc::unbounded_channel();
        let (reader, open) = oneshot::channel();
        let (reading, stop) = oneshot::channel();
        let (writing, closed) = oneshot::channel();
        tokio::spawn(write(
            Arc::clone(&stream),
            writes,
            Arc::clone(&progress),
            closed,
            addresses,
            mailbox.clone(),
        ));
        let input = Arc::clone(&stream);
        let unheard = Arc::new(AtomicUsize::new(0));
        let waiting = Arc::clone(&unheard);
        tokio::spawn(async move {
            let reading = read(&input, open, config, &mailbox, &waiting);
            tokio::select! {
                () = reading => {}
                // The owner is done with the connection.
                _ = stop => drain(&input).await,
            }
        });
        Connection {
            endpoints,
            stream,
            writer,
            handed: AtomicU64::new(0),
            progress,
            unheard,
            reader: Some(reader),
            _reading: reading,
            writing,
            link: addresses.link,
            acknowledged: 0,
        }
    }

    /// The index of the interface that the peer is next to, when it is.
    pub(super) fn link(&self) -> Option<u32> {
        self.link
    }

    /// Whether octets have left since the last call, or none wait.
    pub(super) fn moves(&mut self) -> bool {
        // What cannot be asked is no reason to end a session.
        let Some((acknowledged, waiting)) = socket::sent(&self.stream) else { return true };
        let before = std::mem::replace(&mut self.acknowledged, acknowledged);
        waiting == 0 || acknowledged != before
    }

    /// Replaces the MD5 key of the connection.
    pub(super) fn set_password(&self, password: &Password) -> io::Result<()> {
        md5::set_key(self.stream.as_raw_fd(), self.endpoints.remote.ip().into(), Some(&password.0))
    }

    /// Closes at once, whatever is queued.
    pub(super) fn abort(self) {
        // What the kernel holds for the peer goes, too.
        let _ = socket2::SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO));
        let _ = self.writing.send(());
    }

    /// The own address of the connection.
    pub(super) fn local_address(&self) -> IpAddr {
        self.endpoints.local.ip()
    }

    /// Sends our OPEN, which lets the reader go on behind the peer's.
    pub(super) fn send_open(&mut self, open: Open) {
        self.send(open.encode());
        if let Some(reader) = self.reader.take() {
            // A reader that has ended does not need it.
            let _ = reader.send(open);
        }
    }

    /// Queues a message. Its octets take no room: a KEEPALIVE or NOTIFICATION goes out however
    /// much is queued, and there are few of them.
    pub(super) fn send(&self, message: Bytes) {
        self.handed.fetch_add(message.len() as u64, Ordering::Relaxed);
        let _ = self.writer.send(Write::Bytes(message));
    }

    /// Queues routes.
    pub(super) fn send_chunk(&self, chunk: Arc<Chunk>) {
        self.progress.queued.fetch_add(chunk.octets, Ordering::Relaxed);
        self.handed.fetch_add(chunk.octets as u64, Ordering::Relaxed);
        let _ = self.writer.send(Write::Chunk(chunk));
    }

    /// Octets of routes that may be queued now, and while the peer lags behind its group.
    pub(super) fn rooms(&self) -> (usize, usize) {
        let queued = self.progress.queued.load(Ordering::Relaxed);
        (
            WRITE_QUEUE_OCTETS_MAX.saturating_sub(queued),
            CATCH_UP_QUEUE_OCTETS_MAX.saturating_sub(queued),
        )
    }

    /// How many octets have been sent or queued so far.
    pub(super) fn handed(&self) -> u64 {
        self.handed.load(Ordering::Relaxed)
    }

    /// Whether the peer's TCP has acknowledged the first `octets` of the connection.
    pub(super) fn has_acknowledged(&self, octets: u64) -> bool {
        // Looked at first: what is written between the two looks only counts as waiting.
        let written = self.progress.written.load(Ordering::Acquire);
        let waiting = socket::sent(&self.stream).map_or(0, |(_, waiting)| waiting as u64);
        written.saturating_sub(waiting) >= octets
    }

    /// Whether the peer has sent what the owner has not taken in yet.
    pub(super) fn has_unread(&self) -> bool {
        self.unheard.load(Ordering::Acquire) > 0 || socket::has_unread(&self.stream)
    }

    /// The owner has taken in what came with one input.
    pub(super) fn heard(&self) {
        self.unheard.fetch_sub(1, Ordering::Release);
    }
}

/// Reads until the connection ends or the owner does.
async fn read(
    stream: &TcpStream,
    open: oneshot::Receiver<Open>,
    config: ReaderConfig,
    mailbox: &Mailbox,
    unheard: &AtomicUsize,
) {
    // A connection that is rejected never sends an OPEN: `drain` reads the peer's.
    let Ok(local) = open.await else { return std::future::pending().await };
    let mut decoder = Decoder::new(local, config);
    let mut buffer = BytesMut::new();
    loop {
        let read = loop {
            if let Err(error) = stream.readable().await {
                break Err(error);
            }
            buffer.reserve(READ_OCTETS);
            // Before the socket is emptied: between the two nothing may look as if it were silent.
            unheard.fetch_add(1, Ordering::Release);
            match stream.try_read_buf(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    unheard.fetch_sub(1, Ordering::Release);
                    if buffer.is_empty() {
                        // A thousand peers that are silent hold no buffer each: one is enough for those
                        // that speak.
                        buffer = BytesMut::new();
                    }
                }
                result => break result,
            }
        };
        let mut items = Vec::new();
        let mut goes_on = decoder.decode(&mut buffer, &mut items);
        match read {
            Ok(0) if goes_on => {
                items.push(Item::Lost(None));
                goes_on = false;
            }
            Err(error) if goes_on => {
                items.push(Item::Lost(Some(error.to_string())));
                goes_on = false;
            }
            Ok(_) | Err(_) => {}
        }
        if items.is_empty() {
            unheard.fetch_sub(1, Ordering::Release);
        } else if !mailbox.send(InputKind::Read(items)).await {
            return;
        }
        if !goes_on {
            // The owner has to say goodbye before the socket goes.
            return std::future::pending().await;
        }
    }
}

/// Reads on after the end until the peer closes, so that unread octets do not turn our NOTIFICATION
/// into a reset that the peer's kernel throws it away for.
async fn drain(stream: &TcpStream) {
    let mut buffer = [0; 4096];
    let drained = async {
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    };
    let _ = timeout(FAREWELL_WAIT, drained).await;
}

/// Writes what is queued until the owner lets go of the connection, then closes it.
async fn write(
    stream: Arc<TcpStream>,
    mut writes: mpsc::UnboundedReceiver<Write>,
    progress: Arc<Progress>,
    mut closed: oneshot::Receiver<()>,
    own: LocalAddresses,
    mailbox: Mailbox,
) {
    let mut buffer = BytesMut::new();
    while let Some(first) = writes.recv().await {
        buffer.reserve(WRITE_OCTETS);
        let mut counted = append(&mut buffer, &first, own);
        while buffer.len() < WRITE_OCTETS
            && let Ok(more) = writes.try_recv()
        {
            counted += append(&mut buffer, &more, own);
        }
        let written = tokio::select! {
            result = write_all(&stream, &buffer) => result,
            // Once the owner has let go, a peer that does not read may not keep the task.
            () = closed_for_long(&mut closed) => break,
        };
        let octets = buffer.len() as u64;
        buffer.clear();
        if writes.is_empty() {
            buffer = BytesMut::new();
        }
        // The reader sees the same error and reports it.
        if written.is_err() {
            break;
        }
        progress.written.fetch_add(octets, Ordering::Release);
        let before = progress.queued.fetch_sub(counted, Ordering::Relaxed);
        let after = before.saturating_sub(counted);
        let passes = |low| before >= low && after < low;
        let has_room = passes(WRITE_QUEUE_OCTETS_MAX / 2) || passes(CATCH_UP_QUEUE_OCTETS_MAX / 2);
        if has_room && !mailbox.send(InputKind::Writable).await {
            break;
        }
    }
    let _ = socket2::SockRef::from(&*stream).shutdown(std::net::Shutdown::Write);
}

/// Resolves when the owner has let go and the time for last words is over.
async fn closed_for_long(closed: &mut oneshot::Receiver<()>) {
    // A receiver may not be asked again after its end.
    if !closed.is_terminated() && closed.await.is_ok() {
        return;
    }
    tokio::time::sleep(FAREWELL_WAIT).await;
}

async fn write_all(stream: &TcpStream, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        stream.writable().await?;
        match stream.try_write(octets) {
            Ok(written) => octets = octets.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies octets or messages into the buffer; the octets that were counted.
fn append(buffer: &mut BytesMut, write: &Write, own: LocalAddresses) -> usize {
    match write {
        Write::Bytes(bytes) => {
            buffer.extend_from_slice(bytes);
            0
        }
        Write::Chunk(chunk) => {
            stream::write(chunk, own, buffer);
            chunk.octets
        }
    }
}

/// What one read takes in at most: decoded, it is some 100 KiB that wait for the owner, of each peer.
const READ_OCTETS: usize = 16 * 1024;
/// What is gathered for one write.
const WRITE_OCTETS: usize = 64 * 1024;
