//! One direction of a link: what it does to a packet, and the table that those share who put packets on links.
//!
//! Place: the device puts RDMA packets on a direction, the wire of namespace mode puts Ethernet frames on the very same one; both ask
//! [`Model::admit`]. Invariants: a direction exists once, so what shares a link shares its bandwidth, its order and its counters; what a packet
//! meets depends on the seed, the direction and the packets before it alone. No clock and no queue inside: the caller says what time it is and
//! keeps the packets until they arrive. A lock is held for one packet's draws, never across a wait.
//! Source: ours, after tc-netem by name. Hot: nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring_proto::ids::NodeId;

use super::random::Random;
use super::{Distribution, LinkCounters, LinkParameters};
use crate::capture::record;
use crate::device::fault::Fate;

/// One direction.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) parameters: LinkParameters,
    pub(crate) counters: LinkCounters,
    random: Random,
    /// Of bursts and of jitter that is not even: they do not shift what the other parameters draw.
    more_random: Random,
    /// A burst of losses is under way.
    is_in_burst: bool,
    /// When the wire is free again.
    busy_until_ns: u64,
    /// Arrival of the latest packet that was not held back.
    latest_ns: u64,
    /// A port at either end is down.
    is_port_down: bool,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passage {
    /// It never arrives.
    Lost {
        /// Nothing does.
        is_cut: bool,
    },
    /// It arrives.
    Arrives {
        /// When.
        at_ns: u64,
        /// Later than others behind it.
        is_held: bool,
        /// Twice.
        is_doubled: bool,
        /// With one bit flipped: the draw that says which.
        flip: Option<u64>,
    },
}

impl Passage {
    /// The bits by which captures tell of it.
    pub(crate) fn as_captured(self) -> u8 {
        match self {
            Self::Lost { is_cut: true } => record::CUT,
            Self::Lost { is_cut: false } => record::LOST,
            Self::Arrives {
                is_held,
                is_doubled,
                flip,
                ..
            } => {
                let fates = [
                    (is_held, record::HELD),
                    (is_doubled, record::DOUBLED),
                    (flip.is_some(), record::DAMAGED),
                ];
                let met = fates.into_iter().filter(|(is_met, _)| *is_met);
                met.fold(0, |bits, (_, bit)| bits | bit)
            }
        }
    }
}

/// What a packet meets besides the link's own parameters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Circumstances {
    /// Faults on purpose.
    pub(crate) fate: Fate,
    /// Longest time that packets wait for the wire where the link tells no length of its queue; those that would wait longer are dropped.
    pub(crate) queue_ns: Option<u64>,
}

impl Model {
    fn new(seed: u64, from: NodeId, to: NodeId) -> Self {
        Self {
            parameters: LinkParameters::default(),
            counters: LinkCounters::default(),
            random: generator(seed, from, to),
            more_random: generator(!seed, from, to),
            is_in_burst: false,
            busy_until_ns: 0,
            latest_ns: 0,
            is_port_down: false,
        }
    }

    /// Whether nothing passes.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_port_down || !self.parameters.up
    }

    /// When the wire is free again.
    pub(crate) fn busy_until_ns(&self) -> u64 {
        self.busy_until_ns
    }

    /// Puts a packet of `len_bytes` on the direction.
    pub(crate) fn admit(&mut self, now_ns: u64, len_bytes: usize, met: Circumstances) -> Passage {
        let Circumstances { fate, queue_ns } = met;
        let parameters = self.parameters;
        self.counters.sent += 1;
        // The same draws for every packet, whatever becomes of it.
        let is_lost = self.loses() | fate.is_lost;
        let is_held = self.random.hits(parameters.reorder_ppm);
        let is_doubled = self.random.hits(parameters.duplicate_ppm) | fate.is_doubled;
        let is_corrupt = self.random.hits(parameters.corrupt_ppm) | fate.is_corrupt;
        let jitter_ns = self.extra_ns();
        let held_ns = self.random.up_to(parameters.reorder_ns);
        let flip = self.random.next();
        let start_ns = self.busy_until_ns.max(now_ns);
        if self.is_full(start_ns - now_ns, len_bytes, queue_ns) {
            self.counters.lost += 1;
            self.counters.dropped += 1;
            return Passage::Lost { is_cut: false };
        }
        let bits = (len_bytes as u64).saturating_mul(8);
        let wire_ns = bits
            .saturating_mul(1_000_000_000)
            .checked_div(parameters.bandwidth_bps)
            .unwrap_or(0);
        self.busy_until_ns = start_ns.saturating_add(wire_ns);
        if is_lost || self.is_cut() {
            self.counters.lost += 1;
            return Passage::Lost {
                is_cut: self.is_cut(),
            };
        }
        let on_way_ns = parameters.latency_ns.saturating_add(jitter_ns);
        let in_order_ns = self
            .busy_until_ns
            .saturating_add(on_way_ns)
            .max(self.latest_ns);
        let at_ns = if is_held {
            self.counters.reordered += 1;
            in_order_ns.saturating_add(held_ns)
        } else {
            self.latest_ns = in_order_ns;
            in_order_ns
        };
        if is_doubled {
            self.counters.duplicated += 1;
        }
        Passage::Arrives {
            at_ns: at_ns.saturating_add(fate.delay_ns),
            is_held,
            is_doubled,
            flip: is_corrupt.then_some(flip),
        }
    }

    /// Whether a packet that would wait for the wire finds no room: tail drop. What waits is told by how long the wire will be busy, the rest
    /// of the packet on it included; a packet that finds the wire free needs no room.
    fn is_full(&self, wait_ns: u64, len_bytes: usize, queue_ns: Option<u64>) -> bool {
        let LinkParameters {
            bandwidth_bps,
            queue_bytes,
            ..
        } = self.parameters;
        if queue_bytes == 0 {
            return queue_ns.is_some_and(|most| wait_ns > most);
        }
        if wait_ns == 0 || bandwidth_bps == 0 {
            return false;
        }
        let waiting = u128::from(wait_ns) * u128::from(bandwidth_bps) / 8_000_000_000;
        waiting + len_bytes as u128 > u128::from(queue_bytes)
    }

    /// Whether the next packet is lost: one draw, and two more where losses come in bursts.
    fn loses(&mut self) -> bool {
        let parameters = self.parameters;
        let is_lost = self.random.hits(parameters.loss_ppm);
        if parameters.burst_enter_ppm == 0 {
            self.is_in_burst = false;
            return is_lost;
        }
        let turn_ppm = if self.is_in_burst {
            parameters.burst_leave_ppm
        } else {
            parameters.burst_enter_ppm
        };
        self.is_in_burst ^= self.more_random.hits(turn_ppm);
        let is_lost_in_burst = self.more_random.hits(parameters.burst_loss_ppm);
        if self.is_in_burst {
            is_lost_in_burst
        } else {
            is_lost
        }
    }

    /// Extra time of the next packet.
    fn extra_ns(&mut self) -> u64 {
        let most = self.parameters.jitter_ns;
        let even = self.random.up_to(most);
        match self.parameters.jitter_distribution {
            Distribution::Uniform => even,
            other => other.draw(&mut self.more_random, most),
        }
    }

    /// Puts a message of the connection manager on the direction; when it arrives, or `None` when it is lost.
    pub(crate) fn admit_notice(&mut self, now_ns: u64) -> Option<u64> {
        let parameters = self.parameters;
        self.counters.sent += 1;
        let is_lost = self.loses();
        // Found by its check.
        let is_corrupt = self.random.hits(parameters.corrupt_ppm);
        let jitter_ns = self.extra_ns();
        if is_lost || is_corrupt || self.is_cut() {
            self.counters.lost += 1;
            return None;
        }
        self.counters.delivered += 1;
        let on_way_ns = parameters.latency_ns.saturating_add(jitter_ns);
        let start_ns = self.busy_until_ns.max(now_ns);
        Some(start_ns.saturating_add(on_way_ns))
    }
}

fn generator(seed: u64, from: NodeId, to: NodeId) -> Random {
    let direction = u64::from(from.0) << 16 | u64::from(to.0);
    let mut mixed = Random::new(seed ^ direction.wrapping_mul(0xd6e8_feb8_6659_fd93));
    Random::new(mixed.next())
}

/// A direction that several users hold.
#[derive(Clone, Debug)]
pub(crate) struct Direction(Arc<Mutex<Model>>);

impl Direction {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Model> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All directions of a cluster's links, and which ports are down: one table for the device and the wire.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkTable(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    seed: u64,
    all: HashMap<(NodeId, NodeId), Direction>,
    /// Nodes whose port is down.
    down: HashSet<NodeId>,
}

impl LinkTable {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // As above.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A direction; made when it is not there.
    pub(crate) fn direction(&self, from: NodeId, to: NodeId) -> Direction {
        let mut table = self.lock();
        let Table { seed, all, down } = &mut *table;
        let made = || {
            let mut model = Model::new(*seed, from, to);
            model.is_port_down = down.contains(&from) || down.contains(&to);
            Direction(Arc::new(Mutex::new(model)))
        };
        all.entry((from, to)).or_insert_with(made).clone()
    }

    /// Takes the port of a node down or up, for all its directions.
    pub(crate) fn set_port(&self, node: NodeId, is_up: bool) {
        let mut table = self.lock();
        if is_up {
            table.down.remove(&node);
        } else {
            table.down.insert(node);
        }
        for ((from, to), direction) in &table.all {
            direction.lock().is_port_down = table.down.contains(from) || table.down.contains(to);
        }
    }

    /// A direction that somebody has used or changed.
    pub(crate) fn find(&self, from: NodeId, to: NodeId) -> Option<Direction> {
        self.lock().all.get(&(from, to)).cloned()
    }

    /// Ends of all directions that somebody has used or changed, in their order.
    pub(crate) fn ends(&self) -> Vec<(NodeId, NodeId)> {
        let mut ends: Vec<_> = self.lock().all.keys().copied().collect();
        ends.sort_unstable();
        ends
    }

    /// Seeds the generators of all directions anew.
    pub(crate) fn seed(&self, seed: u64) {
        let mut table = self.lock();
        table.seed = seed;
        for (&(from, to), direction) in &table.all {
            let mut model = direction.lock();
            model.random = generator(seed, from, to);
            model.more_random = generator(!seed, from, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::MILLION;
    use super::*;

    /// What 200,000 packets a microsecond apart meet: losses, and extra times in ns.
    fn passages(parameters: LinkParameters) -> (Vec<bool>, Vec<u64>) {
        let mut model = Model::new(5, NodeId(1), NodeId(2));
        model.parameters = parameters;
        let (mut lost, mut extra) = (Vec::new(), Vec::new());
        for packet in 0..200_000_u64 {
            let now_ns = packet * 1_000;
            match model.admit(now_ns, 64, Circumstances::default()) {
                Passage::Lost { .. } => lost.push(true),
                Passage::Arrives { at_ns, .. } => {
                    lost.push(false);
                    extra.push(at_ns - now_ns);
                }
            }
        }
        (lost, extra)
    }

    #[test]
    fn losses_come_in_bursts_of_the_length_and_share_that_were_asked_for() {
        let (lost, _) = passages(LinkParameters {
            burst_enter_ppm: 5_000,
            burst_leave_ppm: 100_000,
            ..LinkParameters::default()
        });
        // 0.005 / (0.005 + 0.1) of the packets, ten at a time.
        let losses = lost.iter().filter(|&&lost| lost).count();
        assert!((8_600..10_400).contains(&losses), "{losses}");
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        assert!((850..1_050).contains(&bursts), "{bursts}");
    }

    #[test]
    fn a_burst_takes_its_own_share_and_the_rest_the_other() {
        let (lost, _) = passages(LinkParameters {
            loss_ppm: 100_000,
            burst_enter_ppm: MILLION,
            burst_leave_ppm: 0,
            burst_loss_ppm: 500_000,
            ..LinkParameters::default()
        });
        let losses = lost.iter().filter(|&&lost| lost).count();
        assert!((98_500..101_500).contains(&losses), "{losses}");
    }

    #[test]
    fn bursts_and_jitter_do_not_shift_what_else_is_drawn() {
        let with = LinkParameters {
            loss_ppm: 30_000,
            ..LinkParameters::default()
        };
        let (alone, _) = passages(with);
        let (beside, _) = passages(LinkParameters {
            jitter_ns: 500,
            jitter_distribution: Distribution::Normal,
            ..with
        });
        assert_eq!(alone, beside);
        let bursty = LinkParameters {
            burst_enter_ppm: 100,
            ..with
        };
        let (lost, _) = passages(bursty);
        let kept = alone.iter().zip(&lost).filter(|(a, b)| a == b).count();
        assert!(kept > 199_900, "{kept}");
        assert_eq!(passages(bursty).0, lost, "the same seed");
    }

    #[test]
    fn jitter_has_the_shape_that_was_asked_for() {
        for (distribution, mean) in [
            (Distribution::Uniform, 248..252),
            (Distribution::Normal, 248..252),
            (Distribution::Pareto, 24..27),
        ] {
            let (_, extra) = passages(LinkParameters {
                jitter_ns: 500,
                jitter_distribution: distribution,
                ..LinkParameters::default()
            });
            let found = extra.iter().sum::<u64>() / extra.len() as u64;
            assert!(mean.contains(&found), "{distribution:?}: {found}");
            assert!(extra.iter().all(|&time| time <= 500));
        }
    }

    #[test]
    fn what_means_nothing_by_itself_leaves_a_link_perfect() {
        let inert = LinkParameters {
            jitter_distribution: Distribution::Pareto,
            burst_leave_ppm: 5,
            burst_loss_ppm: 5,
            ..LinkParameters::default()
        };
        assert!(!inert.is_impaired());
        let burst_enter_ppm = 1;
        assert!(
            LinkParameters {
                burst_enter_ppm,
                ..inert
            }
            .is_impaired()
        );
    }
}
