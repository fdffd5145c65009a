//! The conformance suite against the embedded device and against a device process's server, and the page that is made of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use nic_emu::Cluster;
use nic_emu::conformance::{
    self, Case, EmbeddedTarget, Port, Report, SocketTarget, Target, Verdict,
};
use nic_emu::device::LinkParameters;
use nic_emu::embedded::Embedded;
use nic_emu::server::{DebugConfig, DeviceSocket, NodeSpec, Server};
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::sync::{AtomicU32, Ordering};

/// The embedded device, judged once for all tests.
fn embedded() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| conformance::run(&EmbeddedTarget::default(), ""))
}

/// The device behind its server's threads and sockets, judged once for all tests.
fn process() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| served(false))
}

/// The same in virtual time, which passes by requests on the control socket.
fn process_in_virtual_time() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| served(true))
}

fn served(virtual_time: bool) -> Report {
    let directory = std::env::temp_dir().join(format!(
        "nic-emu-conf-{}-{virtual_time}",
        std::process::id()
    ));
    std::fs::create_dir(&directory).unwrap();
    let socket = |name: &str, address: &str| DeviceSocket {
        node: NodeSpec {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            limits: nic_emu::device::Limits::default(),
        },
        path: directory.join(name),
    };
    let devices = vec![socket("a", "127.77.11.1/24"), socket("b", "127.77.11.2/24")];
    let mut target = SocketTarget::new(directory.join("a"), directory.join("b"));
    target.a_address = Some("127.77.11.1".parse().unwrap());
    target.b_address = Some("127.77.11.2".parse().unwrap());
    let debug = DebugConfig {
        virtual_time,
        ..DebugConfig::default()
    };
    let server = Server::start_devices_with(devices, debug).unwrap();
    let stop = server.stop_handle();
    let thread = std::thread::spawn(move || server.run());
    target.control_by("a", "b");
    let report = conformance::run(&target, "");
    stop.stop();
    thread.join().unwrap().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    report
}

#[test]
fn the_embedded_device_keeps_every_rule() {
    let report = embedded();
    assert_eq!(report.failed(), 0, "{}", report.to_text());
    assert_eq!(report.skipped(), 0, "{}", report.to_text());
    assert!(report.passed() >= 500, "{}", report.passed());
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
fn the_device_process_keeps_every_rule_when_its_time_is_virtual() {
    let report = process_in_virtual_time();
    assert_eq!(report.target, "process, virtual time");
    assert_eq!(report.failed(), 0, "{}", report.to_text());
    assert_eq!(report.skipped(), 0, "{}", report.to_text());
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

/// Cases whose rule is what happens within a time, which here runs on by 20 s at each kick.
const TIMED: [&str; 9] = [
    "rnr.retry-three-succeeds-in-time",
    "rnr.retry-seven-never-ends",
    "rnr.peer-not-connected-yet",
    "cq.moderate.waits-for-the-count",
    "cq.moderate.waits-for-the-period",
    "cq.moderate.period-alone",
    "cq.moderate.holds-solicited-back",
    "cm.timeout.is-told",
    "orphan.ends-in-time",
];

/// A case that waits without end for answers: by the rules of its own timeout, what the link loses is never asked for again.
const WITHOUT_RETRIES: &str = "event.port-down-and-up";

#[test]
fn lossy_links_keep_every_rule_that_is_not_about_time() {
    let left_out = |id: &str| TIMED.contains(&id) || id == WITHOUT_RETRIES;
    let count = conformance::cases()
        .filter(|case| left_out(case.id))
        .count();
    assert_eq!(count, TIMED.len() + 1, "a name that no case has");
    let is_long = std::env::var_os("SANLAB_LONG").is_some_and(|value| value == "1");
    for seed in if is_long { 0..50 } else { 9..10 } {
        let target = Lossy::new(seed);
        let report = conformance::run_where(&target, |case| !left_out(case.id));
        assert_eq!(report.failed(), 0, "seed {seed}: {}", report.to_text());
        assert_eq!(report.skipped(), 0, "{}", report.to_text());
        let ran = |id| report.results.iter().any(|result| result.case.id == id);
        // LAST_WQE_REACHED, and the ends of functions.
        for id in [
            "srq.error-leaves-receives",
            "reset.peer-hears-of-it",
            "hangup.peer-hears-of-it",
        ] {
            assert!(ran(id), "{id}");
        }
        let links = target.links.into_inner().unwrap();
        assert!(links.iter().map(|(events, _)| events).sum::<u64>() > 10_000);
    }
}

/// Subjects that move data.
const DATA: [&str; 9] = [
    "send.",
    "write.",
    "read.",
    "order.",
    "atomic.",
    "key.",
    "zero-length.",
    "mw.type",
    "invalidate.",
];

#[test]
fn the_seed_decides_what_lossy_links_do() {
    let run = |seed| {
        let target = Lossy::new(seed);
        let moves_data = |case: &Case| DATA.iter().any(|subject| case.id.contains(subject));
        let report = conformance::run_where(&target, moves_data);
        assert_eq!(report.failed(), 0, "{}", report.to_text());
        let traces: Vec<_> = report.results.into_iter().map(|one| one.trace).collect();
        (traces, target.links.into_inner().unwrap())
    };
    let (one, again, other) = (run(7), run(7), run(8));
    assert_eq!(one, again);
    assert_ne!(one.1, other.1, "another seed loses other packets");
}

/// Clusters whose links lose, delay and disorder packets; virtual time runs on by itself whenever a driver waits for the device.
struct Lossy {
    seed: u64,
    cluster: Mutex<Option<Cluster>>,
    /// What the links of every case did.
    links: Mutex<Vec<(u64, u64)>>,
    next_port: AtomicU32,
}

impl Lossy {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            cluster: Mutex::new(None),
            links: Mutex::default(),
            next_port: AtomicU32::new(20_000),
        }
    }

    fn cluster(&self) -> Cluster {
        self.cluster.lock().unwrap().clone().unwrap()
    }
}

impl Target for Lossy {
    fn name(&self) -> String {
        "lossy".into()
    }

    fn begin(&self) {
        let builder = Cluster::embedded().node("a").node("b");
        let cluster = builder.seed(self.seed).build().unwrap();
        let parameters = LinkParameters {
            latency_ns: 10_000,
            jitter_ns: 5_000,
            loss_ppm: 50_000,
            reorder_ppm: 50_000,
            reorder_ns: 50_000,
            duplicate_ppm: 50_000,
            ..LinkParameters::default()
        };
        cluster.set_link("a", "b", parameters).unwrap();
        cluster.set_link("b", "a", parameters).unwrap();
        if let Some(last) = self.cluster.lock().unwrap().replace(cluster) {
            let trace = last.link_trace();
            self.links.lock().unwrap().push((trace.events, trace.hash));
        }
    }

    fn attach(&self, port: Port) -> Result<Box<dyn Attachment>, AttachError> {
        let node = match port {
            Port::A => "a",
            Port::B => "b",
        };
        let cluster = self.cluster();
        let inner = cluster.attach(node).unwrap();
        Ok(Box::new(Patient { cluster, inner }))
    }

    fn address(&self, port: Port) -> Option<Ipv4Addr> {
        let node = if port == Port::A { "a" } else { "b" };
        self.cluster().address(node).unwrap()
    }

    fn advance(&self, ns: u64) -> bool {
        self.cluster().advance(Duration::from_nanos(ns));
        true
    }

    fn now_ns(&self) -> Option<u64> {
        let now = self.cluster.lock().unwrap().as_ref().map(Cluster::now);
        u64::try_from(now.unwrap_or_default().as_nanos()).ok()
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn fresh_port(&self) -> u16 {
        u16::try_from(self.next_port.fetch_add(1, Ordering::Relaxed)).unwrap()
    }
}

/// A function whose kicks and resets last until its packets have arrived.
struct Patient {
    cluster: Cluster,
    inner: Embedded,
}

/// Longer than all retries of a QP take.
const SETTLED: Duration = Duration::from_secs(20);

impl Patient {
    fn settle(&self) {
        self.cluster.advance(SETTLED);
    }
}

impl Attachment for Patient {
    fn read_register(&self, offset: u64, len: u32) -> Result<u64, AttachError> {
        self.inner.read_register(offset, len)
    }

    fn write_register(&self, offset: u64, len: u32, value: u64) -> Result<(), AttachError> {
        self.inner.write_register(offset, len, value)?;
        self.settle();
        Ok(())
    }

    fn bar2(&self) -> Result<(RawFd, u64), AttachError> {
        self.inner.bar2()
    }

    fn dma_map(
        &self,
        fd: RawFd,
        offset: u64,
        iova: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), AttachError> {
        self.inner.dma_map(fd, offset, iova, len, writable)
    }

    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), AttachError> {
        self.inner.dma_unmap(iova, len)
    }

    fn set_vector(&self, index: u8, eventfd: Option<RawFd>) -> Result<(), AttachError> {
        self.inner.set_vector(index, eventfd)
    }

    fn kick(&self) {
        self.inner.kick();
        self.settle();
    }

    fn hangup_fd(&self) -> Option<RawFd> {
        None
    }
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
    let reports = [embedded(), process(), process_in_virtual_time()];
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
