//! Cases about windows: the memory that a client lends to the device.
//!
//! Place: see [`super`]. Source: VFIO DMA mapping; docs/device.md, section "Memory".

use std::os::fd::AsRawFd;

use nix::fcntl::SealFlag;
use ring_proto::admin::{AdminOp, MrReg};
use ring_proto::attach::AttachError;
use ring_proto::eqe::EventType;
use ring_proto::status::{Opcode, QpState, Syndrome, WcStatus};

use super::super::client::{QpOptions, full, low, refused};
use super::super::memory::{BASE, memfd};
use super::super::rig::Rig;
use super::super::target::Port;
use super::super::wr::SendWr;
use super::super::{Case, Outcome, case, failed, same};
use super::OURS;

const AT: u64 = 1 << 40;
const PAGE: u64 = 4096;

/// A mapping that the device must refuse, and after which the function still works.
fn bad(rig: &mut Rig<'_>, seals: SealFlag, offset: u64, iova: u64, len: u64) -> Outcome {
    let mut a = rig.client(Port::A)?;
    let fd = memfd(PAGE, seals)?;
    match a
        .attachment
        .dma_map(fd.as_raw_fd(), offset, iova, len, true)
    {
        Err(AttachError::Refused { .. }) => a.settle(),
        Err(error) => failed(format!("the attachment broke: {error}")),
        Ok(()) => failed("the window was mapped"),
    }
}

pub(super) const CASES: &[Case] = &[
    case(
        "window.unsealed-refused",
        "Memory that could shrink under the device is refused",
        OURS,
        |rig| bad(rig, SealFlag::empty(), 0, AT, PAGE),
    ),
    case(
        "window.larger-than-its-file-refused",
        "A window ends inside its file",
        OURS,
        |rig| bad(rig, SealFlag::F_SEAL_SHRINK, 0, AT, 2 * PAGE),
    ),
    case(
        "window.offset-past-file-refused",
        "A window begins inside its file",
        OURS,
        |rig| bad(rig, SealFlag::F_SEAL_SHRINK, PAGE, AT, PAGE),
    ),
    case(
        "window.misaligned-refused",
        "Windows are page aligned",
        "VFIO_IOMMU_MAP_DMA; docs/device.md",
        |rig| bad(rig, SealFlag::F_SEAL_SHRINK, 0, AT + 8, PAGE),
    ),
    case(
        "window.empty-refused",
        "A window has at least one page",
        "VFIO_IOMMU_MAP_DMA",
        |rig| bad(rig, SealFlag::F_SEAL_SHRINK, 0, AT, 0),
    ),
    case(
        "window.wrapping-refused",
        "A window does not wrap around the address space",
        "VFIO_IOMMU_MAP_DMA",
        |rig| {
            bad(
                rig,
                SealFlag::F_SEAL_SHRINK,
                0,
                u64::MAX - PAGE + 1,
                2 * PAGE,
            )
        },
    ),
    case(
        "window.overlap-refused",
        "Windows do not overlap",
        "VFIO_IOMMU_MAP_DMA",
        |rig| bad(rig, SealFlag::F_SEAL_SHRINK, 0, BASE + PAGE, PAGE),
    ),
    case(
        "window.unmap-unknown-refused",
        "What is not mapped cannot be unmapped",
        "VFIO_IOMMU_UNMAP_DMA",
        |rig| {
            let a = rig.client(Port::A)?;
            match a.attachment.dma_unmap(AT, PAGE) {
                Err(AttachError::Refused { .. }) => Ok(()),
                other => failed(format!("the answer was {other:?}")),
            }
        },
    ),
    case(
        "window.map-again-after-unmap",
        "An address can be used again after it was unmapped",
        "VFIO_IOMMU_UNMAP_DMA",
        |rig| {
            let a = rig.client(Port::A)?;
            let fd = memfd(PAGE, SealFlag::F_SEAL_SHRINK)?;
            for _ in 0..3 {
                a.attachment
                    .dma_map(fd.as_raw_fd(), 0, AT, PAGE, true)
                    .map_err(refused)?;
                a.attachment.dma_unmap(AT, PAGE).map_err(refused)?;
            }
            Ok(())
        },
    ),
    case(
        "window.gone-under-a-region",
        "A region whose window was unmapped has no memory: LOC_PROT_ERR",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            let fd = memfd(PAGE, SealFlag::F_SEAL_SHRINK)?;
            pair.a
                .attachment
                .dma_map(fd.as_raw_fd(), 0, AT, PAGE, true)
                .map_err(refused)?;
            let body = MrReg {
                addr: AT,
                len: PAGE,
                pdn: pair.a.pdn,
                access: full().bits(),
                ..MrReg::default()
            };
            let key = low(pair.a.ok(AdminOp::MR_REG, body.to_body())?[0]);
            pair.a.attachment.dma_unmap(AT, PAGE).map_err(refused)?;
            let sge = ring_proto::wqe::Sge {
                addr: AT,
                len: 8,
                lkey: key,
            };
            pair.refused(
                &SendWr::send(1, sge),
                WcStatus::LOC_PROT_ERR,
                Syndrome::WINDOW_GONE,
            )
        },
    ),
    case(
        "window.gone-under-a-remote-region",
        "A peer's region whose window was unmapped refuses access",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            let fd = memfd(PAGE, SealFlag::F_SEAL_SHRINK)?;
            pair.b
                .attachment
                .dma_map(fd.as_raw_fd(), 0, AT, PAGE, true)
                .map_err(refused)?;
            let body = MrReg {
                addr: AT,
                len: PAGE,
                pdn: pair.b.pdn,
                access: full().bits(),
                ..MrReg::default()
            };
            let key = low(pair.b.ok(AdminOp::MR_REG, body.to_body())?[0]);
            pair.b.attachment.dma_unmap(AT, PAGE).map_err(refused)?;
            let wr = SendWr::inline(Opcode::RDMA_WRITE, 1, b"x").remote((AT, key));
            pair.refused(&wr, WcStatus::REM_ACCESS_ERR, Syndrome::WINDOW_GONE)
        },
    ),
    case(
        "window.gone-under-a-queue",
        "A QP whose ring was unmapped goes to ERR and says so",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let fd = memfd(16 * PAGE, SealFlag::F_SEAL_SHRINK)?;
            a.attachment
                .dma_map(fd.as_raw_fd(), 0, AT, 16 * PAGE, true)
                .map_err(refused)?;
            let (mut body, _) = a.qp_body(QpOptions::default())?;
            body.sq_ring = AT;
            let qpn = low(a.ok(AdminOp::QP_CREATE, body.to_body())?[0]);
            a.attachment.dma_unmap(AT, 16 * PAGE).map_err(refused)?;
            let (_, source, code) = a.event_of(EventType::QP_FATAL)?;
            same(
                "QP and syndrome",
                (source, code),
                (qpn, Syndrome::WINDOW_GONE.0.into()),
            )?;
            a.expect_state(qpn, QpState::ERR)
        },
    ),
    case(
        "window.functions-are-apart",
        "The same address means each function's own memory",
        OURS,
        |rig| {
            let mut pair = rig.pair()?;
            // Both clients map at the same place: what a sends from there arrives in b's memory of that name.
            same("addresses", pair.out.iova, pair.into.iova)?;
            pair.fill(&[7; 64])?;
            pair.b.memory.write(pair.into.iova, &[1; 64])?;
            let (sge, remote) = (pair.out.sge(0, 64), pair.into.remote(64));
            pair.post(&SendWr::write(1, sge, remote));
            pair.a_done(1)?;
            same(
                "before",
                pair.b.memory.read(pair.into.iova, 64)?,
                vec![1; 64],
            )?;
            same(
                "after",
                pair.b.memory.read(pair.into.iova + 64, 64)?,
                vec![7; 64],
            )
        },
    ),
];
