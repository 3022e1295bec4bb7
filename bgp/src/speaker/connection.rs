//! One TCP connection: a task that reads and decodes, and a task that writes.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::rib::{Chunk, UpdateBatch};
use crate::session::{ConnectionId, LocalAddresses, Received};
use crate::wire::{
    AttributeError, Frame, FsmError, HeaderError, MESSAGE_OCTETS_MAX, MessageType, Negotiated,
    Notification, Open, RouteRefresh, SessionSort, UpdateBody, UpdateContext,
};

use super::owner::{Input, InputKind, PeerKey};
use super::{Endpoints, FAREWELL_WAIT, UPDATE_BATCH_PREFIXES_MAX, WRITE_QUEUE_OCTETS_MAX, socket};

/// The owner's end of a connection. Dropping it writes what is queued, then closes.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) endpoints: Endpoints,
    stream: Arc<TcpStream>,
    writer: mpsc::UnboundedSender<Write>,
    /// Octets handed to the writer and not written yet.
    queued: Arc<AtomicUsize>,
    /// Reads whose content the owner has not taken in yet.
    unheard: Arc<AtomicUsize>,
    /// Our OPEN for the reader, until it is sent.
    reader: Option<oneshot::Sender<Open>>,
    /// Ends the reader when dropped.
    _reading: oneshot::Sender<()>,
    /// Bounds the time of the last writes when dropped.
    _writing: oneshot::Sender<()>,
}

/// What a reader found.
#[derive(Debug)]
pub(super) enum Item {
    /// A message for the state machine.
    Message(Received),
    /// UPDATEs for the RIB.
    Updates(UpdateBatch),
    /// A ROUTE-REFRESH.
    Refresh(RouteRefresh),
    /// What is wrong in an UPDATE that does not end the session.
    Errors(Vec<AttributeError>),
    /// What ends the session.
    Malformed(Notification),
    /// The connection is over.
    Lost(Option<String>),
}

/// What decoding depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReaderConfig {
    /// The peer's AS number, when an eBGP peer's AS_PATH has to begin with it.
    pub(super) first_as: Option<u32>,
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
        config: ReaderConfig,
        mailbox: Mailbox,
    ) -> Connection {
        // Batches are written as a whole; waiting for more would only delay the last one.
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let queued = Arc::new(AtomicUsize::new(0));
        let (writer, writes) = mpsc::unbounded_channel();
        let (reader, open) = oneshot::channel();
        let (reading, stop) = oneshot::channel();
        let (writing, closed) = oneshot::channel();
        tokio::spawn(write(
            Arc::clone(&stream),
            writes,
            Arc::clone(&queued),
            closed,
            socket::local_addresses(endpoints.local.ip()),
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
            queued,
            unheard,
            reader: Some(reader),
            _reading: reading,
            _writing: writing,
        }
    }

    /// Own addresses for next hops.
    pub(super) fn addresses(&self) -> LocalAddresses {
        socket::local_addresses(self.endpoints.local.ip())
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

    /// Queues a message. Its octets are not counted: a KEEPALIVE or NOTIFICATION goes out however
    /// much is queued, and there are few of them.
    pub(super) fn send(&self, message: Bytes) {
        let _ = self.writer.send(Write::Bytes(message));
    }

    /// Queues routes.
    pub(super) fn send_chunk(&self, chunk: Arc<Chunk>) {
        self.queued.fetch_add(chunk.octets, Ordering::Relaxed);
        let _ = self.writer.send(Write::Chunk(chunk));
    }

    /// Octets of routes that may be queued now.
    pub(super) fn room(&self) -> usize {
        WRITE_QUEUE_OCTETS_MAX.saturating_sub(self.queued.load(Ordering::Relaxed))
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
    let Ok(local) = open.await else { return };
    let mut decoder = Decoder { local, config, negotiated: None };
    let mut buffer = BytesMut::with_capacity(READ_OCTETS);
    loop {
        buffer.reserve(READ_OCTETS);
        let read = loop {
            if let Err(error) = stream.readable().await {
                break Err(error);
            }
            // Before the socket is emptied: between the two nothing may look as if it were silent.
            unheard.fetch_add(1, Ordering::Release);
            match stream.try_read_buf(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    unheard.fetch_sub(1, Ordering::Release);
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

struct Decoder {
    local: Open,
    config: ReaderConfig,
    negotiated: Option<(UpdateContext, usize)>,
}

impl Decoder {
    /// Decodes all complete messages; false when the stream is of no use any more.
    fn decode(&mut self, buffer: &mut BytesMut, items: &mut Vec<Item>) -> bool {
        loop {
            let octets_max = self.negotiated.map_or(MESSAGE_OCTETS_MAX, |(_, octets)| octets);
            let result = match Frame::split(buffer, octets_max) {
                Ok(None) => return true,
                Ok(Some(frame)) => self.message(&frame, items),
                Err(notification) => Err(notification),
            };
            if let Err(notification) = result {
                items.push(Item::Malformed(notification));
                return false;
            }
        }
    }

    fn message(&mut self, frame: &Frame, items: &mut Vec<Item>) -> Result<(), Notification> {
        match frame.message_type {
            MessageType::Open => {
                let peer = Open::decode(&frame.body)?;
                let negotiated = Negotiated::new(&self.local, &peer);
                let first_as =
                    self.config.first_as.filter(|_| negotiated.sort == SessionSort::Ebgp);
                self.negotiated =
                    Some((negotiated.update_context(first_as), negotiated.receive_octets_max));
                items.push(Item::Message(Received::Open(Box::new(peer))));
            }
            MessageType::Update => {
                let Some((context, _)) = &self.negotiated else {
                    return Err(FsmError::UnexpectedInOpenSent.into());
                };
                update(&frame.body, context, items)?;
            }
            MessageType::Notification => match Notification::decode(&frame.body) {
                Some(notification) => {
                    items.push(Item::Message(Received::Notification(notification)));
                }
                None => return Err(HeaderError::BadMessageLength.into()),
            },
            MessageType::Keepalive => items.push(Item::Message(Received::Keepalive)),
            MessageType::RouteRefresh => {
                items.push(Item::Message(Received::RouteRefresh));
                items.push(Item::Refresh(RouteRefresh::decode(&frame.body)?));
            }
        }
        Ok(())
    }
}

fn update(body: &[u8], context: &UpdateContext, items: &mut Vec<Item>) -> Result<(), Notification> {
    let update = UpdateBody::split(body)?.decode(context)?;
    let full = |batch: &UpdateBatch| batch.len() >= UPDATE_BATCH_PREFIXES_MAX;
    match items.last_mut() {
        Some(Item::Updates(batch)) if !full(batch) => batch.push(&update),
        _ => {
            let mut batch = UpdateBatch::default();
            batch.push(&update);
            items.push(Item::Message(Received::Update));
            items.push(Item::Updates(batch));
        }
    }
    if !update.errors.is_empty() {
        items.push(Item::Errors(update.errors));
    }
    Ok(())
}

/// Writes what is queued until the owner lets go of the connection, then closes it.
async fn write(
    stream: Arc<TcpStream>,
    mut writes: mpsc::UnboundedReceiver<Write>,
    queued: Arc<AtomicUsize>,
    mut closed: oneshot::Receiver<()>,
    own: LocalAddresses,
    mailbox: Mailbox,
) {
    let mut buffer = BytesMut::with_capacity(WRITE_OCTETS);
    while let Some(first) = writes.recv().await {
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
        buffer.clear();
        // The reader sees the same error and reports it.
        if written.is_err() {
            break;
        }
        let before = queued.fetch_sub(counted, Ordering::Relaxed);
        let after = before.saturating_sub(counted);
        let low = WRITE_QUEUE_OCTETS_MAX / 2;
        if before >= low && after < low && !mailbox.send(InputKind::Writable).await {
            break;
        }
    }
    let _ = socket2::SockRef::from(&*stream).shutdown(std::net::Shutdown::Write);
}

/// Resolves when the owner has let go and the time for last words is over.
async fn closed_for_long(closed: &mut oneshot::Receiver<()>) {
    // It is never sent to: it ends by being dropped. A receiver may not be asked again after that.
    if !closed.is_terminated() {
        let _ = closed.await;
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

/// Copies messages into the buffer with our next hop in its place; the octets that were counted.
fn append(buffer: &mut BytesMut, write: &Write, own: LocalAddresses) -> usize {
    let chunk = match write {
        Write::Bytes(bytes) => {
            buffer.extend_from_slice(bytes);
            return 0;
        }
        Write::Chunk(chunk) => chunk,
    };
    for message in &chunk.messages {
        let start = buffer.len();
        buffer.extend_from_slice(&message.bytes);
        let Some(range) = &message.next_hop else { continue };
        let Some(field) = buffer.get_mut(start + range.start..start + range.end) else { continue };
        match (field.len(), own.ipv4, own.ipv6) {
            (4, Some(address), _) => field.copy_from_slice(&address.octets()),
            (16, _, Some(address)) => field.copy_from_slice(&address.octets()),
            // The family would not have been offered.
            _ => {}
        }
    }
    chunk.octets
}

/// What one read takes in at most.
const READ_OCTETS: usize = 64 * 1024;
/// What is gathered for one write.
const WRITE_OCTETS: usize = 64 * 1024;
