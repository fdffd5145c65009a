//! Masks of interrupt vectors, by message and by the MSI-X table: held back, pending, fired once.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::{regs, vfio};

use super::harness::{Cluster, RawClient, eventfd_count};

const NONE: u32 = vfio::IRQ_SET_DATA_NONE;
const BOOL: u32 = vfio::IRQ_SET_DATA_BOOL;
const EVENTFD: u32 = vfio::IRQ_SET_DATA_EVENTFD;
const MASK: u32 = vfio::IRQ_SET_ACTION_MASK;
const UNMASK: u32 = vfio::IRQ_SET_ACTION_UNMASK;
const TRIGGER: u32 = vfio::IRQ_SET_ACTION_TRIGGER;
/// The MSI-X control register in configuration space, high byte.
const CONTROL: u64 = 0x83;
/// Pending bits in BAR4.
const PENDING: u64 = 0x800;

/// A client with four connected vectors.
struct Stage {
    _cluster: Cluster,
    client: RawClient,
    fds: Vec<OwnedFd>,
}

impl Stage {
    fn new() -> Self {
        let cluster = Cluster::start();
        let mut client = cluster.client();
        let fds: Vec<OwnedFd> = (0..4)
            .map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into())
            .collect();
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        client.set_irqs(EVENTFD | TRIGGER, 0, 4, &[], &raw).unwrap();
        Self {
            _cluster: cluster,
            client,
            fds,
        }
    }

    fn irqs(&mut self, flags: u32, start: u32, count: u32, data: &[u8]) {
        self.client
            .set_irqs(flags, start, count, data, &[])
            .unwrap();
    }

    /// Fires all four and gives how often each came since the start.
    fn fire(&mut self) -> [u64; 4] {
        self.irqs(NONE | TRIGGER, 0, 4, &[]);
        self.counts()
    }

    fn counts(&self) -> [u64; 4] {
        std::array::from_fn(|i| eventfd_count(self.fds[i].as_raw_fd()))
    }

    fn pending(&mut self) -> u64 {
        let bytes = self.client.read_region(4, PENDING, 8).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// The vector's control word in the table.
    fn control(&mut self, vector: u64) -> u32 {
        let bytes = self.client.read_region(4, 16 * vector + 12, 4).unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    }
}

#[test]
fn vectors_masked_by_message_are_pending_and_come_once_when_unmasked() {
    let mut stage = Stage::new();
    stage.irqs(NONE | MASK, 1, 2, &[]);
    assert_eq!(stage.fire(), [1, 0, 0, 1]);
    assert_eq!(stage.fire(), [2, 0, 0, 2]);
    assert_eq!(stage.pending(), 0b0110);
    stage.irqs(BOOL | UNMASK, 0, 4, &[1, 0, 1, 0]);
    assert_eq!(stage.counts(), [2, 0, 1, 2]);
    assert_eq!(stage.pending(), 0b0010);
    stage.irqs(NONE | UNMASK, 0, 64, &[]);
    assert_eq!(stage.counts(), [2, 1, 1, 2]);
    assert_eq!(stage.pending(), 0);
    assert_eq!(stage.fire(), [3, 2, 2, 3]);
}

#[test]
fn masks_by_message_and_in_the_table_are_the_same_bit() {
    let mut stage = Stage::new();
    assert_eq!(
        stage.control(2),
        1,
        "masked after reset, for those who look"
    );
    assert_eq!(stage.fire(), [1; 4], "and held back for nobody");
    stage.irqs(BOOL | UNMASK, 2, 1, &[1]);
    assert_eq!(stage.control(2), 0);
    stage
        .client
        .write_region(4, 2 * 16 + 12, &[1, 0, 0, 0])
        .unwrap();
    stage.irqs(NONE | MASK, 3, 1, &[]);
    assert_eq!((stage.control(2), stage.control(3)), (1, 1));
    assert_eq!(stage.fire(), [2, 2, 1, 1]);
    // A whole entry in one access, as drivers write it.
    stage.client.write_region(4, 2 * 16, &[0; 16]).unwrap();
    assert_eq!(stage.counts(), [2, 2, 2, 1]);
    stage.client.write_region(4, 3 * 16 + 12, &[0; 4]).unwrap();
    assert_eq!(stage.counts(), [2, 2, 2, 2]);
}

#[test]
fn the_function_mask_holds_all_back_beside_the_vectors_own_masks() {
    let mut stage = Stage::new();
    stage.irqs(NONE | MASK, 0, 1, &[]);
    stage.client.write_region(7, CONTROL, &[0xc0]).unwrap();
    assert_eq!(stage.fire(), [0; 4]);
    assert_eq!(stage.pending(), 0b1111);
    stage.client.write_region(7, CONTROL, &[0x80]).unwrap();
    assert_eq!(stage.counts(), [0, 1, 1, 1]);
    stage.irqs(NONE | UNMASK, 0, 1, &[]);
    assert_eq!(stage.counts(), [1; 4]);
}

#[test]
fn a_reset_forgets_masks_and_what_is_pending_and_keeps_the_eventfds() {
    let mut stage = Stage::new();
    stage.irqs(NONE | MASK, 0, 4, &[]);
    stage.client.write_region(7, CONTROL, &[0xc0]).unwrap();
    assert_eq!(stage.fire(), [0; 4]);
    stage.client.call(vfio::CMD_DEVICE_RESET, &[], &[]).unwrap();
    assert_eq!((stage.pending(), stage.counts()), (0, [0; 4]));
    assert_eq!(stage.fire(), [1; 4]);
}

#[test]
fn pending_bits_cannot_be_written() {
    let mut stage = Stage::new();
    stage.client.write_region(4, PENDING, &[0xff; 8]).unwrap();
    assert_eq!((stage.pending(), stage.counts()), (0, [0; 4]));
    stage.irqs(NONE | UNMASK, 0, 64, &[]);
    assert_eq!(stage.counts(), [0; 4]);
}

#[test]
fn impossible_masks_are_refused_and_change_nothing() {
    let mut stage = Stage::new();
    let event = stage.fds[0].as_raw_fd();
    for (flags, start, count, data, fds, errno) in [
        (NONE | MASK, 64, 1, &[][..], &[][..], Errno::EINVAL),
        (NONE | MASK, 1, u32::MAX, &[], &[], Errno::EINVAL),
        (NONE | MASK, 0, 0, &[], &[], Errno::EINVAL),
        (NONE | MASK, 0, 1, &[], &[event], Errno::EINVAL),
        (BOOL | MASK, 0, 2, &[1], &[], Errno::EINVAL),
        (BOOL | MASK, 0, 1, &[1, 1], &[], Errno::EINVAL),
        (EVENTFD | MASK, 0, 1, &[], &[], Errno::ENOTSUP),
        (EVENTFD | UNMASK, 0, 1, &[], &[], Errno::ENOTSUP),
        (MASK, 0, 1, &[], &[], Errno::EINVAL),
        (NONE | BOOL | MASK, 0, 1, &[1], &[], Errno::EINVAL),
        (NONE | MASK | UNMASK, 0, 1, &[], &[], Errno::EINVAL),
        (NONE | MASK | 64, 0, 1, &[], &[], Errno::EINVAL),
    ] {
        let answer = stage.client.set_irqs(flags, start, count, data, fds);
        assert_eq!(answer, Err(errno), "{flags:#x} {start} {count}");
    }
    assert_eq!(stage.fire(), [1; 4]);
    // Interrupt types without vectors have nothing to mask.
    for index in [0, 1, 3, 4, 5] {
        let set = vfio::IrqSet {
            argsz: 20,
            flags: NONE | MASK,
            index,
            start: 0,
            count: 1,
        };
        let bytes = zerocopy::IntoBytes::as_bytes(&set);
        let answer = stage.client.call(vfio::CMD_DEVICE_SET_IRQS, bytes, &[]);
        assert_eq!(answer.unwrap_err(), Errno::EINVAL);
    }
    assert_eq!(stage.client.register(regs::MAGIC), regs::MAGIC_VALUE);
}
