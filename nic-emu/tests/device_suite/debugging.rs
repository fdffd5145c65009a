//! What helps to find faults: inspection, the flight recorder, standing still and stepping, clients that a debugger holds.

use std::process::{Child, Command};

use nic_emu::device::{Device, DeviceOptions, PauseOn, RECORDER_EVENTS, Rule, Topic};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use ring_proto::admin::{Access, AdminOp, MwBind, QpModify, SrqModify};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, WcStatus};
use ring_proto::sync::Ordering;

use crate::client::{Pair, Send, full, low, pump};

fn pausing(on: PauseOn) -> Pair {
    Pair::with_options(DeviceOptions {
        virtual_time: true,
        pause_on: Some(on),
        ..DeviceOptions::default()
    })
}

/// A WRITE of nothing.
fn nothing(wr_id: u64) -> Send {
    Send::new(Opcode::RDMA_WRITE, wr_id, &[])
}

#[test]
fn inspection_shows_every_object_of_both_functions() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[own.sge(0, 4)]),
    );
    let all = pair.device.inspect(&[]);
    assert_eq!(
        (all.functions.len(), all.qps.len(), all.cqs.len()),
        (2, 2, 2)
    );
    assert_eq!((all.mrs.len(), all.windows.len()), (1, 2));
    let [a, b] = &all.functions[..] else {
        panic!("two functions");
    };
    assert_eq!(
        (a.node.as_str(), a.state.as_str(), a.qps),
        ("a", "ready", 1)
    );
    assert_eq!((a.windows, b.mrs, b.function), (1, 0, pair.b.function.0));
    let qp = all
        .qps
        .iter()
        .find(|qp| qp.qpn == pair.qa.qpn && qp.node == "a")
        .unwrap();
    assert_eq!((qp.state.as_str(), qp.peer_qpn), ("RTS", pair.qb.qpn));
    assert_eq!((qp.sq.producer, qp.sq.consumer, qp.sq.depth), (1, 1, 64));
    assert_eq!(qp.waits_for.as_deref(), Some("receive"));
    assert_eq!(qp.last_error, None);
    let mr = &all.mrs[0];
    assert_eq!((mr.key, mr.iova, mr.len), (own.key, own.iova, 4096));
    assert!(mr.access.contains("REMOTE_WRITE") && mr.has_memory);
    let slot = all
        .doorbells
        .iter()
        .find(|row| row.slot == pair.qa.slot && row.function == a.function);
    assert_eq!(
        slot.map(|row| (row.qpn, row.sq_producer)),
        Some((pair.qa.qpn, 1))
    );
    assert!(!all.engine.validate && all.engine.paused.is_none());
    // Only what was asked for.
    let some = pair.device.inspect(&[Topic::Cqs]);
    assert_eq!(
        (some.cqs.len(), some.qps.len(), some.functions.len()),
        (2, 0, 0)
    );
}

#[test]
fn inspection_shows_shared_queues_and_memory_windows() {
    let mut pair = Pair::new();
    let pdn = pair.b.pdn;
    let mut srq = pair.b.srq(&mut pair.device, 16, pdn);
    let qp = pair.b.qp_on_srq(&mut pair.device, &srq, pdn);
    let into = pair.b.region(&mut pair.device, 4096, full());
    pair.b.write_srq(&mut srq, 1, &[into.sge(0, 64)]);
    pair.b.ring_srq(&mut pair.device, &srq);
    let arm = SrqModify {
        srqn: srq.srqn,
        limit: 1,
    };
    pair.b
        .ok(&mut pair.device, AdminOp::SRQ_MODIFY, arm.to_body());
    let free = pair.b.mw(&mut pair.device, pdn, 2);
    let bound = pair.b.mw(&mut pair.device, pdn, 1);
    let bind = MwBind {
        rkey: bound,
        lkey: into.key,
        addr: into.iova + 8,
        len: 100,
        access: Access::REMOTE_READ.bits(),
        ..MwBind::default()
    };
    let bound = low(pair
        .b
        .ok(&mut pair.device, AdminOp::MW_BIND, bind.to_body())[0]);

    let all = pair.device.inspect(&[]);
    let [row] = &all.srqs[..] else {
        panic!("{:?}", all.srqs);
    };
    assert_eq!((row.srqn, row.node.as_str(), row.pdn), (srq.srqn, "b", pdn));
    let queue = (row.queue.producer, row.queue.consumer, row.queue.depth);
    assert_eq!((queue, row.limit, row.users), ((1, 0, 16), 1, 1));
    assert!(!row.is_broken && row.waiting == 0);
    assert!(
        all.qps
            .iter()
            .any(|row| row.qpn == qp.qpn && row.srqn == srq.srqn)
    );

    assert_eq!(all.mws.len(), 2);
    let mw = |key| all.mws.iter().find(|row| row.key == key).unwrap();
    assert_eq!(
        (mw(free).kind, mw(free).is_bound, mw(free).len),
        (2, false, 0)
    );
    let row = mw(bound);
    assert_eq!((row.kind, row.is_bound, row.mr_key), (1, true, into.key));
    assert_eq!((row.iova, row.len), (into.iova + 8, 100));
    assert_eq!(
        (row.access.as_str(), row.node.as_str()),
        ("REMOTE_READ", "b")
    );
    let only = pair.device.inspect(&[Topic::Mws]);
    assert_eq!((only.mws, only.srqs.len()), (all.mws, 0));
}

#[test]
fn every_part_of_an_inspection_is_known_by_its_name() {
    for topic in Topic::ALL {
        assert_eq!(topic.name().parse(), Ok(topic));
        let json = serde_json::to_value(topic).unwrap();
        assert_eq!(json, topic.name());
    }
    let error = "queues".parse::<Topic>().unwrap_err().to_string();
    assert!(
        error.contains("\"queues\"") && error.contains("doorbells"),
        "{error}"
    );
}

#[test]
fn last_error_of_a_qp_names_status_syndrome_and_wqe() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    let mut sge = own.sge(0, 8);
    sge.addr += 5000;
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::RDMA_WRITE, 77, &[sge]),
    );
    let error = |pair: &Pair| {
        let rows = pair.device.inspect(&[Topic::Qps]).qps;
        let qp = rows
            .into_iter()
            .find(|qp| qp.function == pair.a.function.0)
            .unwrap();
        (qp.state, qp.last_error)
    };
    let (state, last) = error(&pair);
    let last = last.unwrap();
    assert_eq!(state, "ERR");
    assert_eq!(last.status.as_deref(), Some("LOC_PROT_ERR"));
    assert_eq!(
        (last.syndrome.as_str(), last.wr_id, last.count),
        ("LKEY_OUT_OF_BOUNDS", 77, 1)
    );
    pair.a
        .modify(&mut pair.device, &mut pair.qa, QpState::RESET);
    assert_eq!(error(&pair), ("RESET".into(), None));
}

#[test]
fn recorder_tells_the_story_of_a_message_and_is_kept_when_a_qp_fails() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 5, &[remote.sge(0, 64)]);
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 6, &[own.sge(0, 9)]),
    );
    let events = |device: &Device, function| {
        let recordings = device.recordings(Some(function));
        assert_eq!(recordings.len(), 1);
        recordings.into_iter().next().unwrap().events
    };
    let of_b = events(&pair.device, pair.b.function);
    let last = of_b.last().unwrap();
    assert_eq!(
        (last.event.as_str(), last.code.as_deref()),
        ("cqe", Some("RECV"))
    );
    assert_eq!((last.wr_id, last.len, last.index), (5, 9, 1));
    let of_a = events(&pair.device, pair.a.function);
    let tail: Vec<_> = of_a[of_a.len() - 2..]
        .iter()
        .map(|e| e.event.as_str())
        .collect();
    assert_eq!(tail, ["doorbell", "cqe"]);
    assert!(
        of_a.iter()
            .any(|e| e.event == "admin" && e.code.as_deref() == Some("QP_CREATE"))
    );
    assert!(
        of_a.iter()
            .any(|e| e.event == "state" && e.code.as_deref() == Some("RTS"))
    );
    assert!(pair.device.dumps(None).is_empty());

    let lost = Send::new(Opcode::RDMA_WRITE, 8, &[own.sge(0, 9)]).remote(remote.iova, 1);
    pair.a.send(&mut pair.device, &mut pair.qa, &lost);
    let dumps = pair.device.dumps(Some(pair.a.function));
    let reason = dumps[0].reason.as_deref().unwrap();
    assert!(reason.contains("REM_ACCESS_ERR (RKEY_UNKNOWN)"), "{reason}");
    let last = dumps[0].events.last().unwrap();
    assert_eq!(
        (last.wr_id, last.status.as_deref()),
        (8, Some("REM_ACCESS_ERR"))
    );
}

#[test]
fn recorder_keeps_the_latest_events_only() {
    let mut pair = Pair::new();
    for wr_id in 0..RECORDER_EVENTS as u64 {
        pair.a.send(&mut pair.device, &mut pair.qa, &nothing(wr_id));
        pair.a.poll(&mut pair.qa).unwrap();
    }
    let recordings = pair.device.recordings(Some(pair.a.function));
    let events = &recordings[0].events;
    assert_eq!(events.len(), RECORDER_EVENTS);
    assert!(
        events
            .windows(2)
            .all(|two| two[0].sequence + 1 == two[1].sequence)
    );
    assert_eq!(events.last().unwrap().wr_id, RECORDER_EVENTS as u64 - 1);
}

#[test]
fn failed_function_leaves_a_dump() {
    let mut pair = Pair::new();
    pair.a.admin_producer += 1000;
    pair.a.ring_admin(&mut pair.device);
    pair.pump();
    let dumps = pair.device.dumps(None);
    let dump = dumps.last().unwrap();
    assert_eq!(dump.function, pair.a.function.0);
    assert!(
        dump.reason
            .as_deref()
            .unwrap()
            .contains("DOORBELL_OUT_OF_RANGE")
    );
    let rows = pair.device.inspect(&[Topic::Functions]).functions;
    assert_eq!(rows[0].state, "failed");
    assert_eq!(rows[0].syndrome.as_deref(), Some("DOORBELL_OUT_OF_RANGE"));
}

#[test]
fn pause_on_error_stands_still_behind_the_wqe_that_failed() {
    let mut pair = pausing(PauseOn::Error);
    let own = pair.a.region(&mut pair.device, 4096, full());
    pair.a.write_send(&mut pair.qa, &nothing(1).blocks());
    let mut bad = own.sge(0, 8);
    bad.lkey ^= 0x100;
    pair.a.write_send(
        &mut pair.qa,
        &Send::new(Opcode::RDMA_WRITE, 2, &[bad]).blocks(),
    );
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    let reason = pair.device.paused().expect("it stands still").to_owned();
    assert!(reason.contains("LOC_PROT_ERR (LKEY_UNKNOWN)"), "{reason}");
    let done: Vec<_> = pair
        .a
        .completions(&mut pair.qa)
        .iter()
        .map(|wc| (wc.wr_id, wc.status))
        .collect();
    assert_eq!(done, [(1, WcStatus::SUCCESS), (2, WcStatus::LOC_PROT_ERR)]);
    // Time and doorbells wait.
    let now = pair.device.now_ns();
    pair.device.advance(1_000_000);
    pair.b.send(&mut pair.device, &mut pair.qb, &nothing(9));
    assert_eq!(pair.device.now_ns(), now);
    assert!(pair.b.poll(&mut pair.qb).is_none());
    assert!(pair.device.resume());
    assert!(!pair.device.resume());
    pair.pump();
    assert_eq!(pair.b.poll(&mut pair.qb).unwrap().wr_id, 9);
    assert_eq!(pair.device.now_ns(), now);
}

#[test]
fn steps_do_one_wqe_at_a_time() {
    let mut pair = Pair::new();
    assert_eq!(pair.device.step(), None);
    pair.device.pause();
    for wr_id in 1..=3 {
        pair.a.write_send(&mut pair.qa, &nothing(wr_id).blocks());
    }
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.pump();
    for wr_id in 1..=3 {
        assert!(pair.a.poll(&mut pair.qa).is_none());
        let stepped = pair.device.step().unwrap();
        assert!(stepped.served > 0);
        assert_eq!(pair.a.poll(&mut pair.qa).unwrap().wr_id, wr_id);
    }
    pair.device.step().unwrap();
    assert_eq!(pair.device.step().unwrap().served, 0);
    assert_eq!(pair.device.paused(), Some("stepped"));
}

#[test]
fn pause_on_a_rule_turns_validation_on_and_ignores_other_rules() {
    let mut pair = pausing(PauseOn::Rule(Rule::BufOverlap));
    let line = pair.a.bar.line(pair.qa.cq_slot);
    line.cq_consumer().store(99, Ordering::Release);
    pair.a.send(&mut pair.device, &mut pair.qa, &nothing(1));
    assert_eq!(pair.device.findings().len(), 1);
    assert_eq!(pair.device.paused(), None);
    let target = pair.b.region(&mut pair.device, 4096, full());
    pair.b.recv(
        &mut pair.device,
        &mut pair.qb,
        1,
        &[target.sge(0, 64), target.sge(32, 64)],
    );
    assert_eq!(pair.device.paused(), Some("finding V-BUF-OVERLAP"));
    assert_eq!("v-buf-overlap".parse(), Ok(PauseOn::Rule(Rule::BufOverlap)));
    assert_eq!("error".parse(), Ok(PauseOn::Error));
    assert!("V-NOT".parse::<PauseOn>().is_err());
}

/// A process of ours that does nothing.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn stop(&self) {
        let pid = Pid::from_raw(self.pid());
        kill(pid, Signal::SIGSTOP).unwrap();
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(stopped, WaitStatus::Stopped(..)));
    }

    fn go_on(&self) {
        let pid = Pid::from_raw(self.pid());
        kill(pid, Signal::SIGCONT).unwrap();
        let goes_on = waitpid(pid, Some(WaitPidFlag::WCONTINUED)).unwrap();
        assert!(matches!(goes_on, WaitStatus::Continued(..)));
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn retries_do_not_run_out_while_a_debugger_holds_the_receiver() {
    let receiver = Sleeper::start();
    let mut pair = Pair::new();
    pair.device
        .set_client_process(pair.b.function, receiver.pid())
        .unwrap();
    let body = QpModify {
        qpn: pair.qa.qpn,
        state: QpState::RTS.0.into(),
        rnr_retry: 1,
        ..QpModify::default()
    };
    pair.a
        .ok(&mut pair.device, AdminOp::QP_MODIFY, body.to_body());
    let own = pair.a.region(&mut pair.device, 4096, full());
    let send = Send::new(Opcode::SEND, 1, &[own.sge(0, 8)]);
    receiver.stop();
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    let wait = |pair: &mut Pair, ns| {
        pair.device.advance(ns);
        pair.pump();
    };
    for _ in 0..100 {
        wait(&mut pair, 1_000_000_000);
    }
    assert!(pair.a.poll(&mut pair.qa).is_none());
    receiver.go_on();
    wait(&mut pair, 200_000_000);
    // It runs again and has its time.
    assert!(pair.a.poll(&mut pair.qa).is_none());
    wait(&mut pair, 2_000_000_000);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(wc.status, WcStatus::RNR_RETRY_EXC_ERR);
}

#[test]
fn connects_do_not_time_out_while_a_debugger_holds_the_listener() {
    use crate::client::{A, B, Client, device, sock};
    let listener = Sleeper::start();
    let (mut device, a, b) = device();
    let mut a = Client::attach(&mut device, a);
    let mut b = Client::attach(&mut device, b);
    device
        .set_client_process(b.function, listener.pid())
        .unwrap();
    b.listen(&mut device, sock(B, 4000), 8);
    let qp = a.qp(&mut device);
    listener.stop();
    a.connect(&mut device, qp.qpn, sock(A, 1), sock(B, 4000), 100, b"");
    for _ in 0..20 {
        device.advance(1_000_000_000);
        pump(&mut device);
    }
    assert_eq!(a.event(), None);
    listener.go_on();
    for _ in 0..4 {
        device.advance(1_000_000_000);
        pump(&mut device);
    }
    let event = a.event().expect("its time is up").0;
    assert_eq!(event, EventType::CM_REJECTED);
}
