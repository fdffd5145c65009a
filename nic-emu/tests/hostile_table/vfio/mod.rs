//! Messages of the vfio-user stream: the header, and the payload of each command.

mod access;
mod describe;
mod memory;

use std::os::fd::{AsRawFd, OwnedFd};

use Outcome::{Done, Ended, OutOfStep, Refused, Silent};
use nix::errno::Errno;
use ring_proto::{regs, vfio};
use zerocopy::IntoBytes;

use self::access::{read_table, write_multi_table, write_table};
use self::describe::{
    device_info_table, io_fds_table, irq_info_table, region_info_table, set_irqs_table,
};
use self::memory::{dma_map_table, dma_unmap_table};
use crate::harness::{Cluster, RawClient, version_payload};
use crate::table::Value::Is;
use crate::table::{Field, Row, Value, run};

/// What became of a message, and of the stream behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Answered with success; the next message too.
    Done,
    /// Answered with this error; the next message with success.
    Refused(Errno),
    /// No answer; the next message has one.
    Silent,
    /// Answered with this error, the last word of the connection.
    Ended(Errno),
    /// Answered with this error; what follows is not the next message any more.
    OutOfStep(Errno),
}

pub(crate) const EINVAL: Outcome = Refused(Errno::EINVAL);

pub(crate) const ENOTSUP: Outcome = Refused(Errno::ENOTSUP);

pub(crate) const ENOENT: Outcome = Refused(Errno::ENOENT);

pub(crate) type Values = &'static [(Value, Outcome)];

/// Number of the message under test, and of the one behind it.
const ID: u16 = 0x1111;

const NEXT: u16 = 0x2222;

/// A message with its descriptors.
pub(crate) struct Message {
    command: u16,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

fn header(message_id: u16, command: u16, payload: usize) -> vfio::Header {
    vfio::Header {
        message_id,
        command,
        size: u32::try_from(16 + payload).unwrap(),
        flags: 0,
        error: 0,
    }
}

/// Sends a message and a sound one behind it, and sees what becomes of both.
fn outcome(client: &mut RawClient, bytes: &[u8], fds: &[OwnedFd]) -> Outcome {
    let id = u16::from_le_bytes([bytes[0], bytes[1]]);
    let magic = vfio::RegionAccess {
        offset: regs::MAGIC,
        region: regs::REGION_BAR0,
        count: 4,
    };
    let next = header(NEXT, vfio::CMD_REGION_READ, 16);
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    client.send(bytes, &fds).unwrap();
    // The device may have hung up.
    let _ = client.send(&[next.as_bytes(), magic.as_bytes()].concat(), &[]);
    let first = client.reply().expect("an answer to either message");
    let error = first.header.error;
    let is_error = first.header.flags & vfio::FLAG_ERROR != 0;
    assert_eq!(is_error, error != 0);
    if first.header.message_id == NEXT {
        assert!(!is_error);
        return Silent;
    }
    assert_eq!(first.header.message_id, id, "the answer names its message");
    let errno = Errno::from_raw(i32::try_from(error).unwrap());
    match client.reply() {
        None if is_error => Ended(errno),
        None => panic!("hung up after success"),
        Some(second) if second.header.message_id != NEXT => OutOfStep(errno),
        Some(second) => {
            assert_eq!(second.payload[16..], regs::MAGIC_VALUE.to_le_bytes());
            if is_error { Refused(errno) } else { Done }
        }
    }
}

/// Runs the table of a payload that `good` makes for a fresh client, which it may prepare.
pub(crate) fn table(
    what: &str,
    fields: &[Field],
    rows: &[Row<'_, Outcome>],
    good: impl Fn(&mut RawClient) -> Message,
) {
    let cluster = Cluster::start();
    let mut bystander = cluster.client();
    run(what, fields, rows, &Done, |change| {
        let mut client = cluster.client();
        let mut message = good(&mut client);
        change.apply(&mut message.payload);
        let header = header(ID, message.command, message.payload.len());
        let bytes = [header.as_bytes(), &message.payload].concat();
        outcome(&mut client, &bytes, &message.fds)
    });
    assert_eq!(bystander.register(regs::MAGIC), regs::MAGIC_VALUE);
}

/// A message without descriptors.
pub(crate) fn plain(command: u16, payload: &[u8]) -> Message {
    Message {
        command,
        payload: payload.to_vec(),
        fds: Vec::new(),
    }
}

/// A table for each command, in a test of its own.
macro_rules! commands {
    ($($test:ident: $command:ident => $table:ident;)*) => {
        $(
            #[test]
            fn $test() {
                $table(vfio::$command);
            }
        )*

        /// The commands that the device knows are those it does not answer with ENOTSUP.
        #[test]
        fn each_command_has_a_table() {
            let known = [$(vfio::$command),*];
            let cluster = Cluster::start();
            let mut client = cluster.client();
            for command in 0..1024 {
                let answer = client.call(command, &[], &[]);
                let is_known = !matches!(answer, Err(Errno::ENOTSUP));
                assert_eq!(is_known, known.contains(&command), "command {command}");
            }
        }
    };
}

commands! {
    version: CMD_VERSION => version_table;
    dma_map: CMD_DMA_MAP => dma_map_table;
    dma_unmap: CMD_DMA_UNMAP => dma_unmap_table;
    device_get_info: CMD_DEVICE_GET_INFO => device_info_table;
    device_get_region_info: CMD_DEVICE_GET_REGION_INFO => region_info_table;
    device_get_region_io_fds: CMD_DEVICE_GET_REGION_IO_FDS => io_fds_table;
    device_get_irq_info: CMD_DEVICE_GET_IRQ_INFO => irq_info_table;
    device_set_irqs: CMD_DEVICE_SET_IRQS => set_irqs_table;
    region_read: CMD_REGION_READ => read_table;
    region_write: CMD_REGION_WRITE => write_table;
    region_write_multi: CMD_REGION_WRITE_MULTI => write_multi_table;
    device_reset: CMD_DEVICE_RESET => reset_table;
}

#[test]
fn header_of_a_message() {
    let fields = fields!(vfio::Header {
        message_id,
        command,
        size,
        flags,
        error
    });
    let rows: [Row<'_, Outcome>; 5] = [
        ("message_id", &[(Is(0), Done), (Is(0xffff), Done)]),
        (
            "command",
            &[
                (Is(0), ENOTSUP),
                (Is(11), ENOTSUP),
                (Is(12), ENOTSUP),
                (Is(14), ENOTSUP),
                (Is(16), ENOTSUP),
                (Is(0x8009), ENOTSUP),
                (Is(0xffff), ENOTSUP),
                // One that has been.
                (Is(1), EINVAL),
            ],
        ),
        (
            "size",
            &[
                (Is(0), Ended(Errno::EINVAL)),
                (Is(15), Ended(Errno::EINVAL)),
                (Is(64 * 1024 + 1), Ended(Errno::EMSGSIZE)),
                (Is(1 << 30), Ended(Errno::EMSGSIZE)),
                (Is(0xffff_ffff), Ended(Errno::EMSGSIZE)),
                // Less than there is: the rest is read as the next header.
                (Is(16), OutOfStep(Errno::EINVAL)),
                (Is(24), OutOfStep(Errno::EINVAL)),
            ],
        ),
        (
            "flags",
            &[
                (Is(1), Silent),
                (Is(0x10), Silent),
                (Is(2), Ended(Errno::EINVAL)),
                (Is(15), Ended(Errno::EINVAL)),
                (Is(0x12), Ended(Errno::EINVAL)),
                // Of replies alone.
                (Is(0x20), Done),
                (Is(1 << 31), Done),
            ],
        ),
        ("error", &[(Is(22), Done), (Is(0xffff_ffff), Done)]),
    ];
    let cluster = Cluster::start();
    run("header", &fields, &rows, &Done, |change| {
        let mut client = cluster.client();
        let magic = vfio::RegionAccess {
            offset: regs::MAGIC,
            region: regs::REGION_BAR0,
            count: 4,
        };
        let header = header(ID, vfio::CMD_REGION_READ, 16);
        let mut bytes = [header.as_bytes(), magic.as_bytes()].concat();
        change.apply(&mut bytes);
        outcome(&mut client, &bytes, &[])
    });
}

/// Sizes that leave no room for a structure of `len` bytes, and sizes with room to spare.
pub(crate) fn argsz(len: u64) -> [(Value, Outcome); 4] {
    [
        (Is(0), EINVAL),
        (Is(len - 1), EINVAL),
        (Is(len + 1), Done),
        (Is(0xffff_ffff), Done),
    ]
}

/// What the device fills in, or does not look at.
pub(crate) const ANYTHING: Values = &[(Is(0), Done), (Is(u64::MAX), Done)];

/// The first message of a connection: whatever is wrong with it ends the connection.
fn version_table(command: u16) {
    let fields = fields!(vfio::Version { major, minor });
    let other = Ended(Errno::EPROTONOSUPPORT);
    let rows: [Row<'_, Outcome>; 2] = [
        ("major", &[(Is(1), other), (Is(0xffff), other)]),
        ("minor", &[(Is(0), Done), (Is(2), Done), (Is(0xffff), Done)]),
    ];
    let cluster = Cluster::start();
    let first = |payload: &[u8]| {
        let mut client = RawClient::connect(&cluster.device("a"));
        let header = header(ID, command, payload.len());
        let bytes = [header.as_bytes(), payload].concat();
        outcome(&mut client, &bytes, &[])
    };
    run("VERSION", &fields, &rows, &Done, |change| {
        let mut payload = version_payload();
        change.apply(&mut payload);
        first(&payload)
    });
    let ended = Ended(Errno::EINVAL);
    for (text, expected) in [
        (&b""[..], Done),
        (b"\0", ended),
        (b"{}\0", Done),
        (b"{}\0\0\0\0", Done),
        (b"{}", ended),
        (b"{}\0x", ended),
        (b"[]\0", ended),
        (b"7\0", ended),
        (b"{\"capabilities\":7}\0", ended),
        (b"{\"capabilities\":{\"max_msg_fds\":-1}}\0", Done),
        (b"{\"capabilities\":\xff}\0", ended),
        (b"{\"capabilities\":{}\0", ended),
    ] {
        let payload = [&[0, 0, 1, 0], text].concat();
        assert_eq!(first(&payload), expected, "{}", text.escape_ascii());
    }
}

/// It has no payload.
fn reset_table(command: u16) {
    table("DEVICE_RESET", &[], &[], |_| plain(command, &[]));
    let cluster = Cluster::start();
    let mut client = cluster.client();
    for len in [1, 4, 1000] {
        let answer = client.call(command, &vec![0; len], &[]);
        assert_eq!(answer.unwrap_err(), Errno::EINVAL, "{len} bytes");
    }
}
