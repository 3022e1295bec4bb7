//! A way to an API server that counts what goes over it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What went over the way since it was last asked.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    pub connections: u64,
    /// By method and what of the path says which kind.
    pub requests: BTreeMap<String, u64>,
    pub octets_to_agent: u64,
    pub octets_to_server: u64,
}

#[derive(Clone, Debug)]
pub struct Way {
    pub address: SocketAddr,
    counted: Arc<Mutex<Counted>>,
}

impl Way {
    /// Opens one in the caller's namespace and runtime.
    pub async fn open(server: SocketAddr) -> crate::Result<Way> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let way = Way { address: listener.local_addr()?, counted: Arc::default() };
        let shared = way.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let way = shared.clone();
                way.count(|counted| counted.connections += 1);
                tokio::spawn(async move {
                    if let Ok(upstream) = TcpStream::connect(server).await {
                        way.carry(client, upstream).await;
                    }
                });
            }
        });
        Ok(way)
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Counted {
        let mut counted = Counted::default();
        self.count(|now| counted = std::mem::take(now));
        counted
    }

    fn count(&self, change: impl FnOnce(&mut Counted)) {
        change(&mut self.counted.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    async fn carry(&self, client: TcpStream, upstream: TcpStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = upstream.into_split();
        let up = async {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                let part = buffer.get(..length).unwrap_or_default();
                self.count(|counted| {
                    counted.octets_to_server += length as u64;
                    // A client waits for the answer before the next request, so that a request
                    // begins what was read.
                    if let Some(request) = request(part) {
                        *counted.requests.entry(request).or_default() += 1;
                    }
                });
                if to_server.write_all(part).await.is_err() {
                    break;
                }
            }
        };
        let down = async {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                self.count(|counted| counted.octets_to_agent += length as u64);
                if to_client.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! { () = up => {}, () = down => {} }
    }
}

/// `GET ipblocks (watch)` from the head of a request.
fn request(octets: &[u8]) -> Option<String> {
    let line = octets.split(|octet| *octet == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_suffix(" HTTP/1.1")?;
    let (method, target) = line.split_once(' ')?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let kind = path.split('/').find(|part| {
        part.len() > 4 && part.ends_with('s') && !["apis", "namespaces"].contains(part)
    });
    let kind = kind.unwrap_or(if path.ends_with("/namespaces") { "namespaces" } else { path });
    let watch = if query.contains("watch=true") { " (watch)" } else { "" };
    let status = if path.ends_with("/status") { "/status" } else { "" };
    Some(format!("{method} {kind}{status}{watch}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let cases = [
            ("GET /api/v1/nodes?&watch=true HTTP/1.1\r\n", "GET nodes (watch)"),
            ("GET /api/v1/namespaces?watch=true HTTP/1.1\r\n", "GET namespaces (watch)"),
            (
                "PATCH /apis/cairn.network/v1alpha1/ipblocks/a/status?x HTTP/1.1\r\n",
                "PATCH ipblocks/status",
            ),
            (
                "PUT /apis/coordination.k8s.io/v1/namespaces/cairn-system/leases/n? HTTP/1.1\r\n",
                "PUT leases",
            ),
        ];
        for (head, seen) in cases {
            assert_eq!(request(head.as_bytes()).as_deref(), Some(seen));
        }
        assert_eq!(request(b"{\"body\": 1}"), None);
    }
}
