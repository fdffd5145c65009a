//! The stream itself: pieces, pipelines, flags, and clients that do not read.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use proptest::prelude::*;
use ring_proto::{regs, vfio};
use zerocopy::IntoBytes;

use super::harness::{Cluster, RawClient, Reply, sealed, version_payload};

fn read_command(client: &mut RawClient, region: u32, count: u32) -> Vec<u8> {
    let access = vfio::RegionAccess {
        offset: 0,
        region,
        count,
    };
    let header = client.header(vfio::CMD_REGION_READ, 16);
    [header.as_bytes(), access.as_bytes()].concat()
}

/// Messages of every kind, good and bad, with the error that each is answered with.
fn script(client: &mut RawClient) -> (Vec<u8>, Vec<u32>) {
    let mut bytes = Vec::new();
    let mut errors = Vec::new();
    let mut say = |client: &mut RawClient, command, payload: &[u8], flags, error: Option<u32>| {
        let mut header = client.header(command, payload.len());
        header.flags = flags;
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(payload);
        errors.extend(error);
    };
    let info = vfio::DeviceInfo {
        argsz: 16,
        ..Default::default()
    };
    let access = vfio::RegionAccess {
        offset: 0,
        region: 7,
        count: 64,
    };
    let (enotsup, einval) = (Errno::ENOTSUP as u32, Errno::EINVAL as u32);
    let info_command = vfio::CMD_DEVICE_GET_INFO;
    say(client, vfio::CMD_VERSION, &version_payload(), 0, Some(0));
    say(client, info_command, info.as_bytes(), 0, Some(0));
    say(client, 999, &[7; 333], 0, Some(enotsup));
    say(client, 999, &[7; 333], vfio::FLAG_NO_REPLY, None);
    say(client, info_command, &[], 0, Some(einval));
    // A reply to nothing asked for.
    say(
        client,
        vfio::CMD_REGION_READ,
        &[1; 20],
        vfio::FLAG_REPLY,
        None,
    );
    say(client, vfio::CMD_REGION_READ, access.as_bytes(), 0, Some(0));
    say(
        client,
        vfio::CMD_DEVICE_RESET,
        &[],
        vfio::FLAG_NO_REPLY,
        None,
    );
    say(client, info_command, info.as_bytes(), 0, Some(0));
    (bytes, errors)
}

fn replies(client: &mut RawClient, n: usize) -> Vec<Reply> {
    (0..n).map(|_| client.reply().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_fragmentation_gives_the_same_answers(cuts in proptest::collection::vec(0usize..1200, 0..40)) {
        thread_local! {
            static CLUSTER: Cluster = Cluster::start();
        }
        CLUSTER.with(|cluster| {
            let mut client = RawClient::connect(&cluster.device("a"));
            let (bytes, errors) = script(&mut client);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for window in cuts.windows(2) {
                client.send(&bytes[window[0]..window[1]], &[]).unwrap();
            }
            let got: Vec<_> = replies(&mut client, errors.len())
                .iter()
                .map(|reply| reply.header.error)
                .collect();
            assert_eq!(got, errors);
        });
    }
}

#[test]
fn descriptors_belong_to_the_message_they_came_with() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    let memory = sealed(4096);
    // Two commands without descriptors, then a map whose header comes with one, byte by byte.
    let before = [
        read_command(&mut client, 7, 4),
        read_command(&mut client, 7, 4),
    ]
    .concat();
    let map = vfio::DmaMap {
        argsz: 32,
        flags: 3,
        offset: 0,
        address: 1 << 30,
        size: 4096,
    };
    let header = client.header(vfio::CMD_DMA_MAP, 32);
    let bytes = [header.as_bytes(), map.as_bytes()].concat();
    client.send(&before, &[]).unwrap();
    client.send(&bytes[..1], &[memory.as_raw_fd()]).unwrap();
    for byte in bytes[1..].chunks(1) {
        client.send(byte, &[]).unwrap();
    }
    let errors: Vec<_> = replies(&mut client, 3)
        .iter()
        .map(|reply| reply.header.error)
        .collect();
    assert_eq!(errors, [0, 0, 0]);
    let (_, fds) = client.region_info(0x8000_0001).unwrap();
    let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(&fds[0]), inode(&memory));
}

#[test]
fn a_reader_that_is_slow_holds_up_itself_alone_and_loses_nothing() {
    let cluster = Cluster::start();
    let mut slow = cluster.client();
    let mut bystander = cluster.client();
    // Replies of 32 KiB each, far more than a socket buffer, are asked for without reading any.
    slow.stream.set_nonblocking(true).unwrap();
    let mut asked = 0;
    let mut refused = 0;
    // Refused so often in a row while others are served, the server has stopped reading: it keeps a bounded number of replies.
    while refused < 100 && asked < 5_000 {
        let command = read_command(&mut slow, 2, 32 * 1024);
        match slow.send(&command, &[]) {
            Ok(n) => {
                assert_eq!(n, command.len());
                asked += 1;
                refused = 0;
            }
            Err(Errno::EAGAIN) => {
                refused += 1;
                assert_eq!(bystander.register(regs::MAGIC), regs::MAGIC_VALUE);
            }
            Err(errno) => panic!("{errno}"),
        }
    }
    assert_eq!(refused, 100, "the server reads without end");
    slow.stream.set_nonblocking(false).unwrap();
    for _ in 0..asked {
        let reply = slow.reply().unwrap();
        assert_eq!((reply.header.error, reply.payload.len()), (0, 16 + 32768));
    }
    assert_eq!(slow.register(regs::MAGIC), regs::MAGIC_VALUE);
}

#[test]
fn a_reader_that_never_reads_can_go_at_any_time() {
    let cluster = Cluster::start();
    for n in [1, 10, 100] {
        let mut client = cluster.client();
        let command = read_command(&mut client, 2, 60_000);
        client.stream.set_nonblocking(true).unwrap();
        for _ in 0..n {
            // A full socket is as good as a message here.
            let _ = client.send(&command, &[]);
        }
    }
    let functions = || cluster.counters().functions;
    super::harness::eventually("all detached", functions, |&n| n == 0);
}
