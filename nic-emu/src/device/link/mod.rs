//! Links between nodes: what happens to a packet on its way.
//!
//! Place: the requester, the responder and the connection manager put packets on a link, the engine's timers take them off.
//! Invariants: each direction has its own parameters, generator and counters; what a packet meets depends on the seed, the direction
//! and the packets before it alone. Order is kept but for packets that reordering holds back. A corrupted packet arrives with one bit
//! flipped and is found by its check. Links sit below the transport: they lose, delay and repeat, they never change a stream.
//! Hot: nothing; a device without impaired links never comes here (`Links::is_used`). Source: ours, after tc-netem by name.
//! Leaves out: background traffic, links shared by several pairs.

use std::collections::HashMap;

use ring_proto::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::fault::Fate;
use super::timer::Timer;
use super::{Device, DeviceError};
use crate::capture::record;
use crate::capture::running::Sight;

mod change;
mod distribution;
mod model;
mod mtu;
mod random;

pub use change::{LinkChange, LinkRow};
pub use distribution::Distribution;
pub use mtu::MTU_BYTES;

pub(crate) use model::{Circumstances, Direction, LinkTable, Passage};
pub(crate) use mtu::{ETHERNET_MTU, is_mtu};
use random::MILLION;
pub(crate) use random::Random;

/// How one direction of a link treats packets. The default is a perfect link: message mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkParameters {
    /// False: the direction is cut, nothing arrives.
    pub up: bool,
    /// Time on the way.
    pub latency_ns: u64,
    /// Largest extra time on the way; order is kept.
    pub jitter_ns: u64,
    /// How often which extra time comes.
    pub jitter_distribution: Distribution,
    /// Packets lost, in parts per million; between bursts, where there are bursts.
    pub loss_ppm: u32,
    /// Packets that begin a burst of losses, in parts per million: the way into the bad state of the Gilbert-Elliott model. 0 is no bursts.
    pub burst_enter_ppm: u32,
    /// Packets that end it, in parts per million; a burst has one million divided by this many packets on average.
    pub burst_leave_ppm: u32,
    /// Packets lost in a burst, in parts per million.
    pub burst_loss_ppm: u32,
    /// Packets held back so that later ones overtake them, in parts per million.
    pub reorder_ppm: u32,
    /// Longest time a packet is held back.
    pub reorder_ns: u64,
    /// Packets that arrive twice, in parts per million.
    pub duplicate_ppm: u32,
    /// Packets that arrive with a flipped bit, in parts per million.
    pub corrupt_ppm: u32,
    /// Bits per second; 0 is without limit.
    pub bandwidth_bps: u64,
    /// Bytes that wait for the wire at most; a packet that finds no room is dropped. 0 is without limit; without bandwidth nothing waits.
    pub queue_bytes: u64,
    /// Longest IP packet, of both directions, as interfaces tell it; 0 is not told. What it lets an RDMA packet carry: [`Self::path_mtu`].
    pub mtu_bytes: u32,
}

impl Default for LinkParameters {
    fn default() -> Self {
        Self {
            up: true,
            latency_ns: 0,
            jitter_ns: 0,
            jitter_distribution: Distribution::Uniform,
            loss_ppm: 0,
            burst_enter_ppm: 0,
            burst_leave_ppm: MILLION,
            burst_loss_ppm: MILLION,
            reorder_ppm: 0,
            reorder_ns: 0,
            duplicate_ppm: 0,
            corrupt_ppm: 0,
            bandwidth_bps: 0,
            queue_bytes: 0,
            mtu_bytes: 0,
        }
    }
}

impl LinkParameters {
    /// Whether connections over the direction need packet mode.
    #[must_use]
    pub fn is_impaired(&self) -> bool {
        let perfect = Self::default();
        // What means nothing by itself.
        let inert = Self {
            jitter_distribution: self.jitter_distribution,
            burst_leave_ppm: self.burst_leave_ppm,
            burst_loss_ppm: self.burst_loss_ppm,
            queue_bytes: self.queue_bytes,
            ..perfect
        };
        *self != inert
    }
}

/// What became of the packets of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LinkCounters {
    /// Packets put on the link.
    pub sent: u64,
    /// Packets taken off it, duplicates and corrupted ones included.
    pub delivered: u64,
    /// Packets lost, those of a cut direction and those that found the queue full included.
    pub lost: u64,
    /// Packets that found the queue full.
    #[serde(default)]
    pub dropped: u64,
    /// Packets held back.
    pub reordered: u64,
    /// Packets that arrive twice.
    pub duplicated: u64,
    /// Packets whose check failed on arrival.
    pub corrupted: u64,
}

/// What all links together did, in one number: the same seed and the same work give the same trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkTrace {
    /// Packets sent, lost and delivered.
    pub events: u64,
    /// Hash over time, direction, kind and bytes of each.
    pub hash: u64,
}

/// A direction with the device's own copy of what it asks often.
#[derive(Debug)]
struct Link {
    parameters: LinkParameters,
    direction: Direction,
}

/// A packet on its way.
#[derive(Debug)]
struct Flight {
    from: NodeId,
    to: NodeId,
    frame: Vec<u8>,
    /// The bit that has flipped, with the fate that captures tell.
    flipped: Option<u32>,
}

/// All links.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Directions that the device has used or changed.
    all: HashMap<(NodeId, NodeId), Link>,
    /// All of them, also those that the wire alone uses.
    pub(crate) table: LinkTable,
    flights: HashMap<u64, Flight>,
    last_flight: u64,
    trace: LinkTrace,
    /// Some link was impaired once. The one thing that message mode asks.
    pub(crate) is_used: bool,
}

impl Links {
    pub(crate) fn is_impaired(&self, from: NodeId, to: NodeId) -> bool {
        self.all
            .get(&(from, to))
            .is_some_and(|link| link.parameters.is_impaired())
    }

    pub(crate) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.all
            .get(&(from, to))
            .is_some_and(|link| !link.parameters.up)
    }

    /// Payload bytes of the longest RDMA packet between two nodes. Responses take the way back.
    pub(crate) fn path_mtu(&self, from: NodeId, to: NodeId) -> u32 {
        let of = |ends| {
            let link: Option<&Link> = self.all.get(&ends);
            link.map_or(u32::MAX, |link| link.parameters.path_mtu())
        };
        of((from, to)).min(of((to, from)))
    }

    /// When the wire of a direction is free again.
    pub(crate) fn busy_until_ns(&self, from: NodeId, to: NodeId) -> u64 {
        self.all
            .get(&(from, to))
            .map_or(0, |link| link.direction.lock().busy_until_ns())
    }

    /// Drops frames on their way that `is_meant` names.
    pub(crate) fn forget(&mut self, is_meant: impl Fn(&[u8]) -> bool) {
        self.flights.retain(|_, flight| !is_meant(&flight.frame));
    }

    /// Puts a message of the connection manager on a direction; when it arrives, or `None` when it is lost.
    pub(crate) fn draw_notice(&mut self, (from, to): (NodeId, NodeId), now_ns: u64) -> Option<u64> {
        let arrival = self.link(from, to).direction.lock().admit_notice(now_ns);
        let kind = if arrival.is_none() { 4 } else { 5 };
        self.note(now_ns, kind, from, to, &[]);
        arrival
    }

    fn link(&mut self, from: NodeId, to: NodeId) -> &mut Link {
        let table = &self.table;
        self.all.entry((from, to)).or_insert_with(|| Link {
            parameters: LinkParameters::default(),
            direction: table.direction(from, to),
        })
    }

    /// Adds an event to the trace. FNV-1a over words.
    fn note(&mut self, now_ns: u64, kind: u64, from: NodeId, to: NodeId, frame: &[u8]) {
        let mut hash = if self.trace.hash == 0 {
            0xcbf2_9ce4_8422_2325
        } else {
            self.trace.hash
        };
        let mut add = |word: u64| {
            hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
            hash ^= hash >> 29;
        };
        add(now_ns);
        add(kind << 32 | u64::from(from.0) << 16 | u64::from(to.0));
        for chunk in frame.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            add(u64::from_le_bytes(word));
        }
        self.trace.hash = hash;
        self.trace.events += 1;
    }
}

impl Device {
    /// Sets how packets from one node to another are treated, from now on; packets on their way are not touched.
    ///
    /// Connections between two nodes with an impaired direction run in packet mode, the others in message mode; live ones change over
    /// at the next work request, or in the middle of one, without losing or repeating a byte.
    ///
    /// # Errors
    /// [`DeviceError::NoNode`], [`DeviceError::BadLink`], [`DeviceError::BadMtu`].
    pub fn set_link(
        &mut self,
        from: NodeId,
        to: NodeId,
        parameters: LinkParameters,
    ) -> Result<(), DeviceError> {
        for node in [from, to] {
            self.nodes.find(node).ok_or(DeviceError::NoNode(node))?;
        }
        for ppm in [
            parameters.loss_ppm,
            parameters.burst_enter_ppm,
            parameters.burst_leave_ppm,
            parameters.burst_loss_ppm,
            parameters.reorder_ppm,
            parameters.duplicate_ppm,
            parameters.corrupt_ppm,
        ] {
            if ppm > MILLION {
                return Err(DeviceError::BadLink { ppm });
            }
        }
        if !is_mtu(parameters.mtu_bytes) {
            return Err(DeviceError::BadMtu {
                bytes: parameters.mtu_bytes,
            });
        }
        let link = self.links.link(from, to);
        link.parameters = parameters;
        link.direction.lock().parameters = parameters;
        self.links.is_used |= parameters.is_impaired();
        self.publish_link_cuts();
        // Whoever waits in the other mode looks again.
        self.activate_between(from, to);
        Ok(())
    }

    /// Parameters of a direction.
    #[must_use]
    pub fn link(&self, from: NodeId, to: NodeId) -> LinkParameters {
        self.links
            .all
            .get(&(from, to))
            .map_or_else(LinkParameters::default, |link| link.parameters)
    }

    /// Counters of a direction; all zero for one that was always perfect.
    #[must_use]
    pub fn link_counters(&self, from: NodeId, to: NodeId) -> LinkCounters {
        let found = self.links.table.find(from, to);
        found.map_or_else(LinkCounters::default, |direction| direction.lock().counters)
    }

    /// Seeds the generators of all links anew. Without it the seed is 0.
    pub fn seed_links(&mut self, seed: u64) {
        self.links.table.seed(seed);
    }

    /// The links themselves, for who puts other packets on them.
    pub(crate) fn link_table(&self) -> LinkTable {
        self.links.table.clone()
    }

    /// What all links did so far.
    #[must_use]
    pub fn link_trace(&self) -> LinkTrace {
        self.links.trace
    }

    /// Puts a frame on the link.
    pub(crate) fn put_on_link(&mut self, from: NodeId, to: NodeId, mut frame: Vec<u8>, fate: Fate) {
        let now_ns = self.clock.now_ns();
        let met = Circumstances {
            fate,
            ..Circumstances::default()
        };
        let link = self.links.link(from, to);
        let passage = link.direction.lock().admit(now_ns, frame.len(), met);
        if self.captures.is_on() {
            let sight = Sight {
                at_ns: now_ns,
                from,
                to,
                is_inbound: false,
                fate: passage.as_captured(),
                flipped: None,
            };
            self.captures.packet(sight, &frame);
        }
        let Passage::Arrives {
            at_ns,
            is_doubled,
            flip,
            ..
        } = passage
        else {
            self.links.note(now_ns, 1, from, to, &frame);
            return;
        };
        self.links.note(now_ns, 2, from, to, &frame);
        if is_doubled {
            let frame = frame.clone();
            self.fly(
                at_ns,
                Flight {
                    from,
                    to,
                    frame,
                    flipped: None,
                },
            );
        }
        let flipped = flip.and_then(|draw| flip_bit(&mut frame, draw));
        self.fly(
            at_ns,
            Flight {
                from,
                to,
                frame,
                flipped,
            },
        );
    }

    fn fly(&mut self, arrival_ns: u64, flight: Flight) {
        self.links.last_flight += 1;
        let id = self.links.last_flight;
        self.links.flights.insert(id, flight);
        self.timers.set(arrival_ns, Timer::Arrival(id));
    }

    /// A packet has come to the end of its link.
    pub(crate) fn arrival_timer(&mut self, id: u64) {
        // Forgotten ones left their timer behind.
        let Some(flight) = self.links.flights.remove(&id) else {
            return;
        };
        let Flight {
            from,
            to,
            frame,
            flipped,
        } = flight;
        let now_ns = self.clock.now_ns();
        if self.captures.is_on() {
            let sight = Sight {
                at_ns: now_ns,
                from,
                to,
                is_inbound: true,
                fate: if flipped.is_some() {
                    record::DAMAGED
                } else {
                    0
                },
                flipped,
            };
            self.captures.packet(sight, &frame);
        }
        self.links.note(now_ns, 3, from, to, &frame);
        let is_whole = self.frame_arrived(&frame);
        let mut model = self.links.link(from, to).direction.lock();
        model.counters.delivered += 1;
        model.counters.corrupted += u64::from(!is_whole);
    }
}

/// Flips a bit; which.
pub(crate) fn flip_bit(frame: &mut [u8], draw: u64) -> Option<u32> {
    let bits = (frame.len() as u64 * 8).max(1);
    let bit = draw % bits;
    let place = usize::try_from(bit / 8).ok()?;
    *frame.get_mut(place)? ^= 1 << (bit % 8);
    u32::try_from(bit).ok()
}
