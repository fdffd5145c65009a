//! Finding clusters: which run, and which one a command means.
//!
//! Place: every command but `up` starts with [`select`].
//! Invariants: only clusters whose emulator holds its lock are shown; leftovers of others are removed on the way. A command without a
//! name takes the only running cluster and asks for a name otherwise, with exit code 2.
//! Source: ours, the command-line contract.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use nic_emu::server::NodeSpec;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::control;
use crate::exit::{FAILED, Failure};
use crate::paths::{self, RunDirectory};

/// A cluster whose emulator process lives.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// Its name.
    pub(crate) name: String,
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// Whether it accepts programs.
    pub(crate) state: State,
    /// What its emulator wrote down at its start; `None` while it starts.
    pub(crate) record: Option<Record>,
}

/// What a cluster is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The emulator lives and does not accept yet.
    Starting,
    /// Every node accepts.
    Running,
    /// The emulator lives and does not answer.
    Unresponsive,
}

/// What the emulator writes into the cluster's directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Process id of the emulator.
    pub(crate) emulator_pid: i32,
    /// Process id of the `up` in the foreground that watches it.
    pub(crate) up_pid: Option<i32>,
    /// Whether that process starts and ends programs.
    #[serde(default)]
    pub(crate) is_kept: bool,
    /// The nodes.
    pub(crate) nodes: Vec<NodeSpec>,
}

impl State {
    /// Name in tables and JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unresponsive => "unresponsive",
        }
    }
}

impl Record {
    /// Writes the record into a cluster's directory.
    pub(crate) fn write(&self, directory: &std::path::Path) -> anyhow::Result<()> {
        let path = paths::state_file(directory);
        let text = serde_json::to_vec(self).context("cannot encode the cluster's state")?;
        // Readers see either no record or a whole one.
        let draft = path.with_extension("draft");
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn read(directory: &std::path::Path) -> Option<Self> {
        let text = fs::read(paths::state_file(directory)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// All clusters whose emulator lives, by name. Leftovers of crashed ones are removed.
pub(crate) fn running(run: &RunDirectory) -> anyhow::Result<Vec<Cluster>> {
    if !run.exists() {
        return Ok(Vec::new());
    }
    let live = run.lock()?.clean()?;
    Ok(live
        .into_iter()
        .map(|(name, directory)| {
            let record = Record::read(&directory);
            let state = match (&record, control::ping(&directory)) {
                (_, Ok(_)) => State::Running,
                (Some(_), Err(_)) => State::Unresponsive,
                (None, Err(_)) => State::Starting,
            };
            Cluster {
                name,
                directory,
                state,
                record,
            }
        })
        .collect())
}

/// The cluster a command means: the named one, else the only one.
pub(crate) fn select(name: Option<&str>) -> Result<Cluster, Failure> {
    let run = RunDirectory::of_user();
    select_in(running(&run)?, name, &run)
}

fn select_in(
    clusters: Vec<Cluster>,
    name: Option<&str>,
    run: &RunDirectory,
) -> Result<Cluster, Failure> {
    let names: Vec<&str> = clusters
        .iter()
        .map(|cluster| cluster.name.as_str())
        .collect();
    let place = run.path().display();
    let known = if names.is_empty() {
        format!("no cluster runs in {place}; start one with `sanlab up`")
    } else {
        format!("running in {place}: {}", names.join(", "))
    };
    match name {
        Some(name) if !config::is_name(name) => Err(Failure::usage(format_args!(
            "`{name}` is no name of a cluster; a name has {}",
            config::NAME_RULE
        ))),
        Some(name) => clusters
            .iter()
            .find(|cluster| cluster.name == name)
            .cloned()
            .ok_or_else(|| {
                Failure::new(
                    FAILED,
                    format_args!("there is no cluster `{name}`; {known}"),
                )
            }),
        None => match <[Cluster; 1]>::try_from(clusters.clone()) {
            Ok([only]) => Ok(only),
            Err(several) if several.is_empty() => Err(Failure::usage(known)),
            Err(_) => Err(Failure::usage(format_args!(
                "several clusters run, name one of them: {}",
                names.join(", ")
            ))),
        },
    }
}

impl Cluster {
    /// Fails unless the cluster accepts programs.
    pub(crate) fn require_running(&self) -> Result<(), Failure> {
        let remedy = match self.state {
            State::Running => return Ok(()),
            State::Starting => "is still starting; try again",
            State::Unresponsive => "does not answer; end it with `sanlab down`",
        };
        Err(Failure::new(
            FAILED,
            format_args!("the cluster `{}` {remedy}", self.name),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Cluster {
        Cluster {
            name: name.to_owned(),
            directory: PathBuf::new(),
            state: State::Running,
            record: None,
        }
    }

    fn choose(running: &[&str], name: Option<&str>) -> Result<String, Failure> {
        let clusters = running.iter().map(|name| cluster(name)).collect();
        select_in(clusters, name, &RunDirectory::at(PathBuf::from("/run/x")))
            .map(|cluster| cluster.name)
    }

    #[test]
    fn without_a_name_only_a_single_cluster_is_taken() {
        assert_eq!(choose(&["x"], None).unwrap(), "x");
        assert!(choose(&[], None).unwrap_err().is_usage());
        let failure = choose(&["x", "y"], None).unwrap_err();
        assert!(failure.is_usage());
        assert!(format!("{failure:?}").contains("x, y"), "{failure:?}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        assert_eq!(choose(&["x", "y"], Some("y")).unwrap(), "y");
        let failure = choose(&["x", "y"], Some("z")).unwrap_err();
        assert!(!failure.is_usage());
        assert!(format!("{failure:?}").contains("x, y"), "{failure:?}");
        assert!(choose(&["x"], Some("../x")).unwrap_err().is_usage());
    }
}
