//! The conformance suite against the embedded device and against a device process's server, and the page that is made of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::OnceLock;

use nic_emu::conformance::{self, EmbeddedTarget, Report, SocketTarget, Verdict};
use nic_emu::server::{DeviceSocket, NodeSpec, Server};

/// The embedded device, judged once for all tests.
fn embedded() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| conformance::run(&EmbeddedTarget::default(), ""))
}

/// The device behind its server's threads and sockets, judged once for all tests.
fn process() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("nic-emu-conf-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let socket = |name: &str, address: &str| DeviceSocket {
            node: NodeSpec {
                name: name.into(),
                addresses: vec![address.parse().unwrap()],
            },
            path: directory.join(name),
        };
        let devices = vec![socket("a", "127.77.11.1/24"), socket("b", "127.77.11.2/24")];
        let mut target = SocketTarget::new(directory.join("a"), directory.join("b"));
        target.a_address = Some("127.77.11.1".parse().unwrap());
        target.b_address = Some("127.77.11.2".parse().unwrap());
        let server = Server::start_devices(devices).unwrap();
        let stop = server.stop_handle();
        let thread = std::thread::spawn(move || server.run());
        let report = conformance::run(&target, "");
        stop.stop();
        thread.join().unwrap().unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        report
    })
}

#[test]
fn the_embedded_device_keeps_every_rule() {
    let report = embedded();
    assert_eq!(report.failed(), 0, "{}", report.to_text());
    assert_eq!(report.skipped(), 0, "{}", report.to_text());
    assert!(report.passed() >= 250, "{}", report.passed());
}

#[test]
fn the_device_process_keeps_every_rule_that_real_time_can_show() {
    let report = process();
    assert_eq!(report.failed(), 0, "{}", report.to_text());
    for result in &report.results {
        if let Verdict::Skipped(why) = &result.verdict {
            assert_eq!(*why, "needs virtual time", "{}", result.case.id);
        }
    }
    assert!(report.skipped() < 10, "{}", report.to_text());
}

#[test]
fn the_same_run_gives_the_same_trace_twice() {
    let again = conformance::run(&EmbeddedTarget::default(), "");
    let mut lines = 0;
    for (one, other) in embedded().results.iter().zip(&again.results) {
        assert_eq!(one.trace, other.trace, "{}", one.case.id);
        lines += one.trace.len();
    }
    assert!(lines > 2000, "{lines} lines of trace");
}

#[test]
fn the_page_tells_what_the_run_found() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let wanted = page(&path);
    if std::env::var_os("SANLAB_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = wanted.lines().zip(found.lines()).find(|(a, b)| a != b);
    assert!(
        found == wanted,
        "docs/conformance.md is not what the run found; SANLAB_BLESS=1 writes it anew. First difference: {differing:?}"
    );
}

/// The page with the table of this run below the text that it has.
fn page(path: &Path) -> String {
    const MARK: &str = "<!-- From here on written by `SANLAB_BLESS=1 cargo test -p nic-emu --test conformance`. -->\n";
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let text = found.split(MARK).next().unwrap_or_default();
    let reports = [embedded(), process()];
    let sums: Vec<_> = reports
        .iter()
        .map(|report| {
            format!(
                "| {} | {} | {} | {} | {} |\n",
                report.target,
                report.results.len(),
                report.passed(),
                report.failed(),
                report.skipped()
            )
        })
        .collect();
    format!(
        "{text}{MARK}\n| target | cases | kept | broken | not shown |\n|---|---|---|---|---|\n{}{}",
        sums.concat(),
        conformance::table(&reports)
    )
}
