//! Access to regions: REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.

use Outcome::Done;
use ring_proto::{regs, uar, vfio};
use zerocopy::IntoBytes;

use super::{ANYTHING, EINVAL, Outcome, Values, plain, table};
use crate::table::Value::Is;
use crate::table::{Field, Row, nest};

fn access() -> Vec<Field> {
    fields!(vfio::RegionAccess {
        offset,
        region,
        count
    })
}

/// Places for 4 bytes in BAR0.
const OFFSET: Values = &[
    (Is(1), EINVAL),
    (Is(2), EINVAL),
    (Is(regs::BAR0_LEN - 2), EINVAL),
    (Is(regs::BAR0_LEN), EINVAL),
    (Is(1 << 63), EINVAL),
    (Is(u64::MAX - 3), EINVAL),
    (Is(u64::MAX), EINVAL),
];

const REGION: Values = &[
    (Is(1), EINVAL),
    (Is(3), EINVAL),
    (Is(6), EINVAL),
    (Is(8), EINVAL),
    (Is(9), EINVAL),
    (Is(0x8000_0000), EINVAL),
    (Is(0xffff_ffff), EINVAL),
];

pub(crate) fn read_table(command: u16) {
    let rows: [Row<'_, Outcome>; 3] = [
        ("offset", OFFSET),
        ("region", REGION),
        (
            "count",
            &[
                (Is(0), EINVAL),
                (Is(1), EINVAL),
                (Is(3), EINVAL),
                (Is(16), EINVAL),
                (Is(64 * 1024), EINVAL),
                (Is(1 << 30), EINVAL),
                (Is(0xffff_ffff), EINVAL),
            ],
        ),
    ];
    table("REGION_READ", &access(), &rows, |_| {
        let access = vfio::RegionAccess {
            offset: regs::STATUS,
            region: regs::REGION_BAR0,
            count: 4,
        };
        plain(command, access.as_bytes())
    });
    // The doorbells can be read whole and in part, but not beyond.
    let rows: [Row<'_, Outcome>; 3] = [
        (
            "offset",
            &[
                (Is(1), Done),
                (Is(uar::BAR2_LEN - 4), Done),
                (Is(uar::BAR2_LEN - 3), EINVAL),
                (Is(u64::MAX - 3), EINVAL),
                (Is(u64::MAX), EINVAL),
            ],
        ),
        ("region", &[(Is(1), EINVAL)]),
        ("count", &[(Is(1), Done), (Is(1 << 30), EINVAL)]),
    ];
    table("REGION_READ of doorbells", &access(), &rows, |_| {
        let access = vfio::RegionAccess {
            offset: 0,
            region: regs::REGION_BAR2,
            count: 4,
        };
        plain(command, access.as_bytes())
    });
}

pub(crate) fn write_table(command: u16) {
    let rows: [Row<'_, Outcome>; 3] = [
        ("offset", OFFSET),
        ("region", REGION),
        (
            "count",
            // As many bytes as there are.
            &[
                (Is(0), EINVAL),
                (Is(3), EINVAL),
                (Is(8), EINVAL),
                (Is(1 << 30), EINVAL),
                (Is(0xffff_ffff), EINVAL),
            ],
        ),
    ];
    table("REGION_WRITE", &access(), &rows, |_| {
        let access = vfio::RegionAccess {
            offset: regs::STATUS,
            region: regs::REGION_BAR0,
            count: 4,
        };
        plain(command, &[access.as_bytes(), &[1, 0, 0, 0]].concat())
    });
}

/// A count of 8 bytes and two entries.
pub(crate) fn write_multi_table(command: u16) {
    #[repr(C)]
    struct Writes {
        count: u64,
        entries: [vfio::WriteMultiEntry; 2],
    }
    let entry = fields!(vfio::WriteMultiEntry {
        offset,
        region,
        count,
        data
    });
    let fields = nest(fields!(Writes { count, entries }), "entries", 2, &entry);
    let count: Values = &[
        (Is(0), EINVAL),
        (Is(3), EINVAL),
        (Is(9), EINVAL),
        (Is(0xffff_ffff), EINVAL),
    ];
    let rows: [Row<'_, Outcome>; 9] = [
        (
            "count",
            &[
                (Is(0), EINVAL),
                (Is(1), EINVAL),
                (Is(3), EINVAL),
                (Is(1 << 32 | 2), EINVAL),
                (Is(u64::MAX), EINVAL),
            ],
        ),
        ("entries[0].offset", OFFSET),
        ("entries[0].region", REGION),
        ("entries[0].count", count),
        ("entries[0].data", ANYTHING),
        ("entries[1].offset", OFFSET),
        ("entries[1].region", REGION),
        ("entries[1].count", count),
        ("entries[1].data", ANYTHING),
    ];
    table("REGION_WRITE_MULTI", &fields, &rows, |_| {
        let entry = vfio::WriteMultiEntry {
            offset: regs::STATUS,
            region: regs::REGION_BAR0,
            count: 4,
            data: 1,
        };
        let payload = [&2u64.to_le_bytes()[..], entry.as_bytes(), entry.as_bytes()];
        plain(command, &payload.concat())
    });
}
