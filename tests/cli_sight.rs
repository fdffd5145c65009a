//! `up --metrics`, `topo`, `top` and `stat --watch`: what they show of a cluster, and that they leave nothing behind.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped is the failure of the test"
)]

mod harness;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Lab, wait_until};
use nix::sys::signal::Signal;

/// The address in what `up` says.
fn metrics_address(said: &str) -> String {
    let (_, rest) = said.split_once("metrics at http://").expect(said);
    rest.split('/').next().unwrap().to_owned()
}

/// Asks a server, and gives its whole answer.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn scrape(address: &str, accept: &str) -> String {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n");
    let answer = ask(address, &request);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let lab = Lab::new("metrics_are_what_prometheus_reads");
    let cluster = lab.up_with(&["--metrics", "127.0.0.1:0"]);
    let address = metrics_address(&cluster.up.stdout());
    lab.succeed(&["link", "set", "a->b", "--latency", "2ms", "--loss", "1%"]);
    lab.succeed(&["port", "c", "down"]);
    // A client that says nothing keeps nobody else waiting.
    let silent = TcpStream::connect(&address).unwrap();
    let text = scrape(&address, "text/plain");
    for line in [
        "# TYPE sanlab_nic_work_requests_total counter",
        "sanlab_nic_work_requests_total{node=\"a\"} 0",
        "sanlab_open_connections{node=\"b\",road=\"san\"} 0",
        "sanlab_link_latency_seconds{from=\"a\",to=\"b\"} 0.002",
        "sanlab_link_loss_ratio{from=\"a\",to=\"b\"} 0.01",
        "sanlab_port_up{node=\"c\"} 0",
        "sanlab_port_up{node=\"a\"} 1",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}: {text}");
    }
    let open = scrape(&address, "application/openmetrics-text; version=1.0.0");
    assert!(open.ends_with("# EOF\n"), "{open}");
    assert!(ask(&address, "GET /x HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    // One that says too much is hung up on, perhaps before it has said all.
    let mut endless = TcpStream::connect(&address).unwrap();
    let _ = endless.write_all(&[b'x'; 100_000]);
    let _ = endless.read(&mut [0; 1]);
    scrape(&address, "*/*");
    if let Some([promtool]) = harness::programs::find(["promtool"]) {
        let mut judge = Command::new(promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        judge
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let output = judge.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}\n{text}"
        );
    }
    let error = lab.fail(1, &["up", "--name", "other", "--metrics", &address]);
    assert!(
        error.contains(&format!("cannot serve metrics at {address}")),
        "{error}"
    );
    drop(silent);
    drop(cluster);
    // They end with the cluster.
    wait_until(|| TcpStream::connect(&address).is_err());
    let said = lab.succeed(&[
        "up",
        "--detach",
        "--name",
        "apart",
        "--metrics",
        "127.0.0.1:0",
    ]);
    let address = metrics_address(&said);
    assert!(scrape(&address, "*/*").contains("cluster=\"apart\""));
    lab.succeed(&["down", "apart"]);
    wait_until(|| TcpStream::connect(&address).is_err());
}

#[test]
fn the_topology_is_text_json_and_a_drawing() {
    let lab = Lab::new("the_topology_is_text_json_and_a_drawing");
    let _cluster = lab.up();
    let text = lab.succeed(&["topo"]);
    assert!(text.contains("3 nodes, each linked with each"), "{text}");
    assert!(text.contains("every link is perfect"), "{text}");
    lab.succeed(&["link", "set", "a", "b", "--latency", "3ms"]);
    lab.succeed(&["partition", "b->c"]);
    let text = lab.succeed(&["topo"]);
    for part in ["a - b  3ms", "b - c  cut"] {
        assert!(text.contains(part), "{text}");
    }
    let json = lab.json(&["topo", "--json"]);
    assert_eq!(json["schema"], 1);
    assert_eq!(json["links"][0]["a_to_b"]["latency_ns"], 3_000_000);
    assert_eq!(json["links"][1]["a_to_b"]["up"], false);
    assert_eq!(json["links"][1]["b_to_a"]["up"], true);
    let file = lab.directory().join("lab.svg");
    lab.succeed(&["topo", "--svg", file.to_str().unwrap()]);
    let drawing = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lab.succeed(&["topo", "--svg", "-"]), drawing);
    if let Some([python]) = harness::programs::find(["python3"]) {
        let count = "import sys, xml.etree.ElementTree as e; print(len(list(e.parse(sys.argv[1]).iter('{http://www.w3.org/2000/svg}line'))))";
        let output = Command::new(python).args(["-c", count]).arg(&file).output();
        assert_eq!(output.unwrap().stdout, b"3\n");
    }
    let error = lab.fail(1, &["topo", "--svg", "/nonexistent/x.svg"]);
    assert!(error.contains("cannot write /nonexistent/x.svg"), "{error}");
}

#[test]
fn stat_is_watched_at_the_pace_that_is_asked_for() {
    let lab = Lab::new("stat_is_watched_at_the_pace_that_is_asked_for");
    let _cluster = lab.up();
    let mut watch = lab.spawn("watch", lab.sanlab(["stat", "--watch", "0.05"]));
    wait_until(|| {
        assert!(watch.is_running(), "{}", watch.stderr());
        watch.stdout().matches("cluster ").count() > 3
    });
    watch.signal(Signal::SIGINT);
    assert!(watch.wait().success());
    for bad in ["0", "-1", "soon"] {
        let error = lab.fail(2, &["stat", &format!("--watch={bad}")]);
        assert!(error.contains("seconds"), "{error}");
    }
}

/// Runs `top` in a terminal of 80 by 24: looks at each view, ends it by a key or a signal, and compares the terminal before and after.
const TERMINAL: &str = r"
import fcntl, os, pty, re, select, signal, struct, subprocess, sys, termios
command, end = sys.argv[2:], sys.argv[1]
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
before = termios.tcgetattr(slave)
process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env={**os.environ, 'TERM': 'xterm'})
seen = b''
screen = {}
def show(data):
    # Only what has changed is drawn, so words come in pieces: cells are what counts.
    place = (1, 1)
    for move, text in re.findall(r'\x1b\[([0-9;?]*[a-zA-Z])|([^\x1b]+)', data):
        if move.endswith('H'):
            place = tuple(int(number or 1) for number in (move[:-1] or '1;1').split(';'))
        for letter in text:
            screen[place] = letter
            place = (place[0], place[1] + 1)
def wait(text):
    global seen
    while text not in '\n'.join(''.join(screen.get((row, column), ' ') for column in range(1, 81)) for row in range(1, 25)):
        ready, _, _ = select.select([master], [], [], 50)
        assert ready and process.poll() is None, (text, seen)
        seen += os.read(master, 65536)
        screen.clear()
        show(seen.decode(errors='replace'))
wait('WQES/s')
assert termios.tcgetattr(slave)[3] != before[3], 'the terminal is raw'
for key, text in ((b'2', 'IMPAIRED'), (b'3', 'REMOTE'), (b'4', 'STATE'), (b'5', 'RULE'), (b'?', 'stand still'), (b'x', 'RULE')):
    os.write(master, key)
    wait(text)
if end == 'hangup':
    os.close(master)
    os.close(slave)
    process.wait(50)
    print('restored')
    sys.exit()
if end == 'key':
    os.write(master, b'q')
else:
    process.send_signal(int(end))
code = process.wait(50)
while select.select([master], [], [], 0)[0]:
    seen += os.read(master, 65536)
assert code == 0, (code, seen)
assert termios.tcgetattr(slave) == before, 'the terminal is not as it was'
assert b'\x1b[?1049h' in seen and seen.rindex(b'\x1b[?1049l') > seen.rindex(b'\x1b[?1049h'), seen
print('restored')
";

#[test]
fn top_gives_the_terminal_back() {
    let Some([python]) = harness::programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new("top_gives_the_terminal_back");
    let cluster = lab.up();
    for end in ["key", "15", "2", "hangup"] {
        let mut command = Command::new(&python);
        command
            .args(["-c", TERMINAL, end, env!("CARGO_BIN_EXE_sanlab"), "top"])
            .arg(&cluster.name)
            .env("SANLAB_RUN_DIR", lab.run_directory());
        let output = command.output().unwrap();
        assert_eq!(output.stdout, b"restored\n", "{end}: {output:?}");
    }
    let error = lab.fail(2, &["top"]);
    assert!(error.contains("needs a terminal"), "{error}");
}
