//! What the device consists of: DEVICE_GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO; and SET_IRQS.

use Outcome::Done;
use nix::sys::eventfd::EventFd;
use ring_proto::{regs, vfio};
use zerocopy::{FromBytes, IntoBytes};

use super::{ANYTHING, EINVAL, ENOENT, ENOTSUP, Message, Outcome, Values, argsz, plain, table};
use crate::harness::Cluster;
use crate::table::Row;
use crate::table::Value::{Flip, Is};

pub(crate) fn device_info_table(command: u16) {
    let fields = fields!(vfio::DeviceInfo {
        argsz,
        flags,
        num_regions,
        num_irqs
    });
    let rows: [Row<'_, Outcome>; 4] = [
        ("argsz", &argsz(16)),
        ("flags", ANYTHING),
        ("num_regions", ANYTHING),
        ("num_irqs", ANYTHING),
    ];
    table("DEVICE_GET_INFO", &fields, &rows, |_| {
        let info = vfio::DeviceInfo {
            argsz: 16,
            ..Default::default()
        };
        plain(command, info.as_bytes())
    });
}

/// Regions that do not exist.
const NO_REGION: Values = &[
    (Is(9), EINVAL),
    (Is(100), EINVAL),
    (Is(0x7fff_ffff), EINVAL),
];

pub(crate) fn region_info_table(command: u16) {
    let fields = fields!(vfio::RegionInfo {
        argsz,
        flags,
        index,
        cap_offset,
        size,
        offset
    });
    // Numbers with the top bit name the client's own windows, of which there are none.
    let index = [
        NO_REGION,
        &[(Is(0x8000_0000), ENOENT), (Is(0xffff_ffff), ENOENT)],
    ]
    .concat();
    let rows: [Row<'_, Outcome>; 6] = [
        ("argsz", &argsz(32)),
        ("flags", ANYTHING),
        ("index", &index),
        ("cap_offset", ANYTHING),
        ("size", ANYTHING),
        ("offset", ANYTHING),
    ];
    table("DEVICE_GET_REGION_INFO", &fields, &rows, |_| {
        let info = vfio::RegionInfo {
            argsz: 32,
            index: 2,
            ..Default::default()
        };
        plain(command, info.as_bytes())
    });
}

pub(crate) fn io_fds_table(command: u16) {
    let fields = fields!(vfio::RegionIoFds {
        argsz,
        flags,
        index,
        count
    });
    let index = [NO_REGION, &[(Is(0xffff_ffff), EINVAL), (Is(2), Done)]].concat();
    let rows: [Row<'_, Outcome>; 4] = [
        ("argsz", &argsz(16)),
        ("flags", &[(Is(1), EINVAL), (Is(1 << 31), EINVAL)]),
        ("index", &index),
        ("count", ANYTHING),
    ];
    table("DEVICE_GET_REGION_IO_FDS", &fields, &rows, |_| {
        let info = vfio::RegionIoFds {
            argsz: 56,
            ..Default::default()
        };
        plain(command, info.as_bytes())
    });
    answer_of_io_fds(command);
}

/// The entry that an answer carries is what docs/device.md says, field by field.
fn answer_of_io_fds(command: u16) {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    let info = vfio::RegionIoFds {
        argsz: 56,
        ..Default::default()
    };
    let reply = client.call(command, info.as_bytes(), &[]).unwrap();
    let vfio::SubRegionIoEventFd {
        offset,
        size,
        fd_index,
        kind,
        flags,
        padding,
        datamatch,
    } = vfio::SubRegionIoEventFd::read_from_bytes(&reply.payload[16..]).unwrap();
    assert_eq!((offset, size, fd_index), (regs::KICK, 4, 0));
    assert_eq!((kind, flags, padding, datamatch), (0, 0, 0, 0));
    assert_eq!(reply.fds.len(), 1);
}

pub(crate) fn irq_info_table(command: u16) {
    let fields = fields!(vfio::IrqInfo {
        argsz,
        flags,
        index,
        count
    });
    let rows: [Row<'_, Outcome>; 4] = [
        ("argsz", &argsz(16)),
        ("flags", ANYTHING),
        (
            "index",
            &[
                (Is(regs::NUM_IRQS as u64), EINVAL),
                (Is(0xffff_ffff), EINVAL),
                (Is(0), Done),
            ],
        ),
        ("count", ANYTHING),
    ];
    table("DEVICE_GET_IRQ_INFO", &fields, &rows, |_| {
        let info = vfio::IrqInfo {
            argsz: 16,
            index: 2,
            ..Default::default()
        };
        plain(command, info.as_bytes())
    });
}

pub(crate) fn set_irqs_table(command: u16) {
    let fields = fields!(vfio::IrqSet {
        argsz,
        flags,
        index,
        start,
        count
    });
    let rows: [Row<'_, Outcome>; 5] = [
        ("argsz", &argsz(20)),
        (
            "flags",
            &[
                (Is(0), EINVAL),
                // An action without data, data without an action, two of each.
                (Is(0x20), EINVAL),
                (Is(0x04), EINVAL),
                (Is(0x25), EINVAL),
                (Is(0x2c), EINVAL),
                // No descriptor belongs to these data.
                (Is(0x21), EINVAL),
                (Is(0x22), EINVAL),
                // Masks by eventfd.
                (Is(0x0c), ENOTSUP),
                (Is(0x14), ENOTSUP),
                (Flip(0x40), EINVAL),
                (Flip(1 << 31), EINVAL),
            ],
        ),
        (
            "index",
            // The device has MSI-X alone.
            &[
                (Is(0), EINVAL),
                (Is(1), EINVAL),
                (Is(regs::NUM_IRQS as u64), EINVAL),
                (Is(0xffff_ffff), EINVAL),
            ],
        ),
        (
            "start",
            &[
                (Is(63), Done),
                (Is(64), EINVAL),
                (Is(0xffff_fffe), EINVAL),
                (Is(0xffff_ffff), EINVAL),
            ],
        ),
        (
            "count",
            // As many as descriptors came.
            &[
                (Is(0), EINVAL),
                (Is(2), EINVAL),
                (Is(0x10001), EINVAL),
                (Is(0xffff_ffff), EINVAL),
            ],
        ),
    ];
    table("DEVICE_SET_IRQS", &fields, &rows, |_| {
        let set = vfio::IrqSet {
            argsz: 20,
            flags: vfio::IRQ_SET_DATA_EVENTFD | vfio::IRQ_SET_ACTION_TRIGGER,
            index: 2,
            start: 0,
            count: 1,
        };
        Message {
            fds: vec![EventFd::new().unwrap().into()],
            ..plain(command, set.as_bytes())
        }
    });
}
