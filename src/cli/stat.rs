//! Arguments of `sanlab stat`.
//!
//! Place: part of [`super::Cli`]. Invariants: as there.

use std::time::Duration;

use clap::Args;
use nic_emu::device::Topic;

use super::Choice;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sanlab stat
  sanlab stat lab2 --json | jq '.connections[] | {program, road, reason}'
  sanlab stat --watch
  sanlab stat --objects --node a
  sanlab stat --objects=qps,cqs
  sanlab stat --objects=qps --json | jq '.objects.qps[] | select(.last_error)'

Objects are what the NICs consist of at this moment: functions, qps, cqs, srqs, mrs, mws
(memory windows), windows (memory that the NIC can reach), doorbells, limits and findings.")]
pub(crate) struct Stat {
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Show the objects of the NICs in place of traffic: all, or those named; with --json both.
    #[arg(
        long,
        value_name = "PARTS",
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ','
    )]
    pub(crate) objects: Option<Vec<Topic>>,
    /// What belongs to this node alone.
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print again every second, or at this pace, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", conflicts_with = "json", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    pub(crate) watch: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|&it: &f64| it >= 0.01);
    let time = seconds.and_then(|it| Duration::try_from_secs_f64(it).ok());
    time.ok_or_else(|| format!("`{text}` is no number of seconds from 0.01 on"))
}
