//! A plain model of one connection, compared with the device over random operations.
//!
//! The model knows lists and states only: what is posted, what must have completed, in which order.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use ring_proto::admin::{AdminOp, AdminStatus};
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, WcStatus};

use crate::client::{Client, Pair, RawQp, Region, Send, full, pump, recv_wqe};

#[derive(Clone, Copy, Debug)]
enum Op {
    /// End 0 or 1 posts a SEND of that many bytes, signaled or not.
    Send(usize, u8, bool),
    /// Posts a WQE that must fail.
    BadSend(usize),
    /// Posts a receive of that capacity.
    Recv(usize, u8),
    /// Polls its CQ empty.
    Poll(usize),
    Disconnect(usize),
    ToErr(usize),
}

#[derive(Clone, Debug)]
enum Posted {
    Send { wr_id: u64, len: u8, signaled: bool },
    Bad { wr_id: u64 },
}

#[derive(Debug, Default)]
struct End {
    state: Option<QpState>,
    sends: VecDeque<Posted>,
    receives: VecDeque<(u64, u8)>,
    /// What the next poll must bring.
    expected: VecDeque<(u64, WcStatus)>,
    events: VecDeque<EventType>,
}

#[derive(Debug)]
struct Model {
    ends: [End; 2],
    connected: bool,
}

impl Model {
    fn new() -> Self {
        let end = || End {
            state: Some(QpState::RTS),
            ..End::default()
        };
        Self {
            ends: [end(), end()],
            connected: true,
        }
    }

    fn is_err(&self, end: usize) -> bool {
        self.ends[end].state == Some(QpState::ERR)
    }

    fn fail(&mut self, end: usize) {
        self.ends[end].state = Some(QpState::ERR);
        self.flush(end);
        // A send of the other side that waits here learns of it.
        self.run();
    }

    fn flush(&mut self, end: usize) {
        let end = &mut self.ends[end];
        for posted in end.sends.drain(..) {
            let (Posted::Send { wr_id, .. } | Posted::Bad { wr_id }) = posted;
            end.expected.push_back((wr_id, WcStatus::WR_FLUSH_ERR));
        }
        for (wr_id, _) in end.receives.drain(..) {
            end.expected.push_back((wr_id, WcStatus::WR_FLUSH_ERR));
        }
    }

    /// Runs every send that can run.
    fn run(&mut self) {
        loop {
            let mut progressed = false;
            for end in 0..2 {
                if self.is_err(end) {
                    if !(self.ends[end].sends.is_empty() && self.ends[end].receives.is_empty()) {
                        self.flush(end);
                        progressed = true;
                    }
                    continue;
                }
                let Some(posted) = self.ends[end].sends.front().cloned() else {
                    continue;
                };
                let other = 1 - end;
                match posted {
                    Posted::Bad { wr_id } => {
                        self.ends[end].sends.pop_front();
                        self.ends[end]
                            .expected
                            .push_back((wr_id, WcStatus::LOC_QP_OP_ERR));
                        self.fail(end);
                        progressed = true;
                    }
                    Posted::Send {
                        wr_id,
                        len,
                        signaled,
                    } => {
                        if self.is_err(other) {
                            self.ends[end].sends.pop_front();
                            self.ends[end]
                                .expected
                                .push_back((wr_id, WcStatus::RETRY_EXC_ERR));
                            self.fail(end);
                            progressed = true;
                            continue;
                        }
                        let Some((recv, room)) = self.ends[other].receives.pop_front() else {
                            continue;
                        };
                        progressed = true;
                        self.ends[end].sends.pop_front();
                        if len > room {
                            self.ends[other]
                                .expected
                                .push_back((recv, WcStatus::LOC_LEN_ERR));
                            self.ends[other].state = Some(QpState::ERR);
                            self.flush(other);
                            self.ends[end]
                                .expected
                                .push_back((wr_id, WcStatus::REM_INV_REQ_ERR));
                            self.fail(end);
                        } else {
                            self.ends[other]
                                .expected
                                .push_back((recv, WcStatus::SUCCESS));
                            if signaled {
                                self.ends[end]
                                    .expected
                                    .push_back((wr_id, WcStatus::SUCCESS));
                            }
                        }
                    }
                }
            }
            if !progressed {
                return;
            }
        }
    }

    fn disconnect(&mut self, end: usize) -> AdminStatus {
        if !self.connected {
            return AdminStatus::BAD_STATE;
        }
        self.connected = false;
        let other = 1 - end;
        // Both at once: neither end sees the other's ERR as the failure of a send.
        for at in [end, other] {
            self.ends[at].state = Some(QpState::ERR);
            self.flush(at);
        }
        self.ends[other]
            .events
            .push_back(EventType::CM_DISCONNECTED);
        AdminStatus::OK
    }
}

struct Real {
    pair: Pair,
    memory: [Region; 2],
    next: u64,
}

impl Real {
    fn end(&mut self, end: usize) -> (&mut Client, &mut RawQp) {
        if end == 0 {
            (&mut self.pair.a, &mut self.pair.qa)
        } else {
            (&mut self.pair.b, &mut self.pair.qb)
        }
    }

    fn post(&mut self, end: usize, write: impl FnOnce(&mut Client, &mut RawQp)) {
        let (client, qp) = self.end(end);
        write(client, qp);
        let qp = *qp;
        if end == 0 {
            self.pair.a.ring_qp(&mut self.pair.device, &qp);
        } else {
            self.pair.b.ring_qp(&mut self.pair.device, &qp);
        }
        pump(&mut self.pair.device);
    }

    fn admin(
        &mut self,
        end: usize,
        run: impl FnOnce(&mut Client, &mut nic_emu::device::Device, RawQp) -> AdminStatus,
    ) -> AdminStatus {
        if end == 0 {
            let qp = self.pair.qa;
            run(&mut self.pair.a, &mut self.pair.device, qp)
        } else {
            let qp = self.pair.qb;
            run(&mut self.pair.b, &mut self.pair.device, qp)
        }
    }
}

fn check(ops: &[Op]) {
    let mut model = Model::new();
    let mut pair = Pair::new();
    let memory = [
        pair.a.region(&mut pair.device, 256, full()),
        pair.b.region(&mut pair.device, 256, full()),
    ];
    let mut real = Real {
        pair,
        memory,
        next: 0,
    };
    // Positions that the client has not seen completed; rings and CQ must not run full.
    let mut outstanding = [[0u32; 2]; 2];
    for &op in ops {
        real.next += 1;
        let wr_id = real.next;
        match op {
            Op::Send(end, ..) | Op::BadSend(end) if outstanding[end][0] >= 60 => continue,
            Op::Recv(end, _) if outstanding[end][1] >= 30 => continue,
            Op::Send(end, len, signaled) => {
                outstanding[end][0] += 1;
                let sge = real.memory[end].sge(0, len.into());
                let mut wqe = Send::new(Opcode::SEND, wr_id, &[sge]);
                if !signaled {
                    wqe = wqe.unsignaled();
                }
                model.ends[end].sends.push_back(Posted::Send {
                    wr_id,
                    len,
                    signaled,
                });
                model.run();
                real.post(end, |client, qp| client.write_send(qp, &wqe.blocks()));
            }
            Op::BadSend(end) => {
                outstanding[end][0] += 1;
                model.ends[end].sends.push_back(Posted::Bad { wr_id });
                model.run();
                let mut wqe = Send::new(Opcode::SEND, wr_id, &[]);
                wqe.head.opcode = 200;
                real.post(end, |client, qp| client.write_send(qp, &wqe.blocks()));
            }
            Op::Recv(end, room) => {
                outstanding[end][1] += 1;
                model.ends[end].receives.push_back((wr_id, room));
                model.run();
                let sge = real.memory[end].sge(0, room.into());
                real.post(end, |client, qp| {
                    client.write_recv(qp, recv_wqe(wr_id, &[sge]));
                });
            }
            Op::Poll(end) => {
                let (client, qp) = real.end(end);
                let seen: Vec<_> = client
                    .completions(qp)
                    .iter()
                    .map(|wc| (wc.wr_id, wc.status))
                    .collect();
                let expected: Vec<_> = model.ends[end].expected.drain(..).collect();
                assert_eq!(seen, expected, "end {end}");
                outstanding[end] = [
                    u32::try_from(model.ends[end].sends.len()).unwrap(),
                    u32::try_from(model.ends[end].receives.len()).unwrap(),
                ];
            }
            Op::Disconnect(end) => {
                let expected = model.disconnect(end);
                let status = real.admin(end, |client, device, qp| {
                    client.named(device, AdminOp::CM_DISCONNECT, qp.qpn)
                });
                assert_eq!(status, expected);
            }
            Op::ToErr(end) => {
                model.fail(end);
                real.admin(end, |client, device, mut qp| {
                    client.modify(device, &mut qp, QpState::ERR);
                    AdminStatus::OK
                });
            }
        }
        for end in 0..2 {
            let events: Vec<_> = real.end(end).0.events().iter().map(|e| e.0).collect();
            let expected: Vec<_> = model.ends[end].events.drain(..).collect();
            assert_eq!(events, expected);
        }
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    let op = prop_oneof![
        12 => (0..2usize, 0..100u8, any::<bool>()).prop_map(|(e, len, s)| Op::Send(e, len, s)),
        12 => (0..2usize, 60..200u8).prop_map(|(e, room)| Op::Recv(e, room)),
        8 => (0..2usize).prop_map(Op::Poll),
        1 => (0..2usize).prop_map(Op::BadSend),
        1 => (0..2usize).prop_map(Op::Disconnect),
        1 => (0..2usize).prop_map(Op::ToErr),
    ];
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]);
    TestRunner::new_with_rng(config, rng)
        .run(&prop::collection::vec(op, 1..120), |ops| {
            check(&ops);
            Ok(())
        })
        .unwrap();
}
