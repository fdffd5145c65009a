//! Faults that other vfio-user servers have, by their names: each of them must stay impossible here.
//!
//! Source: observed in the crate `vfio_user` 0.1.7, whose client is a good one. Those of other NICs stand in the device's suite.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use ring_proto::{regs, vfio};
use zerocopy::IntoBytes;

use super::harness::{Cluster, RawClient, sealed};

/// A header that says `size` and is followed by `payload`.
fn message(command: u16, size: u32, payload: &[u8]) -> Vec<u8> {
    let header = vfio::Header {
        message_id: 7,
        command,
        size,
        flags: 0,
        error: 0,
    };
    [header.as_bytes(), payload].concat()
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse().unwrap()
}

/// VERSION with 20 and with 22 bytes ended that server: a length minus a constant, and a text without its NUL.
#[test]
fn regression_a_short_version_underflows_no_length() {
    let cluster = Cluster::start();
    for size in 16..40u32 {
        for byte in [0, b'{', 0xff] {
            let mut client = RawClient::connect(&cluster.device("a"));
            let mut payload = vec![byte; size as usize - 16];
            // The version itself is a sound one, as far as it goes.
            for (to, from) in payload.iter_mut().zip([0, 0, 1, 0]) {
                *to = from;
            }
            let bytes = message(vfio::CMD_VERSION, size, &payload);
            client.send(&bytes, &[]).unwrap();
            let reply = client.reply().unwrap();
            let is_sound = size == 20;
            assert_eq!(
                reply.header.error == 0,
                is_sound,
                "{size} bytes of {byte:#x}"
            );
        }
    }
    assert_eq!(cluster.client().register(regs::MAGIC), regs::MAGIC_VALUE);
}

/// A header that announces less than itself.
#[test]
fn regression_a_message_shorter_than_its_header_underflows_no_length() {
    let cluster = Cluster::start();
    for command in [vfio::CMD_VERSION, vfio::CMD_REGION_READ, 999] {
        for size in 0..16 {
            let mut client = cluster.client();
            client.send(&message(command, size, &[]), &[]).unwrap();
            assert_eq!(client.reply().unwrap().header.error, Errno::EINVAL as u32);
            assert!(client.ends());
        }
    }
    assert_eq!(cluster.client().register(regs::MAGIC), regs::MAGIC_VALUE);
}

/// A read of 1 GiB in 32 bytes made that server allocate it.
#[test]
fn regression_nothing_is_allocated_by_a_number_of_the_peer() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    let before = peak_kib();
    for region in 0..9 {
        for count in [1 << 20, 1 << 30, u32::MAX] {
            let access = vfio::RegionAccess {
                offset: 0,
                region,
                count,
            };
            let answer = client.call(vfio::CMD_REGION_READ, access.as_bytes(), &[]);
            assert_eq!(answer.unwrap_err(), Errno::EINVAL);
        }
    }
    for count in [u64::MAX, 1 << 40, 1 << 61] {
        let answer = client.call(vfio::CMD_REGION_WRITE_MULTI, &count.to_le_bytes(), &[]);
        assert_eq!(answer.unwrap_err(), Errno::EINVAL);
    }
    let io = vfio::RegionIoFds {
        argsz: u32::MAX,
        count: u32::MAX,
        ..Default::default()
    };
    let reply = client.call(vfio::CMD_DEVICE_GET_REGION_IO_FDS, io.as_bytes(), &[]);
    assert_eq!(reply.unwrap().payload.len(), 56);
    for size in [1 << 30, u32::MAX] {
        let mut client = cluster.client();
        client.send(&message(999, size, &[]), &[]).unwrap();
        assert_eq!(client.reply().unwrap().header.error, Errno::EMSGSIZE as u32);
    }
    let memory = sealed(4096);
    let far = client.map(Some(memory.as_raw_fd()), 1 << 40, 1 << 50);
    assert!(far.is_err());
    // Other tests of this process run beside; a gibibyte would show all the same.
    assert!(peak_kib() < before + 512 * 1024);
}

/// The payload of a command it did not know was taken for the next header, and answered once more with id 0.
#[test]
fn regression_an_unknown_command_leaves_the_stream_in_step() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    let read = vfio::RegionAccess {
        offset: 0,
        region: 0,
        count: 4,
    };
    // Payloads that look like messages themselves.
    let inner = message(vfio::CMD_REGION_READ, 32, read.as_bytes());
    for command in [0, 11, 12, 14, 16, u16::MAX] {
        for times in [0, 1, 100] {
            let payload = inner.repeat(times);
            let answer = client.call(command, &payload, &[]);
            assert_eq!(answer.unwrap_err(), Errno::ENOTSUP);
            assert_eq!(client.register(regs::MAGIC), regs::MAGIC_VALUE);
        }
    }
    // Nothing more comes: the next reply is that of the next command.
    client.command(vfio::CMD_DEVICE_RESET, &[], &[]);
    let reply = client.reply().unwrap();
    assert_eq!(reply.header.command, vfio::CMD_DEVICE_RESET);
}

/// A refusal that carries no errno, or is read as success: both sides of the wire know what happened.
#[test]
fn regression_a_failed_write_is_answered_as_failed_and_writes_nothing() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    client.write_region(7, 0x3c, &[5]).unwrap();
    assert_eq!(client.write_region(7, 254, &[1; 4]), Err(Errno::EINVAL));
    assert_eq!(
        client.write_region(0, regs::DRIVER_FEATURES, &[1]),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        client.write_region(2, u64::MAX, &[1; 8]),
        Err(Errno::EINVAL)
    );
    assert_eq!(client.write_region(3, 0, &[1; 4]), Err(Errno::EINVAL));
    assert_eq!(client.read_region(7, 0x3c, 1), Ok(vec![5]));
    let memory = sealed(4096);
    let map = |client: &mut RawClient| client.map(Some(memory.as_raw_fd()), 1 << 30, 4096);
    assert_eq!(map(&mut client), Ok(()));
    assert_eq!(map(&mut client), Err(Errno::EEXIST));
}
