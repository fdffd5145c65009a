//! Urgent data, and small sends that wait for more.

use super::world::{DoubleWorld, World, pattern, recv, recv_flags, send, send_all, settle};
use crate::outcome::Errno;
use crate::session::Conn;
use crate::session::close::How;

const PRI: u32 = libc::EPOLLPRI as u32;
const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;

fn send_flags(end: &Conn, bytes: &[u8], flags: i32) -> Result<usize, Errno> {
    let iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    end.send(&[iov], flags)
}

#[test]
fn r146_urgent_byte_is_read_beside_the_stream() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_all(&a, b"before");
    assert_eq!(send_flags(&a, b"xy!", libc::MSG_OOB), Ok(3));
    send_all(&a, b"after");
    settle(&[&a, &b]);
    assert_eq!(b.readiness() & (PRI | IN), PRI | IN);
    assert_eq!(b.inquired_bytes(), 8);
    assert_eq!(recv_flags(&b, 20, libc::MSG_PEEK).unwrap(), b"beforexy");
    assert_eq!(recv(&b, 3).unwrap(), b"bef");
    assert!(!b.is_at_mark());
    assert_eq!(recv_flags(&b, 1, libc::MSG_OOB).unwrap(), b"!");
    assert_eq!(recv_flags(&b, 1, libc::MSG_OOB), Err(libc::EINVAL));
    assert_eq!(b.readiness() & PRI, 0);
    assert_eq!(recv(&b, 20).unwrap(), b"orexy");
    assert!(b.is_at_mark());
    assert_eq!(recv(&b, 20).unwrap(), b"after");
    assert!(!b.is_at_mark());
    assert_eq!(recv(&b, 20), Err(libc::EAGAIN));
}

#[test]
fn r146_urgent_byte_in_line_stays_in_the_stream() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    b.set_urgent_in_line(true);
    send_all(&a, b"before");
    send_flags(&a, b"!", libc::MSG_OOB).unwrap();
    send_all(&a, b"after");
    settle(&[&a, &b]);
    assert_eq!(recv_flags(&b, 1, libc::MSG_OOB), Err(libc::EINVAL));
    assert_eq!(recv(&b, 20).unwrap(), b"before");
    assert!(b.is_at_mark());
    assert_eq!(recv(&b, 20).unwrap(), b"!after");
}

#[test]
fn urgent_byte_that_nobody_wants_makes_no_socket_readable() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_flags(&a, b"!", libc::MSG_OOB).unwrap();
    settle(&[&a, &b]);
    assert_eq!(b.readiness() & (PRI | IN), PRI);
    assert_eq!(recv(&b, 1), Err(libc::EAGAIN));
    assert_eq!(b.readiness() & PRI, 0);
    send_all(&a, b"x");
    settle(&[&a, &b]);
    assert_eq!(recv(&b, 5).unwrap(), b"x");
}

#[test]
fn marks_cut_messages_and_never_the_stream() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    let bytes = pattern(7, 0, 200_000);
    let mut got = Vec::new();
    for piece in bytes.chunks(7_001) {
        assert_eq!(send_flags(&a, piece, libc::MSG_OOB), Ok(piece.len()));
        b.set_urgent_in_line(true);
        while got.len() < piece.as_ptr() as usize - bytes.as_ptr() as usize + piece.len() {
            settle(&[&a, &b]);
            got.extend(recv(&b, 3_000).unwrap());
        }
    }
    assert_eq!(got, bytes);
}

#[test]
fn corked_bytes_wait_for_a_full_message_the_end_or_their_time() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    a.set_cork(true);
    send_all(&a, b"abc");
    settle(&[&a, &b]);
    assert_eq!((b.readable_bytes(), a.unposted_bytes()), (0, 3));
    assert!(a.wants_service() && a.deadline_ns() != u64::MAX);
    let full = pattern(3, 0, 16 * 1024);
    send_all(&a, &full);
    settle(&[&a, &b]);
    assert_eq!((b.readable_bytes(), a.unposted_bytes()), (16 * 1024, 3));
    a.set_cork(false);
    settle(&[&a, &b]);
    assert_eq!(b.readable_bytes(), 16 * 1024 + 3);

    assert_eq!(send_flags(&a, b"more", libc::MSG_MORE), Ok(4));
    settle(&[&a, &b]);
    assert_eq!(a.unposted_bytes(), 4);
    // Nothing else happens than that time passes.
    while a.unposted_bytes() > 0 {
        a.progress();
    }
    assert_eq!(send_flags(&a, b"more", libc::MSG_MORE), Ok(4));
    assert_eq!(send(&a, b"!"), Ok(1));
    assert_eq!(a.unposted_bytes(), 0);
    assert_eq!(send_flags(&a, b"last", libc::MSG_MORE), Ok(4));
    a.shutdown(How::Write).unwrap();
    settle(&[&a, &b]);
    assert_eq!(b.readable_bytes(), 16 * 1024 + 3 + 4 + 5 + 4);
}

#[test]
fn notices_of_zero_copy_sends_cover_ranges() {
    let world = DoubleWorld::new();
    let (a, _b) = world.pair();
    assert_eq!(a.take_notice(), None);
    a.note_zerocopy();
    assert_eq!(a.readiness() & libc::EPOLLERR as u32, libc::EPOLLERR as u32);
    assert_eq!(a.take_notice(), Some((0, 0)));
    a.note_zerocopy();
    a.note_zerocopy();
    assert_eq!(a.take_notice(), Some((1, 2)));
    assert_eq!(a.readiness() & libc::EPOLLERR as u32, 0);
}
