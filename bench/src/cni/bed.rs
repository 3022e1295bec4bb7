//! A node for one run of one contender.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cairn_kernel::link::{self, DuplicateDetection};
use cairn_kernel::netns::NETNS_DIR;
use cairn_kernel::{NetNs, Netlink};
use cairn_lab::apiserver::{ApiServer, Options};
use serde_json::{Value, json};

use super::chain::{Call, Chain, Contender};
use super::floor::Floor;
use crate::Result;
use crate::agent::{Agent, Directory};
use crate::cluster::objects;

/// A node with its agent, if the contender needs one. Its network and its mounts are those of the
/// calling thread.
#[derive(Debug)]
pub struct Bed {
    chain: Chain,
    floor: Floor,
    contender: Contender,
    agent: Option<Agent>,
    _directory: Directory,
}

/// A pod's namespace.
#[derive(Debug)]
pub struct Pod {
    name: String,
    container: String,
    path: PathBuf,
    netns: NetNs,
    result: Mutex<Option<Value>>,
}

impl Bed {
    /// Moves the calling thread into new namespaces and makes the node there.
    ///
    /// # Errors
    /// Without root, without a program, or with an agent that does not come up.
    pub fn new(contender: Contender) -> Result<Bed> {
        enter_namespaces()?;
        let directory = Directory::new()?;
        let chain = Chain::new(contender, &directory.0)?;
        let uplink = make_uplink()?;
        let agent = match contender.is_ours() {
            true => Some(Agent::start(&directory, serve()?, NODE)?),
            false => None,
        };
        let floor = Floor::new(uplink);
        let bed = Bed { chain, floor, contender, agent, _directory: directory };
        if bed.contender.is_ours() {
            bed.wait_for_agent()?;
        }
        Ok(bed)
    }

    /// Namespaces for `count` pods, numbered from `first` on.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn pods(&self, first: usize, count: usize) -> Result<Vec<Pod>> {
        (first..first + count).map(|number| Pod::new(&format!("pod{number}"))).collect()
    }

    /// Gives the pod its interface, and returns how many milliseconds that took.
    ///
    /// # Errors
    /// It is refused.
    pub fn add(&self, pod: &Pod) -> Result<f64> {
        let begin = Instant::now();
        let result = match self.contender {
            Contender::Floor => {
                self.floor.add(&pod.container, &pod.netns)?;
                None
            }
            _ => self.chain.call(pod.call("ADD"), None)?,
        };
        let took = milliseconds(begin);
        *pod.result.lock().map_err(|_| "a call panicked")? = result;
        Ok(took)
    }

    /// Takes the pod's interface away.
    ///
    /// # Errors
    /// It is refused.
    pub fn del(&self, pod: &Pod) -> Result<f64> {
        let result = pod.result.lock().map_err(|_| "a call panicked")?.take();
        let begin = Instant::now();
        match self.contender {
            Contender::Floor => self.floor.del(&pod.container)?,
            _ => drop(self.chain.call(pod.call("DEL"), result)?),
        }
        Ok(milliseconds(begin))
    }

    /// Carries out `call` for all `pods` at once: each one's milliseconds, and those of all.
    ///
    /// # Errors
    /// One is refused.
    pub fn together(
        &self,
        pods: &[Pod],
        call: fn(&Bed, &Pod) -> Result<f64>,
    ) -> Result<(Vec<f64>, f64)> {
        let begin = Instant::now();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let one = |pod| move || call(self, pod).map_err(|error| error.to_string());
            let running: Vec<_> = pods.iter().map(|pod| scope.spawn(one(pod))).collect();
            running.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let all = milliseconds(begin);
        let mut each = Vec::new();
        for outcome in outcomes {
            each.push(outcome.map_err(|_| "a call panicked")??);
        }
        Ok((each, all))
    }

    /// Takes the pods' namespaces away.
    ///
    /// # Errors
    /// One cannot be.
    pub fn remove(&self, pods: Vec<Pod>) -> Result<()> {
        for Pod { name, netns, .. } in pods {
            drop(netns);
            NetNs::delete(&name)?;
        }
        Ok(())
    }

    /// CPU time so far of the plugins that have ended and of the agent; of the floor, of this thread.
    ///
    /// # Errors
    /// The agent has ended.
    pub fn cpu(&self) -> Result<Duration> {
        match (&self.agent, self.contender) {
            (Some(agent), _) => Ok(children() + agent.cpu()?),
            (None, Contender::Floor) => Ok(own()),
            (None, _) => Ok(children()),
        }
    }

    /// Waits until a pod can be given an interface, which needs a first block.
    fn wait_for_agent(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        let first = Pod::new("first")?;
        loop {
            match self.add(&first) {
                Ok(_) => break,
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        self.del(&first)?;
        self.remove(vec![first])
    }
}

impl Pod {
    fn new(name: &str) -> Result<Pod> {
        let netns = NetNs::create(name)?;
        Ok(Pod {
            name: name.to_owned(),
            // As long as runtimes have them.
            container: format!("{name:0>64}"),
            path: PathBuf::from(NETNS_DIR).join(name),
            netns,
            result: Mutex::default(),
        })
    }

    fn call<'a>(&'a self, command: &'a str) -> Call<'a> {
        Call { command, container: &self.container, netns: &self.path }
    }
}

/// An API server with what one node needs.
fn serve() -> Result<std::net::SocketAddr> {
    let server = ApiServer::new(Options::default());
    let create = |resource: &str, object: Value| {
        server.create(resource, None, object).map_err(|error| error.message)
    };
    for crd in cairn_api::crds() {
        create("customresourcedefinitions.apiextensions.k8s.io", serde_json::to_value(crd)?)?;
    }
    create("namespaces", json!({"metadata": {"name": "cairn-system"}}))?;
    create("ippools.cairn.network", objects::pool("default", "10.128.0.0/9"))?;
    let boot_id = cairn_agent::ipam::boot_id().unwrap_or_default();
    let (node, status) = objects::node(0, UPLINK, &boot_id, 0);
    create("nodes", node)?;
    server.patch_status("nodes", None, NODE, &status).map_err(|error| error.message)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serving = {
        let _within = runtime.enter();
        server.serve(std::net::TcpListener::bind("127.0.0.1:0")?)?
    };
    let address = serving.address();
    // It ends with the process; what it serves in a run's namespace nobody reaches after the run.
    std::thread::spawn(move || {
        runtime.block_on(async {
            let _serving = serving;
            std::future::pending::<()>().await;
        });
    });
    Ok(address)
}

/// A network without anything, and mounts of which nobody else hears: names of namespaces end with them.
fn enter_namespaces() -> Result<()> {
    // SAFETY: these take no memory but constant strings, and concern this thread alone.
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) != 0
            || libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) != 0
    };
    if failed {
        return Err(format!("namespaces: {}", std::io::Error::last_os_error()).into());
    }
    std::fs::create_dir_all(NETNS_DIR)?;
    let directory = std::ffi::CString::new(NETNS_DIR)?;
    // SAFETY: as above.
    let mounted = unsafe {
        libc::mount(c"none".as_ptr(), directory.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null())
    };
    match mounted {
        0 => Ok(()),
        _ => Err(format!("{NETNS_DIR}: {}", std::io::Error::last_os_error()).into()),
    }
}

/// The node's address.
fn make_uplink() -> Result<std::net::Ipv4Addr> {
    let mut netlink = Netlink::open()?;
    link::set_up(&mut netlink, 1)?;
    link::create_bridge(&mut netlink, "uplink")?;
    let uplink = link::find(&mut netlink, "uplink")?.ok_or("the uplink has gone")?;
    link::set_up(&mut netlink, uplink.index)?;
    let address = format!("{UPLINK}/16").parse()?;
    link::add_address(&mut netlink, uplink.index, address, DuplicateDetection::Skip)?;
    Ok(UPLINK)
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

/// CPU time of this process's children that have ended.
fn children() -> Duration {
    usage(libc::RUSAGE_CHILDREN)
}

fn own() -> Duration {
    usage(libc::RUSAGE_SELF)
}

fn usage(whose: libc::c_int) -> Duration {
    // SAFETY: all zeroes is a value of the structure, and the call writes nothing else.
    let used = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::getrusage(whose, &raw mut used);
        used
    };
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    of(used.ru_utime) + of(used.ru_stime)
}

const NODE: &str = "node-0";
const UPLINK: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 98, 0, 0x7f);
