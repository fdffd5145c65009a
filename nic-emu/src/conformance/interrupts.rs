//! Interrupts of a client, and what the summary page shows it.
//!
//! Place: the part of [`super::client`] that waits outside of rings. Invariants: as there. Source: docs/device.md, section "Life of an
//! interrupt". Leaves out: masks, which no vfio device keeps.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_proto::arm;
use ring_proto::sync::Ordering;

use super::client::{Client, CqId, refused};
use super::{Outcome, failed, memory};

impl Client {
    /// Connects a vector to a new eventfd.
    pub(crate) fn vector(&self, index: u8) -> Outcome<EventFd> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let eventfd = EventFd::from_value_and_flags(0, flags).map_err(memory::system("eventfd"))?;
        self.attachment
            .set_vector(index, Some(eventfd.as_raw_fd()))
            .map_err(refused)?;
        Ok(eventfd)
    }

    /// Arms vectors on a CQ.
    pub(crate) fn arm(&mut self, cq: CqId, vectors: u64) -> Outcome {
        let bar = self.doorbells.bar;
        let cq = self.cq_of(cq)?;
        let line = bar.line(cq.slot);
        arm::arm(
            line.arm_vectors(),
            line.arm_sequence(),
            cq.consumer,
            vectors,
        );
        Ok(())
    }

    /// Arms vectors on a CQ for solicited completions and errors only.
    pub(crate) fn arm_solicited(&mut self, cq: CqId, vectors: u64) -> Outcome {
        let bar = self.doorbells.bar;
        let cq = self.cq_of(cq)?;
        let line = bar.line(cq.slot);
        arm::arm(
            line.arm_solicited(),
            line.arm_sequence(),
            cq.consumer,
            vectors,
        );
        Ok(())
    }

    /// Arms vectors on the EQ.
    pub(crate) fn arm_events(&self, vectors: u64) -> Outcome {
        let Some((_, slot, consumer)) = self.events else {
            return failed("no EQ to arm");
        };
        let line = self.doorbells.bar.line(slot);
        arm::arm(line.arm_vectors(), line.arm_sequence(), consumer, vectors);
        Ok(())
    }

    /// Waits until a vector fires and returns how often it had.
    pub(crate) fn fired(&self, vector: &EventFd) -> Outcome<u64> {
        let limit = PollTimeout::try_from(self.patience).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(vector.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, limit) {
            Ok(0) => failed("the interrupt never came"),
            Ok(_) => vector.read().map_err(memory::system("eventfd read")),
            Err(errno) => Err(memory::system("poll")(errno)),
        }
    }

    /// A vector has not fired once the device is at rest.
    pub(crate) fn not_fired(&mut self, vector: &EventFd) -> Outcome {
        self.settle()?;
        match vector.read() {
            Err(Errno::EAGAIN) => Ok(()),
            Ok(count) => failed(format!("{count} interrupts that nobody armed")),
            Err(errno) => Err(memory::system("eventfd read")(errno)),
        }
    }

    /// Live generation of a holder slot.
    pub(crate) fn holder_generation(&self, slot: u32) -> u32 {
        self.doorbells
            .bar
            .holder_generation(slot)
            .load(Ordering::Acquire)
    }

    /// Waits until the summary page says that the function has failed.
    pub(crate) fn wait_failed(&mut self) -> Outcome {
        let bar = self.doorbells.bar;
        self.wait("failure of the function", |_| {
            (bar.failed().load(Ordering::Acquire) != 0).then_some(())
        })
    }

    /// Reset generation as the summary page shows it.
    pub(crate) fn generation(&self) -> u32 {
        self.doorbells.bar.generation().load(Ordering::Acquire)
    }
}
