//! Admin queue: commands one by one, several at once, or left to themselves, under the function's lock.
//!
//! Place: every creation and change of a device object; `function`, `pair`, `verbs` and `provider` -> here -> doorbell slot 0.
//! Invariants: a command exists once the producer in the arena covers it; a completion with another command id belongs to an owner
//! of the lock who died, or to a command nobody waits for, and is dropped; the wait ends when the device dies. The device executes
//! commands in order, so whoever waits for the last of several has them all.
//! Source: docs/device.md, "Admin commands".

use ring_proto::admin::{AdminOp, AdminStatus, Body, Command, Completion, Named};
use ring_proto::doorbell;
use ring_proto::index::Depth;
use ring_proto::shared::{CommandRing, CqeRing};
use ring_proto::sync::Ordering;
use ring_proto::uar::ADMIN_SLOT;

use crate::error::AdminError;
use crate::function::Locked;
use crate::record;
use crate::sys;

/// Looks at the completion ring between two checks that the device lives.
const LOOKS_PER_CHECK: u32 = 256;
/// Commands without a completion taken, at most: the rings never overrun.
const OUTSTANDING: u32 = record::ADMIN_DEPTH / 2;
/// How long to yield and look again. An awake device answers within a few microseconds.
const YIELD_NS: u64 = 50_000;
/// Sleep between looks after that: a device that waits for a processor may have this one.
const DOZE_NS: u64 = 20_000;
/// Longest wait for a completion. A device that takes longer is gone, and so is everything on it.
const LIMIT_NS: u64 = 10_000_000_000;

const fn depth() -> Depth {
    Depth::new(record::ADMIN_DEPTH).expect("a power of two")
}

impl Locked<'_> {
    /// Runs a command and returns its two result words.
    pub(crate) fn admin(&mut self, op: AdminOp, body: Body) -> Result<[u64; 2], AdminError> {
        let command_id = self.put_command(op, body)?;
        self.ring_admin();
        self.answer_of(op, command_id)
    }

    /// Runs commands that do not need each other's results: one doorbell and one wait for all of them. Fails with the first
    /// refusal; the others are executed all the same.
    pub(crate) fn admin_all(&mut self, commands: &[(AdminOp, Body)]) -> Result<(), AdminError> {
        let mut result = Ok(());
        for batch in commands.chunks(OUTSTANDING as usize) {
            let mut first = None;
            for &(op, body) in batch {
                let command_id = self.put_command(op, body)?;
                first = first.or(Some(command_id));
            }
            self.ring_admin();
            let Some(first) = first else {
                continue;
            };
            for (&(op, _), number) in batch.iter().zip(0..) {
                match self.answer_of(op, first.wrapping_add(number)) {
                    Err(AdminError::Dead) => return Err(AdminError::Dead),
                    answer => result = result.and(answer.map(drop)),
                }
            }
        }
        result
    }

    /// Posts a command whose answer nobody needs: it is executed before all later ones.
    pub(crate) fn admin_later(&mut self, op: AdminOp, body: Body) -> Result<(), AdminError> {
        self.put_command(op, body)?;
        self.ring_admin();
        Ok(())
    }

    /// Writes a command; the device sees it at the next doorbell. Returns its id.
    fn put_command(&mut self, op: AdminOp, body: Body) -> Result<u32, AdminError> {
        if self.function.is_dead() {
            return Err(AdminError::Dead);
        }
        let header = self.function.header();
        // Relaxed throughout: the lock orders the positions.
        let producer = header.admin_producer.load(Ordering::Relaxed);
        // A batch is no longer than this, so one of those outstanding was rung for before, and will be answered.
        while producer.wrapping_sub(header.admin_consumer.load(Ordering::Relaxed)) >= OUTSTANDING {
            self.next_completion()?;
        }
        let command_id = header.admin_next_id.load(Ordering::Relaxed);
        header
            .admin_next_id
            .store(command_id.wrapping_add(1), Ordering::Relaxed);
        let command = Command {
            opcode: op.0,
            flags: 0,
            command_id,
            body,
        };
        self.commands()
            .write(producer, &zerocopy::transmute!(command));
        header
            .admin_producer
            .store(producer.wrapping_add(1), Ordering::Relaxed);
        Ok(command_id)
    }

    fn answer_of(&mut self, op: AdminOp, command_id: u32) -> Result<[u64; 2], AdminError> {
        loop {
            let completion = self.next_completion()?;
            if completion.command_id == command_id {
                return match AdminStatus(completion.status) {
                    AdminStatus::OK => Ok(completion.result),
                    status => Err(AdminError::Refused { op, status }),
                };
            }
        }
    }

    /// Runs a command that names one object and has no result.
    pub(crate) fn admin_on(&mut self, op: AdminOp, id: u32) -> Result<[u64; 2], AdminError> {
        self.admin(op, Named { id, reserved: 0 }.to_body())
    }

    /// Publishes the commands that the arena says exist.
    pub(crate) fn ring_admin(&self) {
        let bar = self.function.bar();
        let producer = self
            .function
            .header()
            .admin_producer
            .load(Ordering::Relaxed);
        let doorbell = bar.line(ADMIN_SLOT).sq_producer();
        if doorbell::ring(doorbell, producer, bar.dirty_bits(ADMIN_SLOT), bar.parked()) {
            self.function.kick();
        }
    }

    /// Takes the next completion, whoever posted its command.
    fn next_completion(&mut self) -> Result<Completion, AdminError> {
        let header = self.function.header();
        let ring = self.completions();
        let mut deadline = None;
        let mut yields_until_ns = None;
        let mut looks = 0_u32;
        loop {
            let consumer = header.admin_consumer.load(Ordering::Relaxed);
            if let Some(words) = ring.published(consumer) {
                let next = consumer.wrapping_add(1);
                header.admin_consumer.store(next, Ordering::Relaxed);
                self.function.publish_consumer(ADMIN_SLOT, next);
                return Ok(zerocopy::transmute!(words));
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS_PER_CHECK) {
                let now = sys::now_ns();
                if self.function.check() {
                    return Err(AdminError::Dead);
                }
                if now >= *deadline.get_or_insert(now + LIMIT_NS) {
                    self.function.mark_dead();
                    return Err(AdminError::Dead);
                }
            }
            let now_ns = sys::now_ns();
            if now_ns < *yields_until_ns.get_or_insert(now_ns + YIELD_NS) {
                sys::yield_now();
            } else {
                sys::doze(DOZE_NS);
            }
        }
    }

    fn commands(&self) -> CommandRing {
        self.function
            .arena()
            .ring(record::ADMIN_SQ, depth())
            .expect("the admin rings lie in every arena")
    }

    fn completions(&self) -> CqeRing {
        self.function
            .arena()
            .ring(record::ADMIN_CQ, depth())
            .expect("the admin rings lie in every arena")
    }

    /// Memory of the arena, `len` bytes with unknown content.
    pub(crate) fn alloc(&mut self, len: u64) -> Option<u64> {
        self.function
            .header()
            .heap
            .alloc(self.function.arena(), len)
    }

    /// Gives memory of [`Locked::alloc`] back.
    pub(crate) fn free(&mut self, offset: u64, len: u64) {
        self.function
            .header()
            .heap
            .free(self.function.arena(), offset, len);
    }

    /// A doorbell slot for an object that is no socket.
    pub(crate) fn take_slot(&mut self) -> Option<u32> {
        let words = &self.function.header().slots;
        words.iter().zip(0_u32..).find_map(|(word, index)| {
            let used = word.load(Ordering::Relaxed);
            let bit = used.trailing_ones();
            let slot = record::FREE_SLOTS + index * 64 + bit;
            if bit == 64 || slot >= ring_proto::uar::SLOTS {
                return None;
            }
            word.store(used | 1 << bit, Ordering::Relaxed);
            Some(slot)
        })
    }

    /// Gives a slot of [`Locked::take_slot`] back.
    pub(crate) fn free_slot(&mut self, slot: u32) {
        let index = slot.wrapping_sub(record::FREE_SLOTS);
        let word = self
            .function
            .header()
            .slots
            .get(usize::try_from(index / 64).unwrap_or(usize::MAX));
        if let Some(word) = word {
            word.store(
                word.load(Ordering::Relaxed) & !(1 << (index % 64)),
                Ordering::Relaxed,
            );
        }
    }
}
