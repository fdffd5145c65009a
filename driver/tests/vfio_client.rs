//! The vfio-user client against a scripted device that splits, mixes up and breaks off its replies.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::thread;

use driver::sys::{self, Fd};
use driver::vfio::client::Client;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::regs;
use ring_proto::uar::BAR2_LEN;
use ring_proto::vfio::{self, Header};
use zerocopy::{FromBytes, IntoBytes};

/// The device's end.
struct Script {
    stream: Fd,
}

impl Script {
    /// Takes the next request.
    fn take(&self) -> (Header, Vec<u8>, Vec<Fd>) {
        let mut bytes = vec![0; 4096];
        let (len, fds) = sys::recv_message(self.stream.raw(), &mut bytes).unwrap();
        let (header, _) = Header::read_from_prefix(&bytes[..len]).unwrap();
        assert_eq!(header.size as usize, len, "one request in one message");
        (header, bytes[16..len].to_vec(), fds)
    }

    fn header(asked: &Header, payload: &[u8]) -> Header {
        Header {
            size: u32::try_from(16 + payload.len()).unwrap(),
            flags: vfio::FLAG_REPLY,
            ..*asked
        }
    }

    fn reply(&self, asked: &Header, payload: &[u8], fds: &[&Fd]) {
        let header = Self::header(asked, payload);
        let fds: Vec<_> = fds.iter().map(|fd| fd.raw()).collect();
        sys::send_message(self.stream.raw(), &[header.as_bytes(), payload], &fds).unwrap();
    }

    fn refuse(&self, asked: &Header, errno: u32) {
        let header = Header {
            flags: vfio::FLAG_REPLY | vfio::FLAG_ERROR,
            error: errno,
            ..Self::header(asked, &[])
        };
        sys::send_message(self.stream.raw(), &[header.as_bytes()], &[]).unwrap();
    }

    /// Plays an attach without an ioeventfd, then hands over.
    fn attach(self) -> Self {
        let (asked, version, _) = self.take();
        assert_eq!(asked.command, vfio::CMD_VERSION);
        self.reply(&asked, &version, &[]);
        let (asked, ..) = self.take();
        let info = vfio::DeviceInfo {
            argsz: 16,
            flags: vfio::DEVICE_PCI,
            num_regions: regs::NUM_REGIONS,
            num_irqs: regs::NUM_IRQS,
        };
        self.reply(&asked, info.as_bytes(), &[]);
        let (asked, ..) = self.take();
        let region = vfio::RegionInfo {
            argsz: 32,
            index: regs::REGION_BAR2,
            size: BAR2_LEN,
            ..Default::default()
        };
        let bar2 = sys::sealed_memory("bar2", BAR2_LEN).unwrap();
        self.reply(&asked, region.as_bytes(), &[&bar2]);
        let (asked, ..) = self.take();
        assert_eq!(asked.command, vfio::CMD_DEVICE_GET_REGION_IO_FDS);
        self.refuse(&asked, 22);
        self
    }
}

/// Runs a script beside a client that is attached to it.
fn attached(script: impl FnOnce(Script) + Send + 'static, work: impl FnOnce(&Client)) {
    let (ours, theirs) = sys::socket_pair(false).unwrap();
    let device = thread::spawn(|| script(Script { stream: theirs }.attach()));
    let client = Client::attach(ours).unwrap();
    work(&client);
    drop(client);
    device.join().unwrap();
}

fn read_reply(value: u32) -> Vec<u8> {
    let access = vfio::RegionAccess {
        offset: regs::STATUS,
        region: regs::REGION_BAR0,
        count: 4,
    };
    [access.as_bytes(), &value.to_le_bytes()].concat()
}

#[test]
fn replies_to_a_dead_sharer_are_dropped_with_their_descriptors() {
    attached(
        |script| {
            let (asked, ..) = script.take();
            let foreign = Header {
                message_id: asked.message_id.wrapping_sub(7),
                ..asked
            };
            let event = sys::eventfd().unwrap();
            script.reply(&foreign, &read_reply(1), &[&event]);
            script.reply(&asked, &read_reply(2), &[]);
        },
        |client| assert_eq!(client.read_register(regs::STATUS, 4), Ok(2)),
    );
}

#[test]
fn a_reply_in_pieces_is_put_together() {
    attached(
        |script| {
            let (asked, ..) = script.take();
            let payload = read_reply(7);
            let header = Script::header(&asked, &payload);
            let whole = [header.as_bytes(), &payload].concat();
            for piece in whole.chunks(5) {
                sys::send_message(script.stream.raw(), &[piece], &[]).unwrap();
                sys::yield_now();
            }
        },
        |client| assert_eq!(client.read_register(regs::STATUS, 4), Ok(7)),
    );
}

#[test]
fn a_refusal_is_an_error_with_its_errno_and_the_stream_goes_on() {
    attached(
        |script| {
            let (asked, ..) = script.take();
            script.refuse(&asked, 13);
            let (asked, ..) = script.take();
            script.reply(&asked, &read_reply(3), &[]);
        },
        |client| {
            let refused = client.write_register(regs::STATUS, 4, 1).unwrap_err();
            assert!(matches!(refused, AttachError::Refused { errno: 13, .. }));
            assert_eq!(client.read_register(regs::STATUS, 4), Ok(3));
        },
    );
}

#[test]
fn an_impossible_length_ends_the_stream_for_all() {
    for size in [0, 15, 1 << 20] {
        attached(
            move |script| {
                let (asked, ..) = script.take();
                let header = Header {
                    size,
                    flags: vfio::FLAG_REPLY,
                    ..asked
                };
                sys::send_message(script.stream.raw(), &[header.as_bytes()], &[]).unwrap();
                // The client hung up, whether or not it had read everything.
                let mut rest = [0; 16];
                let end = sys::recv_message(script.stream.raw(), &mut rest).map(|(len, _)| len);
                assert!(matches!(end, Ok(0) | Err(sys::Errno::CONNRESET)), "{end:?}");
            },
            |client| {
                let broken = client.read_register(regs::STATUS, 4).unwrap_err();
                assert!(matches!(broken, AttachError::Protocol { .. }), "{broken}");
                let gone = client.read_register(regs::STATUS, 4).unwrap_err();
                assert!(matches!(gone, AttachError::Disconnected { .. }), "{gone}");
            },
        );
    }
}

#[test]
fn a_device_that_goes_in_the_middle_of_a_reply_is_gone() {
    attached(
        |script| {
            let (asked, ..) = script.take();
            let header = Script::header(&asked, &read_reply(1));
            sys::send_message(script.stream.raw(), &[header.as_bytes(), &[1, 2]], &[]).unwrap();
        },
        |client| {
            let gone = client.read_register(regs::STATUS, 4).unwrap_err();
            assert!(matches!(gone, AttachError::Disconnected { .. }), "{gone}");
        },
    );
}

#[test]
fn short_replies_are_errors() {
    attached(
        |script| {
            let (asked, ..) = script.take();
            script.reply(&asked, &read_reply(1)[..18], &[]);
            let (asked, ..) = script.take();
            script.reply(&asked, &[], &[]);
        },
        |client| {
            for _ in 0..2 {
                let short = client.read_register(regs::STATUS, 4).unwrap_err();
                assert!(matches!(short, AttachError::Protocol { .. }), "{short}");
            }
        },
    );
}

#[test]
fn a_device_of_another_kind_is_not_attached() {
    let (ours, theirs) = sys::socket_pair(false).unwrap();
    let device = thread::spawn(|| {
        let script = Script { stream: theirs };
        let (asked, ..) = script.take();
        let version = vfio::Version { major: 9, minor: 0 };
        script.reply(&asked, version.as_bytes(), &[]);
    });
    assert!(matches!(
        Client::attach(ours),
        Err(AttachError::Protocol { .. })
    ));
    device.join().unwrap();
}
