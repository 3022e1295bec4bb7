//! Which process holds a TCP port: an operator told "address in use" asks this next.

use std::fmt;
use std::path::Path;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as in `/proc/PID/comm`.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// The process that listens on TCP `port` in the network namespace of the calling thread; `None`
/// when there is none or this process may not see it.
pub fn of_tcp_port(port: u16) -> Option<Process> {
    let mut inodes = Vec::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        if let Ok(text) = std::fs::read_to_string(table) {
            inodes.extend(
                text.lines().filter_map(|line| listener_inode(line, port)).map(str::to_owned),
            );
        }
    }
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    if links.is_empty() {
        return None;
    }
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        holds(&entry.path(), &links).then(|| Process { pid, name: name(&entry.path()) })
    })
}

/// The inode in a line of `/proc/net/tcp` when it is a socket that listens on `port`.
fn listener_inode(line: &str, port: u16) -> Option<&str> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let (_, hex) = local.rsplit_once(':')?;
    (state == LISTEN && u16::from_str_radix(hex, 16).ok()? == port).then_some(inode)
}

fn holds(process: &Path, links: &[String]) -> bool {
    let Ok(descriptors) = std::fs::read_dir(process.join("fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        std::fs::read_link(descriptor.path())
            .is_ok_and(|target| target.to_str().is_some_and(|t| links.iter().any(|l| l == t)))
    })
}

fn name(process: &Path) -> String {
    std::fs::read_to_string(process.join("comm"))
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

/// TCP_LISTEN in the state column.
const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_found_and_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let found = of_tcp_port(port).expect("this process listens");
        assert_eq!(found.pid, std::process::id());
        drop(listener);
        assert_eq!(of_tcp_port(port), None);
    }

    #[test]
    fn only_a_listening_socket_counts() {
        let line = "   1: 0100007F:00B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0";
        assert_eq!(listener_inode(line, 179), Some("4242"));
        assert_eq!(listener_inode(line, 180), None);
        assert_eq!(listener_inode(&line.replace(" 0A ", " 01 "), 179), None);
        assert_eq!(listener_inode("garbage", 179), None);
    }
}
