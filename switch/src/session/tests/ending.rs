//! The ends of a connection: half close, graceful close, abort, loss of the device, and what each end is told.

use std::sync::Arc;

use ring_proto::sync::Ordering;

use super::world::{
    DoubleWorld, World, pattern, read_to_end, recv, recv_flags, send, send_all, settle,
};
use crate::session::{CloseStep, Conn, How, Phase, Role};

/// Half close: the peer gets all data, then the end, and may go on sending.
pub(super) fn half_close(world: &impl World) {
    const LEN: usize = 600_000;
    let (a, b) = world.pair();
    send_all(&a, &pattern(0, 0, LEN));
    a.shutdown(How::Write).unwrap();
    assert_eq!(send(&a, b"x"), Err(libc::EPIPE));
    let (bytes, end) = read_to_end(&b, Some(&a));
    assert!(bytes == pattern(0, 0, LEN));
    assert_eq!(end, 0);
    assert_eq!(recv(&b, 1).unwrap(), b"", "the end of the stream stays");
    send_all(&b, b"still here");
    settle(&[&a, &b]);
    assert_eq!(recv(&a, 100).unwrap(), b"still here");
    b.shutdown(How::Write).unwrap();
    settle(&[&a, &b]);
    assert_eq!(recv(&a, 100).unwrap(), b"");
    assert_eq!(a.shutdown(How::Write), Err(libc::ENOTCONN));
    settle(&[&a, &b]);
    assert_eq!(a.close(None), CloseStep::Closed);
    assert_eq!(b.close(None), CloseStep::Closed);
    assert_eq!(a.phase(), Phase::Closed);
}

#[test]
fn r182_half_close_delivers_everything_and_leaves_the_other_direction() {
    half_close(&DoubleWorld::new());
}

/// Close with data that has not been sent: it arrives, then the end.
pub(super) fn close_with_unsent_data(world: &impl World) {
    const LEN: usize = 1_000_000;
    let (a, b) = world.pair();
    send_all(&a, &pattern(0, 0, LEN));
    assert!(a.unsent_bytes() > 0);
    assert_eq!(a.close(None), CloseStep::Draining);
    assert!(a.wants_service() && !a.is_drained());
    let (bytes, end) = read_to_end(&b, Some(&a));
    assert!(bytes == pattern(0, 0, LEN));
    assert_eq!(end, 0);
    settle(&[&a]);
    assert!(a.is_drained());
    assert_eq!(a.phase(), Phase::Established, "waits for the peer's FIN");
    b.close(None);
    settle(&[&a, &b]);
    assert_eq!((a.phase(), b.phase()), (Phase::Closed, Phase::Closed));
    assert!(!a.wants_service() && !b.wants_service());
}

/// A fork between the end of a connection and the end of its value: parent and child both freed the buffers, which then served two
/// connections at once.
#[test]
fn regression_a_child_of_a_fork_does_not_free_what_its_parent_closed() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    a.close(None);
    b.close(None);
    settle(&[&a, &b]);
    assert_eq!((a.phase(), b.phase()), (Phase::Closed, Phase::Closed));
    let before = world.fabric.allocated();
    assert_ne!(before, 0);
    let parent = world.fabric.self_id.swap(77, Ordering::Relaxed);
    drop(a);
    assert_eq!(world.fabric.allocated(), before, "in the child");
    world.fabric.self_id.store(parent, Ordering::Relaxed);
    drop(b);
    assert!(world.fabric.allocated() < before, "in the parent");
}

#[test]
fn r184_close_with_unsent_data_drains_in_the_background() {
    let world = DoubleWorld::new();
    close_with_unsent_data(&world);
    assert_eq!(world.fabric.allocated(), 0, "all memory came back");
}

/// Both close at once.
pub(super) fn close_from_both_sides(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&a, b"bye");
    settle(&[&b]);
    assert_eq!(recv(&b, 9).unwrap(), b"bye");
    a.close(None);
    b.close(None);
    settle(&[&a, &b]);
    assert_eq!((a.phase(), b.phase()), (Phase::Closed, Phase::Closed));
}

#[test]
fn close_from_both_sides_finishes_both() {
    close_from_both_sides(&DoubleWorld::new());
}

/// Unread data at close: the peer reads what was sent before, then ECONNRESET once, then 0, and EPIPE for sends.
pub(super) fn close_with_unread_data(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&a, b"never read");
    send_all(&b, b"answer");
    settle(&[&a, &b]);
    b.close(None);
    settle(&[&a, &b]);
    assert_eq!(b.phase(), Phase::Closed);
    told_of_reset(&a, b"answer");
}

fn told_of_reset(a: &Arc<Conn>, data: &[u8]) {
    let (bytes, end) = read_to_end(a, None);
    assert_eq!((bytes.as_slice(), end), (data, libc::ECONNRESET));
    assert_eq!(recv(a, 1).unwrap(), b"");
    assert_eq!(send(a, b"x"), Err(libc::EPIPE));
    assert_eq!(a.take_error(), None);
    assert_eq!(a.close(None), CloseStep::Closed);
}

#[test]
fn r185_unread_data_at_close_aborts_and_the_peer_reads_what_came_before() {
    close_with_unread_data(&DoubleWorld::new());
}

/// Linger 0: abort; what was posted arrives.
pub(super) fn linger_zero(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&b, b"before");
    settle(&[&a, &b]);
    b.close(Some(0));
    settle(&[&a, &b]);
    assert_eq!(b.phase(), Phase::Closed);
    told_of_reset(&a, b"before");
}

#[test]
fn r185_linger_zero_aborts() {
    linger_zero(&DoubleWorld::new());
}

#[test]
fn send_reports_the_reset_first_and_then_broken_pipe() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    b.abort();
    settle(&[&a, &b]);
    assert_eq!(send(&a, b"x"), Err(libc::ECONNRESET));
    assert_eq!(send(&a, b"x"), Err(libc::EPIPE));
    assert_eq!(recv(&a, 1).unwrap(), b"");
}

#[test]
fn so_error_takes_the_reset() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    b.abort();
    settle(&[&a, &b]);
    assert_eq!(a.phase(), Phase::Failed(libc::ECONNRESET));
    assert_eq!(a.take_error(), Some(libc::ECONNRESET));
    assert_eq!(a.take_error(), None);
    assert_eq!(recv(&a, 1).unwrap(), b"");
}

/// FIN, then reset: the reader sees the end, the writer EPIPE.
pub(super) fn fin_then_reset(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&b, b"last words");
    b.shutdown(How::Write).unwrap();
    settle(&[&a, &b]);
    send_all(&a, b"unread");
    settle(&[&a, &b]);
    b.close(None);
    settle(&[&a, &b]);
    assert_eq!(recv(&a, 100).unwrap(), b"last words");
    assert_eq!(recv(&a, 100).unwrap(), b"");
    assert_eq!(send(&a, b"x"), Err(libc::EPIPE));
}

#[test]
fn fin_then_reset_is_end_of_stream_for_the_reader_and_epipe_for_the_writer() {
    fin_then_reset(&DoubleWorld::new());
}

#[test]
fn data_after_the_close_aborts_the_sender() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    assert_eq!(b.close(None), CloseStep::Draining);
    settle(&[&a, &b]);
    assert_eq!(recv(&a, 1).unwrap(), b"");
    send_all(&a, b"too late");
    settle(&[&a, &b]);
    assert_eq!(b.phase(), Phase::Closed);
    assert_eq!(send(&a, b"x"), Err(libc::EPIPE));
}

#[test]
fn peer_that_vanishes_after_its_fin_leaves_an_orderly_end() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    b.close(None);
    settle(&[&a, &b]);
    // The peer's wait for our FIN is over.
    world.fabric.end(b.sp());
    settle(&[&a]);
    assert_eq!(recv(&a, 1).unwrap(), b"");
    assert_eq!(a.take_error(), None);
    assert_eq!(a.close(None), CloseStep::Closed);
}

#[test]
fn r183_read_shutdown_is_local_and_later_data_is_still_readable() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_all(&a, b"one");
    settle(&[&b]);
    b.shutdown(How::Read).unwrap();
    assert_eq!(recv(&b, 100).unwrap(), b"one");
    assert_eq!(recv(&b, 100).unwrap(), b"");
    send_all(&a, b"two");
    settle(&[&b]);
    assert_eq!(recv(&b, 100).unwrap(), b"two");
    assert_eq!(recv(&b, 100).unwrap(), b"");
    assert_eq!(a.take_error(), None);
}

/// Death of the device: local data first, then ECONNRESET, and never an end of stream that nobody announced.
pub(super) fn death_of_the_device(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&a, b"local already");
    settle(&[&a, &b]);
    world.die();
    settle(&[&a, &b]);
    let (bytes, end) = read_to_end(&b, None);
    assert_eq!(
        (bytes.as_slice(), end),
        (&b"local already"[..], libc::ECONNRESET)
    );
    assert_eq!(recv(&a, 1), Err(libc::ECONNRESET));
    assert_eq!(send(&a, b"x"), Err(libc::EPIPE));
    assert_eq!(a.close(None), CloseStep::Closed);
    assert_eq!(b.close(None), CloseStep::Closed);
}

#[test]
fn r195_death_of_the_device_is_reset_after_the_local_data() {
    death_of_the_device(&DoubleWorld::new());
}

#[test]
fn r195_death_of_the_device_after_fin_is_the_end_of_the_stream() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_all(&a, b"all");
    a.shutdown(How::Write).unwrap();
    settle(&[&a, &b]);
    world.die();
    settle(&[&a, &b]);
    assert_eq!(recv(&b, 9).unwrap(), b"all");
    assert_eq!(recv(&b, 9).unwrap(), b"");
    assert_eq!(recv(&b, 9).unwrap(), b"");
}

#[test]
fn closed_before_the_negotiation_is_over() {
    let world = DoubleWorld::new();
    let (a, theirs) = world.end(Role::Active);
    assert_eq!(a.phase(), Phase::Negotiating);
    assert_eq!(send(&a, b"x"), Err(libc::EAGAIN));
    assert_eq!(recv(&a, 1), Err(libc::EAGAIN));
    assert_eq!(a.readiness(), 0);
    assert_eq!(a.shutdown(How::Write), Err(libc::ENOTCONN));
    assert!(a.wants_service() && a.deadline_ns() != u64::MAX);
    let sp = a.sp();
    assert_eq!(a.close(None), CloseStep::Closed);
    drop(a);
    assert!(world.fabric.is_closed(sp));
    assert!(!world.fabric.is_closed(theirs));
    assert_eq!(world.fabric.allocated(), 0);
}

#[test]
fn waitall_knows_when_no_more_can_come() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_all(&a, b"abc");
    settle(&[&b]);
    assert_eq!(recv_flags(&b, 10, libc::MSG_WAITALL).unwrap(), b"abc");
    assert!(!b.is_final());
    a.shutdown(How::Write).unwrap();
    settle(&[&a, &b]);
    assert!(b.is_final());
}
