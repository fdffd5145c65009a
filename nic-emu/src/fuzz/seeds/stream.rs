//! Messages of the vfio-user stream.
//!
//! Place: [`super::seeds`]. Source: ours.

use ring_proto::vfio;
use zerocopy::IntoBytes;

use super::Seed;
use crate::fuzz::rig::BASE;

pub(super) fn stream(seeds: &mut Vec<Seed>) {
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
