//! The end that asks: connects, sends, and takes the time.
//!
//! Place: [`super`]; orders come on standard input, `run COUNT` or `run COUNT thorough`, and answers go to standard output as JSON.
//! Invariants: a run's time begins when the other end is ready and ends when it has everything. Source: closed loops as in netperf's
//! request and response; open loops in [`super::open_loop`].

use std::collections::VecDeque;
use std::io::BufRead as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
use sanlab::bench::stats::histogram;

use super::message::{Incoming, blank, stamp};
use super::socket::{Address, Socket};
use super::work::{Found, HEADER, Mode, Pattern, Run, Wait, Work};
use super::{open_loop, say, serving};

/// Pauses below this are spent awake, because a sleep takes longer than that to begin and end.
const SHORTEST_SLEEP: Duration = Duration::from_micros(100);

/// A connection, what goes out on it and what comes back.
#[derive(Debug)]
pub(super) struct End {
    pub(super) socket: Socket,
    /// Number of the next message.
    pub(super) number: u64,
    pub(super) replies: Incoming,
}

/// Everything that a run needs.
pub(super) struct Asker<'a> {
    pub(super) work: &'a Work,
    pub(super) ends: Vec<End>,
    pub(super) epoll: Option<Epoll>,
    pub(super) request: Vec<u8>,
    pub(super) buffer: Vec<u8>,
}

/// Asks as often as it is told to, until there are no more orders.
pub(super) fn ask(work: &Work, address: &Address) -> anyhow::Result<()> {
    let mut control = Socket::connect(address)?;
    let mut ends = Vec::new();
    if work.mode != Mode::Connections {
        for _ in 0..work.connections {
            ends.push(End {
                socket: Socket::connect(address)?.waited_for(work.wait)?,
                number: 0,
                replies: Incoming::new(work.reply().max(1)),
            });
        }
    }
    let epoll = serving::watch(work.wait, ends.iter().map(|end| &end.socket))?;
    let mut asker = Asker {
        work,
        ends,
        epoll,
        request: blank(work.request()),
        buffer: vec![0; serving::READ.max(work.reply())],
    };
    say("connected")?;
    for order in std::io::stdin().lock().lines() {
        let run = parse(&order.context("orders")?)?;
        control.send(&run.encode(), Wait::Blocking)?;
        let mut word = [0];
        control.receive_all(&mut word, Wait::Blocking)?;
        ensure!(word == *b"r", "the other end is not ready");
        let begin = Instant::now();
        let trips = match (work.mode, work.rate, work.wait) {
            (Mode::Stream, ..) => asker.stream(run).map(|()| None)?,
            (Mode::Connections, ..) => connections(address, work.size, run.count).map(|()| None)?,
            (Mode::Trips, Some(rate), _) => Some(open_loop::trips(&mut asker, run, rate)?),
            (Mode::Trips, None, Wait::Epoll) => Some(asker.trips_by_events(run)?),
            (Mode::Trips, None, _) => Some(asker.trips_in_turn(run)?),
        };
        control.receive_all(&mut word, Wait::Blocking)?;
        ensure!(word == *b"d", "the other end is not done");
        let ns = nanoseconds(begin.elapsed());
        let found = trips.map_or(Found { ns, trips: None }, |trips| Found::of(ns, &trips));
        say(&serde_json::to_string(&found).context("an answer")?)?;
    }
    Ok(())
}

fn parse(order: &str) -> anyhow::Result<Run> {
    let words: Vec<&str> = order.split_whitespace().collect();
    let (count, is_thorough) = match words[..] {
        ["run", count] => (count, false),
        ["run", count, "thorough"] => (count, true),
        _ => bail!("no order: {order}"),
    };
    Ok(Run {
        count: count
            .parse()
            .with_context(|| format!("no order: {order}"))?,
        is_thorough,
    })
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Asker<'_> {
    /// Sends the next request of a connection.
    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        let Self {
            work,
            ends,
            request,
            ..
        } = self;
        let end = &mut ends[index];
        stamp(request, end.number);
        end.number += 1;
        match work.pattern {
            Pattern::Ping => end.socket.send(request, work.wait),
            Pattern::SmallLarge => {
                let (small, large) = request.split_at(HEADER);
                end.socket.send(small, work.wait)?;
                end.socket.send(large, work.wait)
            }
            Pattern::Writev => {
                let (head, body) = request.split_at(HEADER);
                end.socket.send_parts(head, body, work.wait)
            }
        }
    }

    fn think(&self) {
        let time = Duration::from_nanos(self.work.think_ns);
        if time >= SHORTEST_SLEEP {
            thread::sleep(time);
        } else if !time.is_zero() {
            let begin = Instant::now();
            while begin.elapsed() < time {
                thread::yield_now();
            }
        }
    }

    /// One message at a time, one connection after the other.
    fn trips_in_turn(&mut self, run: Run) -> anyhow::Result<hdrhistogram::Histogram<u64>> {
        let mut trips = histogram();
        let mut index = 0;
        for _ in 0..run.count {
            self.think();
            let begin = Instant::now();
            self.send(index)?;
            let end = &mut self.ends[index];
            loop {
                let most = end.replies.missing();
                let len = end
                    .socket
                    .receive(&mut self.buffer[..most], self.work.wait)?;
                if end.replies.take(&self.buffer[..len], run.is_thorough)? > 0 {
                    break;
                }
            }
            trips.saturating_record(nanoseconds(begin.elapsed()));
            index = (index + 1) % self.ends.len();
        }
        Ok(trips)
    }

    /// As many messages at a time as there are active connections; the one that has waited longest is next.
    fn trips_by_events(&mut self, run: Run) -> anyhow::Result<hdrhistogram::Histogram<u64>> {
        let mut trips = histogram();
        let mut idle: VecDeque<usize> = (0..self.ends.len()).collect();
        let mut begun = vec![None; self.ends.len()];
        let mut room = [EpollEvent::empty(); serving::EVENTS];
        let (mut sent, mut complete, mut under_way) = (0, 0, 0);
        while complete < run.count {
            while sent < run.count
                && under_way < self.work.active
                && let Some(index) = idle.pop_front()
            {
                self.think();
                begun[index] = Some(Instant::now());
                self.send(index)?;
                sent += 1;
                under_way += 1;
            }
            let epoll = self.epoll.as_ref().context("no set of events")?;
            for index in serving::events(epoll, &mut room, EpollTimeout::NONE)? {
                let end = self.ends.get_mut(index).context("an event of nobody")?;
                let Some(len) = end.socket.look(&mut self.buffer)? else {
                    continue;
                };
                if end.replies.take(&self.buffer[..len], run.is_thorough)? > 0 {
                    let begin = begun[index]
                        .take()
                        .context("an answer without a question")?;
                    trips.saturating_record(nanoseconds(begin.elapsed()));
                    complete += 1;
                    under_way -= 1;
                    idle.push_back(index);
                }
            }
        }
        Ok(trips)
    }

    /// Messages one way, over all connections in turn.
    fn stream(&mut self, run: Run) -> anyhow::Result<()> {
        let mut index = 0;
        for _ in 0..run.count {
            self.send(index)?;
            index = (index + 1) % self.ends.len();
        }
        Ok(())
    }
}

/// Makes `count` connections, each with a message of `size` bytes there and back, and ends them.
fn connections(address: &Address, size: usize, count: u64) -> anyhow::Result<()> {
    let mut message = blank(size);
    let mut back = blank(size);
    for number in 0..count {
        let mut socket = Socket::connect(address)?;
        stamp(&mut message, number);
        socket.send(&message, Wait::Blocking)?;
        socket.receive_all(&mut back, Wait::Blocking)?;
        ensure!(message == back, "wrong bytes on connection {number}");
    }
    Ok(())
}
