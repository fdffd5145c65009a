//! Changing and arming a CQ that lives: resize, moderation, interrupts.
//!
//! Place: programs and tests -> here -> admin queue (resize, moderation) or the CQ's doorbell line (arming).
//! Invariants: after a resize the CQ is polled at the same position in the new ring, and the old one is free again; arming promises
//! nothing for completions that are there already, so who arms polls once more before it sleeps.
//! Hot: [`Cq::arm`], [`Cq::arm_solicited`]. Edges: `arm-publish`. Source: verbs `ibv_resize_cq`, `ibv_modify_cq`, `ibv_req_notify_cq`;
//! docs/device.md, "Life of an interrupt".

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::PoisonError;

use ring_proto::admin::{AdminOp, CqModerate, CqResize};
use ring_proto::arm;
use ring_proto::shared::CqeRing;

use super::{Cq, Hold, depth};
use crate::error::{AdminError, FunctionError};
use crate::function::Function;

/// Vectors of a function.
const VECTORS: u8 = 64;

impl Cq {
    /// Moves the CQ to a ring of `entries` entries, a power of two, with everything that was not polled yet.
    ///
    /// # Errors
    /// [`FunctionError::Invalid`] for another size; [`FunctionError::Admin`] when the device refuses, as for fewer entries than wait to be
    /// polled. The CQ is as before then.
    pub fn resize(&mut self, entries: u32) -> Result<(), FunctionError> {
        let depth = depth("CQ depth", entries)?;
        let function = &self.inner.hold.function;
        let memory = Hold::new(function, CqeRing::bytes(depth), false)?;
        let ring = function
            .arena()
            .ring(memory.offset, depth)
            .ok_or(FunctionError::ArenaFull { len: memory.len })?;
        let body = CqResize {
            ring: memory.iova(),
            cqn: self.inner.cqn.0,
            depth: entries,
        };
        function.lock().admin(AdminOp::CQ_RESIZE, body.to_body())?;
        self.ring = ring;
        // The NIC has left the old ring, whose memory goes here.
        let kept = self.inner.memory.lock();
        *kept.unwrap_or_else(PoisonError::into_inner) = memory;
        Ok(())
    }

    /// Holds the interrupts of the CQ back until `count` completions have come, or `period_us` after the first of them; a count of 0 leaves
    /// it to the period, and 0 for both switches moderation off.
    ///
    /// # Errors
    /// The device's refusal, as for a count without a period.
    pub fn moderate(&self, count: u16, period_us: u16) -> Result<(), AdminError> {
        let body = CqModerate {
            cqn: self.inner.cqn.0,
            count,
            period_us,
        };
        let mut locked = self.inner.hold.function.lock();
        locked.admin(AdminOp::CQ_MODERATE, body.to_body()).map(drop)
    }

    /// Asks for one interrupt on a vector of [`Function::connect_vector`] at the next completion. Poll once more before you sleep.
    ///
    /// # Panics
    /// For a vector above 63.
    #[inline]
    pub fn arm(&self, vector: u8) {
        let function = &self.inner.hold.function;
        let line = function.bar().line(self.inner.hold.slot());
        arm::arm(
            line.arm_vectors(),
            line.arm_sequence(),
            self.consumer,
            bit(vector),
        );
    }

    /// As [`Cq::arm`], for a message that its sender marked SOLICITED, or an error.
    ///
    /// # Panics
    /// For a vector above 63.
    #[inline]
    pub fn arm_solicited(&self, vector: u8) {
        let function = &self.inner.hold.function;
        let line = function.bar().line(self.inner.hold.slot());
        arm::arm(
            line.arm_solicited(),
            line.arm_sequence(),
            self.consumer,
            bit(vector),
        );
    }
}

fn bit(vector: u8) -> u64 {
    assert!(vector < VECTORS, "vectors are numbered from 0 to 63");
    1 << vector
}

impl Function {
    /// Connects an interrupt vector to an eventfd, or to nothing. The service provider gives out the vectors of its own functions itself.
    ///
    /// # Errors
    /// [`FunctionError::Attach`] when the device refuses.
    pub fn connect_vector(
        &self,
        vector: u8,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), FunctionError> {
        let eventfd = eventfd.map(|fd| fd.as_raw_fd());
        self.attachment().set_vector(vector, eventfd)?;
        Ok(())
    }
}
