//! Captures: what the ports saw, as tshark and a script of ours read it, and what a capture never does to the engine.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nic_emu::capture::{
    CaptureError, Filter, Frame, Frames, Geometry, Medium, Pcapng, Port, Reader, Writer,
};
use ring_proto::status::{Opcode, WcStatus};

use crate::client::{Pair, Send, full, sock};
use crate::packet::{A, B, MS, attributes, bad, both, run};

/// A capture of both ports of a pair.
struct Tape {
    frames: Frames,
    ports: Vec<Port>,
    id: u32,
}

fn ports(addresses: bool) -> Vec<Port> {
    [("a", 1), ("b", 2)]
        .map(|(name, last)| Port {
            name: name.to_owned(),
            addresses: addresses
                .then(|| format!("127.77.0.{last}/24"))
                .into_iter()
                .collect(),
        })
        .into()
}

fn ring(bytes: u64) -> (Writer, Reader) {
    let geometry: Geometry = serde_json::from_value(serde_json::json!({
        "head": 64, "data": bytes / 64, "nodes": 2
    }))
    .unwrap();
    let (writer, fd) = Writer::new(geometry).unwrap();
    (writer, Reader::new(&fd, geometry).unwrap())
}

impl Tape {
    fn start(pair: &mut Pair) -> Self {
        Self::with(pair, 65_535, 1 << 24)
    }

    fn with(pair: &mut Pair, snaplen: u32, bytes: u64) -> Self {
        let (writer, reader) = ring(bytes);
        let ports = ports(true);
        let id = pair.device.start_capture(&[A, B], snaplen, writer).unwrap();
        Self {
            frames: Frames::new(reader, &ports),
            ports,
            id,
        }
    }

    /// Ends the capture and writes what the filter keeps.
    fn write(mut self, pair: &mut Pair, name: &str, filter: &str) -> Recorded {
        pair.device.stop_capture(self.id);
        let filter = Filter::parse(filter, &self.ports).unwrap();
        let folder =
            std::env::temp_dir().join(format!("sanlab-capture-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        let file = File::create(&path).unwrap();
        let interfaces: Vec<_> = (0u16..).zip(&self.ports).collect();
        let mut file = Pcapng::begin(file, "test", &interfaces, &[Medium::San], 65_535, 0).unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = self.frames.next_frame().unwrap() {
            if filter.keeps(&frame) {
                file.packet(&frame, frame.at_ns).unwrap();
                frames.push(frame);
            }
        }
        let ended_ns = pair.device.now_ns();
        file.finish(ended_ns, |medium, node| self.frames.counts(medium, node))
            .unwrap();
        assert_eq!(self.frames.skipped(), 0);
        Recorded { path, frames }
    }
}

/// A file, and what was written to it.
struct Recorded {
    path: PathBuf,
    frames: Vec<Frame>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Leftovers would only take room; the folder goes with its last file.
            let _ = std::fs::remove_file(&self.path);
            let _ = self.path.parent().map(std::fs::remove_dir);
        }
    }
}

/// Runs a program; `None` where it is not installed and need not be.
fn output(program: &str, arguments: &[&str], path: &Path) -> Option<String> {
    let run = Command::new(program)
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null())
        .output();
    let run = match run {
        Ok(run) => run,
        Err(error) if std::env::var_os("SANLAB_REQUIRE_PROGRAMS").is_none() => {
            let _ = writeln!(std::io::stderr(), "skipped: {program}: {error}");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let text = String::from_utf8(run.stdout).unwrap();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(
        run.status.success(),
        "{program} {}: {text}{errors}",
        path.display()
    );
    Some(text)
}

impl Recorded {
    /// What our script says, after tshark has dissected every frame without a complaint.
    fn check(&self) -> Option<serde_json::Value> {
        if let Some(rows) = self.fields("_ws.malformed or !infiniband", &["frame.number"]) {
            assert_eq!(rows, Vec::<Vec<String>>::new(), "{}", self.path.display());
        }
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/harness/roce_check.py"
        );
        let text = output("python3", &[script], &self.path)?;
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Fields of the frames that a display filter keeps, as tshark tells them.
    fn fields(&self, filter: &str, fields: &[&str]) -> Option<Vec<Vec<String>>> {
        let mut arguments = vec!["-n", "-Y", filter, "-T", "fields"];
        for field in fields {
            arguments.extend(["-e", field]);
        }
        arguments.push("-r");
        let text = output("tshark", &arguments, &self.path)?;
        let cells = |line: &str| line.split('\t').map(str::to_owned).collect();
        Some(text.lines().map(cells).collect())
    }

    fn operations(&self, port: u16, is_inbound: bool) -> Vec<&'static str> {
        let seen = |frame: &&Frame| frame.port == port && frame.is_inbound == is_inbound;
        let frames = self.frames.iter().filter(seen);
        frames.map(|frame| frame.operation).collect()
    }
}

/// Does one of everything from a to b, and says how it ended.
fn one_of_each(pair: &mut Pair) -> Vec<WcStatus> {
    let own = pair.a.region(&mut pair.device, 1 << 16, full());
    let far = pair.b.region(&mut pair.device, 1 << 16, full());
    let pdn = pair.b.pdn;
    let window = pair.b.mw(&mut pair.device, pdn, 2);
    for wr_id in 0..5 {
        let sge = far.sge(wr_id * 8192, 8192);
        pair.b.recv(&mut pair.device, &mut pair.qb, wr_id, &[sge]);
    }
    // The window is bound, so that a SEND can end it.
    let bind = Send::bind(
        90,
        (window, window + 1),
        far.key,
        (far.iova, 4096),
        ring_proto::admin::Access::REMOTE_WRITE,
    );
    pair.b.send(&mut pair.device, &mut pair.qb, &bind);
    run(pair, 10 * MS);
    assert_eq!(pair.b.poll(&mut pair.qb).unwrap().status, WcStatus::SUCCESS);
    let wqe = |opcode, len| Send::new(opcode, 1, &[own.sge(0, len)]);
    let to = |send: Send| send.remote(far.iova, far.key);
    let atomic =
        |opcode, swap| Send::atomic(opcode, 1, own.sge(0, 8), (far.iova, far.key), (3, swap));
    for send in [
        wqe(Opcode::SEND, 8000),
        wqe(Opcode::SEND, 101),
        wqe(Opcode::SEND_WITH_IMM, 5).imm(0x0102_0304),
        wqe(Opcode::SEND_WITH_INV, 64).imm(window + 1),
        to(wqe(Opcode::RDMA_WRITE, 12_289)),
        to(wqe(Opcode::RDMA_WRITE, 7)),
        to(wqe(Opcode::RDMA_WRITE_WITH_IMM, 4097)).imm(0x0506_0708),
        to(wqe(Opcode::RDMA_READ, 9000)),
        to(wqe(Opcode::RDMA_READ, 1)),
        atomic(Opcode::ATOMIC_CMP_AND_SWP, 4),
        atomic(Opcode::ATOMIC_FETCH_AND_ADD, 0),
    ] {
        pair.a.send(&mut pair.device, &mut pair.qa, &send);
    }
    run(pair, 2000 * MS);
    let done = pair.a.completions(&mut pair.qa);
    done.into_iter().map(|wc| wc.status).collect()
}

#[test]
fn every_operation_is_a_frame_that_tshark_reads() {
    let mut pair = Pair::unjoined();
    let tape = Tape::start(&mut pair);
    pair.join();
    assert_eq!(one_of_each(&mut pair), [WcStatus::SUCCESS; 11]);
    pair.a.named(
        &mut pair.device,
        ring_proto::admin::AdminOp::CM_DISCONNECT,
        pair.qa.qpn,
    );
    let (qa, qb) = (pair.qa.qpn, pair.qb.qpn);
    let recorded = tape.write(&mut pair, "each.pcapng", "");
    // A perfect link: what leaves arrives.
    assert_eq!(recorded.operations(0, false), recorded.operations(1, true));
    assert_eq!(recorded.operations(1, false), recorded.operations(0, true));
    let Some(report) = recorded.check() else {
        return;
    };
    for (opcode, frames) in [
        ("0x00", 1),
        ("0x02", 1),
        ("0x04", 1),
        ("0x05", 1),
        ("0x17", 1),
        ("0x06", 2),
        ("0x07", 2),
        ("0x08", 1),
        ("0x09", 1),
        ("0x0a", 1),
        ("0x0c", 2),
        ("0x0d", 1),
        ("0x0e", 1),
        ("0x0f", 1),
        ("0x10", 1),
        ("0x12", 2),
        ("0x13", 1),
        ("0x14", 1),
    ] {
        // At both ports.
        assert_eq!(
            report["opcodes"][opcode],
            2 * frames,
            "{opcode}: {report:#}"
        );
    }
    for message in ["REQ", "REP", "RTU", "DREQ", "DREP"] {
        assert_eq!(report[message], 2, "{message}: {report:#}");
    }
    assert_eq!(report["interfaces"][0]["name"], "a");
    assert_eq!(
        report["interfaces"][1]["description"],
        "SAN NIC of node b (127.77.0.2/24)"
    );
    let sent = "frame.interface_id == 0 and frame.packet_flags_direction == 2 and infiniband.bth.destqp != 1";
    let fields = [
        "infiniband.bth.opcode",
        "infiniband.bth.destqp",
        "infiniband.bth.psn",
        "infiniband.reth.dmalen",
        "infiniband.immdt",
    ];
    let Some(rows) = recorded.fields(sent, &fields) else {
        return;
    };
    let mut psn = 0;
    for (row, opcode) in rows.iter().zip([
        0, 2, 4, 5, 0x17, 6, 7, 7, 8, 0x0a, 6, 9, 0x0c, 0x0c, 0x13, 0x14,
    ]) {
        assert_eq!(row[0], opcode.to_string(), "{rows:?}");
        assert_eq!(row[1], format!("0x{qb:06x}"), "{rows:?}");
        assert_eq!(row[2], psn.to_string(), "{rows:?}");
        // The first READ takes the PSNs of its three responses.
        psn += if opcode == 0x0c && row[3] == "9000" {
            3
        } else {
            1
        };
    }
    assert_eq!(rows.len(), 16);
    let lengths: Vec<_> = rows
        .iter()
        .map(|row| row[3].as_str())
        .filter(|len| !len.is_empty())
        .collect();
    assert_eq!(lengths, ["12289", "7", "4097", "9000", "1"]);
    let request = "infiniband.mad.attributeid == 0x0010 and frame.interface_id == 1";
    let fields = [
        "infiniband.cm.req.localqpn",
        "infiniband.cm.req.ip_cm.sip4",
        "infiniband.cm.req.ip_cm.dip4",
        "infiniband.cm.req.ip_cm.sport",
    ];
    if let Some(rows) = recorded.fields(request, &fields) {
        let expected = [
            format!("0x{qa:06x}"),
            "127.77.0.1".into(),
            "127.77.0.2".into(),
            "0x03e7".into(),
        ];
        assert_eq!(rows, [expected]);
    }
}

#[test]
fn a_bad_link_shows_what_it_does_and_nothing_malformed() {
    let mut pair = Pair::unjoined();
    let tape = Tape::start(&mut pair);
    pair.join();
    attributes(&mut pair, true, |body| {
        body.attributes = (ring_proto::admin::QpAttributes::TIMEOUT
            | ring_proto::admin::QpAttributes::RETRY_UNLIMITED)
            .bits();
        body.timeout = 8;
        body.retry_unlimited = 1;
    });
    both(&mut pair, bad());
    assert_eq!(one_of_each(&mut pair), [WcStatus::SUCCESS; 11]);
    let own = pair.a.region(&mut pair.device, 1 << 18, full());
    let far = pair.b.region(&mut pair.device, 1 << 18, full());
    for round in 0..8 {
        let opcode = if round % 2 == 0 {
            Opcode::RDMA_WRITE
        } else {
            Opcode::RDMA_READ
        };
        let send = Send::new(opcode, round, &[own.sge(0, 200_000)]);
        pair.a.send(
            &mut pair.device,
            &mut pair.qa,
            &send.remote(far.iova, far.key),
        );
        run(&mut pair, 3000 * MS);
    }
    let done = pair.a.completions(&mut pair.qa);
    assert_eq!(done.len(), 8, "{done:?}");
    let counters = [(A, B), (B, A)].map(|(from, to)| pair.device.link_counters(from, to));
    let again = crate::packet::counters(&pair, A).retransmitted_packets;
    let recorded = tape.write(&mut pair, "bad.pcapng", "");
    let Some(report) = recorded.check() else {
        return;
    };
    let sum =
        |count: fn(&nic_emu::device::LinkCounters) -> u64| counters.iter().map(count).sum::<u64>();
    assert_eq!(
        report["lost on the link"],
        sum(|link| link.lost),
        "{report:#}"
    );
    assert_eq!(
        report["arrives twice"],
        sum(|link| link.duplicated),
        "{report:#}"
    );
    assert_eq!(
        report["held back on the link"],
        sum(|link| link.reordered),
        "{report:#}"
    );
    assert_eq!(
        report["a bit flipped on the link"],
        sum(|link| link.corrupted),
        "{report:#}"
    );
    assert_eq!(report["icrc_bad"], report["a bit flipped on the link"]);
    assert_eq!(report["sent_again"], again, "{report:#}");
    assert!(
        again > 10 && sum(|link| link.corrupted) > 10,
        "{counters:?}"
    );
    let _ = writeln!(std::io::stdout(), "none malformed: {report}");
}

#[test]
fn frames_are_cut_at_the_snapshot_length_and_tell_the_whole() {
    let mut pair = Pair::new();
    let tape = Tape::with(&mut pair, 128, 1 << 20);
    assert_eq!(one_of_each(&mut pair), [WcStatus::SUCCESS; 11]);
    let recorded = tape.write(&mut pair, "short.pcapng", "kind=request dir=out");
    assert_eq!(recorded.operations(0, false).len(), 16);
    let first = &recorded.frames[0];
    assert_eq!(first.whole_len, 14 + 20 + 8 + 12 + 4096 + 4);
    assert!((128..400).contains(&first.bytes.len()));
    recorded.check();
}

#[test]
fn a_reader_that_stands_still_costs_its_own_frames_only() {
    let mut pair = Pair::new();
    let tape = Tape::with(&mut pair, 65_535, 1 << 16);
    for _ in 0..3 {
        assert_eq!(one_of_each(&mut pair), [WcStatus::SUCCESS; 11]);
        pair.b.completions(&mut pair.qb);
    }
    let counts = [0, 1].map(|node| tape.frames.counts(Medium::San, node));
    assert!(
        counts.iter().all(|it| it.captured > 0 && it.dropped > 0),
        "{counts:?}"
    );
    let seen: u64 = counts.iter().map(|it| it.captured).sum();
    let recorded = tape.write(&mut pair, "full.pcapng", "");
    assert_eq!(recorded.frames.len() as u64, seen);
    // It goes on by messages.
    let packets = crate::packet::counters(&pair, A).tx_packets;
    assert_eq!(one_of_each(&mut pair), [WcStatus::SUCCESS; 11]);
    assert_eq!(crate::packet::counters(&pair, A).tx_packets, packets);
}

#[test]
fn refusals_and_negative_acknowledges_have_their_codes() {
    let mut pair = Pair::unjoined();
    let tape = Tape::start(&mut pair);
    let nobody = pair.a.connect(
        &mut pair.device,
        pair.qa.qpn,
        sock(crate::client::A, 9),
        sock(crate::client::B, 7),
        0,
        b"hello",
    );
    assert_eq!(nobody, ring_proto::admin::AdminStatus::OK);
    pair.a.events();
    pair.join();
    let own = pair.a.region(&mut pair.device, 4096, full());
    // No receive is there, then one comes; then a key that nobody has.
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[own.sge(0, 100)]),
    );
    let into = pair.b.region(&mut pair.device, 4096, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 1, &[into.sge(0, 4096)]);
    run(&mut pair, 100 * MS);
    let wrong =
        Send::new(Opcode::RDMA_WRITE, 2, &[own.sge(0, 8)]).remote(into.iova, into.key ^ 0xff);
    pair.a.send(&mut pair.device, &mut pair.qa, &wrong);
    run(&mut pair, 100 * MS);
    let ends: Vec<_> = pair
        .a
        .completions(&mut pair.qa)
        .iter()
        .map(|wc| wc.status)
        .collect();
    assert_eq!(ends, [WcStatus::SUCCESS, WcStatus::REM_ACCESS_ERR]);
    let recorded = tape.write(&mut pair, "naks.pcapng", "");
    if recorded.check().is_none() {
        return;
    }
    let sent = "frame.interface_id == 1 and frame.packet_flags_direction == 2 and ";
    let acks = format!("{sent} infiniband.aeth");
    if let Some(rows) = recorded.fields(
        &acks,
        &[
            "infiniband.aeth.syndrome.opcode",
            "infiniband.aeth.syndrome.error_code",
            "infiniband.aeth.msn",
        ],
    ) {
        let [rnr, ack, nak] = &rows[..] else {
            panic!("{rows:?}");
        };
        assert_eq!((rnr[0].as_str(), rnr[2].as_str()), ("1", "0"), "{rows:?}");
        assert_eq!((ack[0].as_str(), ack[2].as_str()), ("0", "1"), "{rows:?}");
        assert_eq!((nak[0].as_str(), nak[1].as_str()), ("3", "2"), "{rows:?}");
    }
    let reject = format!("{sent} infiniband.mad.attributeid == 0x0012");
    if let Some(rows) = recorded.fields(&reject, &["infiniband.cm.rej.reason"]) {
        // Invalid service id.
        assert_eq!(rows, [["0x0008"]]);
    }
}

#[test]
fn captures_have_limits() {
    let mut pair = Pair::new();
    for snaplen in [0, 63, 65_536, u32::MAX] {
        let refused = pair.device.start_capture(&[A], snaplen, ring(1 << 16).0);
        assert!(matches!(refused, Err(CaptureError::Snaplen { .. })));
    }
    let ids: Vec<_> =
        std::iter::from_fn(|| pair.device.start_capture(&[A], 64, ring(1 << 16).0).ok()).collect();
    assert_eq!(ids.len(), 8);
    pair.device.stop_capture(ids[3]);
    pair.device.stop_capture(ids[3]);
    assert!(pair.device.start_capture(&[B], 64, ring(1 << 16).0).is_ok());
}
