//! Two network namespaces with a link: the calling thread's, and one for other BGP daemons.
//!
//! The namespaces have no names. The thread's one goes with its last socket. The other side has
//! process numbers and mounts of its own as well: when the process that holds it ends, which the
//! kernel sees to when the thread ends, the kernel kills every daemon there, whatever user it has
//! become, and what they wrote to /run and /var/tmp is gone. Nothing is left behind, whatever
//! happens to a test.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Two namespaces with a link: `uplink` here (10.0.0.1/24, fd00::1/64), and the same name on the
/// other side, with [`FAR_HOST`] as the last part of its addresses.
#[derive(Debug)]
pub struct Link {
    far: Arc<Far>,
}

/// The other side of a link, as its daemons hold it.
#[derive(Debug)]
pub struct Far {
    holder: Child,
    net: File,
    mounts: File,
    processes: File,
}

/// Last part of the addresses on the other side.
pub const FAR_HOST: u8 = 2;

impl Link {
    /// Moves the calling thread into a new network namespace and links it to another one.
    ///
    /// # Panics
    /// Without root, or without the `ip` command.
    #[must_use]
    pub fn new() -> Link {
        let link = Link::without_addresses();
        run("ip addr add 10.0.0.1/24 dev uplink");
        run("ip addr add fd00::1/64 dev uplink nodad");
        link.host(FAR_HOST);
        link
    }

    /// The same for a test with addresses of its own.
    ///
    /// # Panics
    /// As [`Link::new`].
    #[must_use]
    pub fn without_addresses() -> Link {
        // SAFETY: unshare takes no memory; it concerns this thread alone.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = io::Error::last_os_error();
        assert_eq!(result, 0, "network namespaces need root: run the tests as root ({error})");
        let far = Arc::new(Far::new());
        run("ip link set lo up");
        let link = Link { far };
        link.inside("ip link set lo up");
        link.add("uplink");
        link
    }

    /// Adds another link without addresses: `second` on both sides.
    ///
    /// # Panics
    /// When there is one already.
    pub fn second(&self) {
        self.add("second");
    }

    /// Adds a link of this name on both sides, without addresses.
    ///
    /// # Panics
    /// When there is one already.
    pub fn add(&self, name: &str) {
        let holder = self.far.holder.id();
        run(&format!("ip link add {name} type veth peer name {name} netns {holder}"));
        run(&format!("ip link set {name} up"));
        self.inside(&format!("ip link set {name} up"));
    }

    /// Runs a command on our side.
    ///
    /// # Panics
    /// When it fails.
    pub fn here(&self, command: &str) {
        run(command);
    }

    /// Gives the other side another address of each family, for a second daemon.
    ///
    /// # Panics
    /// When it has it already.
    pub fn host(&self, host: u8) {
        self.inside(&format!("ip addr add 10.0.0.{host}/24 dev uplink"));
        self.inside(&format!("ip addr add fd00::{host}/64 dev uplink nodad"));
    }

    /// Runs a command on the other side.
    ///
    /// # Panics
    /// When it fails.
    pub fn inside(&self, command: &str) {
        let mut words = command.split(' ');
        let mut process = self.far.command(words.next().unwrap_or_default());
        succeed(process.args(words), command);
    }

    /// Makes what the other side sends go nowhere, or here again. What we send arrives.
    ///
    /// # Panics
    /// When a command fails.
    pub fn silence(&self, silent: bool) {
        self.inside(match silent {
            true => "ip neigh replace 10.0.0.1 dev uplink lladdr 02:00:00:00:00:01 nud permanent",
            false => "ip neigh del 10.0.0.1 dev uplink",
        });
    }

    /// The other side, for a daemon to be started there.
    #[must_use]
    pub fn far(&self) -> Arc<Far> {
        Arc::clone(&self.far)
    }
}

impl Default for Link {
    fn default() -> Link {
        Link::new()
    }
}

impl Far {
    fn new() -> Far {
        // SAFETY: as above. Of process numbers it concerns only children of this thread.
        let result = unsafe { libc::unshare(libc::CLONE_NEWPID) };
        assert_eq!(result, 0, "process namespaces need root: {}", io::Error::last_os_error());
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null());
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS))?;
                mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
                mount(c"proc", c"/proc", Some(c"proc"), 0)?;
                mount(c"tmpfs", c"/run", Some(c"tmpfs"), 0)?;
                mount(c"tmpfs", c"/var/tmp", Some(c"tmpfs"), 0)
            });
        }
        let holder = command.spawn();
        // The thread's next children are ordinary ones again, and it may start threads.
        enter(&namespace("self/ns/pid"), libc::CLONE_NEWPID).expect("its own processes");
        let holder = holder.expect("the sleep command, in namespaces of its own");
        let pid = holder.id();
        Far {
            holder,
            net: namespace(&format!("{pid}/ns/net")),
            mounts: namespace(&format!("{pid}/ns/mnt")),
            processes: namespace(&format!("{pid}/ns/pid")),
        }
    }

    /// A command that will run on the other side. It must be started from a thread of the test.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let net = self.net.try_clone().expect("a descriptor");
        let mounts = self.mounts.try_clone().expect("a descriptor");
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                enter(&net, libc::CLONE_NEWNET)?;
                enter(&mounts, libc::CLONE_NEWNS)?;
                check(libc::chdir(c"/".as_ptr()))
            });
        }
        command
    }

    /// Starts a daemon that ends with the other side.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn spawn(&self, command: &mut Command) -> Child {
        enter(&self.processes, libc::CLONE_NEWPID).expect("the processes of the other side");
        let child = command.spawn();
        enter(&namespace("self/ns/pid"), libc::CLONE_NEWPID).expect("its own processes");
        child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
    }

    /// A path of the other side, as it is to be written here. Only /run is different there.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// Makes a directory under the other side's /run, and returns its path there.
    ///
    /// # Panics
    /// When it exists already.
    #[must_use]
    pub fn directory(&self, name: &str) -> String {
        let path = format!("/run/{name}");
        std::fs::create_dir(self.path(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        path
    }

    /// Writes a file of the other side.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), text).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// The content of a file of the other side; nothing when there is none.
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        let octets = std::fs::read(self.path(path)).unwrap_or_default();
        String::from_utf8_lossy(&octets).into_owned()
    }

    /// An empty file of the other side, for what a daemon writes to its standard output.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn log(&self, path: &str) -> (Stdio, Stdio) {
        let mut options = File::options();
        let file = options.create(true).append(true).open(self.path(path)).expect("a log");
        (file.try_clone().expect("a file").into(), file.into())
    }

    /// The other side's IPv4 connections, as [`crate::sockets::connections`] reads them.
    #[must_use]
    pub fn tcp(&self) -> String {
        let path = format!("/proc/{}/net/tcp", self.holder.id());
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// What a command on the other side prints; `None` when it fails.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let output = self.command(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Waits, without stopping the runtime, until `holds` is true; at the end of the patience the test
/// fails with `why`.
///
/// # Panics
/// When it never is.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool, why: impl Fn() -> String) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never: {what}\n{}", why());
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// The same for what is there before the runtime is needed.
///
/// # Panics
/// When it never is.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool, why: impl Fn() -> String) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never: {what}\n{}", why());
        std::thread::sleep(POLL_PAUSE);
    }
}

/// Fails with what to do when a program is missing.
///
/// # Panics
/// When it is.
pub fn need(program: &str, package: &str) {
    assert!(
        std::path::Path::new(program).exists(),
        "{program} is missing, which this test speaks with: run `make test-deps`, or apt-get \
         install {package}"
    );
}

fn namespace(path: &str) -> File {
    File::open(format!("/proc/{path}")).expect("a namespace of a process that lives")
}

fn enter(namespace: &File, sort: libc::c_int) -> io::Result<()> {
    // SAFETY: setns takes no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), sort) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn mount(
    source: &CStr,
    target: &CStr,
    sort: Option<&CStr>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let sort = sort.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end with 0, and the last argument may be null.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), sort, flags, std::ptr::null()) })
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let mut process = Command::new(words.next().unwrap_or_default());
    succeed(process.args(words), command);
}

fn succeed(process: &mut Command, command: &str) {
    let output = process.output();
    let output = output.unwrap_or_else(|error| panic!("{command} does not start: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}");
}

/// Longest wait for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks at whether it has.
pub const POLL_PAUSE: Duration = Duration::from_millis(20);
