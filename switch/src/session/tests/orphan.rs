//! Written data survives the death of its writer: every accepted byte arrives, then the right end.

use proptest::prelude::*;

use super::stream::short_ring;
use super::world::{DoubleWorld, World, pattern, read_to_end, recv, send, send_all, settle};
use crate::session::{CloseStep, ConnOptions, How};

/// A writer dies with a full ring; its reader has taken part of it.
pub(super) fn dead_writer(world: &impl World, len: usize, read_before: usize) {
    let (a, b) = world.pair();
    send_all(&a, &pattern(0, 0, len));
    let mut taken = 0;
    while taken < read_before {
        settle(&[&a, &b]);
        let bytes = recv(&b, (read_before - taken).min(7_777)).unwrap();
        assert!(bytes == pattern(0, taken as u64, bytes.len()));
        taken += bytes.len();
    }
    world.orphan(&a);
    let (bytes, end) = read_to_end(&b, None);
    assert_eq!(bytes.len(), len - taken);
    assert!(bytes == pattern(0, taken as u64, len - taken));
    assert_eq!(end, 0, "the peer had taken all we sent: nothing");
    assert_eq!(send(&b, b"x"), Err(libc::EPIPE));
    assert_eq!(b.close(None), CloseStep::Closed);
}

#[test]
fn r216_every_byte_of_a_dead_writer_arrives() {
    for (len, before) in [
        (0, 0),
        (1, 0),
        (1, 1),
        (100_000, 0),
        (1_000_000, 0),
        (1_000_000, 333_333),
        (900_000, 900_000),
    ] {
        dead_writer(&DoubleWorld::new(), len, before);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Rings that have wrapped, short rings on the reading side, any amount read before: nothing is lost or doubled.
    #[test]
    fn bytes_of_a_dead_writer_arrive_through_wrapped_rings(
        rounds in proptest::collection::vec((1_usize..60_000, 0_usize..60_000), 1..12),
        short_reader in any::<bool>(),
    ) {
        let world = DoubleWorld::new();
        let reader = if short_reader { short_ring() } else { ConnOptions::default() };
        let writer = ConnOptions { send_buffer: 200_000, ring: 128 * 1024, ..ConnOptions::default() };
        let (a, b) = world.pair_with(writer, reader);
        let (mut sent, mut taken) = (0_u64, 0_u64);
        for (write, read) in rounds {
            if let Ok(n) = send(&a, &pattern(0, sent, write)) {
                sent += n as u64;
            }
            if let Ok(bytes) = recv(&b, read) {
                prop_assert_eq!(&bytes, &pattern(0, taken, bytes.len()));
                taken += bytes.len() as u64;
            }
            settle(&[&a, &b]);
        }
        world.orphan(&a);
        let (bytes, end) = read_to_end(&b, None);
        prop_assert_eq!(taken + bytes.len() as u64, sent);
        prop_assert!(bytes == pattern(0, taken, bytes.len()));
        prop_assert_eq!(end, 0);
    }
}

#[test]
fn dead_reader_with_unread_data_is_a_reset_after_its_own_data() {
    dead_reader_with_unread_data(&DoubleWorld::new());
}

pub(super) fn dead_reader_with_unread_data(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&b, b"read me");
    send_all(&a, b"never read");
    settle(&[&a, &b]);
    world.orphan(&b);
    let (bytes, end) = read_to_end(&a, None);
    assert_eq!((bytes.as_slice(), end), (&b"read me"[..], libc::ECONNRESET));
    assert_eq!(recv(&a, 1).unwrap(), b"");
    assert_eq!(send(&a, b"x"), Err(libc::EPIPE));
}

#[test]
fn dead_reader_that_had_taken_everything_is_an_end() {
    dead_reader_that_had_taken_everything(&DoubleWorld::new());
}

pub(super) fn dead_reader_that_had_taken_everything(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&a, b"question");
    settle(&[&b]);
    assert_eq!(recv(&b, 100).unwrap(), b"question");
    send_all(&b, b"answer");
    world.orphan(&b);
    assert_eq!(read_to_end(&a, None), (b"answer".to_vec(), 0));
}

#[test]
fn dead_peer_after_its_fin_is_an_end_for_the_reader_and_epipe_for_the_writer() {
    dead_after_fin(&DoubleWorld::new());
}

pub(super) fn dead_after_fin(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&b, b"done");
    b.shutdown(How::Write).unwrap();
    settle(&[&a, &b]);
    send_all(&a, b"unread");
    settle(&[&a, &b]);
    world.orphan(&b);
    assert_eq!(read_to_end(&a, None), (b"done".to_vec(), 0));
    settle(&[&a]);
    assert_eq!(a.take_error(), Some(libc::EPIPE));
    assert_eq!(send(&a, b"x"), Err(libc::EPIPE));
}

#[test]
fn sends_held_at_the_dead_peer_do_not_stop_the_pull() {
    sends_held_at_the_dead_peer(&DoubleWorld::new());
}

pub(super) fn sends_held_at_the_dead_peer(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&b, &pattern(1, 0, 400_000));
    // Fills the dead peer's receives and leaves more in our ring.
    send_all(&a, &pattern(0, 0, 900_000));
    settle(&[&a, &b]);
    world.orphan(&b);
    let (bytes, end) = read_to_end(&a, None);
    assert!(bytes == pattern(1, 0, 400_000));
    assert_eq!(end, libc::ECONNRESET);
}

#[test]
fn fin_that_was_never_sent_is_found_in_the_head() {
    fin_found_in_the_head(&DoubleWorld::new());
}

pub(super) fn fin_found_in_the_head(world: &impl World) {
    let (a, b) = world.pair();
    send_all(&a, b"unread, so the end is not clean");
    settle(&[&a, &b]);
    send_all(&b, &pattern(1, 0, 900_000));
    b.shutdown(How::Write).unwrap();
    world.orphan(&b);
    let (bytes, end) = read_to_end(&a, None);
    assert!(bytes == pattern(1, 0, 900_000));
    assert_eq!(end, 0);
}

#[test]
fn emulator_that_dies_during_the_pull_is_a_reset_after_what_was_pulled() {
    let world = DoubleWorld::new();
    let (a, b) = world.pair();
    send_all(&b, &pattern(1, 0, 700_000));
    settle(&[&a, &b]);
    let here = a.readable_bytes();
    world.orphan(&b);
    world.die();
    let (bytes, end) = read_to_end(&a, None);
    assert!(bytes.len() >= here && bytes.len() < 700_000);
    assert!(bytes == pattern(1, 0, bytes.len()));
    assert_eq!(end, libc::ECONNRESET);
}

#[test]
fn head_that_lies_is_a_reset() {
    for lie in [u64::MAX, 0, 1 << 40] {
        let world = DoubleWorld::new();
        let (a, b) = world.pair();
        send_all(&b, b"truth");
        settle(&[&a, &b]);
        world.orphan(&b);
        b.forge_accepted(lie);
        let (bytes, end) = read_to_end(&a, None);
        assert_eq!((bytes.as_slice(), end), (&b"truth"[..], libc::ECONNRESET));
    }
}
