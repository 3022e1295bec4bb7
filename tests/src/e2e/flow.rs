//! Steady flows of packets between two pods, whose losses count.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;

/// UDP from one network namespace to an address in another one, [`PACKETS_PER_SECOND`].
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

/// What became of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Packets sent.
    pub sent: u32,
    /// Numbers of packets that never came.
    pub lost: Vec<u32>,
}

impl Flow {
    /// Starts one. `to` is an address of the second namespace.
    ///
    /// # Panics
    /// When a namespace cannot be entered.
    #[must_use]
    pub fn start(from: NetNs, at: NetNs, to: &str) -> Flow {
        let stop = Arc::new(AtomicBool::new(false));
        let server = at.run(|| UdpSocket::bind((to, PORT)).expect("the pod's address"));
        let server = server.expect("the namespace");
        server.set_read_timeout(Some(QUIET)).expect("a timeout");
        // A receiver that has to wait for a processor is no loss of the network.
        hold_octets(&server, 8 << 20);
        let client = from.run(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
        let client = client.expect("the namespace");
        client.connect((to, PORT)).expect("a route");
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || send(&client, &stopped));
        let stopped = Arc::clone(&stop);
        let receiver = std::thread::spawn(move || receive(&server, &stopped));
        Flow { stop, sender, receiver }
    }

    /// Ends it and counts.
    ///
    /// # Panics
    /// When one of its threads did.
    #[must_use]
    pub fn end(self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        let came = self.receiver.join().expect("the receiver");
        Counted { sent, lost: (0..sent).filter(|number| !came.contains(number)).collect() }
    }
}

/// ICMP from one network namespace to an address, [`PACKETS_PER_SECOND`].
#[derive(Debug)]
pub struct Ping {
    child: Child,
}

impl Ping {
    /// Starts it.
    ///
    /// # Panics
    /// When the namespace cannot be entered.
    #[must_use]
    pub fn start(from: &NetNs, to: &str) -> Ping {
        let pause = format!("{}", 1.0 / f64::from(PACKETS_PER_SECOND));
        let mut command = Command::new("ping");
        command.args(["-q", "-n", "-i", &pause, to]).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = from.run(|| command.spawn().expect("ping starts"));
        Ping { child: child.expect("the namespace") }
    }

    /// Ends it; how many requests were sent, and how many of them were not answered.
    ///
    /// # Panics
    /// When it does not say.
    #[must_use]
    pub fn end(self) -> (u32, u32) {
        let id = libc::pid_t::try_from(self.child.id()).expect("an id");
        // SAFETY: it takes no memory; the child lives until it is waited for.
        unsafe { libc::kill(id, libc::SIGINT) };
        let output = self.child.wait_with_output().expect("its output");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // "1000 packets transmitted, 1000 received, ..."
        let line = text.lines().find(|line| line.contains("transmitted"));
        let mut numbers =
            line.into_iter().flat_map(|line| line.split(' ')).filter_map(|w| w.parse().ok());
        let (Some(sent), Some(came)) = (numbers.next(), numbers.next()) else { panic!("{text}") };
        let sent: u32 = sent;
        (sent, sent.saturating_sub(came))
    }
}

fn hold_octets(socket: &UdpSocket, octets: libc::c_int) {
    let length = size_of_val(&octets) as libc::socklen_t;
    // SAFETY: the pointer is to a value of that length, which lives.
    let done = unsafe {
        let value = (&raw const octets).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn send(client: &UdpSocket, stop: &AtomicBool) -> u32 {
    let began = Instant::now();
    let mut sent = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        // A refused packet is a lost one.
        let _ = client.send(&sent.to_be_bytes());
        sent += 1;
        let due = began + Duration::from_secs(1) * sent / PACKETS_PER_SECOND;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

/// Until the sender has stopped and nothing more comes.
fn receive(server: &UdpSocket, stop: &AtomicBool) -> BTreeSet<u32> {
    let mut came = BTreeSet::new();
    let mut packet = [0; 4];
    loop {
        match server.recv(&mut packet) {
            Ok(_) => drop(came.insert(u32::from_be_bytes(packet))),
            Err(_) if stop.load(Ordering::Relaxed) => return came,
            Err(_) => {}
        }
    }
}

/// Of each flow.
pub const PACKETS_PER_SECOND: u32 = 1000;
const PORT: u16 = 7007;
/// After this long without a packet none is on its way.
const QUIET: Duration = Duration::from_millis(500);
