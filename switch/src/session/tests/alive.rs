//! Probes of an idle peer, in virtual time over the emulated NIC: the service thread's calls, made by the test at the times they ask for.

use std::sync::Arc;

use super::nic::NicWorld;
use super::world::{World as _, recv, send, settle};
use crate::session::{Conn, KeepAlive, Phase};

const SECOND_NS: u64 = 1_000_000_000;
const TIMES: KeepAlive = KeepAlive {
    idle_s: 20,
    interval_s: 5,
    count: 3,
};

/// What the service thread does for one connection, with its clock.
struct Watch<'a> {
    world: &'a NicWorld,
    conn: Arc<Conn>,
    now_ns: u64,
    looks: u32,
}

impl<'a> Watch<'a> {
    fn new(world: &'a NicWorld, conn: &Arc<Conn>) -> Self {
        conn.set_keep_alive(Some(TIMES));
        Self {
            world,
            conn: Arc::clone(conn),
            now_ns: SECOND_NS,
            looks: 0,
        }
    }

    /// Lets this much time pass, or less if the connection ends.
    fn seconds(&mut self, seconds: u64) {
        let end = self.now_ns + seconds * SECOND_NS;
        while self.conn.phase() == Phase::Established {
            let next = self.conn.keep_alive(self.now_ns).min(end);
            self.looks += 1;
            if self.now_ns == end || self.conn.phase() != Phase::Established {
                return;
            }
            self.world.pass(next - self.now_ns);
            self.now_ns = next;
        }
    }

    fn elapsed_s(&self) -> u64 {
        self.now_ns / SECOND_NS - 1
    }
}

#[test]
fn a_healthy_idle_peer_is_left_alone() {
    let world = NicWorld::new();
    let (a, b) = world.pair();
    let mut watch = Watch::new(&world, &a);
    watch.seconds(3600);
    assert_eq!(watch.conn.phase(), Phase::Established);
    // Four looks in the idle time and one after the probe's interval.
    assert!(watch.looks <= 3600 / 20 * 6, "{} looks", watch.looks);
    assert_eq!(send(&a, b"still"), Ok(5));
    settle(&[&a, &b]);
    assert_eq!(recv(&b, 10), Ok(b"still".to_vec()));
}

#[test]
fn a_peer_behind_a_cut_link_is_found_dead_after_the_last_probe() {
    let world = NicWorld::new();
    let (a, b) = world.pair();
    let mut watch = Watch::new(&world, &a);
    watch.seconds(1);
    world.cut(true);
    watch.seconds(1000);
    assert_eq!(a.phase(), Phase::Failed(libc::ETIMEDOUT));
    // Idle, then three intervals; a quarter of the idle time is not known better.
    let least = 20 + 3 * 5;
    assert!(
        (least..=least + 6).contains(&watch.elapsed_s()),
        "{} s",
        watch.elapsed_s()
    );
    // Who did not ask is not told.
    assert_eq!(b.phase(), Phase::Established);
}

#[test]
fn a_link_that_is_mended_in_time_is_nobodys_loss() {
    let world = NicWorld::new();
    let (a, b) = world.pair();
    let mut watch = Watch::new(&world, &a);
    for _ in 0..5 {
        world.cut(true);
        // Shorter than three intervals, wherever in the idle time it begins.
        watch.seconds(14);
        world.cut(false);
        watch.seconds(60);
    }
    assert_eq!(a.phase(), Phase::Established);
    assert_eq!(send(&b, b"back"), Ok(4));
    settle(&[&a, &b]);
    assert_eq!(recv(&a, 10), Ok(b"back".to_vec()));
}

#[test]
fn the_programs_own_limit_comes_before_the_number_of_probes() {
    let world = NicWorld::new();
    let (a, _b) = world.pair();
    let mut watch = Watch::new(&world, &a);
    a.set_user_timeout(22_000);
    world.cut(true);
    watch.seconds(1000);
    assert_eq!(a.phase(), Phase::Failed(libc::ETIMEDOUT));
    assert!(watch.elapsed_s() < 20 + 2 * 5, "{} s", watch.elapsed_s());
}

#[test]
fn what_is_on_its_way_is_not_ended_by_probes() {
    let world = NicWorld::new();
    let (a, _b) = world.pair();
    let mut watch = Watch::new(&world, &a);
    world.cut(true);
    assert_eq!(send(&a, b"on its way"), Ok(10));
    settle(&[&a]);
    watch.seconds(600);
    assert_eq!(a.phase(), Phase::Established);
}

#[test]
fn a_sleeper_looks_again_when_the_patience_with_what_is_on_its_way_ends() {
    let world = NicWorld::new();
    let (a, b) = world.pair();
    assert_eq!(a.patience_left_ns(), None);
    world.cut(true);
    assert_eq!(send(&a, b"on its way"), Ok(10));
    // The kernel's 15 minutes, as long as the program says nothing.
    let left = a.patience_left_ns();
    assert!(
        left.is_some_and(|ns| (900 * SECOND_NS..925 * SECOND_NS).contains(&ns)),
        "{left:?}"
    );
    a.set_user_timeout(1);
    while a.phase() == Phase::Established {
        let left = a.patience_left_ns();
        assert!(left.is_some_and(|ns| ns <= 1_000_000), "{left:?}");
        std::thread::yield_now();
    }
    assert_eq!(a.phase(), Phase::Failed(libc::ETIMEDOUT));
    assert_eq!(b.patience_left_ns(), None);
}

#[test]
fn switched_off_nobody_is_probed() {
    let world = NicWorld::new();
    let (a, _b) = world.pair();
    let mut watch = Watch::new(&world, &a);
    watch.seconds(19);
    a.set_keep_alive(None);
    world.cut(true);
    assert_eq!(a.keep_alive(u64::MAX / 2), u64::MAX);
    assert_eq!(a.phase(), Phase::Established);
}
