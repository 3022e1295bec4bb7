//! TCP probes: the receiver answers each connection with the address that it came from.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::Endpoint;
use crate::error::Error;

/// Listeners of both families in an endpoint's namespace.
pub(super) struct Listener(Vec<TcpListener>);

impl Listener {
    /// # Errors
    /// When the port is taken.
    pub(super) fn open(endpoint: &Endpoint<'_>) -> Result<Listener, Error> {
        let what = || format!("listen in {}", endpoint.name);
        // An IPv6 socket of any address takes IPv4 as well and would collide with the other.
        let any = |address: &IpAddr| match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => *address,
        };
        let at: BTreeSet<IpAddr> = endpoint.addresses.iter().map(any).collect();
        let open = |address: &IpAddr| {
            let listener = TcpListener::bind((*address, PORT))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        endpoint
            .netns
            .run(|| at.iter().map(open).collect::<std::io::Result<Vec<_>>>())
            .map_err(Error::kernel(what()))?
            .map(Listener)
            .map_err(Error::io(what()))
    }

    /// Answers connections until `stop`.
    pub(super) fn serve(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut idle = true;
            for listener in &self.0 {
                while let Ok((stream, peer)) = listener.accept() {
                    idle = false;
                    // Who does not take the answer counts as not reached.
                    let _ = answer(stream, peer);
                }
            }
            if idle {
                thread::sleep(ACCEPT_INTERVAL);
            }
        }
    }
}

fn answer(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "{}", peer.ip().to_canonical())
}

/// Connects to `address` and asks under which address the receiver sees this namespace; it must be
/// `seen_as`.
pub(super) fn attempt(address: IpAddr, seen_as: IpAddr) -> Result<(), String> {
    let reason = |error: std::io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "no answer".to_owned(),
        _ => error.to_string(),
    };
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(address, PORT), TIMEOUT).map_err(reason)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(reason)?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen).map_err(reason)?;
    if seen == seen_as.to_string() {
        Ok(())
    } else {
        Err(format!("the receiver saw {seen:?} instead of {seen_as}"))
    }
}

const PORT: u16 = 7179;
const TIMEOUT: Duration = Duration::from_millis(500);
const ACCEPT_INTERVAL: Duration = Duration::from_millis(2);
