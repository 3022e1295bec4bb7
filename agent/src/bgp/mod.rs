//! `cairn bgp`: what the running agent or speaker of this machine knows and does.

pub(crate) mod answer;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cairn_bgp::prefix::{Family, Prefix};
use cairn_bgp::rib::{AdvertisedRoute, ReceivedRoute, RouteExplanation, RouteInfo};
use cairn_bgp::status::{ErrorRecord, SessionRecord, WatchEvent};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control;
use crate::control::protocol::{Ask, Direction, Done, Peer, PeerTable};
use crate::logging::Format;

/// Options of `cairn bgp`.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// The run directory of the agent or speaker.
    #[arg(long, global = true, default_value = crate::DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// The form of the answer; json is one object a line.
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    output: Format,
}

/// A PEER is named by its whole name, by the part behind the last slash, or by its address.
#[derive(Subcommand)]
enum Command {
    /// Sessions: state, reason, what was negotiated, how many routes.
    Peers {
        /// Only this peer, with all that is known of it.
        peer: Option<String>,
    },
    /// The routes in use.
    Routes {
        #[command(flatten)]
        part: Part,
        /// Only routes from this peer.
        #[arg(long)]
        peer: Option<String>,
    },
    /// All about one prefix: every candidate, why it is used or not, and who is told.
    Route {
        /// A prefix; or an address, for the longest prefix that holds it.
        #[arg(value_name = "PREFIX")]
        destination: String,
    },
    /// What a peer has announced, with what became of it.
    AdjIn {
        /// The peer.
        peer: String,
        #[command(flatten)]
        part: Part,
    },
    /// What a peer has been told.
    AdjOut {
        /// The peer.
        peer: String,
        #[command(flatten)]
        part: Part,
    },
    /// What went wrong with a peer, latest last.
    Errors {
        /// The peer.
        peer: String,
        /// Show the octets of malformed messages.
        #[arg(long)]
        hex: bool,
    },
    /// What became of a peer's session: each change of its state, latest last.
    History {
        /// The peer.
        peer: String,
    },
    /// Changes of sessions and best routes as they happen, until it is interrupted.
    Watch,
    /// End a peer's session and begin it again; or, softly, only exchange routes again.
    Reset {
        /// The peer.
        peer: String,
        /// Keep the session: ask for the peer's routes again, or send ours again.
        #[arg(long, value_enum)]
        soft: Option<Direction>,
    },
    /// Have no session with a peer, also after a restart, until it is enabled.
    Disable {
        /// The peer.
        peer: String,
    },
    /// Have a session again with a peer that was disabled.
    Enable {
        /// The peer.
        peer: String,
    },
}

/// A part of a table.
#[derive(Args)]
struct Part {
    /// Only routes of this family.
    #[arg(long, value_enum)]
    family: Option<FamilyName>,
    /// Only this prefix and those inside it.
    #[arg(long, value_name = "PREFIX")]
    within: Option<Prefix>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FamilyName {
    #[value(name = "ipv4")]
    Ipv4,
    #[value(name = "ipv6")]
    Ipv6,
}

/// Asks, and prints what comes.
///
/// # Errors
/// No daemon answers, or it refuses; what it says is the text.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Options { command, run_dir, output } = options;
    let printed = match command {
        Command::Peers { peer: None } => show_peers(&run_dir, output),
        Command::Peers { peer } => show(&run_dir, output, Ask::Peers { peer }, "", text::peer),
        Command::Routes { part: Part { family, within }, peer } => {
            let ask = Ask::Routes { family: family.map(Family::from), within, peer };
            show::<RouteInfo>(&run_dir, output, ask, text::ROUTES_HEAD, text::routes)
        }
        Command::Route { destination } => {
            let ask = Ask::Route { destination };
            show::<RouteExplanation>(&run_dir, output, ask, "", text::explanation)
        }
        Command::AdjIn { peer, part } => {
            let ask = Ask::AdjIn(part.of(peer));
            show::<ReceivedRoute>(&run_dir, output, ask, text::RECEIVED_HEAD, text::received)
        }
        Command::AdjOut { peer, part } => {
            let ask = Ask::AdjOut(part.of(peer));
            show::<AdvertisedRoute>(&run_dir, output, ask, text::ADVERTISED_HEAD, text::advertised)
        }
        Command::Errors { peer, hex } => {
            let ask = Ask::Errors { peer, octets: hex };
            show::<ErrorRecord>(&run_dir, output, ask, "", text::error)
        }
        Command::History { peer } => {
            let ask = Ask::History { peer };
            show::<SessionRecord>(&run_dir, output, ask, "", text::record)
        }
        Command::Watch => show::<WatchEvent>(&run_dir, output, Ask::Watch, "", text::event),
        Command::Reset { peer, soft } => {
            show::<Done>(&run_dir, output, Ask::Reset { peer, soft }, "", text::done)
        }
        Command::Disable { peer } => {
            let ask = Ask::SetEnabled { peer, enabled: false };
            show::<Done>(&run_dir, output, ask, "", text::done)
        }
        Command::Enable { peer } => {
            let ask = Ask::SetEnabled { peer, enabled: true };
            show::<Done>(&run_dir, output, ask, "", text::done)
        }
    };
    match printed {
        // `cairn bgp routes | head` has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        printed => printed.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints records as they come, as text behind a `head` or as JSON.
fn show<T: DeserializeOwned + Serialize>(
    run_dir: &Path,
    output: Format,
    ask: Ask,
    head: &str,
    text: fn(&T) -> String,
) -> anyhow::Result<()> {
    let at_once = ask == Ask::Watch;
    let mut out = io::BufWriter::new(io::stdout().lock());
    // A refusal stands alone.
    let mut head = Some(head).filter(|_| output == Format::Text);
    for record in control::ask::<T>(run_dir, ask)? {
        if record.is_ok() {
            out.write_all(head.take().unwrap_or_default().as_bytes())?;
        }
        match record {
            Ok(record) if output == Format::Json => {
                serde_json::to_writer(&mut out, &record).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            }
            Ok(record) => out.write_all(text(&record).as_bytes())?,
            Err(error) => {
                // What came before the error is an answer, too.
                out.flush()?;
                return Err(error);
            }
        }
        if at_once {
            out.flush()?;
        }
    }
    out.write_all(head.unwrap_or_default().as_bytes())?;
    Ok(out.flush()?)
}

/// All peers as one table, whose columns are as wide as they need to be.
fn show_peers(run_dir: &Path, output: Format) -> anyhow::Result<()> {
    let ask = Ask::Peers { peer: None };
    match output {
        Format::Json => show::<Peer>(run_dir, output, ask, "", text::peer),
        Format::Text => {
            let peers = control::ask::<Peer>(run_dir, ask)?.collect::<anyhow::Result<Vec<_>>>()?;
            let mut out = io::stdout().lock();
            Ok(out.write_all(text::peers(&peers).as_bytes())?)
        }
    }
}

impl Part {
    fn of(self, peer: String) -> PeerTable {
        PeerTable { peer, family: self.family.map(Family::from), within: self.within }
    }
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Family {
        match name {
            FamilyName::Ipv4 => Family::Ipv4Unicast,
            FamilyName::Ipv6 => Family::Ipv6Unicast,
        }
    }
}
