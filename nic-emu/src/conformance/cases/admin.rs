//! Cases about the admin queue itself.
//!
//! Place: see [`super`]. Source: docs/device.md, section "Admin commands".

use ring_proto::admin::{AdminOp, AdminStatus, Body, Command, Named};
use ring_proto::regs;
use ring_proto::status::Syndrome;

use super::super::client::{ADMIN_DEPTH, low};
use super::super::target::Port;
use super::super::{Case, case, holds, same};

const ADMIN: &str = "docs/device.md, Admin commands";

pub(super) const CASES: &[Case] = &[
    case(
        "admin.identify",
        "IDENTIFY tells the function, and not the same one twice",
        ADMIN,
        |rig| {
            let (mut a, mut b) = (rig.client(Port::A)?, rig.client(Port::B)?);
            let one = a.ok(AdminOp::IDENTIFY, Body::default())?;
            let other = b.ok(AdminOp::IDENTIFY, Body::default())?;
            holds("function ids differ", low(one[0]) != low(other[0]))?;
            same("cookie of the device", one[1], other[1])
        },
    ),
    case(
        "admin.unknown-opcode-refused",
        "An opcode without a meaning is answered UNSUPPORTED",
        ADMIN,
        |rig| {
            let mut a = rig.client(Port::A)?;
            for opcode in [0, 999, u16::MAX] {
                a.refuse(AdminOp(opcode), Body::default(), AdminStatus::UNSUPPORTED)?;
            }
            Ok(())
        },
    ),
    case(
        "admin.flags-refused",
        "Flags of a command are 0",
        ADMIN,
        |rig| {
            let mut a = rig.client(Port::A)?;
            a.post_admin(Command {
                opcode: AdminOp::IDENTIFY.0,
                flags: 1,
                command_id: a.admin_producer(),
                body: Body::default(),
            });
            a.ring_admin(a.admin_producer());
            let (status, _) = a.admin_completion()?;
            same("status", status, AdminStatus::INVALID)
        },
    ),
    case(
        "admin.room-behind-the-body-refused",
        "The room behind a body is 0",
        ADMIN,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut body = Named {
                id: a.pdn,
                reserved: 0,
            }
            .to_body();
            body.0[6] = 1;
            a.refuse(AdminOp::PD_FREE, body, AdminStatus::INVALID)
        },
    ),
    case(
        "admin.reserved-refused",
        "Reserved fields of a body are 0",
        ADMIN,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let body = Named {
                id: a.pdn,
                reserved: 1,
            };
            a.refuse(AdminOp::PD_FREE, body.to_body(), AdminStatus::INVALID)
        },
    ),
    case(
        "admin.batch-in-order",
        "Commands of one doorbell are answered in order, each with its own id",
        ADMIN,
        |rig| {
            let mut a = rig.client(Port::A)?;
            let mut last = 0;
            for _ in 0..4 {
                for _ in 0..ADMIN_DEPTH {
                    let command_id = a.admin_producer();
                    a.post_admin(Command {
                        opcode: AdminOp::PD_ALLOC.0,
                        command_id,
                        ..Command::default()
                    });
                }
                a.ring_admin(a.admin_producer());
                for _ in 0..ADMIN_DEPTH {
                    // The completion's id is checked against its place.
                    let (status, result) = a.admin_completion()?;
                    same("status", status, AdminStatus::OK)?;
                    holds("numbers differ", low(result[0]) != last)?;
                    last = low(result[0]);
                }
            }
            Ok(())
        },
    ),
    case(
        "admin.doorbell-beyond-depth-fails-the-function",
        "An admin doorbell that cannot be true fails the function, with the reason",
        ADMIN,
        |rig| {
            let mut a = rig.client(Port::A)?;
            a.ring_admin(a.admin_producer().wrapping_add(ADMIN_DEPTH + 1));
            a.wait_failed()?;
            let syndrome = a.read_register(regs::ERROR_SYNDROME, 4)?;
            same(
                "ERROR_SYNDROME",
                syndrome,
                u64::from(Syndrome::DOORBELL_OUT_OF_RANGE.0),
            )
        },
    ),
    case(
        "admin.failed-function-can-be-reset",
        "A reset leads out of FAILED",
        "docs/device.md, Errors",
        |rig| {
            let mut a = rig.client(Port::A)?;
            a.ring_admin(a.admin_producer().wrapping_add(ADMIN_DEPTH + 1));
            a.wait_failed()?;
            a.write_register(regs::STATUS, 4, 0)?;
            a.start()
        },
    ),
    case(
        "admin.one-failed-function-harms-nobody",
        "Other functions do not notice that one failed",
        "docs/device.md, Errors",
        |rig| {
            let a = rig.client(Port::A)?;
            let mut other = rig.client(Port::A)?;
            a.ring_admin(a.admin_producer().wrapping_add(ADMIN_DEPTH + 1));
            other.settle()?;
            other.pd().map(drop)
        },
    ),
];
