//! The plugin's code against an agent played by the test.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cairn_cni::plugin::{self, Outcome, Patience};
use cairn_cni::protocol::{Added, AddedAddress};
use serde_json::{Value, json};

/// A directory of one test, removed with the value.
pub struct Directory(PathBuf);

impl Directory {
    pub fn create() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cni-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join("cni.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub type Variables = BTreeMap<&'static str, String>;

pub fn variables(command: &str) -> Variables {
    BTreeMap::from([
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", "c0ffee".to_owned()),
        ("CNI_NETNS", "/proc/self/ns/net".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=1-2;X=y"
                .to_owned(),
        ),
        ("CNI_PATH", "/opt/cni/bin".to_owned()),
    ])
}

pub fn config(socket: &Path) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "cairn", "type": "cairn-cni", "socket": socket })
}

pub fn run(variables: &Variables, input: &str) -> Outcome {
    let soon = Duration::from_millis(100);
    let patience = Patience {
        connect: soon,
        connect_del: soon,
        connect_status: soon,
        total: Duration::from_millis(400),
    };
    plugin::run(|name| variables.get(name).cloned(), input.as_bytes(), patience)
}

pub fn failure(variables: &Variables, input: &str) -> (u64, String) {
    let outcome = run(variables, input);
    assert!(!outcome.success, "{outcome:?}");
    let error = outcome.output.unwrap();
    assert!(error["cniVersion"].is_string(), "{error}");
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

/// Serves one connection with `serve`.
pub fn agent<T: Send + 'static>(
    directory: &Directory,
    serve: impl FnOnce(std::os::unix::net::UnixStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = UnixListener::bind(directory.socket()).unwrap();
    thread::spawn(move || serve(listener.accept().unwrap().0))
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

pub fn added() -> Added {
    Added {
        host_interface: "cairnabc".into(),
        host_mac: "02:00:00:00:00:01".into(),
        pod_mac: "02:00:00:00:00:02".into(),
        mtu: 1450,
        addresses: vec![
            AddedAddress {
                address: "10.244.0.5".parse().unwrap(),
                gateway: "169.254.1.1".parse().unwrap(),
                default_route: true,
            },
            AddedAddress {
                address: "fd00::5".parse().unwrap(),
                gateway: "fe80::1".parse().unwrap(),
                default_route: true,
            },
        ],
    }
}

pub fn identity(descriptor: &OwnedFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(descriptor).unwrap();
    (stat.st_dev, stat.st_ino)
}
