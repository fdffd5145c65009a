//! Windows: which memory is taken, and what happens when it goes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nic_emu::device::{Device, DeviceError, WindowRequest};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use ring_proto::admin::{Access, AdminOp, AdminStatus, MrReg, QueueCreate};
use ring_proto::eqe::EventType;
use ring_proto::regs;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use crate::client::{BASE, Client, MEMORY, Pair, Send, device, full, memfd, pump};

const SHRINK: SealFlag = SealFlag::F_SEAL_SHRINK;
const FAR: u64 = 0x10_0000_0000;

fn request(fd: Option<&OwnedFd>) -> WindowRequest {
    WindowRequest {
        fd: fd.map(|fd| fd.as_fd().try_clone_to_owned().unwrap()),
        offset: 0,
        iova: FAR,
        len: 0x10_000,
        read: true,
        write: true,
    }
}

fn fresh() -> (Device, Client) {
    let (mut device, node, _) = device();
    let client = Client::attach(&mut device, node);
    (device, client)
}

#[test]
fn memory_that_may_shrink_is_refused() {
    let (mut device, client) = fresh();
    for seals in [
        SealFlag::empty(),
        SealFlag::F_SEAL_GROW,
        SealFlag::F_SEAL_SEAL,
        SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL,
    ] {
        let fd = memfd(0x10_000, seals);
        let error = device.map(client.function, request(Some(&fd))).unwrap_err();
        assert!(matches!(error, DeviceError::Unsealed { .. }), "{seals:?}");
        assert_eq!(error.errno(), libc::EINVAL);
    }
    let fd = memfd(0x10_000, SHRINK);
    device.map(client.function, request(Some(&fd))).unwrap();
}

#[test]
fn files_that_are_no_memory_are_refused() {
    let (mut device, client) = fresh();
    for path in ["/dev/null", "/dev/zero", "/proc/self/maps", "/"] {
        let fd = OwnedFd::from(std::fs::File::open(path).unwrap());
        let error = device.map(client.function, request(Some(&fd))).unwrap_err();
        assert!(matches!(error, DeviceError::NotMemory), "{path}");
    }
}

#[test]
fn huge_pages_are_refused_because_a_punched_one_may_not_come_back() {
    let (mut device, client) = fresh();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB;
    let Ok(fd) = memfd_create(c"sanlab-raw-huge", flags) else {
        eprintln!("skipped: this kernel has no huge page files");
        return;
    };
    nix::unistd::ftruncate(&fd, 2 << 20).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SHRINK)).unwrap();
    let error = device.map(client.function, request(Some(&fd))).unwrap_err();
    assert!(matches!(error, DeviceError::NotMemory), "{error}");
}

#[test]
fn memory_smaller_than_its_window_is_refused() {
    let (mut device, client) = fresh();
    for (size, offset) in [
        (0, 0),
        (0xffff, 0),
        (0x1_0000, 0x1000),
        (0x1_0fff, 0x1000),
        (0x1_0000, 1 << 40),
    ] {
        let fd = memfd(size, SHRINK);
        let error = device
            .map(
                client.function,
                WindowRequest {
                    offset,
                    ..request(Some(&fd))
                },
            )
            .unwrap_err();
        assert!(matches!(error, DeviceError::TooSmall { .. }), "{size:#x}");
    }
}

#[test]
fn each_bad_number_of_a_window_is_refused() {
    let (mut device, client) = fresh();
    let fd = memfd(0x20_000, SHRINK);
    let top = u64::MAX - 0xfff;
    for (offset, iova, len) in [
        (0, FAR, 0),
        (0, FAR, 0x800),
        (0, FAR + 1, 0x1000),
        (1, FAR, 0x1000),
        (0x800, FAR, 0x1000),
        (0, top, 0x2000),
        (top, FAR, 0x2000),
        (0, u64::MAX, 0x1000),
    ] {
        let error = device
            .map(
                client.function,
                WindowRequest {
                    offset,
                    iova,
                    len,
                    ..request(Some(&fd))
                },
            )
            .unwrap_err();
        assert!(
            matches!(error, DeviceError::BadWindow { .. }),
            "{offset:#x} {iova:#x} {len:#x}: {error}"
        );
    }
}

#[test]
fn windows_may_touch_but_not_overlap() {
    let (mut device, client) = fresh();
    let fd = memfd(0x10_000, SHRINK);
    let mut map = |iova, len| {
        device.map(
            client.function,
            WindowRequest {
                iova,
                len,
                ..request(Some(&fd))
            },
        )
    };
    map(FAR, 0x2000).unwrap();
    for (iova, len) in [
        (FAR, 0x1000),
        (FAR, 0x2000),
        (FAR + 0x1000, 0x2000),
        (FAR - 0x1000, 0x2000),
        (FAR - 0x1000, 0x4000),
    ] {
        let error = map(iova, len).unwrap_err();
        assert!(matches!(error, DeviceError::Overlap { .. }), "{iova:#x}");
    }
    map(FAR + 0x2000, 0x1000).unwrap();
    map(FAR - 0x1000, 0x1000).unwrap();
}

#[test]
fn unmap_takes_whole_windows_only() {
    let (mut device, client) = fresh();
    let fd = memfd(0x10_000, SHRINK);
    for page in 0..4 {
        device
            .map(
                client.function,
                WindowRequest {
                    iova: FAR + page * 0x2000,
                    len: 0x2000,
                    ..request(Some(&fd))
                },
            )
            .unwrap();
    }
    for (iova, len) in [
        (FAR, 0x1000),
        (FAR + 0x1000, 0x1000),
        (FAR + 0x1000, 0x3000),
        (FAR, 0x3000),
        (FAR + 0x8000, 0x1000),
        (FAR, 0),
        (u64::MAX, 2),
    ] {
        let error = device.unmap(client.function, iova, len).unwrap_err();
        assert!(matches!(error, DeviceError::NoWindow { .. }), "{iova:#x}");
    }
    device.unmap(client.function, FAR, 0x2000).unwrap();
    device.unmap(client.function, FAR + 0x2000, 0x6000).unwrap();
    device.unmap(client.function, FAR, 0x8000).unwrap_err();
}

#[test]
fn window_files_can_be_asked_for() {
    let (mut device, client) = fresh();
    let (fd, offset, len) = device.window_fd(client.function, BASE).unwrap();
    assert!(fd.as_raw_fd() >= 0);
    assert_eq!((offset, len), (0, MEMORY));
    assert!(device.window_fd(client.function, BASE + 4096).is_none());
    device.map(client.function, request(None)).unwrap();
    assert!(device.window_fd(client.function, FAR).is_none());
}

fn register(
    client: &mut Client,
    device: &mut Device,
    addr: u64,
    len: u64,
    access: Access,
) -> Result<u32, AdminStatus> {
    let body = MrReg {
        addr,
        len,
        pdn: client.pdn,
        access: access.bits(),
        ..MrReg::default()
    };
    let (status, result) = client.admin(device, AdminOp::MR_REG, body.to_body());
    (status == AdminStatus::OK)
        .then(|| crate::client::low(result[0]))
        .ok_or(status)
}

#[test]
fn regions_lie_inside_one_window() {
    let (mut device, mut client) = fresh();
    let fd = memfd(0x10_000, SHRINK);
    for iova in [BASE + MEMORY, FAR] {
        device
            .map(
                client.function,
                WindowRequest {
                    iova,
                    ..request(Some(&fd))
                },
            )
            .unwrap();
    }
    let all = Access::all();
    for (addr, len, expected) in [
        (BASE, MEMORY, None),
        (BASE + MEMORY - 1, 1, None),
        // Over the edge into the next window, and into nothing.
        (BASE + MEMORY - 1, 2, Some(AdminStatus::BAD_ADDRESS)),
        (BASE, MEMORY + 0x10_000, Some(AdminStatus::BAD_ADDRESS)),
        (FAR + 0xffff, 2, Some(AdminStatus::BAD_ADDRESS)),
        (FAR - 1, 2, Some(AdminStatus::BAD_ADDRESS)),
        (0, 1, Some(AdminStatus::BAD_ADDRESS)),
        (BASE, u64::MAX, Some(AdminStatus::INVALID)),
        (u64::MAX, 1, Some(AdminStatus::INVALID)),
        (BASE, 0, Some(AdminStatus::INVALID)),
    ] {
        assert_eq!(
            register(&mut client, &mut device, addr, len, all).err(),
            expected,
            "{addr:#x} {len:#x}"
        );
    }
}

#[test]
fn read_only_window_can_be_sent_from_and_not_written() {
    let mut pair = Pair::new();
    let fd = memfd(0x10_000, SHRINK);
    pair.device
        .map(
            pair.a.function,
            WindowRequest {
                write: false,
                ..request(Some(&fd))
            },
        )
        .unwrap();
    for access in [Access::LOCAL_WRITE, Access::all()] {
        assert_eq!(
            register(&mut pair.a, &mut pair.device, FAR, 64, access),
            Err(AdminStatus::NO_ACCESS)
        );
    }
    nix::sys::uio::pwrite(&fd, b"written by its owner", 0).unwrap();
    let key = register(&mut pair.a, &mut pair.device, FAR, 64, Access::REMOTE_READ).unwrap();
    let target = pair.b.region(&mut pair.device, 64, full());
    pair.b
        .recv(&mut pair.device, &mut pair.qb, 1, &[target.sge(0, 64)]);
    let sge = ring_proto::wqe::Sge {
        addr: FAR,
        len: 20,
        lkey: key,
    };
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[sge]),
    );
    assert_eq!(pair.b.read(target.iova, 20), b"written by its owner");
    // No queue of the device's lies in it.
    let body = QueueCreate {
        ring: FAR,
        depth: 4,
        slot: 900,
    };
    assert_eq!(
        pair.a
            .status(&mut pair.device, AdminOp::CQ_CREATE, body.to_body()),
        AdminStatus::NO_ACCESS
    );
}

#[test]
fn window_without_memory_is_inaccessible() {
    let mut pair = Pair::new();
    pair.device.map(pair.a.function, request(None)).unwrap();
    let key = register(&mut pair.a, &mut pair.device, FAR, 64, full()).unwrap();
    let sge = ring_proto::wqe::Sge {
        addr: FAR,
        len: 20,
        lkey: key,
    };
    pair.a.send(
        &mut pair.device,
        &mut pair.qa,
        &Send::new(Opcode::SEND, 1, &[sge]),
    );
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_eq!(
        (wc.status, wc.syndrome),
        (WcStatus::LOC_PROT_ERR, Syndrome::WINDOW_GONE)
    );
    let body = QueueCreate {
        ring: FAR,
        depth: 4,
        slot: 900,
    };
    assert_eq!(
        pair.a
            .status(&mut pair.device, AdminOp::CQ_CREATE, body.to_body()),
        AdminStatus::BAD_ADDRESS
    );
}

#[test]
pub(crate) fn regions_of_an_unmapped_window_refuse_both_ends() {
    for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ, Opcode::SEND] {
        let mut pair = Pair::new();
        let fd = memfd(0x10_000, SHRINK);
        pair.device
            .map(pair.b.function, request(Some(&fd)))
            .unwrap();
        let key = register(&mut pair.b, &mut pair.device, FAR, 64, full()).unwrap();
        let target = ring_proto::wqe::Sge {
            addr: FAR,
            len: 64,
            lkey: key,
        };
        pair.b.recv(&mut pair.device, &mut pair.qb, 1, &[target]);
        pair.device.unmap(pair.b.function, FAR, 0x10_000).unwrap();
        let own = pair.a.region(&mut pair.device, 64, full());
        let wqe = Send::new(opcode, 1, &[own.sge(0, 8)]).remote(FAR, key);
        pair.a.send(&mut pair.device, &mut pair.qa, &wqe);
        let wc = pair.a.poll(&mut pair.qa).unwrap();
        if opcode == Opcode::SEND {
            assert_eq!(wc.status, WcStatus::REM_OP_ERR);
            let received = pair.b.poll(&mut pair.qb).unwrap();
            assert_eq!(
                (received.status, received.syndrome),
                (WcStatus::LOC_ACCESS_ERR, Syndrome::WINDOW_GONE)
            );
        } else {
            assert_eq!(
                (wc.status, wc.syndrome),
                (WcStatus::REM_ACCESS_ERR, Syndrome::WINDOW_GONE)
            );
        }
        // Mapped again, the old region still has no memory.
        pair.device
            .map(pair.b.function, request(Some(&fd)))
            .unwrap();
    }
}

#[test]
fn message_under_way_stops_at_an_unmapped_window() {
    let mut pair = Pair::new();
    let fd = memfd(0x20_0000, SHRINK);
    pair.device
        .map(
            pair.b.function,
            WindowRequest {
                len: 0x20_0000,
                ..request(Some(&fd))
            },
        )
        .unwrap();
    let key = register(&mut pair.b, &mut pair.device, FAR, 0x20_0000, full()).unwrap();
    let own = pair.a.region(&mut pair.device, 0x20_0000, full());
    let write = Send::new(Opcode::RDMA_WRITE, 1, &[own.sge(0, 0x20_0000)]).remote(FAR, key);
    pair.a.write_send(&mut pair.qa, &write.blocks());
    pair.a.ring_qp(&mut pair.device, &pair.qa);
    pair.device.pump();
    pair.device.unmap_all(pair.b.function).unwrap();
    pump(&mut pair.device);
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    assert_ne!(wc.status, WcStatus::SUCCESS);
    // b lost its rings too, so its admin queue, so the function.
    assert_eq!(
        pair.device
            .read_register(pair.b.function, regs::ERROR_SYNDROME, 4)
            .unwrap(),
        u64::from(Syndrome::WINDOW_GONE.0)
    );
}

#[test]
fn rings_of_an_unmapped_window_end_their_qps() {
    let (mut device, node, _) = device();
    let mut client = Client::attach(&mut device, node);
    // A QP whose send ring alone lies in the far window.
    let fd = memfd(0x10_000, SHRINK);
    device.map(client.function, request(Some(&fd))).unwrap();
    let (cqn, _, _) = client.cq(&mut device, 16);
    let rq_ring = client.alloc(64 * 16);
    let slot = client.slot();
    let body = ring_proto::admin::QpCreate {
        sq_ring: FAR,
        rq_ring,
        sq_depth: 16,
        rq_depth: 16,
        pdn: client.pdn,
        send_cqn: cqn,
        recv_cqn: cqn,
        slot,
        holder: 0,
        access: 0,
    };
    let qpn = crate::client::low(client.ok(&mut device, AdminOp::QP_CREATE, body.to_body())[0]);
    device.unmap(client.function, FAR, 0x10_000).unwrap();
    pump(&mut device);
    assert_eq!(
        client.events(),
        [(EventType::QP_FATAL, qpn, Syndrome::WINDOW_GONE.0.into())]
    );
    assert_eq!(client.query(&mut device, qpn), Some(QpState::ERR));
}

#[test]
fn function_without_its_admin_rings_fails_and_can_be_reset() {
    let mut pair = Pair::new();
    pair.device.unmap_all(pair.a.function).unwrap();
    pump(&mut pair.device);
    let status = pair
        .device
        .read_register(pair.a.function, regs::STATUS, 4)
        .unwrap();
    assert_ne!(status & u64::from(regs::STATUS_FAILED), 0);
    assert_eq!(
        pair.b.events(),
        [(EventType::CM_DISCONNECTED, pair.qb.qpn, 0)]
    );
    // Mapped again and reset, it works as new.
    pair.device
        .map(
            pair.a.function,
            WindowRequest {
                iova: BASE,
                len: MEMORY,
                ..request(Some(&pair.a.fd))
            },
        )
        .unwrap();
    pair.device
        .write_register(pair.a.function, regs::STATUS, 4, 0)
        .unwrap();
    pair.a.start(&mut pair.device);
}
