//! Index arithmetic and rings against plain queues, from any start position.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "makes a ring view over private memory")]

use std::collections::VecDeque;
use std::ptr::NonNull;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use ring_proto::index::Depth;
use ring_proto::shared::Ring;

/// Positions of all kinds, every second one so near to 2^32 that a test runs across it.
fn position() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (0..64_u32).prop_map(|back| u32::MAX - back),
        (0..64_u32).prop_map(|back| (u32::MAX / 2).wrapping_add(32).wrapping_sub(back)),
        Just(0),
    ]
}

fn depth(most: u32) -> impl Strategy<Value = Depth> {
    (0..=most).prop_map(|log| Depth::new(1 << log).expect("a power of two"))
}

/// What writer or reader does next, in entries.
#[derive(Clone, Copy, Debug)]
enum Step {
    Produce(u32),
    Consume(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(
        prop_oneof![
            (0..20_u32).prop_map(Step::Produce),
            (0..20_u32).prop_map(Step::Consume),
        ],
        0..200,
    )
}

proptest! {
    #[test]
    fn depth_takes_powers_of_two_only(entries in any::<u32>()) {
        prop_assert_eq!(Depth::new(entries).is_some(), entries.count_ones() == 1);
    }

    #[test]
    fn index_counts_like_a_queue(start in position(), depth in depth(5), steps in steps()) {
        let mut oracle = VecDeque::new();
        // Entry number since the start, which names its place and its lap without any wrapping.
        let origin = u64::from(start);
        let mut produced = 0_u64;
        let (mut producer, mut consumer) = (start, start);
        for step in steps {
            match step {
                Step::Produce(wanted) => {
                    let room = depth.free(producer, consumer);
                    prop_assert_eq!(room as usize, depth.entries() as usize - oracle.len());
                    for _ in 0..wanted.min(room) {
                        let place = (origin + produced) % u64::from(depth.entries());
                        prop_assert_eq!(u64::from(depth.index(producer)), place);
                        prop_assert_eq!(u64::from(depth.until_end(producer)), u64::from(depth.entries()) - place);
                        oracle.push_back(producer);
                        producer = producer.wrapping_add(1);
                        produced += 1;
                    }
                }
                Step::Consume(wanted) => {
                    prop_assert!(depth.accepts_producer(producer, consumer, consumer));
                    let used = depth.used(producer, consumer);
                    prop_assert_eq!(used as usize, oracle.len());
                    for _ in 0..wanted.min(used) {
                        prop_assert_eq!(oracle.pop_front(), Some(consumer));
                        consumer = consumer.wrapping_add(1);
                    }
                }
            }
        }
    }

    #[test]
    fn phase_changes_with_every_lap_and_is_never_zero(position in position(), log in 0..32_u32, within in any::<u32>()) {
        let depth = Depth::new(1 << log).unwrap();
        let first = position & !(depth.entries() - 1);
        let other = first | (within & (depth.entries() - 1));
        prop_assert_eq!(depth.phase(position), depth.phase(other));
        prop_assert!(depth.phase(position) == 1 || depth.phase(position) == 2);
        if log < 31 {
            prop_assert!(depth.phase(position) != depth.phase(position.wrapping_add(depth.entries())));
        }
    }

    #[test]
    fn a_claimed_producer_lies_between_ours_and_one_depth_ahead(
        consumer in position(),
        depth in depth(16),
        known in any::<u32>(),
        claimed in prop_oneof![any::<u32>(), 0..200_000_u32],
    ) {
        // Both as distances from the consumer; `claimed` is what a lying peer may write.
        let known = known % (depth.entries() + 1);
        let accepted = depth.accepts_producer(consumer.wrapping_add(claimed), consumer.wrapping_add(known), consumer);
        prop_assert_eq!(accepted, (known..=depth.entries()).contains(&claimed));
    }

    #[test]
    fn contradicting_indices_leave_no_room(consumer in position(), depth in depth(16), claimed in any::<u32>()) {
        let free = depth.free(consumer.wrapping_add(claimed), consumer);
        prop_assert_eq!(free, depth.entries() - claimed.min(depth.entries()));
    }

    #[test]
    fn posted_ring_hands_on_what_was_written(start in position(), depth in depth(4), steps in steps()) {
        posted::<2>(start, depth, &steps)?;
        posted::<8>(start, depth, &steps)?;
    }

    #[test]
    fn published_ring_hands_on_what_was_written(start in position(), depth in depth(4), steps in steps()) {
        published::<2>(start, depth, &steps)?;
        published::<4>(start, depth, &steps)?;
    }
}

/// A ring over memory of its own.
struct Own<const WORDS: usize> {
    ring: Ring<WORDS>,
    memory: Box<[u64]>,
}

fn own<const WORDS: usize>(depth: Depth) -> Own<WORDS> {
    let mut memory = vec![0_u64; depth.entries() as usize * WORDS].into_boxed_slice();
    assert_eq!(Ring::<WORDS>::bytes(depth), size_of_val(&*memory) as u64);
    let base = NonNull::new(memory.as_mut_ptr()).expect("a box is never null");
    // SAFETY: 1. `base` points to depth * WORDS aligned words that live as long as the view, beside it in `Own`.
    //         2. Nothing but the ring touches the memory until `Own::memory` is read after the last use of the ring.
    let ring = unsafe { Ring::new(base, depth) };
    Own { ring, memory }
}

fn element<const WORDS: usize>(serial: u64) -> [u64; WORDS] {
    let mut words = [serial; WORDS];
    for (shift, word) in (0..).step_by(8).zip(&mut words) {
        *word = serial
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(shift);
    }
    words
}

type Tested = Result<(), proptest::test_runner::TestCaseError>;

fn posted<const WORDS: usize>(start: u32, depth: Depth, steps: &[Step]) -> Tested {
    let own = own::<WORDS>(depth);
    let (mut producer, mut consumer) = (start, start);
    let mut oracle = VecDeque::new();
    let mut serial = 0;
    for &step in steps {
        match step {
            Step::Produce(wanted) => {
                for _ in 0..wanted.min(depth.free(producer, consumer)) {
                    serial += 1;
                    own.ring.write(producer, &element(serial));
                    oracle.push_back(element::<WORDS>(serial));
                    producer = producer.wrapping_add(1);
                }
            }
            Step::Consume(wanted) => {
                for _ in 0..wanted.min(depth.used(producer, consumer)) {
                    prop_assert_eq!(Some(own.ring.snapshot(consumer)), oracle.pop_front());
                    consumer = consumer.wrapping_add(1);
                }
            }
        }
    }
    // Bytes lie where the layout says: element by element, word by word.
    for position in (0..depth.used(producer, consumer)).map(|i| consumer.wrapping_add(i)) {
        let at = depth.index(position) as usize * WORDS;
        prop_assert_eq!(
            &own.memory[at..at + WORDS],
            &oracle.pop_front().expect("as many as used")[..]
        );
    }
    Ok(())
}

fn published<const WORDS: usize>(start: u32, depth: Depth, steps: &[Step]) -> Tested {
    let own = own::<WORDS>(depth);
    // A ring is used from its first lap on; for other starts the laps before have left their phases behind.
    if start >= depth.entries() {
        for i in 1..=depth.entries() {
            let before = start.wrapping_sub(i);
            let mut words = element::<WORDS>(u64::from(i));
            words[WORDS - 1] = u64::from(depth.phase(before)) << 56;
            own.ring.publish(before, &words);
        }
    }
    let (mut producer, mut consumer) = (start, start);
    let mut oracle = VecDeque::new();
    let mut serial = 0;
    for &step in steps {
        match step {
            Step::Produce(wanted) => {
                for _ in 0..wanted.min(depth.free(producer, consumer)) {
                    serial += 1;
                    let mut words = element::<WORDS>(serial);
                    words[WORDS - 1] =
                        words[WORDS - 1] >> 8 | u64::from(depth.phase(producer)) << 56;
                    own.ring.publish(producer, &words);
                    oracle.push_back(words);
                    producer = producer.wrapping_add(1);
                }
            }
            Step::Consume(wanted) => {
                for _ in 0..wanted {
                    // The reader looks at the phase alone, without any producer.
                    let seen = own.ring.published(consumer);
                    prop_assert_eq!(seen, oracle.pop_front());
                    if seen.is_none() {
                        break;
                    }
                    consumer = consumer.wrapping_add(1);
                }
            }
        }
    }
    Ok(())
}
