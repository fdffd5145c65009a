//! The engine: rounds over dirty words and queues with work, timers, interrupts, sleep.
//!
//! Place: its owner calls [`Device::pump`] in a loop and sleeps between [`Device::try_park`] and [`Device::unpark`].
//! Invariants: a round is bounded whatever clients do; a panic in one function's work fails that function alone; parking and cooling
//! follow `ring_proto::doorbell` to the letter, so no doorbell is lost. Interrupts fire once per round and queue, for who armed.
//! Hot: [`Device::pump`] but timers and failures: no allocation (the lists keep their capacity), no lock, no log, no system call
//! unless a vector is armed. Edges: dirty-publish, sq-publish, arm-publish.
//!
//! A function is *hot* while the engine looks at its dirty words in each round. One without work for [`COLD_NS`] turns cold: it
//! shows `parked` for good, and its kick makes it hot again.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ring_proto::eqe::EventType;
use ring_proto::ids::FunctionId;
use ring_proto::status::Syndrome;
use ring_proto::sync::Ordering;
use ring_proto::{arm, doorbell, regs, uar};

use super::fault::FaultPoint;
use super::function::CompletionUse;
use super::qp::QpRef;
use super::recorder::{Event, What};
use super::registers::Registers;
use super::timer::Timer;
use super::{Device, Pumped};

/// Turns of QPs in one round.
const TURNS_PER_ROUND: usize = 256;
/// Timers run in one round.
const TIMERS_PER_ROUND: u64 = 256;
/// A function without work for this long turns cold.
const COLD_NS: u64 = 50_000_000;
/// Words of UAR bits.
const UAR_WORDS: u32 = uar::UARS / 64;

/// Lists of what waits for the engine.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// QPs with work, each at most once.
    pub(crate) active: VecDeque<QpRef>,
    /// Queues with news since the last interrupts, each at most once.
    pub(crate) fire: Vec<Fire>,
    /// Places of hot functions.
    pub(crate) hot: Vec<u32>,
    /// CQs that broke and whose QPs do not know yet.
    pub(crate) broken_cqs: Vec<(u32, u32)>,
    /// CQs whose interrupts are held back, each at most once.
    pub(crate) delayed: Vec<(u32, u32)>,
    /// SRQs that broke and whose QPs do not know yet.
    pub(crate) broken_srqs: Vec<(u32, u32, Syndrome)>,
    /// Functions that have to fail.
    pub(crate) failing: Vec<(u32, Syndrome)>,
    /// Time of the present round.
    pub(crate) now_ns: u64,
    /// Number of the last sleep.
    sleep: u32,
    /// Vectors were fired in the present round.
    has_fired: bool,
    /// When to look for functions to turn cold.
    next_cool_ns: u64,
}

/// A queue whose armed vectors are to fire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fire {
    /// CQ of a function.
    Cq { place: u32, cqn: u32 },
    /// EQ of a function.
    Eq { place: u32 },
}

impl Device {
    /// Works one bounded round: due timers, dirty doorbells of hot functions, queues with work, interrupts.
    pub fn pump(&mut self) -> Pumped {
        if self.diagnosis.pause.is_frozen() {
            return Pumped::default();
        }
        self.work.has_fired = false;
        let served = self.round(TURNS_PER_ROUND);
        if self.diagnosis.pause.is_frozen() {
            self.clock.freeze();
        }
        Pumped {
            served,
            next_timer_ns: self.next_due_ns(),
            has_fired: self.work.has_fired,
        }
    }

    /// One round with at most so many turns; ends early when the engine has to stand still.
    pub(crate) fn round(&mut self, turns: usize) -> u64 {
        let now_ns = self.clock.now_ns();
        self.work.now_ns = now_ns;
        let mut served = self.run_timers(now_ns);
        for index in 0..self.work.hot.len() {
            if self.diagnosis.pause.is_frozen() {
                return served;
            }
            let Some(&place) = self.work.hot.get(index) else {
                break;
            };
            served += self.guarded(Some(place), |device| device.scan(place, now_ns));
        }
        let turns = self.work.active.len().min(turns);
        for _ in 0..turns {
            if self.diagnosis.pause.is_frozen() {
                return served;
            }
            let Some(at) = self.work.active.pop_front() else {
                break;
            };
            served += self.guarded(Some(at.place), |device| {
                let served = device.serve_qp(at);
                device.settle();
                served
            });
        }
        self.settle();
        served += self.run_delayed(now_ns);
        self.fire_vectors(now_ns);
        if now_ns >= self.work.next_cool_ns {
            self.work.next_cool_ns = now_ns.saturating_add(COLD_NS / 4);
            self.cool(now_ns);
        }
        served
    }

    /// Publishes that the device is about to sleep; false when there is work after all, and then it is awake again.
    #[must_use]
    pub fn try_park(&mut self) -> bool {
        self.work.sleep = doorbell::next_sleep(self.work.sleep);
        let sleep = self.work.sleep;
        if self.diagnosis.pause.is_frozen() {
            // Nothing will be done whatever is there. Kicks still wake the engine, which then looks whether it may go on.
            for &place in &self.work.hot {
                if let Some(function) = self.functions.at(place) {
                    doorbell::park(function.bar.parked(), sleep);
                }
            }
            return true;
        }
        if !self.work.active.is_empty()
            || !self.work.fire.is_empty()
            || self
                .next_due_ns()
                .is_some_and(|at| at <= self.clock.now_ns())
        {
            return false;
        }
        for &place in &self.work.hot {
            if let Some(function) = self.functions.at(place) {
                doorbell::park(function.bar.parked(), sleep);
            }
        }
        doorbell::after_park();
        let is_dirty = self.work.hot.iter().any(|&place| {
            self.functions.at(place).is_some_and(|function| {
                let admin_waits = function.admin.as_ref().is_some_and(|admin| admin.has_more);
                admin_waits
                    || (0..UAR_WORDS).any(|word| doorbell::is_marked(function.bar.uar_dirty(word)))
            })
        });
        if is_dirty {
            self.unpark();
            return false;
        }
        for &place in &self.work.hot {
            if let Some(function) = self.functions.at(place) {
                self.nodes.counters(function.node).parks += 1;
            }
        }
        true
    }

    /// The device is awake again.
    pub fn unpark(&mut self) {
        for &place in &self.work.hot {
            if let Some(function) = self.functions.at(place) {
                doorbell::unpark(function.bar.parked());
            }
        }
    }

    /// The function's kick eventfd was written: drains it and makes the function hot.
    pub fn kicked(&mut self, function: FunctionId) {
        let now_ns = self.clock.now_ns();
        let Ok(place) = self.place_of(function) else {
            return;
        };
        let Ok(function) = self.function_mut(function) else {
            return;
        };
        // Empty when the kick came by the register or by a call.
        let _ = function.kick.read();
        function.last_work_ns = now_ns;
        let node = function.node;
        doorbell::unpark(function.bar.parked());
        if !function.is_hot {
            function.is_hot = true;
            self.work.hot.push(place);
        }
        self.nodes.counters(node).kicks += 1;
    }

    /// When a timer runs out or an interrupt that is held back comes.
    fn next_due_ns(&self) -> Option<u64> {
        let delayed = self.next_delayed_ns();
        self.timers.next_ns().into_iter().chain(delayed).min()
    }

    fn run_timers(&mut self, now_ns: u64) -> u64 {
        let mut run = 0;
        while run < TIMERS_PER_ROUND
            && let Some(due) = self.timers.due(now_ns)
        {
            run += 1;
            let timer = due.timer;
            if let Some((wait_ns, is_held_back)) = self.hold_back(timer, due.was_held_back) {
                self.timers
                    .put_back(due, now_ns.saturating_add(wait_ns), is_held_back);
                continue;
            }
            let place = self.timer_place(timer);
            self.guarded(place, |device| {
                device.run_timer(timer);
                device.settle();
                1
            });
        }
        run
    }

    fn run_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Hold(at) => self.hold_timer(at),
            Timer::Connect(connect) => self.connect_timer(connect),
            Timer::Orphan(at) => self.orphan_timer(at),
            Timer::Validate => self.validate_timer(),
            Timer::Holder {
                function,
                slot,
                generation,
            } => self.holder_timer(function, slot, generation),
            Timer::Arrival(flight) => self.arrival_timer(flight),
            Timer::Notice(id) => self.notice_timer(id),
            Timer::Packets(at) => self.packets_timer(at),
            Timer::Fault(id) => self.fault_timer(id),
            Timer::Events(function) => {
                if let Ok(place) = self.place_of(function) {
                    self.events_timer(place);
                }
            }
        }
    }

    /// The function that a timer belongs to; `None` when it is gone, or for a timer of the fabric.
    fn timer_place(&self, timer: Timer) -> Option<u32> {
        match timer {
            Timer::Hold(at) | Timer::Orphan(at) | Timer::Packets(at) => Some(at.place),
            Timer::Holder { function, .. } | Timer::Events(function) => {
                self.place_of(function).ok()
            }
            Timer::Fault(id) => self.fault_place(id),
            Timer::Connect(_) | Timer::Arrival(_) | Timer::Notice(_) | Timer::Validate => None,
        }
    }

    /// Takes the dirty bits of a function and puts what they stand for on the lists.
    fn scan(&mut self, place: u32, now_ns: u64) -> u64 {
        let Some(function) = self.functions.at(place) else {
            return 0;
        };
        let bar = function.bar;
        let mut served = 0;
        let mut admin_rang = function.admin.as_ref().is_some_and(|admin| admin.has_more);
        for word in 0..UAR_WORDS {
            if !doorbell::is_marked(bar.uar_dirty(word)) {
                continue;
            }
            let mut uars = doorbell::take(bar.uar_dirty(word));
            while uars != 0 {
                let uar = word * 64 + uars.trailing_zeros();
                uars &= uars - 1;
                let mut slots = doorbell::take(bar.slots_dirty(uar));
                doorbell::after_take();
                while slots != 0 {
                    let slot = uar * uar::LINES + slots.trailing_zeros();
                    slots &= slots - 1;
                    served += 1;
                    if slot == uar::ADMIN_SLOT {
                        admin_rang = true;
                    } else {
                        self.rang(place, slot);
                    }
                }
            }
        }
        if admin_rang {
            served += self.serve_admin(place);
            self.settle();
        }
        if served > 0
            && let Some(function) = self.functions.at_mut(place)
        {
            function.last_work_ns = now_ns;
        }
        served
    }

    /// A doorbell slot has news.
    #[inline]
    pub(crate) fn rang(&mut self, place: u32, slot: u32) {
        if self.faults.has(FaultPoint::Doorbell) && self.fault_doorbell(place, slot) {
            return;
        }
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let used = function.slot(slot);
        let id = function.id;
        function.recorder.push(Event {
            at_ns: self.work.now_ns,
            number: slot,
            what: What::Doorbell,
            ..Event::default()
        });
        if used.qpn != 0 {
            self.activate(QpRef {
                place,
                function: id,
                qpn: used.qpn,
            });
        }
        if used.srqn != 0 {
            self.srq_rang(place, used.srqn);
        }
        if used.completion == CompletionUse::Eq {
            self.deliver_events(place);
        }
    }

    /// Fires the armed vectors of every queue with news, but for those that moderation holds back: each vector once, however many of
    /// a function's queues name it.
    fn fire_vectors(&mut self, now_ns: u64) {
        let mut gathered = (0, 0);
        for index in 0..self.work.fire.len() {
            let Some(&fire) = self.work.fire.get(index) else {
                break;
            };
            let place = match fire {
                Fire::Cq { place, .. } | Fire::Eq { place } => place,
            };
            let Some(function) = self.functions.at_mut(place) else {
                continue;
            };
            let (slot, is_solicited) = match fire {
                Fire::Cq { cqn, .. } => {
                    let Some(cq) = function.cqs.find_mut(cqn) else {
                        continue;
                    };
                    cq.is_queued = false;
                    if cq.holds_back(now_ns) {
                        self.delay(place, cqn);
                        continue;
                    }
                    cq.unfired = 0;
                    (Some(cq.slot), std::mem::take(&mut cq.has_solicited))
                }
                Fire::Eq { .. } => {
                    function.events.is_queued = false;
                    (function.events.slot(), false)
                }
            };
            if let Some(slot) = slot {
                let line = function.bar.line(slot);
                // EDGE arm-publish (acquire): in `arm::fire`.
                let mut vectors = arm::fire(line.arm_vectors());
                if is_solicited {
                    vectors |= arm::fire(line.arm_solicited());
                }
                if vectors != 0 {
                    if gathered.0 != place {
                        self.fire_gathered(gathered);
                        gathered = (place, 0);
                    }
                    gathered.1 |= vectors;
                }
            }
        }
        self.fire_gathered(gathered);
        self.work.fire.clear();
    }

    fn fire_gathered(&mut self, (place, vectors): (u32, u64)) {
        let vectors = if vectors != 0 && self.faults.has(FaultPoint::Interrupt) {
            self.fault_interrupt(place, vectors)
        } else {
            vectors
        };
        if vectors != 0
            && let Some(function) = self.functions.at_mut(place)
        {
            function.vectors.fire(vectors);
            self.work.has_fired = true;
        }
    }

    /// Turns functions cold that had no work for a while.
    fn cool(&mut self, now_ns: u64) {
        self.work.sleep = doorbell::next_sleep(self.work.sleep);
        let sleep = self.work.sleep;
        let functions = &mut self.functions;
        let active = &self.work.active;
        self.work.hot.retain(|&place| {
            let Some(function) = functions.at_mut(place) else {
                return false;
            };
            let has_private_work = function.admin.as_ref().is_some_and(|admin| admin.has_more)
                || active.iter().any(|at| at.place == place);
            if now_ns.saturating_sub(function.last_work_ns) < COLD_NS || has_private_work {
                return true;
            }
            doorbell::park(function.bar.parked(), sleep);
            doorbell::after_park();
            let is_dirty =
                (0..UAR_WORDS).any(|word| doorbell::is_marked(function.bar.uar_dirty(word)));
            if is_dirty {
                doorbell::unpark(function.bar.parked());
                return true;
            }
            function.is_hot = false;
            false
        });
    }

    /// Deals with what a piece of work broke: CQs that overran, functions that must fail.
    pub(crate) fn settle(&mut self) {
        loop {
            if let Some((place, cqn)) = self.work.broken_cqs.pop() {
                self.cq_broke(place, cqn);
            } else if let Some((place, srqn, syndrome)) = self.work.broken_srqs.pop() {
                self.srq_broke(place, srqn, syndrome);
            } else if let Some((place, syndrome)) = self.work.failing.pop() {
                self.fail_function(place, syndrome);
            } else if !self.settle_faults() {
                return;
            }
        }
    }

    /// The QPs of a broken CQ go to ERR, then the function hears of the CQ.
    fn cq_broke(&mut self, place: u32, cqn: u32) {
        let Some(function) = self.functions.at(place) else {
            return;
        };
        let id = function.id;
        let hit: Vec<_> = function
            .qps
            .iter()
            .filter(|(_, qp)| !qp.is_orphan && (qp.send_cqn == cqn || qp.recv_cqn == cqn))
            .map(|(qpn, _)| qpn)
            .collect();
        for qpn in hit {
            let at = QpRef {
                place,
                function: id,
                qpn,
            };
            self.fail_qp(at, Syndrome::CQ_OVERRUN);
        }
        self.event(place, EventType::CQ_ERROR, cqn, 0);
    }

    /// Runs work of one function; a panic in it fails that function alone.
    fn guarded(&mut self, place: Option<u32>, work: impl FnOnce(&mut Self) -> u64) -> u64 {
        // The state a panic leaves behind is that of one function, which is torn down; its peers hold numbers that are checked.
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(served) => served,
            Err(_) => {
                self.panicked(place);
                1
            }
        }
    }

    /// A panic was caught in work for a function: counts it and tears the function down.
    fn panicked(&mut self, place: Option<u32>) {
        let function = place.and_then(|place| self.functions.at(place));
        self.nodes.panicked(function.map(|function| function.node));
        let Some(place) = place else {
            return;
        };
        let torn_down = catch_unwind(AssertUnwindSafe(|| {
            self.fail_function(place, Syndrome::INTERNAL_ERROR);
        }));
        if torn_down.is_err() {
            // What is left of it cannot be walked any more. Its peers find nobody.
            self.work.hot.retain(|&hot| hot != place);
            self.functions.remove(place);
        }
    }

    /// A panic was caught in a call from outside of the engine.
    pub(crate) fn call_panicked(&mut self) {
        self.panicked(None);
    }

    /// A function is of no more use until it is reset: its objects end, its peers are told, its client gets DEVICE_FATAL.
    pub(crate) fn fail_function(&mut self, place: u32, syndrome: Syndrome) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        if function.registers.status & regs::STATUS_FAILED != 0 {
            return;
        }
        function.registers.status |= regs::STATUS_FAILED | regs::STATUS_NEEDS_RESET;
        function.registers.syndrome = syndrome;
        let node = function.node;
        self.nodes.counters(node).errors += 1;
        self.function_failed(place, syndrome);
        self.end_objects(place);
        self.event(place, EventType::DEVICE_FATAL, 0, u32::from(syndrome.0));
        if let Some(function) = self.functions.at(place) {
            // Release: who sees it also sees the event.
            function.bar.failed().store(1, Ordering::Release);
        }
    }

    /// Ends every QP, listener, CQ, region and PD of a function, and its admin queue. The EQ stays.
    pub(crate) fn end_objects(&mut self, place: u32) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        function.admin = None;
        let id = function.id;
        for listener in function.listeners.numbers() {
            self.close_listener(place, listener);
        }
        let qpns = self
            .functions
            .at(place)
            .map(|function| function.qps.numbers())
            .unwrap_or_default();
        for qpn in qpns {
            self.destroy_qp(QpRef {
                place,
                function: id,
                qpn,
            });
        }
        if let Some(function) = self.functions.at_mut(place) {
            function.clear_tables();
        }
    }

    /// Destroys every object of a function and forgets masks; its windows, vectors and holder slots stay.
    pub fn reset(&mut self, function: FunctionId) {
        let Ok(place) = self.place_of(function) else {
            return;
        };
        self.end_objects(place);
        if let Some(function) = self.functions.at_mut(place) {
            function.clear_events();
            function.vectors.reset();
            let generation = function.registers.reset_generation.wrapping_add(1);
            function.registers = Registers::after_resets(generation);
            // Relaxed: read by clients for information only.
            function
                .bar
                .generation()
                .store(generation, Ordering::Relaxed);
            function.bar.failed().store(0, Ordering::Relaxed);
        }
        self.settle();
    }

    /// The function's client has hung up: releases every holder and frees the function when no orphan needs it.
    pub fn detach(&mut self, function: FunctionId) {
        let Ok(place) = self.place_of(function) else {
            return;
        };
        let Some(owner) = self.functions.at_mut(place) else {
            return;
        };
        if owner.is_detached {
            return;
        }
        // What its client had posted counts.
        self.serve_admin(place);
        let Some(owner) = self.functions.at_mut(place) else {
            return;
        };
        owner.is_detached = true;
        // Whoever still maps the doorbells must not wait for this function any more.
        owner.bar.failed().store(1, Ordering::Release);
        owner.admin = None;
        owner.vectors.disconnect();
        let listeners = owner.listeners.numbers();
        for listener in listeners {
            self.close_listener(place, listener);
        }
        let qpns = self
            .functions
            .at(place)
            .map(|owner| owner.qps.numbers())
            .unwrap_or_default();
        for qpn in qpns {
            let at = QpRef {
                place,
                function,
                qpn,
            };
            if self.qp(at).is_some_and(|qp| !qp.is_orphan) {
                self.last_holder_gone(at);
            }
        }
        if let Some(owner) = self.functions.at_mut(place) {
            owner.clear_events();
            owner.clear_cqs();
        }
        self.free_if_over(place);
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use ring_proto::status::Syndrome;

    use super::{Device, regs};
    use crate::device::DeviceOptions;

    #[test]
    fn panic_in_the_work_of_one_function_fails_that_function_alone() {
        let mut device = Device::new(DeviceOptions {
            virtual_time: true,
            ..DeviceOptions::default()
        });
        let node = device.add_node("a", &[]);
        let (one, other) = (device.attach(node).unwrap(), device.attach(node).unwrap());
        let place = device.place_of(one).unwrap();
        assert_eq!(device.guarded(Some(place), |_| panic!("on purpose")), 1);
        let mut syndrome = |f| device.read_register(f, regs::ERROR_SYNDROME, 4).unwrap();
        assert_eq!(syndrome(one), u64::from(Syndrome::INTERNAL_ERROR.0));
        assert_eq!(syndrome(other), 0);
        device.reset(one);
        assert_eq!(device.read_register(one, regs::STATUS, 4).unwrap(), 0);
        assert_eq!(device.node_counters()[0].counters.panics, 1);
    }
}
