//! Cases about protection domains and the registration of memory.
//!
//! Place: see [`super`]. Source: IBTA vol. 1, 10.2.3, 10.6 and 11.2.8; `ibv_alloc_pd(3)`, `ibv_reg_mr(3)`, `ibv_dereg_mr(3)`.

use std::os::fd::AsRawFd;

use nix::fcntl::SealFlag;
use ring_proto::admin::{Access, AdminOp, AdminStatus, MrReg};

use super::super::client::{Client, QpOptions, full, refused};
use super::super::memory::{self, BASE};
use super::super::rig::Rig;
use super::super::target::Port;
use super::super::{Case, Outcome, case, holds, same};
use super::OURS;

const REG: &str = "IBTA 10.6.2, 11.2.8.1; ibv_reg_mr(3)";
const PD: &str = "IBTA 10.2.3; ibv_alloc_pd(3)";

fn sound(a: &mut Client) -> Outcome<MrReg> {
    Ok(MrReg {
        addr: a.memory.alloc(4096)?,
        len: 4096,
        pdn: a.pdn,
        access: full().bits(),
        ..MrReg::default()
    })
}

fn bad(rig: &mut Rig<'_>, wanted: AdminStatus, spoil: impl FnOnce(&mut MrReg)) -> Outcome {
    let mut a = rig.client(Port::A)?;
    let mut body = sound(&mut a)?;
    spoil(&mut body);
    a.refuse(AdminOp::MR_REG, body.to_body(), wanted)
}

pub(super) const CASES: &[Case] = &[
    case(
        "pd.numbers-differ",
        "Two protection domains have different numbers",
        PD,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let (one, other) = (a.pd()?, a.pd()?);
            holds("numbers differ", one != other)
        },
    ),
    case(
        "pd.free.in-use-by-region-refused",
        "A protection domain with regions cannot be freed",
        "IBTA 10.2.3; ibv_dealloc_pd(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let pdn = a.pd()?;
            let region = a.region_of(64, full(), pdn, 0)?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::BUSY)?;
            a.named(AdminOp::MR_DEREG, region.key, AdminStatus::OK)?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::OK)
        },
    ),
    case(
        "pd.free.unknown-refused",
        "A protection domain that does not exist cannot be freed",
        "ibv_dealloc_pd(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let pdn = a.pd()?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::OK)?;
            a.named(AdminOp::PD_FREE, pdn, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "mr.register.unknown-pd-refused",
        "A region needs a protection domain that exists",
        REG,
        |rig| bad(rig, AdminStatus::NO_OBJECT, |body| body.pdn += 7),
    ),
    case(
        "mr.register.zero-length-refused",
        "A region has at least one byte",
        REG,
        |rig| bad(rig, AdminStatus::INVALID, |body| body.len = 0),
    ),
    case(
        "mr.register.wrapping-refused",
        "A region does not wrap around the address space",
        REG,
        |rig| bad(rig, AdminStatus::INVALID, |body| body.len = u64::MAX),
    ),
    case(
        "mr.register.outside-windows-refused",
        "A region lies in mapped memory",
        REG,
        |rig| bad(rig, AdminStatus::BAD_ADDRESS, |body| body.addr = 1 << 50),
    ),
    case(
        "mr.register.past-window-refused",
        "A region lies in one window with all its bytes",
        REG,
        |rig| {
            bad(rig, AdminStatus::BAD_ADDRESS, |body| {
                body.addr = BASE + memory::LEN - 100
            })
        },
    ),
    case(
        "mr.register.unknown-access-refused",
        "Access bits without a meaning are refused",
        REG,
        |rig| bad(rig, AdminStatus::INVALID, |body| body.access = 1 << 30),
    ),
    case(
        "mr.register.remote-write-without-local-write-refused",
        "REMOTE_WRITE needs LOCAL_WRITE",
        REG,
        |rig| {
            bad(rig, AdminStatus::INVALID, |body| {
                body.access = Access::REMOTE_WRITE.bits()
            })
        },
    ),
    case(
        "mr.register.unknown-owner-refused",
        "An owner QP exists",
        OURS,
        |rig| bad(rig, AdminStatus::NO_OBJECT, |body| body.owner_qpn = 0x1234),
    ),
    case(
        "mr.register.owner-of-another-pd-refused",
        "An owner QP is in the region's protection domain",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let pdn = a.pd()?;
            let qp = a.init_qp(QpOptions {
                pdn: Some(pdn),
                ..QpOptions::default()
            })?;
            let body = MrReg {
                owner_qpn: qp.qpn,
                ..sound(&mut a)?
            };
            a.refuse(AdminOp::MR_REG, body.to_body(), AdminStatus::INVALID)
        },
    ),
    case(
        "mr.register.reserved-refused",
        "Reserved fields are 0",
        OURS,
        |rig| bad(rig, AdminStatus::INVALID, |body| body.reserved = 1),
    ),
    case(
        "mr.register.readonly-window-keeps-local-write-out",
        "A region with LOCAL_WRITE needs memory that the device may write",
        "ibv_reg_mr(3); docs/device.md",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let fd = memory::memfd(4096, SealFlag::F_SEAL_SHRINK)?;
            a.attachment
                .dma_map(fd.as_raw_fd(), 0, 1 << 40, 4096, false)
                .map_err(refused)?;
            let body = MrReg {
                addr: 1 << 40,
                ..sound(&mut a)?
            };
            a.refuse(AdminOp::MR_REG, body.to_body(), AdminStatus::NO_ACCESS)?;
            let body = MrReg {
                access: Access::REMOTE_READ.bits(),
                ..body
            };
            a.refuse(AdminOp::MR_REG, body.to_body(), AdminStatus::OK)
        },
    ),
    case(
        "mr.register.same-memory-twice",
        "Two regions may cover the same memory with different rights",
        REG,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let body = sound(&mut a)?;
            let first = a.ok(AdminOp::MR_REG, body.to_body())?;
            let second = a.ok(AdminOp::MR_REG, MrReg { access: 0, ..body }.to_body())?;
            holds("keys differ", first[0] != second[0])
        },
    ),
    case(
        "mr.dereg.unknown-refused",
        "A region that does not exist cannot be deregistered",
        "ibv_dereg_mr(3)",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let region = a.region(64, full())?;
            a.named(AdminOp::MR_DEREG, region.key ^ 1, AdminStatus::NO_OBJECT)?;
            a.named(AdminOp::MR_DEREG, region.key, AdminStatus::OK)?;
            a.named(AdminOp::MR_DEREG, region.key, AdminStatus::NO_OBJECT)
        },
    ),
    case(
        "mr.key.changes-with-every-life",
        "The next region in the place of a deregistered one has another key",
        "IBTA 10.6.4; docs/device.md",
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut seen = Vec::new();
            for _ in 0..20 {
                let region = a.region(64, full())?;
                holds("the key is new", !seen.contains(&region.key))?;
                seen.push(region.key);
                a.named(AdminOp::MR_DEREG, region.key, AdminStatus::OK)?;
            }
            Ok(())
        },
    ),
    case(
        "mr.key.lkey-is-rkey",
        "One key serves for local and remote access",
        OURS,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let body = sound(&mut a)?;
            let result = a.ok(AdminOp::MR_REG, body.to_body())?;
            same("rkey", result[0] >> 32, result[0] & 0xffff_ffff)
        },
    ),
];
