//! Cairn's measurements: one command, one table.
//!
//! `make bench` builds in release and prints one row a measurement: ours, a reference that bounds or
//! frames it, measured in the same run, and the ratio of the two. Absolute figures belong to one
//! machine and one day; the ratios are what may be compared between machines and commits.
//!
//! ```text
//! cairn-bench [--quick] [--only wire|rib|kernel|ipam]... [-o json]
//! cairn-bench bgp ...       our speaker beside other daemons: see [`bgp`]
//! cairn-bench reflector ... a route reflector with 1,000 clients beside BIRD 2: see [`bgp::reflector`]
//! cairn-bench failures ...  dead paths and an overloaded machine: see [`bgp::failures`]
//! cairn-bench ipam ...      the IPAM at the size of a cluster: see [`cluster`]
//! cairn-bench kernel ...    routes in the kernel beside other writers of them: see [`fib`]
//! cairn-bench cni ...       pods that start and end, beside other plugins: see [`cni`]
//! cairn-bench latency ...   from an UPDATE to the kernel beside other daemons: see [`latency`]
//! ```
//!
//! # How it is measured
//! - Every figure is CPU time of the measuring thread, in user and kernel mode. Nothing measured here
//!   waits, so that on an idle machine it is the time that passes, and on a busy one nearly so. What
//!   the kernel leaves to others, such as freeing routes after a grace period, is not in it.
//! - Runs of ours and of the reference alternate, and which goes first alternates, too. The table
//!   shows medians and the smallest and largest run of ours; the ratio is the median of the ratios of
//!   the single runs, not the ratio of the medians.
//! - Input is synthetic and the same in every run: IPv4 /24 and IPv6 /48 prefixes in scattered order,
//!   attributes with an AS path of three and two communities, sets of them all different.
//! - `--quick` runs the same code with a hundredth of the data, once or twice. Its figures mean
//!   nothing beyond that everything works.
//!
//! # The rows
//! **wire**: the codec alone. *decode* goes from a stream of messages to every prefix read once, with
//! all checks of RFC 7606; *encode* from attributes and prefixes to messages, each allocated and
//! freed. With 5 prefixes an attribute set the attributes dominate, with 1,000 the prefixes. The
//! references are one memory copy of the same octets, and other codecs of Rust, each of which decodes the
//! same messages into its own values and encodes these. Not in it: sockets, and interning.
//!
//! **rib**: the RIB with three eBGP peers whose policies accept everything, all in one update group.
//! One announces the whole table, 5 prefixes an attribute set, in batches as the speaker makes them;
//! a second one announces shorter paths to all of it and withdraws them; then the first withdraws.
//! Time is from a decoded batch to the encoded messages for the others, which are dropped. *read for
//! kernel* is what [`cairn_bgp::rib::Rib::take_fib`] costs after the first announcement. *memory* is
//! what is allocated per route after it: Adj-RIB-In, Loc-RIB, Adj-RIB-Out of one group and the
//! attributes, without the allocator's own loss. The reference is one insertion, change, look-up or
//! removal for each prefix in a bare hash map with a cheap hash. Not in it: decoding, sockets, more
//! groups, many paths a prefix.
//!
//! Then, of a million routes: *dead peer* is the loss of a session whose peer gave a tenth of them, when nobody
//! else has these and when another peer has them all, with the octets that one receiver is told; the
//! references are the withdrawal and the announcement of the same routes. *late joiner* is a peer that comes while
//! all routes are announced anew: the time until its first route leaves the RIB, and what is told to all until then,
//! beside one batch. *memory after cycles* is what is left allocated when everything was announced and withdrawn,
//! beside a full table. Last, *import* is what a policy adds to [`cairn_bgp::rib::Rib::update`], whose own time is
//! the reference: a list of 1,000 prefixes, and 20 rules whose conditions do not hold before one that accepts.
//!
//! **kernel** (root): routes through 7 gateways into a network namespace of its own, blocks as nodes
//! have them, /26 and /122, in their order. *install* is
//! [`cairn_kernel::reconcile::RouteReconciler`] from its first `set` to the last acknowledgement,
//! *resync* a dump of everything that shows no difference, *delete* the withdrawal of all. The
//! reference sends the same messages in the same order, built beforehand, or reads the same dump without
//! looking at the routes: what the kernel itself takes. Our goal of 90 % of the bare loop's speed is a
//! ratio of 1.11. More sizes and shapes, and other programs, are in `cairn-bench kernel`.
//!
//! **ipam**: *release and assign* is a pod that goes and one that comes on a node with 110 pods and
//! addresses of both families; the reference is the same change in a bare map from attachment to
//! addresses. *find a free block* is the choice of a block in a pool of 2^20 blocks of which 99 % are
//! taken, and *index* what it costs per taken block to build the index, which the agent does before
//! it chooses; the reference scans or fills a bitmap. Not in it: the API server, which decides.
//!
//! Not measured here: other daemons on the same feed and many peers, which `bgp` does; other writers of
//! routes, which `kernel` does; the CNI plugin, which `cni` does.

mod agent;
mod bgp;
mod churn;
mod cluster;
mod cni;
mod codecs;
mod cpu_time;
mod feed;
mod fib;
mod ipam;
mod kernel;
mod latency;
mod memory;
mod policy;
mod process;
mod rib;
mod table;
mod wire;

use std::error::Error;
use std::process::ExitCode;

use table::{Format, Row};

#[global_allocator]
static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

/// What every measurement returns.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// For figures.
    Full,
    /// To see that everything works.
    Quick,
}

/// A group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Wire,
    Rib,
    Kernel,
    Ipam,
}

#[derive(Debug)]
struct Options {
    extent: Extent,
    groups: Vec<Group>,
    format: Format,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    match arguments.peek().map(String::as_str) {
        Some("bgp") => return bgp::main(arguments.skip(1)),
        Some("ipam") => return cluster::main(arguments.skip(1)),
        Some("kernel") => return fib::main(arguments.skip(1)),
        Some("cni") => return cni::main(arguments.skip(1)),
        Some("reflector") => return bgp::reflector::main(arguments.skip(1)),
        Some("failures") => return bgp::failures::main(arguments.skip(1)),
        Some("latency") => return latency::main(arguments.skip(1)),
        Some("bgp-copier") => return bgp::copier::main(arguments.skip(1)),
        _ => {}
    }
    command(Options::parse(arguments), USAGE, |options| {
        table::print(&measure(options)?, options.extent, options.format);
        Ok(())
    })
}

/// Carries out a command as its options say, which are missing when help is asked for. What is wrong with
/// them ends it with 2, what goes wrong later with 1.
fn command<O>(
    options: std::result::Result<Option<O>, String>,
    usage: &str,
    run: impl FnOnce(&O) -> Result<()>,
) -> ExitCode {
    let done = match options {
        Ok(Some(options)) => run(&options),
        Ok(None) => {
            println!("{usage}");
            Ok(())
        }
        Err(problem) => {
            eprintln!("cairn-bench: {problem}\n{usage}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cairn-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<Vec<Row>> {
    if options.groups.contains(&Group::Kernel) && !rustix::process::geteuid().is_root() {
        return Err(
            "the kernel rows make a network namespace: run this as root, or choose others \
                    with --only wire --only rib --only ipam"
                .into(),
        );
    }
    let mut rows = Vec::new();
    for group in &options.groups {
        // Progress, as a full run takes minutes.
        eprintln!("measuring {} ...", group.name());
        rows.extend(match group {
            Group::Wire => wire::measure(options.extent)?,
            Group::Rib => {
                let mut rows = rib::measure(options.extent)?;
                rows.extend(churn::measure(options.extent)?);
                rows.extend(policy::measure(options.extent)?);
                rows
            }
            Group::Kernel => kernel::measure(options.extent)?,
            Group::Ipam => ipam::measure(options.extent)?,
        });
    }
    Ok(rows)
}

impl Options {
    /// `None` when help is asked for.
    fn parse(
        mut arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Option<Options>, String> {
        let mut options =
            Options { extent: Extent::Full, groups: Vec::new(), format: Format::Table };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.extent = Extent::Quick,
                "-o" | "--output" => {
                    options.format = Format::named(arguments.next().as_deref())?;
                }
                "--only" => {
                    let name = arguments.next().unwrap_or_default();
                    let group = Group::ALL.into_iter().find(|group| group.name() == name);
                    options.groups.push(group.ok_or("--only takes wire, rib, kernel or ipam")?);
                }
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("what is \"{other}\"?")),
            }
        }
        if options.groups.is_empty() {
            options.groups = Group::ALL.to_vec();
        }
        Ok(Some(options))
    }
}

impl Group {
    const ALL: [Group; 4] = [Group::Wire, Group::Rib, Group::Kernel, Group::Ipam];

    const fn name(self) -> &'static str {
        match self {
            Group::Wire => "wire",
            Group::Rib => "rib",
            Group::Kernel => "kernel",
            Group::Ipam => "ipam",
        }
    }
}

impl Extent {
    /// `full`, or `quick` in a quick run.
    fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Extent::Full => full,
            Extent::Quick => quick,
        }
    }
}

const USAGE: &str = "usage: cairn-bench [--quick] [--only wire|rib|kernel|ipam]... [-o json]";
