//! redis-server, asked by redis-benchmark.
//!
//! Place: [`super::measure`]. Source: redis-benchmark's own `--csv`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sanlab::bench::alternate::{Effort, Subject};
use sanlab::bench::report::{Direction, Sample};
use sanlab::bench::{BenchError, Row};

use super::tools::{self, Tool};
use super::world::{Road, Server};
use super::{Lack, compare};
use crate::output::as_f64;
use crate::stage::Stage;

const SERVER: Tool = Tool {
    name: "redis-server",
    package: "redis-server",
};
const CLIENT: Tool = Tool {
    name: "redis-benchmark",
    package: "redis-tools",
};
const PORT: u16 = 6379;
/// Requests of the first run.
const FIRST: u64 = 5_000;

/// What is asked: command, connections, requests in a pipeline.
const CASES: [(&str, u32, u32); 6] = [
    ("SET", 50, 1),
    ("GET", 50, 1),
    ("SET", 50, 16),
    ("GET", 50, 16),
    ("SET", 1, 1),
    ("GET", 1, 1),
];

pub(super) fn rows(stage: &Stage, effort: Effort) -> Result<Vec<Row>, Lack> {
    let [server, client] = tools::find([SERVER, CLIENT])?;
    let [san, tcp] = Road::BOTH.map(|road| start(stage, road, &server));
    let (san, tcp) = (san?, tcp?);
    let mut rows = Vec::new();
    for case @ (command, connections, pipeline) in CASES {
        let mut sides = [&san, &tcp].map(|server| Asked {
            server,
            client: client.clone(),
            case,
        });
        let [san, tcp] = &mut sides;
        let name = format!("redis {command}, -c {connections} -d 64 -P {pipeline}");
        let direction = Direction::MoreIsBetter("requests/s");
        rows.extend(compare(&name, direction, "s/million", [san, tcp], effort)?);
    }
    Ok(rows)
}

fn start<'a>(stage: &'a Stage, road: Road, server: &Path) -> Result<Server<'a>, Lack> {
    let directory = stage.make_directory(&format!("redis-{}", road.name()))?;
    let directory = directory.display().to_string();
    Ok(Server::start(stage, road, server, PORT, |at| {
        let words = [
            "--bind",
            &at.ip().to_string(),
            "--port",
            &at.port().to_string(),
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
            "--dir",
            &directory,
            "--logfile",
            "redis.log",
        ];
        Ok(words.map(str::to_owned).to_vec())
    })?)
}

struct Asked<'a> {
    server: &'a Server<'a>,
    client: PathBuf,
    case: (&'static str, u32, u32),
}

impl Subject for Asked<'_> {
    fn name(&self) -> String {
        self.server.road().name().to_owned()
    }

    fn first(&self) -> u64 {
        FIRST
    }

    fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
        let (command, connections, pipeline) = self.case;
        let arguments = [
            "-h",
            &self.server.at.ip().to_string(),
            "-p",
            &self.server.at.port().to_string(),
            "-c",
            &connections.to_string(),
            "-P",
            &pipeline.to_string(),
            "-d",
            "64",
            "-t",
            &command.to_lowercase(),
            "-n",
            &count.to_string(),
            "--csv",
        ];
        let arguments = arguments.map(str::to_owned);
        self.server.ask(&self.client, &arguments, |said| {
            Ok((rate(said, command)?, as_f64(count) / 1e6))
        })
    }
}

/// The rate in the line of a command, as in `"SET","81234.5",…`.
fn rate(said: &str, command: &str) -> anyhow::Result<f64> {
    let mut lines = said.lines().map(|line| line.split(','));
    let cells = lines.find_map(|mut cells| {
        let is_own = cells.next()?.trim_matches('"') == command;
        is_own.then(|| cells.next()).flatten()
    });
    let cell = cells.with_context(|| format!("no line of {command}"))?;
    let rate = cell.trim_matches('"').parse();
    rate.with_context(|| format!("no rate: {cell}"))
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn the_rate_is_in_the_second_cell_of_the_commands_line() {
        let said = "\"test\",\"rps\",\"avg\"\n\"SET\",\"81234.50\",\"0.4\"\n\"GET\",\"90000.00\",\"0.3\"\n";
        assert!((rate(said, "GET").unwrap() - 90_000.0).abs() < 1e-6);
        assert!((rate(said, "SET").unwrap() - 81_234.5).abs() < 1e-6);
        assert!(rate("Could not connect\n", "SET").is_err());
    }
}
