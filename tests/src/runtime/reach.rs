//! Who reaches whom, by TCP and UDP in both families.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cairn_kernel::NetNs;

use super::seen::on;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Transport; 2] = [Transport::Tcp, Transport::Udp];

    /// Its name in a port mapping.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// Listens in a namespace on one port of every address.
#[derive(Debug)]
pub struct Server {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Server {
    /// One in `netns`.
    ///
    /// # Panics
    /// When the port is taken.
    #[must_use]
    pub fn start(netns: &NetNs, port: u16) -> Server {
        let place = (Ipv6Addr::UNSPECIFIED, port);
        let (tcp, udp) = on(netns, || {
            (TcpListener::bind(place).expect("a port"), UdpSocket::bind(place).expect("a port"))
        });
        tcp.set_nonblocking(true).expect("it does not block");
        udp.set_nonblocking(true).expect("it does not block");
        Server { tcp, udp }
    }

    /// Asks from `netns`, by the address `source` if one is given. Returns who asked, as the server sees it, if the
    /// server hears of it and its answer comes back to where the question came from.
    ///
    /// # Errors
    /// Where it failed.
    pub fn asked(
        &self,
        transport: Transport,
        netns: &NetNs,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> Result<IpAddr, String> {
        match transport {
            Transport::Tcp => self.asked_by_tcp(netns, source, to),
            Transport::Udp => self.asked_by_udp(netns, source, to),
        }
        .map_err(|error| format!("{} to {to}: {error}", transport.name()))
    }

    fn asked_by_tcp(
        &self,
        netns: &NetNs,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> Result<IpAddr, String> {
        // The kernel completes the connection; nobody has to accept it meanwhile.
        let mut client = on(netns, || connect(source, to)).map_err(|e| format!("connect: {e}"))?;
        let from = client.local_addr().map_err(|e| e.to_string())?;
        let (mut served, peer) =
            patiently(|| self.tcp.accept()).map_err(|e| format!("accept: {e}"))?;
        let sent = from.to_string();
        let mut heard = vec![0; sent.len()];
        let timeout = Some(ANSWER_MAX);
        let exchange = client
            .write_all(sent.as_bytes())
            .and_then(|()| served.set_nonblocking(false))
            .and_then(|()| served.set_read_timeout(timeout))
            .and_then(|()| served.read_exact(&mut heard))
            .and_then(|()| served.write_all(&heard))
            .and_then(|()| client.set_read_timeout(timeout))
            .and_then(|()| client.read_exact(&mut heard));
        exchange.map_err(|e| format!("exchange: {e}"))?;
        // An earlier connection would have said something else.
        if heard == sent.as_bytes() { Ok(peer.ip().to_canonical()) } else { Err("mixed up".into()) }
    }

    fn asked_by_udp(
        &self,
        netns: &NetNs,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> Result<IpAddr, String> {
        let client = on(netns, || {
            let client = UdpSocket::bind((source.unwrap_or(unspecified(to.ip())), 0))?;
            // Connected: an answer from elsewhere is none.
            client.connect(to)?;
            client.set_read_timeout(Some(ANSWER_MAX))?;
            Ok::<_, std::io::Error>(client)
        });
        self.asked_by(&client.map_err(|e| format!("connect: {e}"))?)
    }

    /// The same by a UDP socket that is connected to where it asks.
    ///
    /// # Errors
    /// As [`Server::asked`].
    pub fn asked_by(&self, client: &UdpSocket) -> Result<IpAddr, String> {
        let question = format!("{:?}", client.local_addr());
        client.send(question.as_bytes()).map_err(|e| format!("send: {e}"))?;
        let mut buffer = [0; 128];
        let heard = patiently(|| self.udp.recv_from(&mut buffer));
        let (length, peer) = heard.map_err(|e| format!("receive: {e}"))?;
        if buffer.get(..length) != Some(question.as_bytes()) {
            return Err("another question's".into());
        }
        self.udp.send_to(b"answer", peer).map_err(|e| format!("answer: {e}"))?;
        client.recv(&mut buffer).map_err(|e| format!("no answer: {e}"))?;
        Ok(peer.ip().to_canonical())
    }
}

/// A connection, from an address of choice, which the standard library offers for UDP alone.
fn connect(source: Option<IpAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect_timeout(&to, ANSWER_MAX) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(async {
        let socket = match to {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        socket.bind((source, 0).into())?;
        tokio::time::timeout(ANSWER_MAX, socket.connect(to)).await?
    })?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Repeats what would have blocked, for a while.
fn patiently<T>(mut work: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let began = Instant::now();
    loop {
        match work() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < ANSWER_MAX => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
}

fn unspecified(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// What takes longer does not come.
const ANSWER_MAX: Duration = Duration::from_secs(1);
