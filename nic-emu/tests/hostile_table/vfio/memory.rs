//! DMA_MAP and DMA_UNMAP.

use std::os::fd::AsRawFd;

use Outcome::{Done, Refused};
use nix::errno::Errno;
use ring_proto::vfio;
use zerocopy::IntoBytes;

use super::{EINVAL, ENOENT, ENOTSUP, Message, Outcome, argsz, plain, table};
use crate::harness::sealed;
use crate::table::Row;
use crate::table::Value::{Is, Plus};

const IOVA: u64 = 1 << 30;

const LEN: u64 = 1 << 20;

fn map_message() -> Message {
    let map = vfio::DmaMap {
        argsz: 32,
        flags: vfio::DMA_READ | vfio::DMA_WRITE,
        offset: 0,
        address: IOVA,
        size: LEN,
    };
    Message {
        fds: vec![sealed(LEN)],
        ..plain(vfio::CMD_DMA_MAP, map.as_bytes())
    }
}

pub(crate) fn dma_map_table(_: u16) {
    let fields = fields!(vfio::DmaMap {
        argsz,
        flags,
        offset,
        address,
        size
    });
    let rows: [Row<'_, Outcome>; 5] = [
        ("argsz", &argsz(32)),
        (
            "flags",
            &[
                (Is(0), EINVAL),
                (Is(1), Done),
                (Is(2), Done),
                (Is(4), EINVAL),
                (Is(1 << 31 | 3), EINVAL),
            ],
        ),
        (
            "offset",
            &[
                (Is(1), EINVAL),
                (Is(4096), EINVAL),
                (Is(1 << 63), EINVAL),
                (Is(u64::MAX - 4095), EINVAL),
                (Is(u64::MAX), EINVAL),
            ],
        ),
        (
            "address",
            &[
                (Is(0), Done),
                (Plus(1), EINVAL),
                (Is(u64::MAX - 4095), EINVAL),
                (Is(u64::MAX), EINVAL),
            ],
        ),
        (
            "size",
            &[
                (Is(0), EINVAL),
                (Is(100), EINVAL),
                (Plus(4096), EINVAL),
                // More than a client may map in all.
                (Is(1 << 63), Refused(Errno::ENOSPC)),
                (Is(u64::MAX - 4095), EINVAL),
                (Is(u64::MAX), EINVAL),
            ],
        ),
    ];
    table("DMA_MAP", &fields, &rows, |_| map_message());
}

pub(crate) fn dma_unmap_table(command: u16) {
    let fields = fields!(vfio::DmaUnmap {
        argsz,
        flags,
        address,
        size
    });
    let rows: [Row<'_, Outcome>; 4] = [
        ("argsz", &argsz(24)),
        (
            "flags",
            // All windows, but with an address; dirty pages; no flag at all.
            &[
                (Is(2), EINVAL),
                (Is(1), ENOTSUP),
                (Is(4), ENOTSUP),
                (Is(1 << 31), ENOTSUP),
            ],
        ),
        (
            "address",
            &[
                (Is(0), ENOENT),
                (Plus(1), ENOENT),
                (Plus(4096), ENOENT),
                (Is(u64::MAX - 4095), ENOENT),
            ],
        ),
        (
            "size",
            // A part of a window is none; a range takes all that lie in it whole.
            &[
                (Is(0), ENOENT),
                (Is(4096), ENOENT),
                (Plus(4096), Done),
                (Is(u64::MAX), ENOENT),
            ],
        ),
    ];
    table("DMA_UNMAP", &fields, &rows, |client| {
        let map = map_message();
        let fds = [map.fds[0].as_raw_fd()];
        client.call(map.command, &map.payload, &fds).unwrap();
        let unmap = vfio::DmaUnmap {
            argsz: 24,
            flags: 0,
            address: IOVA,
            size: LEN,
        };
        plain(command, unmap.as_bytes())
    });
}
