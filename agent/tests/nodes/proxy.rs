//! A way to the API server that loses, holds and delays what a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::{Client, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing happens to it but that it is counted.
    Passes,
    /// It waits, as do later ones like it, until [`Proxy::let_pass`].
    Waits,
    /// The client's connection breaks; the server gets the request at [`Proxy::deliver`]. Once.
    ComesLate,
    /// The server answers, the client's connection breaks before it hears. Once.
    LosesAnswer,
    /// The client hears that it has no right to ask this.
    IsForbidden,
    /// The client hears that the server does not know what it asks for.
    IsInvalid,
}

/// How the last call of a process that dies ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It is answered, and the next never leaves.
    Heard,
    /// The server carries it out, and the process does not hear of it.
    Unheard,
}

/// A proxy in front of the API server.
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<Mutex<Faults>>,
    server: SocketAddr,
    task: JoinHandle<()>,
}

/// Random numbers of a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        // Zero stays zero.
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn draw(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }
}

/// What happens to a request on a way where anything can.
enum Chance {
    Passes,
    Delayed(Duration),
    LosesAnswer,
    /// The server acts on it, or not, and the client hears of an error.
    Fails {
        acts: bool,
    },
    ComesLate(Duration),
}

impl Chance {
    /// Of twenty requests eleven pass as they are.
    fn of(dice: &mut Dice, watch: bool) -> Chance {
        let time = Duration::from_millis(dice.draw(60));
        match dice.draw(20) {
            0..=2 => Chance::Delayed(time),
            _ if watch => Chance::Passes,
            3 | 4 => Chance::LosesAnswer,
            5 => Chance::Fails { acts: true },
            6 => Chance::Fails { acts: false },
            7 | 8 => Chance::ComesLate(4 * time),
            _ => Chance::Passes,
        }
    }
}

#[derive(Default)]
struct Faults {
    /// Decides about every request, while there is one.
    dice: Option<Dice>,
    /// Requests so far.
    asked: usize,
    /// What the first line of a request begins with, what it holds, and what happens to it.
    rules: Vec<(&'static str, String, Fate)>,
    /// Requests that [`Fate::ComesLate`] kept.
    late: Vec<Vec<u8>>,
    /// Requests that have met a rule.
    met: usize,
    /// Whether watches say nothing more, as over a connection that died without a word.
    watches_hang: bool,
    /// Whether requests wait.
    cut: bool,
    /// After how many calls nothing passes any more; watches are none.
    end: Option<(usize, Last)>,
    /// Calls so far, while that is set.
    calls: usize,
    /// No request passes any more.
    shut: bool,
    /// The last call has ended as it was to.
    ended: bool,
}

/// Whether a request passes a way that ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    Open,
    /// Its answer is the first thing that does not pass.
    Last,
    Shut,
}

impl Faults {
    fn passage(&mut self, watch: bool) -> Passage {
        let Some((calls, last)) = self.end else { return Passage::Open };
        if self.shut {
            return Passage::Shut;
        }
        self.calls += usize::from(!watch);
        match last {
            Last::Heard if self.calls > calls => {
                (self.shut, self.ended) = (true, true);
                Passage::Shut
            }
            Last::Unheard if !watch && self.calls == calls => {
                self.shut = true;
                Passage::Last
            }
            _ => Passage::Open,
        }
    }
}

impl Proxy {
    pub async fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let faults = Arc::new(Mutex::new(Faults::default()));
        let shared = Arc::clone(&faults);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let Ok(upstream) = TcpStream::connect(server).await else { return };
                    carry(client, upstream, server, &shared).await;
                });
            }
        });
        Proxy { address, faults, server, task }
    }

    pub fn client(&self) -> Client {
        let uri = format!("http://{}", self.address).parse().expect("a URI");
        Client::try_from(Config::new(uri)).expect("a plain HTTP client")
    }

    /// A client that brings a token.
    pub fn client_of(&self, token: &str) -> Client {
        let uri = format!("http://{}", self.address).parse().expect("a URI");
        let mut config = Config::new(uri);
        config.auth_info.token = Some(token.to_owned().into());
        Client::try_from(config).expect("a plain HTTP client")
    }

    /// Requests whose first line begins with `method` and holds `part` meet `fate`.
    pub fn meet(&self, method: &'static str, part: impl Into<String>, fate: Fate) {
        self.with(|faults| faults.rules.push((method, part.into(), fate)));
    }

    /// From now on anything happens to requests, by this seed; without one all is as before.
    pub fn chaos(&self, seed: Option<u64>) {
        self.with(|faults| faults.dice = seed.map(Dice::new));
    }

    /// How many requests there were.
    pub fn asked(&self) -> usize {
        self.with(|faults| faults.asked)
    }

    /// Nothing passes after so many calls from now. Watches are no calls.
    pub fn end_after(&self, calls: usize, last: Last) {
        self.with(|faults| (faults.end, faults.calls) = (Some((calls, last)), 0));
    }

    /// The way does not end any more. False when it has: nothing passes.
    pub fn forget_end(&self) -> bool {
        self.with(|faults| {
            faults.end = faults.end.filter(|_| faults.shut);
            !faults.shut
        })
    }

    /// Whether the last call has ended as it was to.
    pub fn has_ended(&self) -> bool {
        self.with(|faults| faults.ended)
    }

    /// How many requests have met their fate.
    pub fn met(&self) -> usize {
        self.with(|faults| faults.met)
    }

    /// Forgets every rule; what waits goes on.
    pub fn let_pass(&self) {
        self.with(|faults| faults.rules.clear());
    }

    /// Nothing passes any more, in either direction.
    pub fn cut(&self) {
        self.with(|faults| (faults.cut, faults.watches_hang) = (true, true));
    }

    /// Requests pass again; watches stay as they are.
    pub fn heal_requests(&self) {
        self.with(|faults| faults.cut = false);
    }

    /// Watches hang or go on.
    pub fn hang_watches(&self, hang: bool) {
        self.with(|faults| faults.watches_hang = hang);
    }

    /// Has the server take in what came late, and returns its answers' first lines.
    pub async fn deliver(&self) -> Vec<String> {
        let late = self.with(|faults| std::mem::take(&mut faults.late));
        let mut answers = Vec::new();
        for request in late {
            let mut upstream = TcpStream::connect(self.server).await.expect("the server");
            upstream.write_all(&request).await.expect("written");
            let mut answer = vec![0; 4096];
            let length = upstream.read(&mut answer).await.expect("an answer");
            let text = String::from_utf8_lossy(&answer[..length]).into_owned();
            answers.push(text.lines().next().unwrap_or_default().to_owned());
        }
        answers
    }

    fn with<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut self.faults.lock().expect("the faults"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy, Default)]
struct Answer {
    watch: bool,
    lost: bool,
    /// The last of a way that ends.
    last: bool,
    refusal: Option<&'static str>,
}

async fn carry(client: TcpStream, upstream: TcpStream, server: SocketAddr, faults: &Mutex<Faults>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    let answer = Mutex::new(Answer::default());
    // The end of either direction is the end of both.
    tokio::select! {
        () = requests(from_client, to_server, server, faults, &answer) => {}
        () = answers(from_server, to_client, faults, &answer) => {}
    }
}

async fn requests(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    address: SocketAddr,
    faults: &Mutex<Faults>,
    answer: &Mutex<Answer>,
) {
    let mut buffer = Vec::new();
    loop {
        let Some(length) = request_length(&buffer) else {
            if !matches!(client.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
            continue;
        };
        let mut request: Vec<u8> = buffer.drain(..length).collect();
        let text = String::from_utf8_lossy(&request).into_owned();
        let line = text.lines().next().unwrap_or_default();
        let mut next = Answer { watch: line.contains("watch=true"), ..Answer::default() };
        let (chance, passage) = {
            let mut faults = faults.lock().expect("the faults");
            faults.asked += 1;
            let passage = faults.passage(next.watch);
            (faults.dice.as_mut().map(|dice| Chance::of(dice, next.watch)), passage)
        };
        if passage == Passage::Shut {
            std::future::pending::<()>().await;
        }
        next.last = passage == Passage::Last;
        match chance {
            None | Some(Chance::Passes) => {}
            Some(Chance::Delayed(time)) => tokio::time::sleep(time).await,
            Some(Chance::LosesAnswer) => next.lost = true,
            Some(Chance::Fails { acts }) => {
                next.refusal = Some(FAILED);
                if !acts {
                    // Some answer there must be, for the error to come in its place.
                    request = b"GET /version HTTP/1.1\r\nhost: api\r\n\r\n".to_vec();
                }
            }
            Some(Chance::ComesLate(time)) => {
                tokio::spawn(late(address, request, time));
                return;
            }
        }
        let mut counted = false;
        loop {
            {
                let mut faults = faults.lock().expect("the faults");
                let found = faults.rules.iter().position(|(method, part, _)| {
                    line.starts_with(method) && line.contains(part.as_str())
                });
                let fate = found.and_then(|at| faults.rules.get(at)).map(|(_, _, fate)| *fate);
                if fate.is_some() && !std::mem::replace(&mut counted, true) {
                    faults.met += 1;
                }
                match (fate, found) {
                    (Some(Fate::ComesLate), Some(at)) => {
                        faults.rules.remove(at);
                        faults.late.push(request);
                        return;
                    }
                    (Some(Fate::LosesAnswer), Some(at)) => {
                        faults.rules.remove(at);
                        next.lost = true;
                        break;
                    }
                    (Some(Fate::IsForbidden), _) => {
                        next.refusal = Some(FORBIDDEN);
                        break;
                    }
                    (Some(Fate::IsInvalid), _) => {
                        next.refusal = Some(INVALID);
                        break;
                    }
                    (None | Some(Fate::Passes), _) if !faults.cut => break,
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        *answer.lock().expect("the answer") = next;
        // What is refused does not happen; the answer to something harmless is replaced.
        let request = if next.refusal.is_some() { HARMLESS.as_bytes() } else { &request };
        if server.write_all(request).await.is_err() {
            return;
        }
    }
}

/// A request that the client has given up reaches the server.
async fn late(server: SocketAddr, request: Vec<u8>, time: Duration) {
    tokio::time::sleep(time).await;
    let Ok(mut upstream) = TcpStream::connect(server).await else { return };
    if upstream.write_all(&request).await.is_ok() {
        // What it answers interests nobody, but a client that is gone would cancel it.
        let _ = upstream.read(&mut [0; 4096]).await;
    }
}

async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    faults: &Mutex<Faults>,
    answer: &Mutex<Answer>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(length @ 1..) = server.read(&mut buffer).await else { return };
        let Answer { watch, lost, last, refusal } = *answer.lock().expect("the answer");
        if lost {
            return;
        }
        if last {
            faults.lock().expect("the faults").ended = true;
            std::future::pending::<()>().await;
        }
        if let Some(refusal) = refusal {
            // Instead of the server's answer; the connection ends with it.
            let _ = client.write_all(refusal.as_bytes()).await;
            return;
        }
        while watch && faults.lock().expect("the faults").watches_hang {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if client.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
            return;
        }
    }
}

/// Octets of the request at the beginning of `buffer`, once it is whole.
fn request_length(buffer: &[u8]) -> Option<usize> {
    let head = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(buffer.get(..head)?).to_lowercase();
    let body = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = head + body.map_or(0, |length| length.trim().parse().expect("a length"));
    (buffer.len() >= length).then_some(length)
}

const HARMLESS: &str = "GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n";

const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\n\
    connection: close\r\n\r\n{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\
    \"status\":\"Failure\",\"message\":\"it is forbidden\",\"reason\":\"Forbidden\",\"code\":403}";

const INVALID: &str = "HTTP/1.1 422 Unprocessable Entity\r\ncontent-type: application/json\r\n\
    connection: close\r\n\r\n{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\
    \"status\":\"Failure\",\"message\":\"it is invalid\",\"reason\":\"Invalid\",\"code\":422}";
const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\n\
    connection: close\r\n\r\n{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\
    \"status\":\"Failure\",\"message\":\"it failed\",\"reason\":\"InternalError\",\"code\":500}";
