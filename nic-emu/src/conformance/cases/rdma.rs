//! Cases about RDMA WRITE and RDMA READ.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 9.4.3, 9.4.4 and 10.8.3.3; `ibv_post_send(3)`.

use ring_proto::admin::Access;
use ring_proto::cqe::CQE_IMM;
use ring_proto::status::{Opcode, Syndrome, WcOpcode, WcStatus};
use ring_proto::wqe::WqeFlags;

use super::super::client::{QpOptions, full};
use super::super::wr::SendWr;
use super::super::{Case, case, holds, same};

const WRITE: &str = "IBTA 9.4.3; ibv_post_send(3)";
const READ: &str = "IBTA 9.4.4; ibv_post_send(3)";
const ORDER: &str = "IBTA 10.8.3.3 (ordering)";

pub(super) const CASES: &[Case] = &[
    case(
        "write.delivers",
        "An RDMA WRITE puts its bytes at the remote address",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.fill(b"written")?;
            let (sge, remote) = (pair.out.sge(0, 7), pair.into.remote(40));
            pair.post(&SendWr::write(1, sge, remote));
            let wc = pair.a_done(1)?;
            same(
                "opcode and length",
                (wc.opcode, wc.byte_len),
                (WcOpcode::RDMA_WRITE, 7),
            )?;
            same(
                "bytes",
                pair.b.memory.read(pair.into.iova + 40, 7)?.as_slice(),
                b"written",
            )
        },
    ),
    case(
        "write.touches-nothing-else",
        "Bytes beside the written range stay as they were",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, &[0xee; 32])?;
            pair.fill(&[1; 8])?;
            let (sge, remote) = (pair.out.sge(0, 8), pair.into.remote(8));
            pair.post(&SendWr::write(1, sge, remote));
            pair.a_done(1)?;
            pair.arrived(&[[0xee; 8], [1; 8], [0xee; 8], [0xee; 8]].concat())
        },
    ),
    case(
        "write.takes-no-receive",
        "An RDMA WRITE consumes no receive and shows nothing at the responder",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let (sge, remote) = (pair.out.sge(0, 8), pair.into.remote(64));
            pair.post(&SendWr::write(1, sge, remote));
            pair.a_done(1)?;
            let (_, recv_cq) = pair.cqs();
            pair.b.no_wc(recv_cq)?;
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"x"));
            pair.b_done(100).map(drop)
        },
    ),
    case(
        "write.inline",
        "An RDMA WRITE may carry its bytes inline",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            let remote = pair.into.remote(0);
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE, 1, &[9; 100]).remote(remote));
            pair.a_done(1)?;
            pair.arrived(&[9; 100])
        },
    ),
    case(
        "write.gather",
        "The SGEs of an RDMA WRITE are gathered into one range",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.fill(b"0123456789")?;
            let sges = [pair.out.sge(5, 5), pair.out.sge(0, 2), pair.out.sge(2, 3)];
            let remote = pair.into.remote(0);
            pair.post(&SendWr::new(Opcode::RDMA_WRITE, 1, &sges).remote(remote));
            pair.a_done(1)?;
            pair.arrived(b"5678901234")
        },
    ),
    case(
        "write.zero-length",
        "An RDMA WRITE of no bytes with a good key succeeds",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            let remote = pair.into.remote(0);
            pair.post(&SendWr::new(Opcode::RDMA_WRITE, 1, &[]).remote(remote));
            let wc = pair.a_done(1)?;
            same("length", wc.byte_len, 0)
        },
    ),
    case(
        "write.whole-region",
        "A range may be the whole region",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.fill(&[3; 4096])?;
            let (sge, remote) = (pair.out.sge(0, 4096), pair.into.remote(0));
            pair.post(&SendWr::write(1, sge, remote));
            pair.a_done(1)?;
            pair.arrived(&[3; 4096])
        },
    ),
    case(
        "write.long-message",
        "A WRITE of many turns arrives whole",
        WRITE,
        |rig| {
            const LEN: usize = 1 << 20;
            let mut pair = rig.pair()?;
            let out = pair.a.filled(LEN, full(), 0x5a)?;
            let into = pair.b.region(LEN as u64, full())?;
            pair.post(&SendWr::write(1, out.sge(0, 1 << 20), into.remote(0)));
            pair.a_done(1)?;
            holds(
                "every byte arrived",
                pair.b.memory.read(into.iova, LEN)? == vec![0x5a; LEN],
            )
        },
    ),
    case(
        "write.imm.takes-a-receive",
        "RDMA WRITE with immediate consumes a receive and tells its length",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            pair.fill(b"imm bytes")?;
            let (sge, remote) = (pair.out.sge(0, 9), pair.into.remote(512));
            let wr = SendWr::new(Opcode::RDMA_WRITE_WITH_IMM, 1, &[sge])
                .remote(remote)
                .imm(77);
            pair.post(&wr);
            let wc = pair.b_done(100)?;
            same("opcode", wc.opcode, WcOpcode::RECV_RDMA_WITH_IMM)?;
            same("immediate and length", (wc.imm, wc.byte_len), (77, 9))?;
            holds(
                "the completion says that it has immediate data",
                wc.flags & CQE_IMM != 0,
            )?;
            let wc = pair.a_done(1)?;
            same(
                "opcode at the requester",
                wc.opcode,
                WcOpcode::RDMA_WRITE_WITH_IMM,
            )?;
            same(
                "bytes",
                pair.b.memory.read(pair.into.iova + 512, 9)?.as_slice(),
                b"imm bytes",
            )
        },
    ),
    case(
        "write.imm.leaves-the-receive-buffer",
        "The buffers of the receive that takes immediate data stay untouched",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, &[0xee; 64])?;
            pair.receives(1, 64);
            let remote = pair.into.remote(512);
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE_WITH_IMM, 1, &[1; 8]).remote(remote));
            pair.b_done(100)?;
            pair.arrived(&[0xee; 64])
        },
    ),
    case(
        "write.imm.zero-length",
        "Immediate data may come with a WRITE of no bytes",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let remote = pair.into.remote(0);
            pair.post(
                &SendWr::new(Opcode::RDMA_WRITE_WITH_IMM, 1, &[])
                    .remote(remote)
                    .imm(5),
            );
            let wc = pair.b_done(100)?;
            same("immediate and length", (wc.imm, wc.byte_len), (5, 0))
        },
    ),
    case(
        "write.imm.into-empty-receive",
        "The receive that takes immediate data needs no buffers",
        WRITE,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.recv(&mut pair.qb, 100, &[]);
            let remote = pair.into.remote(0);
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE_WITH_IMM, 1, &[1; 8]).remote(remote));
            pair.b_done(100).map(drop)
        },
    ),
    case(
        "read.delivers",
        "An RDMA READ fetches the bytes at the remote address",
        READ,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova + 100, b"remote bytes")?;
            let (sge, remote) = (pair.out.sge(0, 12), pair.into.remote(100));
            pair.post(&SendWr::read(1, sge, remote));
            let wc = pair.a_done(1)?;
            same(
                "opcode and length",
                (wc.opcode, wc.byte_len),
                (WcOpcode::RDMA_READ, 12),
            )?;
            same(
                "bytes",
                pair.a.memory.read(pair.out.iova, 12)?.as_slice(),
                b"remote bytes",
            )
        },
    ),
    case(
        "read.scatter",
        "An RDMA READ scatters into its SGEs in order",
        READ,
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova, b"0123456789")?;
            let sges = [pair.out.sge(100, 4), pair.out.sge(0, 6)];
            let remote = pair.into.remote(0);
            pair.post(&SendWr::new(Opcode::RDMA_READ, 1, &sges).remote(remote));
            pair.a_done(1)?;
            let read = |at, len| pair.a.memory.read(pair.out.iova + at, len);
            same(
                "pieces",
                [read(100, 4)?, read(0, 6)?].concat().as_slice(),
                b"0123456789",
            )
        },
    ),
    case(
        "read.shows-nothing-at-the-responder",
        "The responder of a READ gets no completion and no event",
        READ,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let (sge, remote) = (pair.out.sge(0, 12), pair.into.remote(0));
            pair.post(&SendWr::read(1, sge, remote));
            pair.a_done(1)?;
            let (_, recv_cq) = pair.cqs();
            pair.b.no_wc(recv_cq)?;
            pair.b.no_event()
        },
    ),
    case(
        "read.zero-length",
        "An RDMA READ of no bytes with a good key succeeds",
        READ,
        |rig| {
            let mut pair = rig.pair()?;
            let remote = pair.into.remote(0);
            pair.post(&SendWr::new(Opcode::RDMA_READ, 1, &[]).remote(remote));
            let wc = pair.a_done(1)?;
            same("length", wc.byte_len, 0)
        },
    ),
    case(
        "read.long-message",
        "A READ of many turns arrives whole",
        READ,
        |rig| {
            const LEN: usize = 1 << 20;
            let mut pair = rig.pair()?;
            let into = pair.a.region(LEN as u64, full())?;
            let from = pair.b.filled(LEN, full(), 0xa5)?;
            pair.post(&SendWr::read(1, into.sge(0, 1 << 20), from.remote(0)));
            pair.a_done(1)?;
            holds(
                "every byte arrived",
                pair.a.memory.read(into.iova, LEN)? == vec![0xa5; LEN],
            )
        },
    ),
    case(
        "read.sees-earlier-writes",
        "A READ sees what WRITEs posted before it wrote",
        ORDER,
        |rig| {
            let mut pair = rig.pair()?;
            for n in 0..10u8 {
                let remote = pair.into.remote(0);
                pair.a.write_send(
                    &mut pair.qa,
                    &SendWr::inline(Opcode::RDMA_WRITE, n.into(), &[n; 16])
                        .remote(remote)
                        .unsignaled(),
                );
                let sge = pair.out.sge(16 * u64::from(n), 16);
                pair.post(&SendWr::read(100 + u64::from(n), sge, remote).flags(WqeFlags::FENCE));
            }
            for n in 0..10u8 {
                pair.a_done(100 + u64::from(n))?;
                let seen = pair.a.memory.read(pair.out.iova + 16 * u64::from(n), 16)?;
                same("bytes read", seen, vec![n; 16])?;
            }
            Ok(())
        },
    ),
    case(
        "order.write-before-send",
        "When a SEND is received, WRITEs posted before it are there",
        ORDER,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let remote = pair.into.remote(1024);
            pair.a.write_send(
                &mut pair.qa,
                &SendWr::inline(Opcode::RDMA_WRITE, 1, b"first")
                    .remote(remote)
                    .unsignaled(),
            );
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"then"));
            pair.b_done(100)?;
            same(
                "bytes",
                pair.b.memory.read(pair.into.iova + 1024, 5)?.as_slice(),
                b"first",
            )
        },
    ),
    case(
        "order.write-before-write-imm",
        "When immediate data is received, WRITEs posted before it are there",
        ORDER,
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let (first, second) = (pair.into.remote(1024), pair.into.remote(2048));
            pair.a.write_send(
                &mut pair.qa,
                &SendWr::inline(Opcode::RDMA_WRITE, 1, b"first")
                    .remote(first)
                    .unsignaled(),
            );
            pair.post(&SendWr::inline(Opcode::RDMA_WRITE_WITH_IMM, 2, b"then").remote(second));
            pair.b_done(100)?;
            same(
                "bytes",
                pair.b.memory.read(pair.into.iova + 1024, 5)?.as_slice(),
                b"first",
            )
        },
    ),
    case(
        "order.writes-overwrite-in-order",
        "Of two WRITEs to one place the later one stays",
        ORDER,
        |rig| {
            let mut pair = rig.pair()?;
            let remote = pair.into.remote(0);
            for n in 0..20u8 {
                pair.a.write_send(
                    &mut pair.qa,
                    &SendWr::inline(Opcode::RDMA_WRITE, n.into(), &[n; 16]).remote(remote),
                );
            }
            pair.a.ring(&pair.qa);
            for n in 0..20 {
                pair.a_done(n)?;
            }
            pair.arrived(&[19; 16])
        },
    ),
    case(
        "order.fence-is-accepted",
        "A fenced WQE completes after the READs before it",
        "IBTA 10.8.3.3 (fence); ibv_post_send(3)",
        |rig| {
            let mut pair = rig.pair()?;
            pair.receives(1, 64);
            let (sge, remote) = (pair.out.sge(0, 64), pair.into.remote(0));
            pair.a
                .write_send(&mut pair.qa, &SendWr::read(1, sge, remote));
            pair.post(&SendWr::inline(Opcode::SEND, 2, b"x").flags(WqeFlags::FENCE));
            pair.a_done(1)?;
            pair.a_done(2).map(drop)
        },
    ),
    case(
        "order.fenced-send-carries-what-a-read-brought",
        "A fenced SEND out of the buffer of an earlier READ carries what the READ brought",
        "IBTA 10.8.3.3 (fence); ibv_post_send(3), IBV_SEND_FENCE",
        |rig| {
            let mut pair = rig.pair()?;
            pair.b.memory.write(pair.into.iova + 1024, b"fetched")?;
            pair.receives(1, 64);
            let (sge, remote) = (pair.out.sge(0, 7), pair.into.remote(1024));
            pair.a
                .write_send(&mut pair.qa, &SendWr::read(1, sge, remote).unsignaled());
            pair.post(&SendWr::send(2, sge).flags(WqeFlags::FENCE));
            pair.a_done(2)?;
            pair.b_done(100)?;
            pair.arrived(b"fetched")
        },
    ),
    case(
        "access.qp-forbids-write",
        "A QP that does not allow WRITE refuses it: REM_INV_REQ_ERR",
        "IBTA 9.7.4.1.3, 11.6.2; ibv_modify_qp(3), qp_access_flags",
        |rig| {
            let forbidding = QpOptions {
                access: Access::LOCAL_WRITE | Access::REMOTE_READ,
                ..QpOptions::default()
            };
            let mut pair = rig.pair_with(QpOptions::default(), forbidding, 7)?;
            let (sge, remote) = (pair.out.sge(0, 8), pair.into.remote(0));
            pair.refused(
                &SendWr::write(1, sge, remote),
                WcStatus::REM_INV_REQ_ERR,
                Syndrome::QP_NO_ACCESS,
            )
        },
    ),
    case(
        "access.qp-forbids-read",
        "A QP that does not allow READ refuses it: REM_INV_REQ_ERR",
        "IBTA 9.7.4.1.3, 11.6.2; ibv_modify_qp(3), qp_access_flags",
        |rig| {
            let forbidding = QpOptions {
                access: Access::LOCAL_WRITE | Access::REMOTE_WRITE,
                ..QpOptions::default()
            };
            let mut pair = rig.pair_with(QpOptions::default(), forbidding, 7)?;
            let (sge, remote) = (pair.out.sge(0, 8), pair.into.remote(0));
            pair.refused(
                &SendWr::read(1, sge, remote),
                WcStatus::REM_INV_REQ_ERR,
                Syndrome::QP_NO_ACCESS,
            )
        },
    ),
    case(
        "access.qp-rights-are-the-responders",
        "The requester's own QP needs no remote rights",
        "ibv_modify_qp(3), qp_access_flags",
        |rig| {
            let none = QpOptions {
                access: Access::empty(),
                ..QpOptions::default()
            };
            let mut pair = rig.pair_with(none, QpOptions::default(), 7)?;
            let (sge, remote) = (pair.out.sge(0, 8), pair.into.remote(0));
            pair.post(&SendWr::write(1, sge, remote));
            pair.a_done(1).map(drop)
        },
    ),
];
