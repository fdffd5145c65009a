//! The switch between the nodes' interfaces: where a frame goes, what its link does to it, when it arrives.
//!
//! Place: the wire's thread hands in frames and the time, and writes what comes out; no file, clock or thread inside.
//! Invariants: a frame crosses the direction from its sender's node to its receiver's, with the model that RDMA packets between the two
//! meet; a broadcast crosses one direction per receiver. Order is kept but for frames that reordering holds back. A corrupted frame is
//! dropped on arrival, as the check sequence of Ethernet would have it. Frames on their way hold a bounded amount of memory.
//! Source: IEEE 802.1D forwarding, by name; links are ours (docs/cluster.md). Leaves out: VLANs, spanning trees: there is one switch.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ring_proto::ids::NodeId;

use super::macs::{Mac, Macs};
use super::sight::WireCaptures;
use super::too_big;
use crate::capture::record;
use crate::device::{Circumstances, Direction, ETHERNET_MTU, LinkTable, Passage};

/// Bytes of frames on their way, at most.
const FLYING_LIMIT: usize = 256 << 20;
/// Longest time a frame waits for a wire with a limited bandwidth, for links whose latency is short and whose queue has no length of its own.
const QUEUE_NS: u64 = 100_000_000;
/// Length of an Ethernet header.
const HEADER: usize = 14;

/// A frame on its way. Orders by arrival, then by departure.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Flight {
    at_ns: u64,
    number: u64,
    from: usize,
    to: usize,
    frame: Vec<u8>,
}

/// The switch.
#[derive(Debug)]
pub(crate) struct Forwarder {
    ports: usize,
    macs: Macs,
    table: LinkTable,
    /// Directions met so far: from a port to a port.
    directions: Vec<Option<Direction>>,
    flights: BinaryHeap<Reverse<Flight>>,
    flown: u64,
    flying_bytes: usize,
    captures: WireCaptures,
}

impl Forwarder {
    /// A switch whose port k belongs to node k.
    pub(crate) fn new(macs: Vec<Mac>, table: LinkTable, captures: WireCaptures) -> Self {
        let ports = macs.len();
        Self {
            ports,
            macs: Macs::new(macs),
            table,
            directions: vec![None; ports * ports],
            flights: BinaryHeap::new(),
            flown: 0,
            flying_bytes: 0,
            captures,
        }
    }

    /// A frame leaves a node; `deliver` gets what arrives by now, with its port.
    pub(crate) fn receive(
        &mut self,
        now_ns: u64,
        from: usize,
        frame: &[u8],
        deliver: &mut impl FnMut(usize, &[u8]),
    ) {
        // What is due was sent before this one.
        self.arrive(now_ns, deliver);
        let Some((destination, rest)) = frame.split_first_chunk::<6>() else {
            return;
        };
        let Some(source) = rest.first_chunk::<6>().filter(|_| frame.len() >= HEADER) else {
            return;
        };
        self.macs.learn(*source, from);
        match self.macs.find(*destination) {
            Some(to) if to == from => {
                self.captures.leaves(now_ns, node(from), node(to), 0, frame);
            }
            Some(to) => self.cross(now_ns, (from, to), frame, false, deliver),
            // With one receiver the fate of the frame is that on the way to it.
            None if self.ports == 2 => self.cross(now_ns, (from, 1 - from), frame, false, deliver),
            None => {
                let everybody = NodeId(record::EVERYBODY);
                self.captures
                    .leaves(now_ns, node(from), everybody, 0, frame);
                for to in (0..self.ports).filter(|&to| to != from) {
                    self.cross(now_ns, (from, to), frame, true, deliver);
                }
            }
        }
    }

    /// Hands out every frame whose time has come.
    pub(crate) fn arrive(&mut self, now_ns: u64, deliver: &mut impl FnMut(usize, &[u8])) {
        while self.next_ns().is_some_and(|at| at <= now_ns) {
            let Some(Reverse(flight)) = self.flights.pop() else {
                return;
            };
            self.flying_bytes -= flight.frame.len();
            let direction = self.direction(flight.from, flight.to);
            direction.lock().counters.delivered += 1;
            let (from, to) = (node(flight.from), node(flight.to));
            self.captures.arrives(now_ns, from, to, &flight.frame);
            deliver(flight.to, &flight.frame);
        }
    }

    /// When the next frame arrives.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.flights.peek().map(|Reverse(flight)| flight.at_ns)
    }

    fn cross(
        &mut self,
        now_ns: u64,
        (from, to): (usize, usize),
        frame: &[u8],
        is_one_of_many: bool,
        deliver: &mut impl FnMut(usize, &[u8]),
    ) {
        let has_room = self.flying_bytes < FLYING_LIMIT;
        let direction = self.direction(from, to);
        let mut model = direction.lock();
        let latency_ns = model.parameters.latency_ns;
        let mtu = match model.parameters.mtu_bytes {
            0 => ETHERNET_MTU,
            mtu => mtu,
        };
        if frame.len() - HEADER > mtu as usize {
            model.counters.sent += 1;
            model.counters.lost += 1;
            drop(model);
            let (own, other) = (node(from), node(to));
            if !is_one_of_many {
                self.captures
                    .leaves(now_ns, own, other, record::LOST, frame);
            }
            if let Some(answer) = too_big::answer(frame, mtu) {
                self.captures.arrives(now_ns, other, own, &answer);
                deliver(from, &answer);
            }
            return;
        }
        let met = Circumstances {
            queue_ns: Some(QUEUE_NS.max(latency_ns.saturating_mul(4))),
            ..Circumstances::default()
        };
        let mut passage = model.admit(now_ns, frame.len(), met);
        if let Passage::Arrives {
            at_ns,
            is_doubled,
            flip,
            ..
        } = passage
        {
            let copies = 1 + u64::from(is_doubled);
            if flip.is_some() {
                model.counters.delivered += copies;
                model.counters.corrupted += copies;
            } else if at_ns <= now_ns {
                model.counters.delivered += copies;
            } else if !has_room {
                model.counters.lost += 1;
                model.counters.dropped += 1;
                passage = Passage::Lost { is_cut: false };
            }
        }
        drop(model);
        if !is_one_of_many {
            let fate = passage.as_captured();
            self.captures
                .leaves(now_ns, node(from), node(to), fate, frame);
        }
        let Passage::Arrives {
            at_ns,
            is_doubled,
            flip: None,
            ..
        } = passage
        else {
            return;
        };
        for _ in 0..1 + u64::from(is_doubled) {
            if at_ns <= now_ns {
                self.captures.arrives(now_ns, node(from), node(to), frame);
                deliver(to, frame);
                continue;
            }
            self.flown += 1;
            self.flying_bytes += frame.len();
            self.flights.push(Reverse(Flight {
                at_ns,
                number: self.flown,
                from,
                to,
                frame: frame.to_vec(),
            }));
        }
    }

    fn direction(&mut self, from: usize, to: usize) -> Direction {
        let table = &self.table;
        let made = || table.direction(node(from), node(to));
        self.directions[from * self.ports + to]
            .get_or_insert_with(made)
            .clone()
    }
}

fn node(port: usize) -> NodeId {
    NodeId(u16::try_from(port).expect("a cluster has fewer than 65536 nodes"))
}

#[cfg(test)]
mod tests {
    use super::super::macs::mac_of;
    use super::*;
    use crate::capture::running::Wanted;
    use crate::capture::{Frames, Geometry, Medium, Port, Reader, Writer};
    use crate::device::LinkParameters;

    struct World {
        forwarder: Forwarder,
        table: LinkTable,
        captures: WireCaptures,
        arrived: Vec<(usize, Vec<u8>)>,
    }

    impl World {
        fn new(nodes: u16) -> Self {
            let (table, captures) = (LinkTable::default(), WireCaptures::default());
            Self {
                forwarder: Forwarder::new(
                    (0..nodes).map(mac_of).collect(),
                    table.clone(),
                    captures.clone(),
                ),
                table,
                captures,
                arrived: Vec::new(),
            }
        }

        fn set(&self, from: u16, to: u16, parameters: LinkParameters) {
            let direction = self.table.direction(NodeId(from), NodeId(to));
            direction.lock().parameters = parameters;
        }

        fn send(&mut self, now_ns: u64, from: usize, frame: &[u8]) {
            let arrived = &mut self.arrived;
            let mut deliver = |to, frame: &[u8]| arrived.push((to, frame.to_vec()));
            self.forwarder.receive(now_ns, from, frame, &mut deliver);
        }

        fn wait(&mut self, now_ns: u64) {
            let arrived = &mut self.arrived;
            let mut deliver = |to, frame: &[u8]| arrived.push((to, frame.to_vec()));
            self.forwarder.arrive(now_ns, &mut deliver);
        }

        fn ports(&self) -> Vec<usize> {
            self.arrived.iter().map(|&(to, _)| to).collect()
        }
    }

    fn frame(to: [u8; 6], from: [u8; 6], body: &[u8]) -> Vec<u8> {
        [&to[..], &from, &[8, 0], body].concat()
    }

    #[test]
    fn frames_go_to_their_port_and_broadcasts_to_all_others() {
        let mut world = World::new(3);
        world.send(0, 0, &frame(mac_of(2), mac_of(0), b"to c"));
        assert_eq!(world.ports(), [2]);
        world.send(0, 1, &frame([0xff; 6], mac_of(1), b"to all"));
        assert_eq!(world.ports(), [2, 0, 2]);
        world.send(0, 1, &frame(mac_of(1), mac_of(1), b"to myself"));
        world.send(0, 1, b"too short");
        world.send(0, 1, b"");
        assert_eq!(world.arrived.len(), 3);
    }

    #[test]
    fn latency_and_bandwidth_are_those_of_the_direction() {
        let mut world = World::new(2);
        let slow = LinkParameters {
            latency_ns: 5_000,
            bandwidth_bps: 8_000_000_000,
            ..LinkParameters::default()
        };
        world.set(0, 1, slow);
        // 100 bytes take 100 ns on the wire.
        let bytes = frame(mac_of(1), mac_of(0), &[7; 86]);
        world.send(0, 0, &bytes);
        world.send(0, 0, &bytes);
        assert_eq!(world.forwarder.next_ns(), Some(5_100));
        world.wait(5_099);
        assert!(world.arrived.is_empty());
        world.wait(5_100);
        assert_eq!(world.arrived, [(1, bytes.clone())]);
        world.wait(5_200);
        assert_eq!(world.arrived.len(), 2);
        assert_eq!(world.forwarder.next_ns(), None);
        // The way back is perfect.
        world.send(6_000, 1, &frame(mac_of(0), mac_of(1), b"back"));
        assert_eq!(world.ports(), [1, 1, 0]);
    }

    #[test]
    fn a_mended_link_does_not_let_late_frames_overtake() {
        let mut world = World::new(2);
        let slow = LinkParameters {
            latency_ns: 1_000,
            ..LinkParameters::default()
        };
        world.set(0, 1, slow);
        world.send(0, 0, &frame(mac_of(1), mac_of(0), b"first"));
        world.set(0, 1, LinkParameters::default());
        world.send(10, 0, &frame(mac_of(1), mac_of(0), b"second"));
        world.send(2_000, 0, &frame(mac_of(1), mac_of(0), b"third"));
        let bodies: Vec<_> = world
            .arrived
            .iter()
            .map(|(_, frame)| &frame[14..])
            .collect();
        assert_eq!(bodies, [&b"first"[..], b"second", b"third"]);
    }

    #[test]
    fn cuts_losses_and_corruption_never_reach_the_other_node() {
        let mut world = World::new(2);
        let hello = frame(mac_of(1), mac_of(0), b"hello");
        let million = 1_000_000;
        let kinds = [
            LinkParameters {
                up: false,
                ..LinkParameters::default()
            },
            LinkParameters {
                loss_ppm: million,
                ..LinkParameters::default()
            },
            LinkParameters {
                corrupt_ppm: million,
                ..LinkParameters::default()
            },
        ];
        for parameters in kinds {
            world.set(0, 1, parameters);
            world.send(0, 0, &hello);
        }
        world.set(0, 1, LinkParameters::default());
        world.table.set_port(NodeId(1), false);
        world.send(0, 0, &hello);
        assert!(world.arrived.is_empty());
        world.table.set_port(NodeId(1), true);
        world.send(0, 0, &hello);
        assert_eq!(world.arrived.len(), 1);
        let counters = world.table.direction(NodeId(0), NodeId(1)).lock().counters;
        assert_eq!((counters.sent, counters.lost), (5, 3));
        assert_eq!((counters.delivered, counters.corrupted), (2, 1));
    }

    #[test]
    fn a_queue_that_is_full_drops_and_twins_arrive_twice() {
        let mut world = World::new(2);
        let hello = frame(mac_of(1), mac_of(0), &[1; 86]);
        let crawling = LinkParameters {
            bandwidth_bps: 8_000,
            ..LinkParameters::default()
        };
        world.set(0, 1, crawling);
        // The first takes the wire for 100 ms, the second the queue for as long; a third would wait longer.
        for _ in 0..3 {
            world.send(0, 0, &hello);
        }
        world.wait(u64::MAX);
        assert_eq!(world.arrived.len(), 2);
        let counters = world.table.direction(NodeId(0), NodeId(1)).lock().counters;
        assert_eq!((counters.delivered, counters.lost), (2, 1));
        let twins = LinkParameters {
            duplicate_ppm: 1_000_000,
            ..LinkParameters::default()
        };
        world.set(1, 0, twins);
        world.send(0, 1, &frame(mac_of(0), mac_of(1), b"twice"));
        assert_eq!(world.arrived.len(), 4);
    }

    #[test]
    fn captures_see_frames_leave_and_arrive_with_their_fate() {
        let mut world = World::new(3);
        let ports: Vec<_> = ["a", "b", "c"]
            .map(|name| Port {
                name: name.to_owned(),
                addresses: Vec::new(),
            })
            .into();
        let geometry = Geometry::new(1 << 16, 3).unwrap();
        let ring = || {
            let (writer, fd) = Writer::new(geometry).unwrap();
            (writer, Reader::new(&fd, geometry).unwrap())
        };
        let (writer, reader) = ring();
        let wanted = Wanted::new(&[NodeId(0), NodeId(1)], 64).unwrap();
        let id = world.captures.start(wanted, writer).unwrap();
        let slow = |loss_ppm, duplicate_ppm, corrupt_ppm| LinkParameters {
            latency_ns: 50,
            loss_ppm,
            duplicate_ppm,
            corrupt_ppm,
            ..LinkParameters::default()
        };
        let to_b = frame(mac_of(1), mac_of(0), &[1; 100]);
        for (now_ns, parameters) in [
            (100, slow(1_000_000, 0, 0)),
            (200, slow(0, 1_000_000, 0)),
            (300, slow(0, 0, 1_000_000)),
        ] {
            world.set(0, 1, parameters);
            world.send(now_ns, 0, &to_b);
            world.wait(now_ns + 60);
        }
        // A broadcast leaves once; the port of c is not captured.
        world.set(0, 1, slow(0, 0, 0));
        world.send(400, 0, &frame([0xff; 6], mac_of(0), b"to all"));
        world.wait(460);
        world.send(500, 2, &frame(mac_of(0), mac_of(2), b"from c"));
        world.captures.stop(id);
        world.send(600, 0, &to_b);

        let mut frames = Frames::with_ethernet(ring().1, reader, &ports, 0);
        frames.end();
        let mut seen = Vec::new();
        while let Some(frame) = frames.next_frame().unwrap() {
            assert_eq!(frame.medium, Medium::Ethernet);
            assert!(frame.bytes.len() <= 64 && frame.whole_len <= to_b.len());
            seen.push((
                frame.at_ns,
                frame.port,
                frame.is_inbound,
                frame.ends.1,
                frame.fate,
            ));
        }
        let everybody = record::EVERYBODY;
        assert_eq!(
            seen,
            [
                (100, 0, false, 1, record::LOST),
                (200, 0, false, 1, record::DOUBLED),
                (260, 1, true, 1, 0),
                (260, 1, true, 1, 0),
                (300, 0, false, 1, record::DAMAGED),
                (400, 0, false, everybody, 0),
                (460, 1, true, 1, 0),
                (500, 0, true, 0, 0),
            ]
        );
    }

    #[test]
    fn a_queue_has_the_length_that_the_link_tells() {
        let mut world = World::new(2);
        let hello = frame(mac_of(1), mac_of(0), &[1; 86]);
        // A hundred bytes in 100 us, and room for three such frames behind the one on the wire.
        let slow = LinkParameters {
            bandwidth_bps: 8_000_000,
            queue_bytes: 400,
            ..LinkParameters::default()
        };
        world.set(0, 1, slow);
        for _ in 0..6 {
            world.send(0, 0, &hello);
        }
        let counters = |world: &World| world.table.direction(NodeId(0), NodeId(1)).lock().counters;
        assert_eq!((counters(&world).lost, counters(&world).dropped), (2, 2));
        // One has left: there is room for one.
        for _ in 0..2 {
            world.send(100_000, 0, &hello);
        }
        assert_eq!(counters(&world).dropped, 3);
        world.wait(u64::MAX);
        assert_eq!(world.arrived.len(), 5);
        // A frame longer than the queue passes when the wire is free.
        let long = LinkParameters {
            queue_bytes: 10,
            ..slow
        };
        world.set(1, 0, long);
        world.send(0, 1, &frame(mac_of(0), mac_of(1), &[2; 86]));
        world.send(0, 1, &frame(mac_of(0), mac_of(1), &[2; 86]));
        world.wait(u64::MAX);
        assert_eq!(world.arrived.len(), 6);
    }

    #[test]
    fn what_is_longer_than_the_mtu_is_dropped_and_its_sender_told() {
        let mut world = World::new(2);
        // An IPv4 packet that must not be cut.
        let packet = |len: usize| {
            let mut body = vec![
                0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
            ];
            body.resize(len, 0);
            frame(mac_of(1), mac_of(0), &body)
        };
        for (mtu_bytes, most) in [(0, 1500), (1000, 1000), (9000, 9000)] {
            world.arrived.clear();
            let parameters = LinkParameters {
                mtu_bytes,
                ..LinkParameters::default()
            };
            world.set(0, 1, parameters);
            world.send(0, 0, &packet(most));
            assert_eq!(world.ports(), [1]);
            world.send(0, 0, &packet(most + 1));
            assert_eq!(world.ports(), [1, 0]);
            let told = &world.arrived[1].1;
            assert_eq!(told[34..36], [3, 4]);
            assert_eq!(usize::from(u16::from_be_bytes([told[40], told[41]])), most);
        }
        let counters = world.table.direction(NodeId(0), NodeId(1)).lock().counters;
        assert_eq!((counters.sent, counters.delivered), (6, 3));
        assert_eq!((counters.lost, counters.dropped), (3, 0));
    }
}
