//! The suites over the real driver and the emulated NIC, in this process and thread.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use driver::opener::{Holding, Opener};
use driver::provider::{SanConfig, SanProvider};
use driver::spi::{FD_ACCEPT, FD_CONNECT, SpSocket, Verdict};
use driver::sys;
use driver::wsa::WsaError;
use nic_emu::device::{DeviceOptions, LinkChange};
use nic_emu::embedded::EmbeddedDevice;
use proptest::prelude::*;
use ring_proto::attach::{AttachError, Attachment};
use ring_proto::ids::NodeId;

use super::world::{World, read_to_end, send_all, settle};
use super::{ending, orphan, stream};
use crate::provider_table::{Provider, ProviderRef};
use crate::session::{Conn, ConnOptions, How, Phase, Role};

#[derive(Debug)]
struct EmbeddedOpener {
    device: EmbeddedDevice,
    node: NodeId,
    held: Mutex<Vec<Holding>>,
}

impl Opener for EmbeddedOpener {
    fn open(&self) -> Result<Arc<dyn Attachment>, AttachError> {
        Ok(Arc::new(self.device.attach(self.node).unwrap()))
    }

    fn hold(&self, holding: Holding) -> Result<(), AttachError> {
        self.held.lock().unwrap().push(holding);
        self.device
            .with(|device| device.hold_process(holding.function, holding.slot, holding.generation))
            .unwrap();
        Ok(())
    }

    fn before_fork(&self, _holdings: &[Holding]) -> Result<(), AttachError> {
        Ok(())
    }

    fn after_fork_in_parent(&self) {}

    fn after_fork_in_child(&self) {}
}

struct Host {
    opener: Arc<EmbeddedOpener>,
    provider: ProviderRef,
    ip: Ipv4Addr,
}

impl Host {
    fn new(device: &EmbeddedDevice, k: u8) -> Self {
        let ip = Ipv4Addr::new(127, 77, 0, k);
        let node = device.add_node(&format!("node{k}"), &[ip]);
        let opener = Arc::new(EmbeddedOpener {
            device: device.clone(),
            node,
            held: Mutex::default(),
        });
        let config = SanConfig {
            addresses: vec![ip],
            ..SanConfig::default()
        };
        let sp = Arc::new(SanProvider::new(Arc::clone(&opener) as _, config));
        let provider = Provider::start(u32::from(k), sp, Box::new(|| {})).unwrap();
        Self {
            opener,
            provider,
            ip,
        }
    }

    fn bound(&self, port: u16) -> SpSocket {
        let s = self.provider.socket().unwrap();
        let name = SocketAddrV4::new(self.ip, port);
        self.provider.sp.wsp_bind(s, name).unwrap();
        s
    }
}

pub(super) struct NicWorld {
    device: EmbeddedDevice,
    hosts: [Host; 2],
}

impl NicWorld {
    pub(super) fn new() -> Self {
        let device = EmbeddedDevice::new(DeviceOptions::default());
        let hosts = [Host::new(&device, 1), Host::new(&device, 2)];
        Self { device, hosts }
    }

    /// Cuts the link between the nodes in both directions, or mends it.
    pub(super) fn cut(&self, is_cut: bool) {
        let [a, b] = self.hosts.each_ref().map(|host| host.opener.node);
        let change = LinkChange {
            up: Some(!is_cut),
            ..LinkChange::default()
        };
        self.device.with(|device| {
            for (from, to) in [(a, b), (b, a)] {
                device.change_link(from, to, change).unwrap();
            }
        });
    }

    /// Lets time pass at the NICs.
    pub(super) fn pass(&self, ns: u64) {
        self.device.advance(ns);
    }

    /// Errors that the NICs of both nodes have counted.
    fn errors(&self) -> u64 {
        let all = self.device.with(|device| device.node_counters());
        all.iter().map(|of| of.counters.errors).sum()
    }

    /// Two companions, connected through listen, connect and accept.
    fn connect(&self) -> (SpSocket, SpSocket) {
        let [a, b] = &self.hosts;
        let (event_a, event_b) = (sys::eventfd().unwrap(), sys::eventfd().unwrap());
        let listener = b.bound(5000);
        let sp = &b.provider.sp;
        sp.wsp_listen(listener, 5).unwrap();
        sp.wsp_event_select(listener, Some(event_b.raw()), FD_ACCEPT)
            .unwrap();
        let one = a.bound(4000);
        let caller = &a.provider.sp;
        caller
            .wsp_event_select(one, Some(event_a.raw()), FD_CONNECT)
            .unwrap();
        assert_eq!(
            caller.wsp_connect(one, SocketAddrV4::new(b.ip, 5000)),
            Err(WsaError::WouldBlock)
        );
        b.provider.waiting.progress();
        let two = sp
            .wsp_accept(listener, &mut |_| Verdict::Accept)
            .unwrap()
            .socket;
        let sharing = b.provider.sharing.as_ref().unwrap();
        sharing.take_from_listener(two, listener).unwrap();
        a.provider.waiting.progress();
        let events = caller
            .wsp_enum_network_events(one, Some(event_a.raw()))
            .unwrap();
        assert_eq!((events.events, events.connect_error), (FD_CONNECT, None));
        sp.wsp_close_socket(listener).unwrap();
        (one, two)
    }
}

impl World for NicWorld {
    fn pair_with(&self, a: ConnOptions, b: ConnOptions) -> (Arc<Conn>, Arc<Conn>) {
        let (sa, sb) = self.connect();
        let [one, two] = &self.hosts;
        let one = Conn::start(Role::Active, Arc::clone(&one.provider), sa, a).unwrap();
        let two = Conn::start(Role::Passive, Arc::clone(&two.provider), sb, b).unwrap();
        let (one, two) = (Arc::new(one), Arc::new(two));
        settle(&[&one, &two]);
        assert_eq!(one.phase(), Phase::Established);
        assert_eq!(two.phase(), Phase::Established);
        (one, two)
    }

    fn orphan(&self, end: &Arc<Conn>) {
        let host = self
            .hosts
            .iter()
            .find(|h| Arc::ptr_eq(&h.provider, end.provider()))
            .unwrap();
        let held = host.opener.held.lock().unwrap().clone();
        self.device.with(|device| {
            for holding in held {
                device.drop_holder(holding.function, holding.slot, holding.generation);
            }
        });
    }

    fn die(&self) {
        self.device.with(|device| {
            for host in &self.hosts {
                for holding in &*host.opener.held.lock().unwrap() {
                    device.detach(holding.function);
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nic_bytes_arrive_once_and_in_order(steps in stream::steps(120), short in any::<bool>()) {
        let world = NicWorld::new();
        let (a, b) = if short {
            world.pair_with(stream::short_ring(), stream::short_ring())
        } else {
            world.pair()
        };
        stream::check(&[a, b], &steps);
    }
}

#[test]
fn nic_r140_both_ends_send_before_they_read() {
    stream::both_send_before_reading(&NicWorld::new());
}

#[test]
fn nic_small_writes_without_reads_all_arrive() {
    stream::small_writes_without_reads(&NicWorld::new());
}

#[test]
fn nic_r182_half_close() {
    ending::half_close(&NicWorld::new());
}

#[test]
fn nic_r184_close_with_unsent_data() {
    ending::close_with_unsent_data(&NicWorld::new());
}

#[test]
fn nic_close_from_both_sides() {
    ending::close_from_both_sides(&NicWorld::new());
}

#[test]
fn nic_r185_unread_data_and_linger_zero_abort() {
    ending::close_with_unread_data(&NicWorld::new());
    ending::linger_zero(&NicWorld::new());
}

#[test]
fn nic_fin_then_reset() {
    ending::fin_then_reset(&NicWorld::new());
}

#[test]
fn nic_r195_death_of_the_device() {
    ending::death_of_the_device(&NicWorld::new());
}

#[test]
fn nic_r216_every_byte_of_a_dead_writer_arrives() {
    for (len, before) in [
        (0, 0),
        (1, 0),
        (1, 1),
        (100_000, 0),
        (1_000_000, 0),
        (1_000_000, 333_333),
        (900_000, 900_000),
    ] {
        orphan::dead_writer(&NicWorld::new(), len, before);
    }
}

/// It died in its close: nothing can be read of it, and nothing has to be.
#[test]
fn peer_that_dies_after_both_fins_is_not_read() {
    let world = NicWorld::new();
    let (a, b) = world.pair();
    send_all(&b, b"last words");
    for end in [&a, &b] {
        end.shutdown(How::Write).unwrap();
    }
    settle(&[&a, &b]);
    let own_ring = b.record.get().own_ring.load();
    let sp = &b.provider().sp;
    sp.wsp_deregister_rdma_memory(b.sp(), &own_ring).unwrap();
    world.orphan(&b);
    assert_eq!(read_to_end(&a, None), (b"last words".to_vec(), 0));
    settle(&[&a]);
    assert_eq!(a.take_error(), None);
    assert_eq!(world.errors(), 0);
}

#[test]
fn nic_r216_dead_peers_by_what_they_had_taken() {
    orphan::dead_reader_with_unread_data(&NicWorld::new());
    orphan::dead_reader_that_had_taken_everything(&NicWorld::new());
    orphan::dead_after_fin(&NicWorld::new());
    orphan::sends_held_at_the_dead_peer(&NicWorld::new());
    orphan::fin_found_in_the_head(&NicWorld::new());
}

#[test]
fn nic_memory_comes_back_when_connections_end() {
    let world = NicWorld::new();
    // A leak of buffers or rings would fill the arena, of 1 GiB, long before the end.
    for _ in 0..1200 {
        let (a, b) = world.pair();
        a.close(None);
        b.close(None);
        settle(&[&a, &b]);
        assert_eq!((a.phase(), b.phase()), (Phase::Closed, Phase::Closed));
    }
}
