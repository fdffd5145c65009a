//! Messages at times fixed before, whatever becomes of those before them.
//!
//! Place: a run of [`super::asking`] with a rate. Invariants: a round trip counts from the time at which its message was *due*, not from the one
//! at which it could be sent: a pause shows in every message that it delayed (no coordinated omission). Sending never waits, so
//! both ends cannot wait for each other. Source: the argument of HdrHistogram and wrk2.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use sanlab::bench::stats::histogram;

use super::asking::{Asker, nanoseconds};
use super::message::stamp;
use super::serving;
use super::work::{Run, Wait};

/// Time before the next message in which the end stays awake, because a sleep is not that exact.
const AWAKE: Duration = Duration::from_millis(1);

/// When each message is due.
struct Schedule {
    begin: Instant,
    gap_ns: f64,
}

impl Schedule {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "nanoseconds of a run, never negative"
    )]
    fn due_ns(&self, number: u64) -> u64 {
        (number as f64 * self.gap_ns) as u64
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.begin.elapsed())
    }
}

/// Does a run of `rate` messages each second.
pub(super) fn trips(asker: &mut Asker<'_>, run: Run, rate: f64) -> anyhow::Result<Histogram<u64>> {
    let schedule = Schedule {
        begin: Instant::now(),
        gap_ns: 1e9 / rate,
    };
    let mut trips = histogram();
    let mut due: Vec<VecDeque<u64>> = vec![VecDeque::new(); asker.ends.len()];
    let mut room = [EpollEvent::empty(); serving::EVENTS];
    let (mut sent, mut complete) = (0, 0);
    // Bytes of message number `sent` that are written.
    let mut written = 0;
    while complete < run.count {
        while sent < run.count && schedule.due_ns(sent) <= schedule.now_ns() {
            let index = usize::try_from(sent).unwrap_or(0) % asker.ends.len();
            if !send(asker, index, &mut written)? {
                break;
            }
            due[index].push_back(schedule.due_ns(sent));
            sent += 1;
        }
        let next = Duration::from_nanos(schedule.due_ns(sent).saturating_sub(schedule.now_ns()));
        let mut came = 0;
        let ready: Vec<usize> = match (&asker.epoll, asker.work.wait) {
            (Some(epoll), Wait::Epoll) => {
                let timeout = if written > 0 || (sent < run.count && next < AWAKE) {
                    EpollTimeout::ZERO
                } else if sent < run.count {
                    EpollTimeout::try_from(next - AWAKE).unwrap_or(EpollTimeout::ZERO)
                } else {
                    EpollTimeout::NONE
                };
                serving::events(epoll, &mut room, timeout)?.collect()
            }
            _ => (0..asker.ends.len()).collect(),
        };
        for index in ready {
            let end = asker.ends.get_mut(index).context("an event of nobody")?;
            let Some(len) = end.socket.look(&mut asker.buffer)? else {
                continue;
            };
            for _ in 0..end.replies.take(&asker.buffer[..len], run.is_thorough)? {
                let due = due[index]
                    .pop_front()
                    .context("an answer without a question")?;
                trips.saturating_record(schedule.now_ns().saturating_sub(due).max(1));
                came += 1;
            }
        }
        complete += came;
        if came == 0 {
            std::thread::yield_now();
        }
    }
    Ok(trips)
}

/// Sends the rest of a connection's next message; false when there is no room for it now.
fn send(asker: &mut Asker<'_>, index: usize, written: &mut usize) -> anyhow::Result<bool> {
    let end = &mut asker.ends[index];
    stamp(&mut asker.request, end.number);
    while *written < asker.request.len() {
        match end.socket.write(&asker.request[*written..]) {
            Ok(0) => bail!("a write of nothing"),
            Ok(len) => *written += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("write"),
        }
    }
    *written = 0;
    end.number += 1;
    Ok(true)
}
