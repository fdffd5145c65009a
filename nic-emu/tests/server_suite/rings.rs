//! The admin ring over the process boundary: doorbell, kick, completion.
//!
//! BAR2 is read and written through its descriptor, which reaches the same pages as a mapping and, unlike a message, leaves the
//! engine asleep.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::uio::{pread, pwrite};
use ring_proto::admin::{AdminOp, Command, Completion};
use ring_proto::index::Depth;
use ring_proto::{cqe, regs, uar, vfio};
use zerocopy::{FromBytes, IntoBytes};

use super::harness::{Cluster, RawClient, eventually, sealed};

const IOVA: u64 = 1 << 32;
const COMPLETIONS: i64 = 64 * 1024;
const DEPTH: u32 = 16;

/// A function with a running admin queue.
pub(crate) struct Admin {
    pub(crate) client: RawClient,
    memory: OwnedFd,
    bar2: OwnedFd,
    kick: OwnedFd,
    pub(crate) producer: u32,
}

impl Admin {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        Self::over(cluster.client())
    }

    /// On a fresh connection.
    pub(crate) fn over(mut client: RawClient) -> Self {
        let memory = sealed(1 << 20);
        client.map(Some(memory.as_raw_fd()), IOVA, 1 << 20).unwrap();
        let mut write = |offset, value: u64, len| {
            client
                .write_region(0, offset, &value.to_le_bytes()[..len])
                .unwrap();
        };
        let status = regs::STATUS_ACKNOWLEDGE | regs::STATUS_DRIVER;
        write(regs::STATUS, status.into(), 4);
        write(regs::DRIVER_FEATURES, regs::FEATURES, 8);
        let status = status | regs::STATUS_FEATURES_OK;
        write(regs::STATUS, status.into(), 4);
        write(regs::ADMIN_SQ_BASE, IOVA, 8);
        write(regs::ADMIN_CQ_BASE, IOVA + COMPLETIONS.unsigned_abs(), 8);
        write(regs::ADMIN_DEPTH, DEPTH.into(), 4);
        write(regs::STATUS, (status | regs::STATUS_DRIVER_OK).into(), 4);
        assert_eq!(
            client.register(regs::STATUS),
            status | regs::STATUS_DRIVER_OK
        );
        let info = vfio::RegionIoFds {
            argsz: 56,
            ..Default::default()
        };
        let mut reply = client
            .call(vfio::CMD_DEVICE_GET_REGION_IO_FDS, info.as_bytes(), &[])
            .unwrap();
        Self {
            kick: reply.fds.remove(0),
            bar2: client.region_info(2).unwrap().1.remove(0),
            client,
            memory,
            producer: 0,
        }
    }

    /// Posts a command and rings its doorbell; does not kick.
    pub(crate) fn post(&mut self, opcode: AdminOp) {
        let command = Command {
            opcode: opcode.0,
            command_id: self.producer,
            ..Default::default()
        };
        let at = 64 * (self.producer % DEPTH);
        pwrite(&self.memory, command.as_bytes(), at.into()).unwrap();
        self.producer += 1;
        self.ring();
    }

    /// Rings the doorbell with whatever the producer is.
    pub(crate) fn ring(&self) {
        let line = uar::line_offset(uar::ADMIN_SLOT);
        let write = |offset: u64, bytes: &[u8]| {
            pwrite(&self.bar2, bytes, offset.cast_signed()).unwrap();
        };
        write(line + 8, &(self.producer - 1).to_le_bytes());
        write(line, &self.producer.to_le_bytes());
        write(uar::uar_offset(uar::ADMIN_SLOT), &1u64.to_le_bytes());
        write(0, &1u64.to_le_bytes());
    }

    /// Waits for the completion of the latest command.
    pub(crate) fn completion(&self) -> Completion {
        let position = self.producer - 1;
        let depth = Depth::new(DEPTH).unwrap();
        let at = COMPLETIONS + i64::from(32 * depth.index(position));
        let look = || {
            let mut bytes = [0; 32];
            pread(&self.memory, &mut bytes, at).unwrap();
            Completion::read_from_bytes(&bytes).unwrap()
        };
        let phase = depth.phase(position);
        let completion = eventually("completed", look, |c| cqe::phase_of(c.publish) == phase);
        assert_eq!(completion.command_id, position);
        completion
    }

    /// Wakes the engine.
    pub(crate) fn kick(&self) {
        nix::unistd::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Whether the latest command has been answered by now.
    pub(crate) fn is_completed(&self) -> bool {
        let position = self.producer - 1;
        let depth = Depth::new(DEPTH).unwrap();
        let at = COMPLETIONS + i64::from(32 * depth.index(position));
        let mut bytes = [0; 32];
        pread(&self.memory, &mut bytes, at).unwrap();
        let completion = Completion::read_from_bytes(&bytes).unwrap();
        cqe::phase_of(completion.publish) == depth.phase(position)
    }

    fn wait_until_parked(&self) {
        let parked = || {
            let mut bytes = [0; 4];
            pread(&self.bar2, &mut bytes, 64).unwrap();
            u32::from_le_bytes(bytes)
        };
        eventually("parked", parked, |&parked| parked != 0);
    }
}

#[test]
fn a_kick_wakes_a_parked_engine_every_time() {
    let cluster = Cluster::start();
    let mut admin = Admin::start(&cluster);
    for round in 0..1000u32 {
        admin.wait_until_parked();
        admin.post(AdminOp::IDENTIFY);
        if round % 2 == 0 {
            nix::unistd::write(&admin.kick, &1u64.to_ne_bytes()).unwrap();
        } else {
            admin.client.write_region(0, regs::KICK, &[0; 4]).unwrap();
        }
        let completion = admin.completion();
        assert_eq!((completion.status, completion.result[0]), (0, 1));
    }
    assert!(cluster.counters().parks > 0);
}

#[test]
fn a_client_that_swallows_its_own_kicks_harms_itself_alone() {
    let cluster = Cluster::start();
    let mut swallower = Admin::start(&cluster);
    let mut other = Admin::start(&cluster);
    for _ in 0..500 {
        other.wait_until_parked();
        swallower.post(AdminOp::IDENTIFY);
        other.post(AdminOp::IDENTIFY);
        nix::unistd::write(&swallower.kick, &1u64.to_ne_bytes()).unwrap();
        // The engine may have been quicker.
        let _ = nix::unistd::read(&swallower.kick, &mut [0; 8]);
        nix::unistd::write(&other.kick, &1u64.to_ne_bytes()).unwrap();
        other.completion();
        nix::unistd::write(&swallower.kick, &1u64.to_ne_bytes()).unwrap();
        swallower.completion();
    }
}

#[test]
fn garbage_in_the_admin_ring_is_completed_with_an_error_and_others_go_on() {
    let cluster = Cluster::start();
    let mut liar = Admin::start(&cluster);
    let mut other = Admin::start(&cluster);
    for opcode in [0, 15, 27, 999, u16::MAX] {
        liar.post(AdminOp(opcode));
        nix::unistd::write(&liar.kick, &1u64.to_ne_bytes()).unwrap();
        assert_ne!(liar.completion().status, 0, "{opcode}");
    }
    other.post(AdminOp::IDENTIFY);
    nix::unistd::write(&other.kick, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(other.completion().result[0], 2);
}

#[test]
fn a_message_reset_stops_the_admin_queue_and_it_can_start_again() {
    let cluster = Cluster::start();
    let mut admin = Admin::start(&cluster);
    admin.post(AdminOp::IDENTIFY);
    nix::unistd::write(&admin.kick, &1u64.to_ne_bytes()).unwrap();
    admin.completion();
    admin.client.call(vfio::CMD_DEVICE_RESET, &[], &[]).unwrap();
    assert_eq!(admin.client.register(regs::STATUS), 0);
    drop(admin);
    let mut again = Admin::start(&cluster);
    again.post(AdminOp::IDENTIFY);
    nix::unistd::write(&again.kick, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(again.completion().status, 0);
}
