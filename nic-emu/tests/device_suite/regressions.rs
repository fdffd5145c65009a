//! Faults that other emulated RDMA NICs had and fixed, by their names: each of them must stay impossible here.
//!
//! Source: the changelog of ROCm/rocm-ernic. The tables of single fields stand in `wqe`, `admin` and `windows`.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::admin::{Access, AdminOp, AdminStatus, MrReg};
use ring_proto::status::{Opcode, Syndrome, WcStatus};
use ring_proto::wqe::Sge;

use crate::client::{BASE, MEMORY, Pair, Send, full};

const READ: Opcode = Opcode::RDMA_READ;
const WRITE: Opcode = Opcode::RDMA_WRITE;

/// What becomes of one WQE of a.
fn outcome(pair: &mut Pair, wqe: &Send) -> (WcStatus, Syndrome) {
    pair.a.send(&mut pair.device, &mut pair.qa, wqe);
    pair.pump();
    let wc = pair.a.poll(&mut pair.qa).unwrap();
    (wc.status, wc.syndrome)
}

#[test]
fn regression_address_plus_length_does_not_wrap_in_a_local_sge() {
    for (offset, len) in [(u64::MAX - BASE, 2), (u64::MAX - BASE - 7, 64), (4095, 2)] {
        let mut pair = Pair::new();
        let own = pair.a.region(&mut pair.device, 4096, full());
        let remote = pair.b.region(&mut pair.device, 4096, full());
        let sge = Sge {
            addr: own.iova.wrapping_add(offset),
            len,
            lkey: own.key,
        };
        let wqe = Send::new(WRITE, 1, &[sge]).remote(remote.iova, remote.key);
        let expected = (WcStatus::LOC_PROT_ERR, Syndrome::LKEY_OUT_OF_BOUNDS);
        assert_eq!(outcome(&mut pair, &wqe), expected, "{offset:#x} + {len}");
    }
}

#[test]
fn regression_address_plus_length_does_not_wrap_at_the_responder() {
    for opcode in [READ, WRITE] {
        for addr in [u64::MAX, u64::MAX - 63, u64::MAX - 31, 0] {
            let mut pair = Pair::new();
            let own = pair.a.region(&mut pair.device, 4096, full());
            let remote = pair.b.region(&mut pair.device, 4096, full());
            let wqe = Send::new(opcode, 1, &[own.sge(0, 64)]).remote(addr, remote.key);
            let expected = (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_OUT_OF_BOUNDS);
            assert_eq!(outcome(&mut pair, &wqe), expected, "{opcode} {addr:#x}");
        }
    }
}

#[test]
fn regression_address_plus_length_does_not_wrap_in_a_region() {
    let mut pair = Pair::new();
    for (addr, len) in [
        (u64::MAX, 1),
        (u64::MAX - 4095, 4096),
        (BASE, u64::MAX),
        (BASE + 1, u64::MAX),
        (BASE, 0u64.wrapping_sub(BASE)),
    ] {
        let body = MrReg {
            addr,
            len,
            pdn: pair.a.pdn,
            access: full().bits(),
            ..MrReg::default()
        };
        let status = pair
            .a
            .status(&mut pair.device, AdminOp::MR_REG, body.to_body());
        assert_ne!(status, AdminStatus::OK, "{addr:#x} + {len:#x}");
    }
}

#[test]
fn regression_sum_of_sge_lengths_has_more_than_32_bits() {
    // Lengths whose sum is 64 when it is kept in 32 bits; each alone is out of the region too, so the sum must be looked at first.
    for lens in [&[u32::MAX, 65][..], &[1 << 31, 1 << 31, 64]] {
        let mut pair = Pair::new();
        let own = pair.a.region(&mut pair.device, 4096, full());
        let remote = pair.b.region(&mut pair.device, 4096, full());
        let sges: Vec<_> = lens
            .iter()
            .map(|&len| Sge {
                len,
                ..own.sge(0, 1)
            })
            .collect();
        let count = u8::try_from(lens.len()).unwrap();
        let mut wqe = Send::new(WRITE, 1, &vec![own.sge(0, 1); lens.len()]);
        wqe = wqe.remote(remote.iova, remote.key);
        wqe.sges = sges;
        wqe.head.count = count;
        wqe.head.total = 64;
        let expected = (WcStatus::LOC_LEN_ERR, Syndrome::BAD_TOTAL);
        assert_eq!(outcome(&mut pair, &wqe), expected, "{lens:?}");
    }
}

#[test]
fn regression_a_region_without_memory_behind_it_is_refused() {
    let mut pair = Pair::new();
    let far = BASE + 16 * MEMORY;
    let body = |addr| {
        MrReg {
            addr,
            len: 4096,
            pdn: pair.a.pdn,
            access: full().bits(),
            ..MrReg::default()
        }
        .to_body()
    };
    let (nowhere, across) = (body(far), body(BASE + MEMORY - 2048));
    for body in [nowhere, across] {
        let status = pair.a.status(&mut pair.device, AdminOp::MR_REG, body);
        assert_eq!(status, AdminStatus::BAD_ADDRESS);
    }
}

#[test]
fn regression_a_region_whose_memory_went_away_serves_nobody() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    // The responder's region lies in a window of its own, which goes.
    let far = BASE + 16 * MEMORY;
    let fd = crate::client::memfd(4096, nix::fcntl::SealFlag::F_SEAL_SHRINK);
    pair.device
        .map(
            pair.b.function,
            nic_emu::device::WindowRequest {
                fd: Some(fd),
                offset: 0,
                iova: far,
                len: 4096,
                read: true,
                write: true,
            },
        )
        .unwrap();
    let body = MrReg {
        addr: far,
        len: 4096,
        pdn: pair.b.pdn,
        access: full().bits(),
        ..MrReg::default()
    };
    let keys = pair.b.ok(&mut pair.device, AdminOp::MR_REG, body.to_body());
    let rkey = crate::client::high(keys[0]);
    pair.device.unmap(pair.b.function, far, 4096).unwrap();
    let wqe = Send::new(WRITE, 1, &[own.sge(0, 64)]).remote(far, rkey);
    let expected = (WcStatus::REM_ACCESS_ERR, Syndrome::WINDOW_GONE);
    assert_eq!(outcome(&mut pair, &wqe), expected);
}

#[test]
fn regression_no_interrupt_while_the_vector_is_masked() {
    let mut pair = Pair::new();
    let function = pair.b.function;
    let vector = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let ours: OwnedFd = vector.as_fd().try_clone_to_owned().unwrap();
    pair.device.set_vector(function, 3, Some(ours)).unwrap();
    pair.device.change_vectors(function, |v| v.mask(1 << 3));
    pair.device.fire_vector(function, 3);
    assert!(vector.read().is_err(), "fired under a mask");
    assert_eq!(pair.device.pending_vectors(function), 1 << 3);
    pair.device.change_vectors(function, |v| v.unmask(1 << 3));
    assert_eq!(vector.read().unwrap(), 1);
    assert_eq!(pair.device.pending_vectors(function), 0);
}

#[test]
fn regression_a_failed_write_is_no_success_and_writes_nothing() {
    let mut pair = Pair::new();
    let own = pair.a.region(&mut pair.device, 4096, full());
    let remote = pair.b.region(&mut pair.device, 4096, Access::REMOTE_READ);
    pair.a.write(own.iova, &[7; 64]);
    let wqe = Send::new(WRITE, 1, &[own.sge(0, 64)]).remote(remote.iova, remote.key);
    // Success without a completion would be the same fault.
    let wqe = wqe.unsignaled();
    let expected = (WcStatus::REM_ACCESS_ERR, Syndrome::RKEY_NO_ACCESS);
    assert_eq!(outcome(&mut pair, &wqe), expected);
    assert_eq!(pair.b.read(remote.iova, 64), [0; 64]);
}
