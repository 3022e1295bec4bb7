//! That pods come and go without a word to anybody but their own node.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cairn_kernel::NetNs;
use cairn_kernel::monitor::{KernelEvent, Monitor};
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::cast::Flows;
use super::{at_once, some_of};
use crate::datacenter::Node;
use crate::error::Error;
use crate::interrupt::Interrupt;
use crate::lab::Lab;
use crate::report::Row;

/// Starts and ends pods on `node` and looks at what every other kernel of the data centre hears of it:
/// routes to blocks, and nothing else.
///
/// # Errors
/// When the run ends, or nothing can be watched.
pub fn pods_come_and_go(
    lab: &Lab,
    node: &Node,
    flows: &Flows,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let name = node.name();
    let what = format!("{PODS} pods come to {name} and go");
    let at = flows.mark();
    let others = lab.centre.machines().filter(|(machine, _)| *machine != name);
    let watch = Watch::start(others.map(|(machine, at)| (machine.to_owned(), &at.netns)))?;
    let made = lab.prepare(&vec![name.clone(); PODS]);
    let (pods, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    let plugin = lab.plugin(&name);
    let ended = at_once(pods.into_iter().flatten().collect(), |pod| plugin.delete(pod));
    interrupt.sleep(SETTLE)?;
    let heard = watch.end();
    let blocks: BTreeSet<IpNet> = lab.cluster.blocks()?.into_iter().map(|b| b.cidr).collect();
    let loss = flows.since(&at);
    let mut wrong: Vec<String> =
        refused.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    wrong.extend(ended.into_iter().filter_map(Result::err).map(|error| error.to_string()));
    let mut of_blocks = BTreeSet::new();
    for (machine, heard) in heard {
        match heard {
            Heard::Route(prefix) if blocks.contains(&prefix) => drop(of_blocks.insert(prefix)),
            Heard::Route(prefix) => wrong.push(format!("{machine} heard of {prefix}")),
            Heard::Lost => wrong.push(format!("{machine} did not hear everything")),
        }
    }
    // More pods than a block has addresses: a watch that hears nothing is broken.
    let expected = "others hear of blocks alone";
    Ok(match wrong.is_empty() && !of_blocks.is_empty() {
        true => Row::new(
            what,
            expected,
            format!("of {} new ones, {loss}", of_blocks.len()),
            loss.lost == 0,
        ),
        false if wrong.is_empty() => Row::new(what, expected, "of none", false),
        false => Row::new(what, expected, some_of(wrong), false),
    })
}

/// What a machine's kernel told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Route(IpNet),
    Lost,
}

/// Listens to the kernels of machines, on a thread.
struct Watch {
    heard: Arc<Mutex<Vec<(String, Heard)>>>,
    ends: oneshot::Sender<()>,
    listening: thread::JoinHandle<()>,
}

impl Watch {
    fn start<'a>(machines: impl Iterator<Item = (String, &'a NetNs)>) -> Result<Watch, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("make a runtime"))?;
        let heard: Arc<Mutex<Vec<(String, Heard)>>> = Arc::default();
        {
            let _within = runtime.enter();
            for (machine, netns) in machines {
                let mut monitor =
                    Monitor::open_in(netns).map_err(Error::kernel(format!("watch {machine}")))?;
                let heard = Arc::clone(&heard);
                tokio::spawn(async move {
                    while let Ok(events) = monitor.next().await {
                        let routes = events.iter().filter_map(of_routes);
                        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                        heard.extend(routes.map(|heard| (machine.clone(), heard)));
                    }
                });
            }
        }
        let (ends, ended) = oneshot::channel();
        let listening = thread::Builder::new()
            .name("watch".into())
            .spawn(move || drop(runtime.block_on(ended)))
            .map_err(Error::io("start a thread"))?;
        Ok(Watch { heard, ends, listening })
    }

    /// What was heard until now.
    fn end(self) -> Vec<(String, Heard)> {
        // A thread that has ended has panicked, which the next line passes on.
        let _ = self.ends.send(());
        self.listening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn of_routes(event: &KernelEvent) -> Option<Heard> {
    match event {
        KernelEvent::Route(route) => Some(Heard::Route(route.route().prefix)),
        KernelEvent::Overrun | KernelEvent::RoutesLost { .. } => Some(Heard::Lost),
        _ => None,
    }
}

const PODS: usize = 100;
/// Ten times as long as an UPDATE takes to the last kernel.
const SETTLE: Duration = Duration::from_secs(1);
