//! iperf3, one stream.
//!
//! Place: [`super::measure`]. Source: iperf3's own JSON, the receiver's side of it.

use std::path::PathBuf;

use anyhow::Context as _;
use sanlab::bench::alternate::{Effort, Subject};
use sanlab::bench::report::{Direction, Sample};
use sanlab::bench::{BenchError, Row};
use serde_json::Value;

use super::tools::{self, Tool};
use super::world::{Road, Server};
use super::{Lack, compare};
use crate::stage::Stage;

const TOOL: Tool = Tool {
    name: "iperf3",
    package: "iperf3",
};
const PORT: u16 = 5201;

pub(super) fn rows(stage: &Stage, effort: Effort) -> Result<Vec<Row>, Lack> {
    let [program] = tools::find([TOOL])?;
    let [san, tcp] = Road::BOTH.map(|road| {
        Server::start(stage, road, &program, PORT, |at| {
            let words = [
                "-s",
                "-B",
                &at.ip().to_string(),
                "-p",
                &at.port().to_string(),
            ];
            Ok(words.map(str::to_owned).to_vec())
        })
    });
    let (san, tcp) = (san?, tcp?);
    let mut sides = [&san, &tcp].map(|server| Asked {
        server,
        program: program.clone(),
        seconds: effort.seconds,
    });
    let [san, tcp] = &mut sides;
    let direction = Direction::MoreIsBetter("B/s");
    Ok(compare(
        "iperf3, one stream",
        direction,
        "s/GB",
        [san, tcp],
        effort,
    )?)
}

struct Asked<'a> {
    server: &'a Server<'a>,
    program: PathBuf,
    seconds: f64,
}

impl Subject for Asked<'_> {
    fn name(&self) -> String {
        self.server.road().name().to_owned()
    }

    fn first(&self) -> u64 {
        1
    }

    fn run(&mut self, _count: u64) -> Result<Sample, BenchError> {
        let seconds = format!("{:.0}", self.seconds.ceil().max(1.0));
        let (ip, port) = (
            self.server.at.ip().to_string(),
            self.server.at.port().to_string(),
        );
        let words = ["-c", &ip, "-p", &port, "-t", &seconds, "-J"];
        self.server
            .ask(&self.program, &words.map(str::to_owned), received)
    }
}

/// Bytes per second and gigabytes that arrived.
fn received(said: &str) -> anyhow::Result<(f64, f64)> {
    let answer: Value = serde_json::from_str(said).context("no JSON")?;
    let sum = &answer["end"]["sum_received"];
    let number = |name: &str| {
        let value = sum[name].as_f64();
        value.with_context(|| format!("no {name}: {}", answer["error"]))
    };
    Ok((number("bits_per_second")? / 8.0, number("bytes")? / 1e9))
}

#[cfg(test)]
mod tests {
    use super::received;

    #[test]
    fn what_arrived_counts_and_an_error_is_told() {
        let said = r#"{"end":{"sum_received":{"bytes":2000000000,"bits_per_second":8e9}}}"#;
        let (rate, gigabytes) = received(said).unwrap();
        assert!((rate - 1e9).abs() < 1.0 && (gigabytes - 2.0).abs() < 1e-9);
        let error = received(r#"{"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable"), "{error}");
    }
}
