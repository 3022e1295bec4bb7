//! TCP probes: the receiver answers each connection with the address that it came from.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
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
        let open = |address: &IpAddr| {
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            // An IPv6 socket of any address takes IPv4 as well and would collide with the other.
            let at = if any.is_ipv6() { *address } else { any };
            let listener = TcpListener::bind((at, PORT))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        endpoint
            .netns
            .run(|| endpoint.addresses.iter().map(open).collect::<std::io::Result<Vec<_>>>())
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
/// `own`.
pub(super) fn attempt(address: IpAddr, own: IpAddr) -> Result<(), String> {
    let reason = |error: std::io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "no answer".to_owned(),
        _ => error.to_string(),
    };
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(address, PORT), TIMEOUT).map_err(reason)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(reason)?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen).map_err(reason)?;
    if seen == own.to_string() {
        Ok(())
    } else {
        Err(format!("the receiver saw {seen:?} instead of {own}"))
    }
}

const PORT: u16 = 7179;
const TIMEOUT: Duration = Duration::from_millis(500);
const ACCEPT_INTERVAL: Duration = Duration::from_millis(2);
