//! Changing a CQ that lives: CQ_RESIZE and CQ_MODERATE.
//!
//! Place: the admin queue hands the commands in; the engine asks here which interrupts still wait.
//! Invariants: a resize keeps every entry that the client has not consumed, at its position; entries go to the new ring alone from
//! then on. What a client wrote over its own entries meanwhile moves with them and harms nobody else. An interrupt of a moderated CQ
//! waits at most one period, and a CQ stands on the list of waiting ones at most once.
//! Source: `ibv_resize_cq`, `ibv_modify_cq` (moderation by count and period). Hot: `holds_back`, `run_delayed` when nothing waits.

use ring_proto::admin::{AdminStatus, CqModerate, CqResize, Refusal};
use ring_proto::cqe::CQE_PUBLISH;
use ring_proto::shared::CqeRing;
use ring_proto::status::Syndrome;
use ring_proto::sync::Ordering;

use super::Device;
use super::cq::Cq;
use super::engine::Fire;
use super::modify::Refused;
use super::qp;

/// Bytes of a CQE.
const CQE_LEN: u64 = 32;
/// Index of the publish word.
const PUBLISH_WORD: usize = CQE_PUBLISH / 8;

/// When a CQ's interrupts come: after so many entries, or so long after the first one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moderation {
    /// Entries; 0 when only the period counts.
    count: u32,
    /// 0 switches moderation off.
    period_ns: u64,
    /// When an interrupt that is held back comes.
    fire_at_ns: Option<u64>,
    /// It stands on the engine's list of those that wait.
    is_delayed: bool,
}

fn refused(status: AdminStatus, syndrome: Syndrome) -> Refused {
    Refused {
        status,
        refusal: Refusal {
            syndrome,
            ..Refusal::default()
        },
    }
}

impl Cq {
    /// Whether moderation holds the interrupt of a CQ with news back; sets when it comes.
    #[inline]
    pub(crate) fn holds_back(&mut self, now_ns: u64) -> bool {
        let moderation = &mut self.moderation;
        if moderation.period_ns == 0 {
            return false;
        }
        let is_full = moderation.count != 0 && self.unfired >= moderation.count;
        let at = *moderation
            .fire_at_ns
            .get_or_insert(now_ns.saturating_add(moderation.period_ns));
        if is_full || at <= now_ns {
            moderation.fire_at_ns = None;
            return false;
        }
        true
    }
}

impl Device {
    /// CQ_MODERATE.
    pub(crate) fn moderate_cq(&mut self, place: u32, wanted: CqModerate) -> Result<(), Refused> {
        let function = self.own_mut(place)?;
        let cq = function
            .cqs
            .find_mut(wanted.cqn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        if wanted.count != 0 && wanted.period_us == 0 {
            return Err(refused(AdminStatus::INVALID, Syndrome::MODERATION_ENDLESS));
        }
        cq.moderation.count = wanted.count.into();
        cq.moderation.period_ns = u64::from(wanted.period_us) * 1000;
        // What waits goes by the new rule.
        cq.moderation.fire_at_ns = None;
        if !cq.is_queued {
            cq.is_queued = true;
            self.work.fire.push(Fire::Cq {
                place,
                cqn: wanted.cqn,
            });
        }
        Ok(())
    }

    /// The interrupt of a CQ waits until its time.
    pub(crate) fn delay(&mut self, place: u32, cqn: u32) {
        let cq = self
            .functions
            .at_mut(place)
            .and_then(|function| function.cqs.find_mut(cqn));
        if let Some(cq) = cq
            && !cq.moderation.is_delayed
        {
            cq.moderation.is_delayed = true;
            self.work.delayed.push((place, cqn));
        }
    }

    /// Puts the CQs whose period is over on the list of those with news; returns how many.
    #[inline]
    pub(crate) fn run_delayed(&mut self, now_ns: u64) -> u64 {
        if self.work.delayed.is_empty() {
            return 0;
        }
        let functions = &mut self.functions;
        let fire = &mut self.work.fire;
        let mut due = 0;
        self.work.delayed.retain(|&(place, cqn)| {
            let cq = functions
                .at_mut(place)
                .and_then(|function| function.cqs.find_mut(cqn));
            let Some(cq) = cq else {
                return false;
            };
            match cq.moderation.fire_at_ns {
                Some(at) if at > now_ns => return true,
                Some(_) if !cq.is_queued => {
                    cq.is_queued = true;
                    fire.push(Fire::Cq { place, cqn });
                    due += 1;
                }
                _ => {}
            }
            cq.moderation.is_delayed = false;
            false
        });
        due
    }

    /// When the next interrupt that is held back comes.
    #[inline]
    pub(crate) fn next_delayed_ns(&self) -> Option<u64> {
        let at = |&(place, cqn): &(u32, u32)| {
            let cq = self.functions.at(place)?.cqs.find(cqn)?;
            cq.moderation.fire_at_ns
        };
        self.work.delayed.iter().filter_map(at).min()
    }

    /// CQ_RESIZE.
    pub(crate) fn resize_cq(&mut self, place: u32, wanted: CqResize) -> Result<(), Refused> {
        let function = self.own_mut(place)?;
        let depth = qp::depth(wanted.depth)?;
        let cq = function
            .cqs
            .find(wanted.cqn)
            .ok_or(AdminStatus::NO_OBJECT)?;
        let Some(old) = cq.ring.filter(|_| !cq.is_broken) else {
            return Err(refused(AdminStatus::BAD_STATE, Syndrome::CQ_BROKEN));
        };
        // Acquire: what the client consumed before is not moved.
        let claimed = function
            .bar
            .line(cq.slot)
            .cq_consumer()
            .load(Ordering::Acquire);
        let consumer = cq.believed_consumer(claimed);
        let new: CqeRing = function.windows.ring(wanted.ring, depth)?;
        let (from, to) = (cq.iova, wanted.ring);
        let old_len = u64::from(old.depth().entries()) * CQE_LEN;
        let new_len = u64::from(depth.entries()) * CQE_LEN;
        if from.abs_diff(to) < if from < to { old_len } else { new_len } {
            return Err(refused(AdminStatus::INVALID, Syndrome::CQ_RINGS_OVERLAP));
        }
        let producer = cq.producer();
        if depth.used(producer, consumer) > depth.entries() {
            return Err(refused(AdminStatus::INVALID, Syndrome::CQ_TOO_SMALL));
        }
        let mut position = consumer;
        while position != producer {
            let mut words = old.snapshot(position);
            words[PUBLISH_WORD] =
                words[PUBLISH_WORD] << 8 >> 8 | u64::from(depth.phase(position)) << 56;
            new.publish(position, &words);
            position = position.wrapping_add(1);
        }
        if let Some(cq) = function.cqs.find_mut(wanted.cqn) {
            cq.move_to(new, wanted.ring, consumer);
        }
        Ok(())
    }
}
