//! The commands that ask a running emulator: inspect, pause, step, continue, advance.
//!
//! Place: `main` hands them their arguments; the answers come from [`nic_emu::control::client`]. Invariants: an answer goes to standard output
//! whole, as text or as one JSON object. Source: ours, after `rdma resource show`.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use nic_emu::control::{self, Engine, client, text};
use nic_emu::device::{Rule, Topic};

const EXAMPLES: &str = "\
Examples:
  Everything of one device, and the queue pairs of a cluster as JSON:
      nic-emu inspect /tmp/nic.sock
      nic-emu inspect qps --json $XDG_RUNTIME_DIR/sanlab/default | jq '.qps[] | select(.last_error)'
  What a driver did wrong (needs --validate), and what happened before its queue pair failed:
      nic-emu inspect findings /tmp/nic.sock
      nic-emu inspect recorder --function 1 /tmp/nic.sock";

/// Arguments of `inspect`.
#[derive(Args, Debug)]
#[command(
    after_help = EXAMPLES,
    override_usage = "nic-emu inspect [PART] [--json] [--function NUMBER] SOCKET_OR_DIR"
)]
pub(crate) struct Inspect {
    /// The part to show: findings, functions, qps, cqs, srqs, mrs, mws, windows, doorbells or recorder. All but the recorder when it is left out.
    #[arg(value_name = "PART")]
    first: OsString,

    /// Device socket of a `nic-emu`, or directory of a cluster.
    #[arg(value_name = "SOCKET_OR_DIR")]
    second: Option<PathBuf>,

    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,

    /// With `recorder`: this function alone.
    #[arg(long, value_name = "NUMBER")]
    function: Option<u32>,
}

impl Inspect {
    /// The part and the place: one word alone is the place.
    fn words(&self) -> anyhow::Result<(Part, PathBuf)> {
        let Some(place) = &self.second else {
            return Ok((Part::All, control::locate(Path::new(&self.first))));
        };
        let word = self.first.to_string_lossy();
        let part = match word.as_ref() {
            "recorder" => Part::Recorder,
            word => {
                let topic = Topic::from_str(word);
                Part::One(topic.map_err(|error| anyhow::anyhow!("{error}, recorder"))?)
            }
        };
        Ok((part, control::locate(place)))
    }
}

/// What can be shown.
enum Part {
    /// Everything but the recorder.
    All,
    One(Topic),
    /// The last events of each function.
    Recorder,
}

/// Where the emulator is.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Device socket of a `nic-emu`, or directory of a cluster.
    #[arg(value_name = "SOCKET_OR_DIR")]
    place: PathBuf,
}

impl Place {
    fn socket(&self) -> PathBuf {
        control::locate(&self.place)
    }
}

/// Arguments of `advance`.
#[derive(Args, Debug)]
pub(crate) struct Advance {
    /// How long, such as `500us`, `20ms` or `61s`.
    #[arg(value_name = "TIME", value_parser = nanoseconds)]
    by_ns: u64,

    #[command(flatten)]
    place: Place,
}

/// A time in words.
fn nanoseconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        other => return Err(format!("{other:?} is no unit: ns, us, ms or s")),
    };
    let count: u64 = digits
        .trim_end()
        .parse()
        .map_err(|_| format!("{digits:?} is no whole number, as in 500us, 20ms or 61s"))?;
    count
        .checked_mul(unit)
        .ok_or_else(|| format!("{text:?} is longer than a clock runs"))
}

pub(crate) fn inspect(arguments: &Inspect) -> anyhow::Result<()> {
    let (part, socket) = arguments.words()?;
    let topics = match part {
        Part::Recorder => {
            let answer = client::recorder(&socket, arguments.function)?;
            return print(arguments.json, &answer, text::recorder);
        }
        Part::All => Vec::new(),
        Part::One(topic) => vec![topic],
    };
    let answer = client::inspect(&socket, &topics)?;
    print(arguments.json, &answer, |answer| {
        text::inspection(answer, &topics)
    })
}

pub(crate) fn pause(place: &Place) -> anyhow::Result<()> {
    tell(&client::pause(&place.socket())?)
}

pub(crate) fn step(place: &Place) -> anyhow::Result<()> {
    tell(&client::step(&place.socket())?)
}

pub(crate) fn resume(place: &Place) -> anyhow::Result<()> {
    tell(&client::resume(&place.socket())?)
}

pub(crate) fn advance(arguments: &Advance) -> anyhow::Result<()> {
    let now_ns = client::advance(&arguments.place.socket(), arguments.by_ns)?;
    write(&format!("{now_ns} ns\n"))
}

/// Lists every rule with why and what to do.
pub(crate) fn rules() -> anyhow::Result<()> {
    let row = |rule: &Rule| {
        let (why, instead) = (rule.explanation(), rule.remedy());
        format!("{rule}\n  why:     {why}\n  instead: {instead}\n")
    };
    write(&Rule::ALL.iter().map(row).collect::<String>())
}

fn tell(engine: &Engine) -> anyhow::Result<()> {
    match &engine.paused {
        Some(reason) => write(&format!("served {}, paused ({reason})\n", engine.served)),
        None => write("running\n"),
    }
}

fn print<T: serde::Serialize>(
    json: bool,
    answer: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if json {
        let object = serde_json::to_string_pretty(answer).context("cannot encode the answer")?;
        write(&format!("{object}\n"))
    } else {
        write(&text(answer))
    }
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
