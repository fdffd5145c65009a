//! nginx with one worker and a page of 612 bytes, asked by wrk, or ab where that is missing.
//!
//! Place: [`super::measure`]. Invariants: an answer that is none of 2xx, or a connection that fails, makes the run an error.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sanlab::bench::alternate::{Effort, Subject};
use sanlab::bench::report::{Direction, Sample};
use sanlab::bench::{BenchError, Row};

use super::tools::{self, Tool};
use super::world::{Road, Server};
use super::{Lack, compare};
use crate::output::as_f64;
use crate::stage::Stage;

const SERVER: Tool = Tool {
    name: "nginx",
    package: "nginx-light",
};
const WRK: Tool = Tool {
    name: "wrk",
    package: "wrk",
};
const AB: Tool = Tool {
    name: "ab",
    package: "apache2-utils",
};
const PORT: u16 = 8080;
/// Bytes of the page: nginx's own first page.
const PAGE: usize = 612;
const CONNECTIONS: &str = "50";
/// Requests of the first run of ab.
const FIRST: u64 = 1_000;

pub(super) fn rows(stage: &Stage, effort: Effort) -> Result<Vec<Row>, Lack> {
    let server = tools::find([SERVER]);
    let client = tools::first([WRK, AB]);
    let ([server], (tool, client)) = match (server, client) {
        (Ok(server), Ok(client)) => (server, client),
        (Err(Lack::Missing(mut all)), Err(Lack::Missing(more))) => {
            all.extend(more);
            return Err(Lack::Missing(all));
        }
        (Err(lack), _) | (_, Err(lack)) => return Err(lack),
    };
    let [san, tcp] = Road::BOTH.map(|road| start(stage, road, &server));
    let (san, tcp) = (san?, tcp?);
    let mut rows = Vec::new();
    for (is_kept, words) in [(true, "keep-alive"), (false, "close per request")] {
        let mut sides = [&san, &tcp].map(|server| Asked {
            server,
            tool,
            client: client.clone(),
            is_kept,
            seconds: effort.seconds,
        });
        let [san, tcp] = &mut sides;
        let name = format!("nginx {PAGE} B, -c {CONNECTIONS}, {words} ({})", tool.name);
        let direction = Direction::MoreIsBetter("requests/s");
        rows.extend(compare(&name, direction, "s/million", [san, tcp], effort)?);
    }
    Ok(rows)
}

fn start<'a>(stage: &'a Stage, road: Road, server: &Path) -> Result<Server<'a>, Lack> {
    let directory = stage.make_directory(&format!("nginx-{}", road.name()))?;
    fs::write(directory.join("page"), "x".repeat(PAGE)).context("a page")?;
    let at = directory.display().to_string();
    // Workers of a root user become somebody else, who may not look into our directory.
    let user = if nix::unistd::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let config = directory.join("nginx.conf");
    Ok(Server::start(stage, road, server, PORT, |address| {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {at}/{name};"))
            .concat();
        let text = format!(
            "{user} daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; keepalive_requests 100000000; {temporary}\n\
             server {{ listen {address}; root {at}; }} }}\n"
        );
        fs::write(&config, text).context("nginx.conf")?;
        let words = [
            "-e",
            &format!("{at}/error.log"),
            "-c",
            &config.display().to_string(),
        ];
        Ok(words.map(str::to_owned).to_vec())
    })?)
}

struct Asked<'a> {
    server: &'a Server<'a>,
    tool: Tool,
    client: PathBuf,
    is_kept: bool,
    seconds: f64,
}

impl Asked<'_> {
    const fn is_wrk(&self) -> bool {
        // The names differ in length.
        self.tool.name.len() == WRK.name.len()
    }
}

impl Subject for Asked<'_> {
    fn name(&self) -> String {
        self.server.road().name().to_owned()
    }

    fn first(&self) -> u64 {
        FIRST
    }

    fn run(&mut self, count: u64) -> Result<Sample, BenchError> {
        let url = format!("http://{}/page", self.server.at);
        if self.is_wrk() {
            let duration = format!("{:.0}s", self.seconds.ceil().max(1.0));
            let mut arguments = vec!["-t", "1", "-c", CONNECTIONS, "-d", &duration];
            if !self.is_kept {
                arguments.extend(["-H", "Connection: close"]);
            }
            arguments.push(&url);
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            self.server.ask(&self.client, &arguments, of_wrk)
        } else {
            let count = count.max(FIRST);
            let text = count.to_string();
            let mut arguments = vec!["-q", "-c", CONNECTIONS, "-n", &text];
            if self.is_kept {
                arguments.push("-k");
            }
            arguments.push(&url);
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            self.server.ask(&self.client, &arguments, |said| {
                Ok((of_ab(said)?, as_f64(count) / 1e6))
            })
        }
    }
}

/// Rate and millions of requests, as wrk tells them.
fn of_wrk(said: &str) -> anyhow::Result<(f64, f64)> {
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        bail!("requests failed");
    }
    let count = said
        .lines()
        .find_map(|line| line.split_once(" requests in "));
    let count: f64 = count
        .context("no count")?
        .0
        .trim()
        .parse()
        .context("no count")?;
    Ok((number(said, "Requests/sec:")?, count / 1e6))
}

fn of_ab(said: &str) -> anyhow::Result<f64> {
    if number(said, "Failed requests:")? > 0.0 || said.contains("Non-2xx") {
        bail!("requests failed");
    }
    number(said, "Requests per second:")
}

/// The number behind a word.
fn number(said: &str, word: &str) -> anyhow::Result<f64> {
    let behind = said.split(word).nth(1);
    let number = behind.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no number behind {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_clients_are_read_and_failures_seen() {
        let wrk = "  1 threads and 50 connections\n  81234 requests in 2.00s, 65 MB read\nRequests/sec:  40617.00\nTransfer/sec: 1MB\n";
        let (rate, millions) = of_wrk(wrk).unwrap();
        assert!((rate - 40_617.0).abs() < 1e-6 && (millions - 0.081_234).abs() < 1e-9);
        assert!(of_wrk(&format!("{wrk}Non-2xx or 3xx responses: 3\n")).is_err());
        assert!(of_wrk(&format!("{wrk}  Socket errors: connect 1, read 0\n")).is_err());
        assert!(of_wrk("unable to connect").is_err());
        let ab = "Failed requests:        0\nRequests per second:    1234.50 [#/sec] (mean)\n";
        assert!((of_ab(ab).unwrap() - 1234.5).abs() < 1e-6);
        assert!(of_ab(&ab.replace("      0", "      7")).is_err());
    }
}
