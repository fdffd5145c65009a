//! `sanlab capture`: what the ports of nodes see, as a pcapng file.
//!
//! Place: asks the emulator for a ring, makes frames of its records and writes them; everything but the ring happens in this process.
//! Invariants: the file is whole however the command ends, but for SIGKILL; a filter or file that is wrong starts nothing. The
//! emulator never waits for it. Source: ours; the summary is tcpdump's.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nic_emu::capture::{Counts, Filter, Frames, Medium, Pcapng, Port};
use nic_emu::control::{CaptureReply, NodeEntry, client};

use crate::cli;
use crate::cluster;
use crate::control;
use crate::exit::{self, FAILED, Failure, diagnostic};
use crate::paths;
use crate::signals::{StopSignals, Waited};

/// Shortest and longest rest while there is nothing to write.
const REST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));
/// Time between two lines of progress on a terminal.
const PROGRESS: Duration = Duration::from_secs(1);
/// Frames between two looks for a stop signal.
const LOOK_EVERY: u64 = 1024;

/// Captures until told to stop.
pub(crate) fn capture(arguments: &cli::Capture) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.cluster.as_deref())?;
    cluster.require_running()?;
    let nodes = ports(&control::ping(&cluster.directory)?.nodes);
    let filter = Filter::parse(&arguments.filter, &nodes).map_err(Failure::usage)?;
    if let Some(unknown) = arguments
        .nodes
        .iter()
        .find(|name| nodes.iter().all(|port| port.name != **name))
    {
        let names: Vec<_> = nodes.iter().map(|port| port.name.as_str()).collect();
        return Err(Failure::usage(format_args!(
            "cluster {} has no node `{unknown}`; its nodes are {}",
            cluster.name,
            names.join(", ")
        )));
    }
    let output = Output::open(&arguments.output)?;
    let stop = StopSignals::catch()?;
    let socket = paths::control_socket(&cluster.directory);
    let client::Captured {
        reply,
        san,
        ethernet,
        lifeline,
    } = client::capture(&socket, &arguments.nodes, arguments.snaplen, arguments.ring)
        .map_err(anyhow::Error::from)?;
    let run = Run {
        frames: match ethernet {
            Some(ethernet) => Frames::with_ethernet(san, ethernet, &nodes, reply.now_ns),
            None => Frames::new(san, &nodes),
        },
        filter,
        limit: arguments.count.unwrap_or(u64::MAX),
        reply,
        written: 0,
    };
    run.work(output, &nodes, arguments.snaplen, &stop, lifeline)
}

fn ports(nodes: &[NodeEntry]) -> Vec<Port> {
    nodes
        .iter()
        .map(|node| Port {
            name: node.name.clone(),
            addresses: node.addresses.clone(),
        })
        .collect()
}

/// Where the file goes.
struct Output {
    name: String,
    to: BufWriter<Box<dyn Write>>,
}

impl Output {
    fn open(path: &Path) -> Result<Self, Failure> {
        let (name, to): (_, Box<dyn Write>) = if path == Path::new("-") {
            if io::stdout().is_terminal() {
                return Err(Failure::usage(
                    "standard output is a terminal; name a file, or pipe into tshark or wireshark",
                ));
            }
            ("standard output".to_owned(), Box::new(io::stdout()))
        } else {
            let name = path.display().to_string();
            let file = File::create(path).with_context(|| format!("cannot make {name}"))?;
            (name, Box::new(file))
        };
        Ok(Self {
            name,
            to: BufWriter::with_capacity(1 << 18, to),
        })
    }
}

/// Why a capture is over.
enum End {
    Stopped,
    EmulatorGone,
}

struct Run {
    frames: Frames,
    filter: Filter,
    limit: u64,
    reply: CaptureReply,
    written: u64,
}

impl Run {
    fn work(
        mut self,
        output: Output,
        nodes: &[Port],
        snaplen: u32,
        stop: &StopSignals,
        lifeline: OwnedFd,
    ) -> Result<(), Failure> {
        let Output { name, to } = output;
        let captured: Vec<_> = (0u16..)
            .zip(nodes)
            .filter(|(node, _)| self.reply.ports.contains(node))
            .collect();
        let names: Vec<_> = captured
            .iter()
            .map(|(_, port)| port.name.as_str())
            .collect();
        let cluster = self.reply.cluster.clone();
        let started_ns = self.wall_ns(self.reply.now_ns);
        let written = |error| failed(&name, &error);
        let mut file = Pcapng::begin(to, &cluster, &captured, self.media(), snaplen, started_ns)
            .map_err(written)?;
        file.flush().map_err(written)?;
        diagnostic(format_args!(
            "capturing {} of cluster {cluster} into {name}; Ctrl-C ends it",
            names.join(", ")
        ));
        let end = self.pump(&mut file, &name, stop, lifeline)?;
        let ended_ns = started_ns.max(self.latest_ns());
        let frames = &self.frames;
        file.finish(ended_ns, |medium, node| frames.counts(medium, node))
            .map_err(written)?;
        self.sum_up();
        match end {
            End::Stopped => Ok(()),
            End::EmulatorGone => Err(Failure::new(
                FAILED,
                format_args!("the emulator has ended; {name} is whole"),
            )),
        }
    }

    fn pump<W: Write>(
        &mut self,
        file: &mut Pcapng<W>,
        name: &str,
        stop: &StopSignals,
        lifeline: OwnedFd,
    ) -> Result<End, Failure> {
        let mut lifeline = Some(lifeline);
        let mut end = End::Stopped;
        let mut rest = REST.0;
        let shows_progress = io::stderr().is_terminal();
        let mut shown = Instant::now();
        loop {
            let mut taken = 0u64;
            if lifeline.is_none() {
                self.frames.end();
            }
            while self.written < self.limit
                && let Some(frame) = self.frames.next_frame().map_err(anyhow::Error::from)?
            {
                taken += 1;
                if self.filter.keeps(&frame) {
                    let at_ns = self.wall_ns(frame.at_ns);
                    file.packet(&frame, at_ns)
                        .map_err(|error| failed(name, &error))?;
                    self.written += 1;
                }
                if taken.is_multiple_of(LOOK_EVERY)
                    && lifeline.is_some()
                    && stop.wait(&[], Some(Duration::ZERO))? == Waited::Stop
                {
                    // The engine stops, and what is in the ring still comes.
                    lifeline = None;
                    self.frames.end();
                }
            }
            if self.written >= self.limit {
                return Ok(end);
            }
            let Some(line) = &lifeline else {
                return Ok(end);
            };
            file.flush().map_err(|error| failed(name, &error))?;
            if shows_progress && shown.elapsed() >= PROGRESS {
                shown = Instant::now();
                self.progress();
            }
            rest = if taken == 0 {
                (rest * 2).min(REST.1)
            } else {
                REST.0
            };
            match stop.wait(&[line.as_fd()], Some(rest))? {
                Waited::TimedOut => {}
                Waited::Stop => lifeline = None,
                Waited::Ready(_) => {
                    lifeline = None;
                    end = End::EmulatorGone;
                }
            }
        }
    }

    fn wall_ns(&self, at_ns: u64) -> u64 {
        self.reply.epoch_ns.saturating_add(at_ns)
    }

    fn latest_ns(&self) -> u64 {
        if self.reply.epoch_ns == 0 {
            return 0;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(0)
    }

    /// What carries the frames of this capture.
    fn media(&self) -> &'static [Medium] {
        let count = if self.reply.ethernet { 2 } else { 1 };
        &Medium::ALL[..count]
    }

    /// Of each interface.
    fn counts(&self) -> impl Iterator<Item = Counts> {
        let each = move |&node| {
            let of = move |&medium: &Medium| self.frames.counts(medium, node);
            self.media().iter().map(of)
        };
        self.reply.ports.iter().flat_map(each)
    }

    fn dropped(&self) -> u64 {
        self.counts().map(|counts| counts.dropped).sum()
    }

    fn progress(&self) {
        let (written, dropped) = (self.written, self.dropped());
        // A closed standard error is nobody to tell.
        let _ = write!(
            io::stderr(),
            "\r{written} packets captured, {dropped} dropped "
        );
    }

    fn sum_up(&self) {
        let seen: u64 = self
            .counts()
            .map(|counts| counts.captured + counts.dropped)
            .sum();
        let (written, dropped) = (self.written, self.dropped());
        let skipped = match self.frames.skipped() {
            0 => String::new(),
            skipped => format!("\n{skipped} records of an unknown kind"),
        };
        let start = if io::stderr().is_terminal() { "\r" } else { "" };
        let _ = writeln!(
            io::stderr(),
            "{start}{written} packets captured\n{seen} packets seen by the ports\n{dropped} packets dropped{skipped}"
        );
    }
}

/// A file that cannot be written; a pipe whose reader has gone ends the command quietly.
fn failed(name: &str, error: &io::Error) -> Failure {
    if error.kind() == ErrorKind::BrokenPipe {
        return Failure::silent(exit::BROKEN_PIPE);
    }
    Failure::new(FAILED, format_args!("cannot write {name}: {error}"))
}
