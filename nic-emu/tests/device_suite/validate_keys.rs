//! The validation layer over shared receive queues, memory windows and keys that were invalidated.

use nic_emu::device::{DeviceOptions, Finding, LinkParameters, Rule, Topic};
use ring_proto::admin::{Access, AdminOp, AdminStatus, MwBind};
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};
use ring_proto::sync::Ordering;
use ring_proto::wqe::WqeFlags;

use crate::client::{Client, Pair, RawQp, RawSrq, Region, Send, device_with, full};
use crate::packet;

const DEPTH: u32 = 8;

fn options() -> DeviceOptions {
    DeviceOptions {
        virtual_time: true,
        validate: true,
        ..DeviceOptions::default()
    }
}

/// The findings, which must all be of this rule, complete in every field; at least one.
fn only(pair: &Pair, rule: Rule) -> Vec<Finding> {
    let findings = pair.device.findings();
    assert!(!findings.is_empty(), "no finding");
    for finding in &findings {
        assert_eq!(finding.rule, rule.id(), "{finding}");
        assert_eq!(finding.explanation, rule.explanation());
        assert_eq!(finding.remedy, rule.remedy());
        assert!(!finding.detail.is_empty());
        assert!(finding.node == "a" || finding.node == "b");
    }
    findings
}

fn silent(pair: &Pair) {
    let findings = pair.device.findings();
    assert!(findings.is_empty(), "{}", findings[0]);
}

/// A pair whose QP of b takes its receives from an SRQ.
struct Shared {
    pair: Pair,
    srq: RawSrq,
    into: Region,
}

impl Shared {
    fn new() -> Self {
        let (mut device, a, b) = device_with(options());
        let mut a = Client::attach(&mut device, a);
        let mut b = Client::attach(&mut device, b);
        let pdn = b.pdn;
        let srq = b.srq(&mut device, DEPTH, pdn);
        let into = b.region(&mut device, 4096, full());
        let qa = a.qp(&mut device);
        let qb = b.qp_on_srq(&mut device, &srq, pdn);
        let mut pair = Pair {
            device,
            a,
            b,
            qa,
            qb,
        };
        pair.join();
        Self { pair, srq, into }
    }

    fn post(&mut self, wr_id: u64, offset: u64) {
        let sge = self.into.sge(offset, 64);
        self.pair.b.write_srq(&mut self.srq, wr_id, &[sge]);
        self.ring();
    }

    fn ring(&mut self) {
        self.pair.b.ring_srq(&mut self.pair.device, &self.srq);
        self.pair.pump();
    }

    fn message(&mut self) {
        let Pair { device, a, qa, .. } = &mut self.pair;
        a.send(device, qa, &Send::inline(Opcode::SEND, 1, b"x"));
        assert_eq!(a.poll(qa).unwrap().status, WcStatus::SUCCESS);
    }

    fn received(&mut self) -> u64 {
        let Pair { b, qb, .. } = &mut self.pair;
        b.poll(qb).expect("a receive").wr_id
    }

    fn only(&self, rule: Rule) -> Vec<Finding> {
        let findings = only(&self.pair, rule);
        for finding in &findings {
            let seen = (finding.queue.as_str(), finding.number);
            assert_eq!(seen, ("srq", self.srq.srqn), "{finding}");
            assert_eq!(finding.function, self.pair.b.function.0);
        }
        findings
    }
}

#[test]
fn srq_used_as_it_should_breaks_no_rule() {
    let mut shared = Shared::new();
    for lap in 0..5 {
        for n in 0..u64::from(DEPTH) {
            shared.post(n, 64 * n);
        }
        for n in 0..u64::from(DEPTH) {
            shared.message();
            assert_eq!(shared.received(), n, "lap {lap}");
        }
    }
    silent(&shared.pair);
}

#[test]
fn dirty_receive_of_an_srq_is_wqe_reserved() {
    let mut shared = Shared::new();
    let mut wqe = crate::client::recv_wqe(5, &[]);
    wqe.reserved[0] = 9;
    shared.srq.ring.write(0, &zerocopy::transmute!(wqe));
    shared.srq.producer += 1;
    shared.ring();
    let findings = shared.only(Rule::WqeReserved);
    assert_eq!(findings[0].index, 0);
    assert_eq!(findings[0].wqe.as_ref().unwrap().wr_id, 5);
}

#[test]
fn receive_of_an_srq_into_a_posted_buffer_is_buf_overlap_until_its_completion() {
    let mut shared = Shared::new();
    shared.post(1, 0);
    shared.message();
    assert_eq!(shared.received(), 1);
    // Given back by its completion.
    shared.post(2, 0);
    silent(&shared.pair);
    shared.post(3, 32);
    let findings = shared.only(Rule::BufOverlap);
    assert_eq!((findings.len(), findings[0].index), (1, 2));
    assert_eq!(findings[0].wqe.as_ref().unwrap().wr_id, 3);
}

#[test]
fn receive_of_an_srq_changed_after_its_doorbell_is_wqe_rewritten() {
    let mut shared = Shared::new();
    shared.post(1, 0);
    let mut wqe = crate::client::recv_wqe(1, &[shared.into.sge(0, 64)]);
    wqe.sges[1].addr = 7;
    shared.srq.ring.write(0, &zerocopy::transmute!(wqe));
    shared.message();
    let findings = shared.only(Rule::WqeRewritten);
    assert_eq!((findings.len(), findings[0].index), (1, 0));
}

#[test]
fn posting_over_an_unreported_receive_of_an_srq_is_wq_overrun() {
    let mut shared = Shared::new();
    let long = shared
        .pair
        .b
        .region(&mut shared.pair.device, 1 << 16, full());
    let source = shared
        .pair
        .a
        .region(&mut shared.pair.device, 1 << 16, full());
    let receive = long.sge(0, 1 << 16);
    shared.pair.b.write_srq(&mut shared.srq, 0, &[receive]);
    for n in 1..u64::from(DEPTH) {
        shared.post(n, 64 * n);
    }
    // A packet takes 33 us: the first one takes the receive, and the message is far from its end.
    let link = LinkParameters {
        bandwidth_bps: 1_000_000_000,
        ..packet::slow()
    };
    packet::both(&mut shared.pair, link);
    let Pair { device, a, qa, .. } = &mut shared.pair;
    let send = Send::new(Opcode::SEND, 1, &[source.sge(0, 1 << 16)]);
    a.send(device, qa, &send);
    packet::run(&mut shared.pair, 100 * packet::US);
    silent(&shared.pair);
    // The NIC has fetched the first place already, by luck.
    shared.post(8, 64 * 8);
    let findings = shared.only(Rule::WqOverrun);
    assert_eq!((findings.len(), findings[0].index), (1, 8));
}

#[test]
fn srq_doorbell_past_the_queue_is_db_past_queue() {
    let mut shared = Shared::new();
    for n in 0..u64::from(DEPTH) {
        shared.post(n, 64 * n);
    }
    silent(&shared.pair);
    shared.post(9, 64 * 9);
    shared.only(Rule::DbPastQueue);
}

#[test]
fn srq_doorbell_that_goes_back_is_db_backwards() {
    let mut shared = Shared::new();
    shared.post(1, 0);
    shared.post(2, 64);
    shared.srq.producer -= 1;
    shared.ring();
    let findings = shared.only(Rule::DbBackwards);
    assert!(findings[0].detail.contains("producer 1 after 2"));
}

#[test]
fn limit_above_the_depth_is_srq_limit() {
    let mut shared = Shared::new();
    let arm = |shared: &mut Shared, limit: u32, number: u32| {
        let line = shared.pair.b.bar.line(shared.srq.slot);
        line.srq_limit()
            .store(limit | number << 24, Ordering::Relaxed);
        shared.ring();
    };
    arm(&mut shared, DEPTH, 1);
    silent(&shared.pair);
    arm(&mut shared, DEPTH + 1, 2);
    let findings = shared.only(Rule::SrqLimit);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].detail.contains("limit 9 of a queue of 8"));
    // Told once for each arming.
    shared.post(1, 0);
    assert_eq!(shared.only(Rule::SrqLimit).len(), 1);
}

#[test]
fn region_deregistered_under_a_receive_of_an_srq_is_key_in_use() {
    let mut shared = Shared::new();
    shared.post(6, 0);
    let key = shared.into.key;
    let Pair { device, b, .. } = &mut shared.pair;
    assert_eq!(b.named(device, AdminOp::MR_DEREG, key), AdminStatus::OK);
    let findings = shared.only(Rule::KeyInUse);
    assert_eq!(findings[0].wqe.as_ref().unwrap().wr_id, 6);
}

#[test]
fn stale_key_in_a_receive_of_an_srq_is_key_stale() {
    let mut shared = Shared::new();
    let key = shared.into.key;
    let Pair { device, b, .. } = &mut shared.pair;
    assert_eq!(b.named(device, AdminOp::MR_DEREG, key), AdminStatus::OK);
    shared.post(6, 0);
    let Pair { device, a, qa, .. } = &mut shared.pair;
    a.send(device, qa, &Send::inline(Opcode::SEND, 1, b"x"));
    let findings = shared.only(Rule::KeyStale);
    assert_eq!(findings[0].wqe.as_ref().unwrap().wr_id, 6);
}

#[test]
fn receive_in_work_of_one_qp_stays_posted_when_another_qp_of_its_srq_starts_anew() {
    const LEN: usize = 8192;
    for is_destroyed in [false, true] {
        let mut shared = Shared::new();
        let Shared { pair, srq, .. } = &mut shared;
        let Pair { device, a, b, .. } = pair;
        let mut other = b.qp_on_srq(device, srq, b.pdn);
        let from = a.region(device, LEN as u64, full());
        let into = b.region(device, LEN as u64, full());
        let post = |pair: &mut Pair, srq: &mut RawSrq, wr_id| {
            pair.b.write_srq(srq, wr_id, &[into.sge(0, 8192)]);
            pair.b.ring_srq(&mut pair.device, srq);
            pair.pump();
        };
        post(pair, srq, 1);
        // Its first packet takes the receive; the second has not come yet.
        let wire = LinkParameters {
            bandwidth_bps: 10_000_000,
            ..packet::slow()
        };
        packet::both(pair, wire);
        let send = Send::new(Opcode::SEND, 1, &[from.sge(0, 8192)]);
        pair.a.send(&mut pair.device, &mut pair.qa, &send);
        let taken = |pair: &Pair| pair.device.inspect(&[Topic::Srqs]).srqs[0].queue.consumer;
        for _ in 0..1000 {
            if taken(pair) == 1 {
                break;
            }
            packet::run(pair, 100 * packet::US);
        }
        assert_eq!((taken(pair), pair.b.poll(&mut pair.qb)), (1, None));

        let Pair { device, b, .. } = pair;
        if is_destroyed {
            let gone = b.named(device, AdminOp::QP_DESTROY, other.qpn);
            assert_eq!(gone, AdminStatus::OK);
        } else {
            b.modify(device, &mut other, QpState::RESET);
        }
        silent(pair);
        post(pair, srq, 2);
        let findings = only(pair, Rule::BufOverlap);
        assert_eq!((findings.len(), findings[0].index), (1, 1));
        packet::run(pair, 100 * packet::MS);
        assert_eq!(pair.b.poll(&mut pair.qb).expect("a receive").wr_id, 1);
        // Given back by its completion: the next one overlaps nothing.
        post(pair, srq, 3);
        assert_eq!(pair.device.findings().len(), 1);
    }
}

#[test]
fn receive_that_a_qp_took_along_is_given_back_when_it_starts_anew() {
    const LEN: u32 = 8192;
    let mut shared = Shared::new();
    let Shared { pair, srq, .. } = &mut shared;
    let from = pair.a.region(&mut pair.device, LEN.into(), full());
    let into = pair.b.region(&mut pair.device, LEN.into(), full());
    pair.b.write_srq(srq, 1, &[into.sge(0, LEN)]);
    pair.b.ring_srq(&mut pair.device, srq);
    let wire = LinkParameters {
        bandwidth_bps: 10_000_000,
        ..packet::slow()
    };
    packet::both(pair, wire);
    let send = Send::new(Opcode::SEND, 1, &[from.sge(0, LEN)]);
    pair.a.send(&mut pair.device, &mut pair.qa, &send);
    packet::run(pair, 5 * packet::MS);
    let rows = pair.device.inspect(&[Topic::Srqs]).srqs;
    assert_eq!(rows[0].queue.consumer, 1, "half of it has come");
    pair.b
        .modify(&mut pair.device, &mut pair.qb, QpState::RESET);
    pair.b.write_srq(srq, 2, &[into.sge(0, LEN)]);
    pair.b.ring_srq(&mut pair.device, srq);
    pair.pump();
    silent(pair);
}

#[test]
fn destroyed_srq_gives_its_buffers_back() {
    let mut shared = Shared::new();
    shared.post(1, 0);
    let srqn = shared.srq.srqn;
    let Pair { device, b, qb, .. } = &mut shared.pair;
    let gone = b.named(device, AdminOp::QP_DESTROY, qb.qpn);
    assert_eq!(gone, AdminStatus::OK);
    assert_eq!(b.named(device, AdminOp::SRQ_DESTROY, srqn), AdminStatus::OK);
    let pdn = b.pdn;
    shared.srq = b.srq(device, DEPTH, pdn);
    shared.post(2, 0);
    silent(&shared.pair);
    // And it is watched as the first one was.
    shared.post(3, 0);
    shared.only(Rule::BufOverlap);
}

/// A pair with a region of b that gives peers nothing, and a window of it.
struct Windows {
    pair: Pair,
    own: Region,
    region: Region,
    mw: u32,
}

fn next(key: u32) -> u32 {
    key & !0xff | (key.wrapping_add(1) & 0xff)
}

impl Windows {
    fn new(kind: u32) -> Self {
        let mut pair = Pair::with_options(options());
        let own = pair.a.region(&mut pair.device, 64, full());
        let access = Access::LOCAL_WRITE | Access::MW_BIND;
        let region = pair.b.region(&mut pair.device, 4096, access);
        let pdn = pair.b.pdn;
        let mw = pair.b.mw(&mut pair.device, pdn, kind);
        Self {
            pair,
            own,
            region,
            mw,
        }
    }

    fn bind_wqe(&self) -> Send {
        let keys = (self.mw, next(self.mw));
        let range = (self.region.iova, 64);
        Send::bind(9, keys, self.region.key, range, Access::REMOTE_READ)
    }

    fn bound() -> Self {
        let mut scene = Self::new(2);
        let wqe = scene.bind_wqe();
        scene.b(&wqe);
        scene.mw = next(scene.mw);
        scene
    }

    fn b(&mut self, wqe: &Send) {
        let Pair { device, b, qb, .. } = &mut self.pair;
        post(b, device, qb, wqe);
    }

    fn read(&mut self) -> (WcStatus, Syndrome) {
        let wqe = Send::new(Opcode::RDMA_READ, 1, &[self.own.sge(0, 8)])
            .remote(self.region.iova, self.mw);
        let Pair { device, a, qa, .. } = &mut self.pair;
        a.send(device, qa, &wqe);
        let wc = a.poll(qa).expect("a completion");
        (wc.status, wc.syndrome)
    }
}

fn post(client: &Client, device: &mut nic_emu::device::Device, qp: &mut RawQp, wqe: &Send) {
    client.send(device, qp, wqe);
    client.poll(qp).expect("a completion");
}

#[test]
fn windows_used_as_they_should_break_no_rule() {
    let mut scene = Windows::bound();
    assert_eq!(scene.read().0, WcStatus::SUCCESS);
    let end = Send::new(Opcode::LOCAL_INV, 10, &[]).imm(scene.mw);
    scene.b(&end);
    let again = scene.bind_wqe();
    scene.b(&again);
    scene.mw = next(scene.mw);
    assert_eq!(scene.read().0, WcStatus::SUCCESS);
    silent(&scene.pair);
}

#[test]
fn use_of_an_invalidated_window_is_key_invalidated() {
    let mut scene = Windows::bound();
    let end = Send::new(Opcode::LOCAL_INV, 10, &[]).imm(scene.mw);
    scene.b(&end);
    let refused = (WcStatus::REM_ACCESS_ERR, Syndrome::KEY_INVALIDATED);
    assert_eq!(scene.read(), refused);
    let findings = only(&scene.pair, Rule::KeyInvalidated);
    assert_eq!(findings.len(), 1);
    let finding = &findings[0];
    // The one who used it is told, whose it is stands in the detail.
    assert_eq!(
        (finding.function, finding.queue.as_str(), finding.number),
        (scene.pair.a.function.0, "sq", scene.pair.qa.qpn)
    );
    let wqe = finding.wqe.as_ref().unwrap();
    assert_eq!((wqe.opcode.as_str(), wqe.rkey), ("RDMA_READ", scene.mw));
    let owner = format!("of function {}", scene.pair.b.function);
    assert!(finding.detail.contains(&owner), "{finding}");
}

#[test]
fn use_of_a_window_that_was_never_bound_is_key_invalidated() {
    let mut scene = Windows::new(2);
    scene.read();
    only(&scene.pair, Rule::KeyInvalidated);
}

#[test]
fn use_of_an_invalidated_region_is_key_invalidated_for_its_owner_too() {
    let mut scene = Windows::new(2);
    let end = Send::new(Opcode::LOCAL_INV, 10, &[]).imm(scene.region.key);
    scene.b(&end);
    // To bind a window to it, and to send from it.
    let mut bind = scene.bind_wqe();
    bind.head.flags |= WqeFlags::SIGNALED.bits();
    scene.b(&bind);
    let findings = only(&scene.pair, Rule::KeyInvalidated);
    assert_eq!(findings[0].wqe.as_ref().unwrap().opcode, "BIND_MW");
    let key = format!("{:#010x}", scene.region.key);
    assert!(findings[0].detail.contains(&key), "{}", findings[0]);

    let mut scene = Windows::new(2);
    let end = Send::new(Opcode::LOCAL_INV, 10, &[]).imm(scene.region.key);
    scene.b(&end);
    let send = Send::new(Opcode::SEND, 11, &[scene.region.sge(0, 8)]);
    scene.b(&send);
    only(&scene.pair, Rule::KeyInvalidated);
}

#[test]
fn keys_that_windows_had_before_are_key_stale() {
    // Bound anew by WQE, after an invalidation.
    let mut scene = Windows::bound();
    let end = Send::new(Opcode::LOCAL_INV, 10, &[]).imm(scene.mw);
    scene.b(&end);
    let again = scene.bind_wqe();
    scene.b(&again);
    assert_eq!(scene.read().1, Syndrome::RKEY_UNKNOWN);
    only(&scene.pair, Rule::KeyStale);
    // Deallocated.
    let mut scene = Windows::bound();
    let mw = scene.mw;
    let Pair { device, b, .. } = &mut scene.pair;
    assert_eq!(b.named(device, AdminOp::MW_DEALLOC, mw), AdminStatus::OK);
    assert_eq!(scene.read().1, Syndrome::RKEY_UNKNOWN);
    only(&scene.pair, Rule::KeyStale);
    // Bound anew, or unbound, by command.
    for len in [64, 0] {
        let mut scene = Windows::new(1);
        let body = if len == 0 {
            MwBind {
                rkey: scene.mw,
                ..MwBind::default()
            }
        } else {
            MwBind {
                addr: scene.region.iova,
                len,
                rkey: scene.mw,
                lkey: scene.region.key,
                access: Access::REMOTE_READ.bits(),
                reserved: 0,
            }
        };
        let Pair { device, b, .. } = &mut scene.pair;
        b.ok(device, AdminOp::MW_BIND, body.to_body());
        assert_eq!(scene.read().1, Syndrome::RKEY_UNKNOWN);
        only(&scene.pair, Rule::KeyStale);
    }
}

#[test]
fn reserved_fields_of_local_operations_and_atomics_are_wqe_reserved() {
    type Change = fn(&mut Send);
    let of_bind: [Change; 4] = [
        |wqe| wqe.head.count = 1,
        |wqe| wqe.head.total = 1,
        |wqe| wqe.sges[0].lkey |= 1 << 30,
        |wqe| {
            wqe.sges.resize(2, ring_proto::wqe::Sge::default());
            wqe.sges[1].addr = 1;
        },
    ];
    for change in of_bind {
        let mut scene = Windows::new(2);
        let mut wqe = scene.bind_wqe();
        change(&mut wqe);
        scene.b(&wqe);
        let findings = only(&scene.pair, Rule::WqeReserved);
        assert_eq!(findings[0].wqe.as_ref().unwrap().opcode, "BIND_MW");
    }
    let of_end: [Change; 3] = [
        |wqe| wqe.head.total = 1,
        |wqe| wqe.head.rkey = 1,
        |wqe| wqe.head.remote_addr = 1,
    ];
    for change in of_end {
        let mut scene = Windows::bound();
        let mut wqe = Send::new(Opcode::LOCAL_INV, 10, &[]).imm(scene.mw);
        change(&mut wqe);
        scene.b(&wqe);
        let findings = only(&scene.pair, Rule::WqeReserved);
        assert_eq!(findings[0].wqe.as_ref().unwrap().opcode, "LOCAL_INV");
    }
    let mut pair = Pair::with_options(options());
    let own = pair.a.region(&mut pair.device, 64, full());
    let remote = pair.b.region(&mut pair.device, 64, full());
    let place = (remote.iova, remote.key);
    let mut add = Send::atomic(
        Opcode::ATOMIC_FETCH_AND_ADD,
        1,
        own.sge(0, 8),
        place,
        (1, 0),
    );
    pair.a.send(&mut pair.device, &mut pair.qa, &add);
    silent(&pair);
    add.head.imm = 3;
    pair.a.send(&mut pair.device, &mut pair.qa, &add);
    only(&pair, Rule::WqeReserved);
}

#[test]
fn region_invalidated_under_a_posted_receive_is_key_in_use() {
    let mut pair = Pair::with_options(options());
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 6, &[target.sge(0, 64)]);
    let end = Send::new(Opcode::LOCAL_INV, 10, &[]).imm(target.key);
    pair.b.send(&mut pair.device, &mut pair.qb, &end);
    let findings = only(&pair, Rule::KeyInUse);
    assert!(
        findings[0].detail.contains("invalidated"),
        "{}",
        findings[0]
    );
    assert_eq!(findings[0].wqe.as_ref().unwrap().wr_id, 6);
}

#[test]
fn atomic_into_a_posted_receive_is_buf_overlap() {
    let mut pair = Pair::with_options(options());
    let own = pair.a.region(&mut pair.device, 64, full());
    let remote = pair.b.region(&mut pair.device, 64, full());
    pair.a
        .recv(&mut pair.device, &mut pair.qa, 2, &[own.sge(0, 64)]);
    let place = (remote.iova, remote.key);
    let add = Send::atomic(
        Opcode::ATOMIC_FETCH_AND_ADD,
        1,
        own.sge(8, 8),
        place,
        (1, 0),
    );
    pair.a.send(&mut pair.device, &mut pair.qa, &add);
    let findings = only(&pair, Rule::BufOverlap);
    assert_eq!(
        findings[0].wqe.as_ref().unwrap().opcode,
        "ATOMIC_FETCH_AND_ADD"
    );
}

#[test]
fn every_rule_stands_in_the_reference_with_its_first_sentence() {
    let page = include_str!("../../../docs/device.md");
    for rule in Rule::ALL {
        let explanation = rule.explanation();
        let end = explanation.find(". ").unwrap_or(explanation.len() - 1);
        let row = format!("| {rule} | {}. |", &explanation[..end]);
        assert!(page.contains(&row), "docs/device.md lacks\n{row}");
    }
}
