//! Seeds of the corpus, made of today's layout.

use ring_proto::admin::{
    Access, AdminOp, Body, CmAccept, CmConnect, CmListen, CmQuery, Command, Hold, HoldClone, MrReg,
    Named, QpCreate, QpModify, QueueCreate,
};
use ring_proto::channel::{self, Message};
use ring_proto::status::{Opcode, QpState};
use ring_proto::telemetry;
use ring_proto::vfio;
use ring_proto::wqe::{RqWqe, Sge, SqWqe, WqeFlags};
use zerocopy::IntoBytes;

use super::rig::BASE;

/// Target, name, bytes.
type Seed = (&'static str, String, Vec<u8>);

pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    stream(&mut seeds);
    admin(&mut seeds);
    wqe(&mut seeds);
    records(&mut seeds);
    seeds
}

fn stream(seeds: &mut Vec<Seed>) {
    let access = |region, offset, count| vfio::RegionAccess {
        offset,
        region,
        count,
    };
    let map = vfio::DmaMap {
        argsz: 32,
        flags: vfio::DMA_READ | vfio::DMA_WRITE,
        offset: 0,
        address: BASE,
        size: 1 << 20,
    };
    let irqs = vfio::IrqSet {
        argsz: 20,
        flags: vfio::IRQ_SET_DATA_NONE | vfio::IRQ_SET_ACTION_TRIGGER,
        index: 2,
        start: 0,
        count: 1,
    };
    let info = vfio::RegionInfo {
        argsz: 32,
        index: 2,
        ..Default::default()
    };
    let io_fds = vfio::RegionIoFds {
        argsz: 56,
        ..Default::default()
    };
    let messages: [(&str, u16, u8, Vec<u8>); 8] = [
        ("map", vfio::CMD_DMA_MAP, 0x80, map.as_bytes().to_vec()),
        (
            "irqs",
            vfio::CMD_DEVICE_SET_IRQS,
            0,
            irqs.as_bytes().to_vec(),
        ),
        (
            "region_info",
            vfio::CMD_DEVICE_GET_REGION_INFO,
            0,
            info.as_bytes().to_vec(),
        ),
        (
            "io_fds",
            vfio::CMD_DEVICE_GET_REGION_IO_FDS,
            0,
            io_fds.as_bytes().to_vec(),
        ),
        (
            "read",
            vfio::CMD_REGION_READ,
            0,
            access(7, 0, 64).as_bytes().to_vec(),
        ),
        (
            "write",
            vfio::CMD_REGION_WRITE,
            0,
            [access(0, 0x14, 4).as_bytes(), &[1, 0, 0, 0]].concat(),
        ),
        (
            "multi",
            vfio::CMD_REGION_WRITE_MULTI,
            0,
            [&1u64.to_le_bytes()[..], &[0; 24]].concat(),
        ),
        ("reset", vfio::CMD_DEVICE_RESET, 0, Vec::new()),
    ];
    let mut all = vec![3];
    for (name, command, flags, payload) in messages {
        let len = u8::try_from(payload.len()).unwrap();
        let command = u8::try_from(command).unwrap();
        let message = [&[len, command, flags], &payload[..]].concat();
        seeds.push(("stream", name.into(), [&[3], &message[..]].concat()));
        all.extend(message);
    }
    seeds.push(("stream", "all".into(), all));
    let raw = vfio::Header {
        message_id: 1,
        command: vfio::CMD_VERSION,
        size: 20,
        flags: 0,
        error: 0,
    };
    let raw = [&[0], raw.as_bytes(), &[0, 0, 1, 0]].concat();
    seeds.push(("stream", "version".into(), raw));
}

fn admin(seeds: &mut Vec<Seed>) {
    let queue = QueueCreate {
        ring: BASE + 0x2_0000,
        depth: 16,
        slot: 9,
    };
    let qp = QpCreate {
        sq_ring: BASE + 0x2_1000,
        rq_ring: BASE + 0x2_2000,
        sq_depth: 16,
        rq_depth: 16,
        pdn: 1,
        send_cqn: 1,
        recv_cqn: 1,
        slot: 10,
        access: 7,
        ..QpCreate::default()
    };
    let region = MrReg {
        addr: BASE + 0x1000,
        len: 0x1000,
        pdn: 1,
        access: Access::all().bits() & 7,
        ..MrReg::default()
    };
    let modify = |state: QpState| QpModify {
        qpn: 1,
        state: state.0.into(),
        ..QpModify::default()
    };
    let listen = CmListen {
        local: std::net::SocketAddr::from(([10, 0, 0, 1], 9)).into(),
        backlog: 4,
        ..CmListen::default()
    };
    let connect = CmConnect {
        record: BASE + 0x6000,
        qpn: 1,
        timeout_ms: 10,
    };
    let query = CmQuery {
        buffer: BASE + 0x7000,
        id: 1,
        kind: 1,
    };
    let named = |id| Named { id, reserved: 0 }.to_body();
    let bodies: Vec<(AdminOp, Body)> = vec![
        (AdminOp::IDENTIFY, Body::default()),
        (AdminOp::PD_ALLOC, Body::default()),
        (AdminOp::MR_REG, region.to_body()),
        (AdminOp::CQ_CREATE, queue.to_body()),
        (AdminOp::QP_CREATE, qp.to_body()),
        (AdminOp::QP_MODIFY, modify(QpState::INIT).to_body()),
        (AdminOp::QP_MODIFY, modify(QpState::ERR).to_body()),
        (AdminOp::QP_MODIFY, modify(QpState::RESET).to_body()),
        (AdminOp::QP_QUERY, named(1)),
        (AdminOp::CM_LISTEN, listen.to_body()),
        (AdminOp::CM_CONNECT, connect.to_body()),
        (AdminOp::CM_ACCEPT, CmAccept::default().to_body()),
        (AdminOp::CM_QUERY, query.to_body()),
        (AdminOp::HOLD, Hold::default().to_body()),
        (AdminOp::HOLD_CLONE, HoldClone::default().to_body()),
        (AdminOp::RELEASE, Hold::default().to_body()),
        (AdminOp::CM_DISCONNECT, named(1)),
        (AdminOp::QP_DESTROY, named(1)),
        (AdminOp::CQ_DESTROY, named(1)),
        (AdminOp::MR_DEREG, named(0x100)),
        (AdminOp::EQ_DESTROY, named(1)),
        (AdminOp::PD_FREE, named(1)),
        (AdminOp::STATS, Body::default()),
    ];
    let mut all = Vec::new();
    for (n, (op, body)) in bodies.iter().enumerate() {
        let command = Command {
            opcode: op.0,
            flags: 0,
            command_id: 5,
            body: *body,
        };
        let mut bytes = command.as_bytes().to_vec();
        bytes[63] = 1 | u8::try_from(n % 2).unwrap() << 1;
        all.extend_from_slice(&bytes);
        seeds.push(("admin", op.to_string().to_lowercase(), bytes));
    }
    // Several of one name: the last stands.
    seeds.dedup_by(|later, earlier| {
        let is_same = (later.0, &later.1) == (earlier.0, &earlier.1);
        if is_same {
            earlier.2.clone_from(&later.2);
        }
        is_same
    });
    seeds.push(("admin", "all".into(), all));
}

fn wqe(seeds: &mut Vec<Seed>) {
    let sge = Sge {
        addr: 64,
        len: 100,
        lkey: 0,
    };
    let sound = 1 | 16;
    let mut receive = RqWqe {
        wr_id: 7,
        count: 1,
        ..RqWqe::default()
    };
    receive.sges[0] = Sge { len: 4096, ..sge };
    let mut receive = receive.as_bytes().to_vec();
    receive[63] = sound | 4 | 2;
    let send = |opcode: Opcode, flags: WqeFlags, count: u8, total: u32| {
        let mut wqe = SqWqe {
            opcode: opcode.0,
            flags: flags.bits(),
            blocks: 1,
            count,
            wr_id: 9,
            remote_addr: 128,
            total,
            ..SqWqe::default()
        };
        wqe.sges[0] = sge;
        let mut bytes = wqe.as_bytes().to_vec();
        bytes[63] = sound;
        bytes
    };
    let signaled = WqeFlags::SIGNALED;
    let mut all = receive.clone();
    for &opcode in Opcode::ALL {
        let bytes = send(opcode, signaled, 1, 100);
        all.extend_from_slice(&bytes);
        let name = opcode.to_string().to_lowercase();
        seeds.push(("wqe", name, [&receive[..], &bytes].concat()));
    }
    let inline = send(Opcode::SEND, signaled | WqeFlags::INLINE, 16, 16);
    seeds.push(("wqe", "inline".into(), [&receive[..], &inline].concat()));
    let mut lie = send(Opcode::SEND, signaled, 1, 100);
    lie[63] |= 8;
    lie[4] = 1;
    seeds.push(("wqe", "doorbell".into(), lie));
    let waits = send(Opcode::SEND, signaled | WqeFlags::FENCE, 1, 100);
    seeds.push(("wqe", "no_receive".into(), waits));
    seeds.push(("wqe", "all".into(), all));
}

fn records(seeds: &mut Vec<Seed>) {
    let mut header: telemetry::Header = zerocopy::FromZeros::new_zeroed();
    header.magic = telemetry::MAGIC;
    header.pid = 7;
    header.san_tx_bytes = 9;
    header.entries_used = 1;
    header.program[..4].copy_from_slice(b"prog");
    let entry = telemetry::Entry {
        state: telemetry::LIVE,
        road: telemetry::ROAD_SAN,
        local: std::net::SocketAddr::from(([10, 0, 0, 1], 9)).into(),
        remote: std::net::SocketAddr::from(([10, 0, 0, 2], 9)).into(),
        tx_bytes: 5,
        rx_bytes: 6,
    };
    let file = [&[0], header.as_bytes(), entry.as_bytes()].concat();
    seeds.push(("records", "telemetry".into(), file));
    for (name, kind, fds) in [
        ("process", channel::PROCESS, 1),
        ("open_function", channel::OPEN_FUNCTION, 1),
        ("holder", channel::HOLDER, 0),
        ("telemetry_message", channel::TELEMETRY, 1),
    ] {
        let message = Message::new(kind, 1, 2, 3);
        let bytes = [&[1, fds], message.as_bytes()].concat();
        seeds.push(("records", name.into(), bytes));
    }
    for (name, text) in [
        ("ping", r#"{"cmd":"ping"}"#),
        ("channel", r#"{"cmd":"channel","node":"a"}"#),
        (
            "note",
            r#"{"cmd":"note","node":"a","program":"p","pid":7,"reason":"go_binary"}"#,
        ),
        (
            "cluster",
            r#"{"name":"c","dir":"/d","nodes":[{"name":"a","addresses":["127.77.0.1/24"]}]}"#,
        ),
    ] {
        seeds.push(("records", name.into(), [&[2], text.as_bytes()].concat()));
    }
}
