//! `sanlab up --metrics`: the cluster's numbers for Prometheus, over HTTP.
//!
//! Place: whoever starts the emulator binds the address and starts a process that answers; at each scrape it asks the emulator as `stat` does.
//! Invariants: apart from the emulator, so nothing a scraper does reaches it but one request of its control socket; a client gets one
//! answer, a bounded request and a bounded time; it ends with the emulator. Source: HTTP/1.1 as far as a scrape needs it (RFC 9112).

mod registry;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nic_emu::control::client;

use crate::cli;
use crate::emulator;
use crate::exit::Failure;
use crate::paths;
use crate::signals::{self, StopSignals, Waited};

/// Longest request.
const REQUEST_LIMIT: usize = 16 << 10;
/// How long a client may take for its request, and for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most clients at once.
const CLIENTS: usize = 16;
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Binds the address of `--metrics`.
pub(crate) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot serve metrics at {address}"))
}

/// Starts the process that serves the metrics of a cluster.
pub(crate) fn start(
    listener: TcpListener,
    directory: &Path,
    emulator_pid: u32,
) -> anyhow::Result<()> {
    let address = listener.local_addr().context("cannot serve metrics")?;
    let file = paths::metrics_file(directory);
    std::fs::write(&file, address.to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(emulator::own_binary()?);
    command
        .arg("__metrics")
        .arg(directory)
        .arg(format!("--emulator={emulator_pid}"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_remove("LD_PRELOAD");
    // It ends with the emulator, and nobody has to wait for it: its parent is gone by then, or ends itself.
    command.spawn().context("cannot start the metrics")?;
    Ok(())
}

/// Where the metrics of a cluster are served, as a line for people; nothing when they are not.
pub(crate) fn describe(directory: &Path) -> String {
    let address = std::fs::read_to_string(paths::metrics_file(directory));
    address.map_or_else(
        |_| String::new(),
        |address| format!("metrics at http://{address}/metrics\n"),
    )
}

/// The process: serves until the emulator ends.
pub(crate) fn serve(arguments: &cli::Metrics) -> Result<(), Failure> {
    signals::unblock_all()?;
    let stop = StopSignals::catch()?;
    let emulator = emulator::process_descriptor(arguments.emulator)?;
    let socket = paths::control_socket(&arguments.directory);
    let listener = io::stdin().as_fd().try_clone_to_owned();
    let listener = TcpListener::from(listener.context("no socket to serve")?);
    listener.set_nonblocking(true).context("cannot serve")?;
    let clients = Arc::new(());
    loop {
        match stop.wait(&[emulator.as_fd(), listener.as_fd()], None)? {
            Waited::Ready(1) => {}
            Waited::TimedOut => continue,
            Waited::Stop | Waited::Ready(_) => return Ok(()),
        }
        // Gone again, or no descriptor left: the next one is asked for soon enough.
        let Ok((stream, _)) = listener.accept() else {
            signals::pause(Duration::from_millis(10));
            continue;
        };
        if Arc::strong_count(&clients) > CLIENTS {
            continue;
        }
        let (client, socket) = (Arc::clone(&clients), socket.clone());
        let answer = move || {
            // Whoever hangs up early gets no answer.
            let _ = attend(stream, &socket);
            drop(client);
        };
        // Without a thread to spare the client is hung up on.
        let _ = std::thread::Builder::new().spawn(answer);
    }
}

/// Reads one request, answers it, and hangs up.
fn attend(mut stream: TcpStream, socket: &Path) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut piece)?;
        if len == 0 || head.len() + len > REQUEST_LIMIT {
            return Ok(());
        }
        head.extend_from_slice(&piece[..len]);
    }
    let head = String::from_utf8_lossy(&head);
    let answer = answer(&head, || {
        let stat = client::stat(socket).map_err(|error| error.to_string())?;
        let links = client::links(socket).map_err(|error| error.to_string())?;
        registry::text(&stat, &links).map_err(|error| error.to_string())
    });
    stream.write_all(answer.as_bytes())
}

/// The answer to a request, of which `head` is all; `metrics` makes the text of OpenMetrics.
fn answer(head: &str, metrics: impl FnOnce() -> Result<String, String>) -> String {
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let is_head = method == "HEAD";
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => match metrics() {
            Ok(text) if accepts(head, OPEN_METRICS) => (
                "200 OK",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            ),
            Ok(text) => (
                "200 OK",
                "text/plain; version=0.0.4; charset=utf-8",
                registry::as_plain_text(&text),
            ),
            Err(error) => (
                "503 Service Unavailable",
                "text/plain",
                format!("{error}\n"),
            ),
        },
        ("GET" | "HEAD", "/") => (
            "200 OK",
            "text/plain",
            "metrics are at /metrics\n".to_owned(),
        ),
        ("GET" | "HEAD", _) => (
            "404 Not Found",
            "text/plain",
            "metrics are at /metrics\n".to_owned(),
        ),
        _ => (
            "405 Method Not Allowed",
            "text/plain",
            "only GET and HEAD\n".to_owned(),
        ),
    };
    let len = body.len();
    let body = if is_head { "" } else { &body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Whether a request names a type that it takes.
fn accepts(head: &str, kind: &str) -> bool {
    head.lines().skip(1).any(|line| {
        let name_and_value = line.split_once(':');
        name_and_value.is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("accept") && value.contains(kind)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(head: &str) -> String {
        answer(head, || {
            Ok("# TYPE x counter\nx_total 1\n# EOF\n".to_owned())
        })
    }

    #[test]
    fn requests_get_what_they_ask_for() {
        let plain = ask("GET /metrics HTTP/1.1\r\n\r\n");
        assert!(plain.starts_with("HTTP/1.1 200 OK\r\n"), "{plain}");
        assert!(
            plain.ends_with("\r\n\r\n# TYPE x_total counter\nx_total 1\n"),
            "{plain}"
        );
        let open = ask(
            "GET /metrics?x=1 HTTP/1.1\r\nACCEPT: application/openmetrics-text;version=1.0.0\r\n\r\n",
        );
        assert!(open.ends_with("x_total 1\n# EOF\n"), "{open}");
        assert!(ask("HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
        assert!(ask("GET /x HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(ask("\r\n\r\n").starts_with("HTTP/1.1 405 "));
        let gone = answer(
            "GET /metrics HTTP/1.0\r\n\r\n",
            || Err("no emulator".into()),
        );
        assert!(gone.starts_with("HTTP/1.1 503 "), "{gone}");
    }
}
