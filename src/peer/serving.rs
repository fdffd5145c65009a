//! The end that serves: accepts, checks, and answers.
//!
//! Place: [`super`]. Invariants: a run ends when as many messages have come as were announced; one thread does all of it, as in most servers.

use anyhow::Context as _;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::message::{Incoming, blank, stamp};
use super::say;
use super::socket::{Address, Listener, Socket};
use super::work::{Mode, Run, Wait, Work};

/// Bytes of one read where more than a message may come.
pub(super) const READ: usize = 64 * 1024;
/// Events of one look.
pub(super) const EVENTS: usize = 256;

/// A connection and what comes on it.
#[derive(Debug)]
struct End {
    socket: Socket,
    incoming: Incoming,
}

struct Server<'a> {
    work: &'a Work,
    ends: Vec<End>,
    epoll: Option<Epoll>,
    buffer: Vec<u8>,
    reply: Vec<u8>,
}

/// Serves until the asking end hangs up.
pub(super) fn serve(work: &Work, address: &Address) -> anyhow::Result<()> {
    let (listener, at) = Listener::bind(address)?;
    say(&format!("listening {at}"))?;
    let mut control = listener.accept()?;
    let mut ends = Vec::new();
    if work.mode != Mode::Connections {
        for _ in 0..work.connections {
            ends.push(End {
                socket: listener.accept()?.waited_for(work.wait)?,
                incoming: Incoming::new(work.request().max(1)),
            });
        }
    }
    let epoll = watch(work.wait, ends.iter().map(|end| &end.socket))?;
    let mut server = Server {
        work,
        ends,
        epoll,
        buffer: vec![0; READ.max(work.request())],
        reply: blank(work.reply()),
    };
    loop {
        let mut order = [0; Run::BYTES];
        if !is_ordered(&mut control, &mut order)? {
            return Ok(());
        }
        let run = Run::decode(order);
        control.send(b"r", Wait::Blocking)?;
        match (work.mode, work.wait) {
            (Mode::Connections, _) => connections(&listener, work.size, run.count)?,
            (_, Wait::Epoll) => server.by_events(run)?,
            _ => server.in_turn(run)?,
        }
        control.send(b"d", Wait::Blocking)?;
    }
}

/// A set of all sockets, for an end that waits so.
pub(super) fn watch<'a>(
    wait: Wait,
    sockets: impl Iterator<Item = &'a Socket>,
) -> anyhow::Result<Option<Epoll>> {
    if wait != Wait::Epoll {
        return Ok(None);
    }
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    for (index, socket) in (0..).zip(sockets) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index);
        epoll.add(socket, event).context("epoll_ctl")?;
    }
    Ok(Some(epoll))
}

/// Waits for events; those that came, as places in the list of sockets.
pub(super) fn events<'a>(
    epoll: &Epoll,
    room: &'a mut [EpollEvent],
    timeout: EpollTimeout,
) -> anyhow::Result<impl Iterator<Item = usize> + 'a> {
    let count = match epoll.wait(room, timeout) {
        Ok(count) => count,
        Err(nix::errno::Errno::EINTR) => 0,
        Err(error) => return Err(error).context("epoll_wait"),
    };
    let came = room[..count].iter();
    Ok(came.map(|event| usize::try_from(event.data()).unwrap_or(usize::MAX)))
}

/// Whether another run is ordered; false at the end of the control connection.
fn is_ordered(control: &mut Socket, order: &mut [u8]) -> anyhow::Result<bool> {
    match control
        .read(&mut order[..1])
        .context("control connection")?
    {
        0 => Ok(false),
        _ => control
            .receive_all(&mut order[1..], Wait::Blocking)
            .map(|()| true),
    }
}

impl Server<'_> {
    /// Message by message, one connection after the other.
    fn in_turn(&mut self, run: Run) -> anyhow::Result<()> {
        let is_stream = self.work.mode == Mode::Stream;
        let mut complete = 0;
        let mut turn = 0;
        while complete < run.count {
            let end = &mut self.ends[turn];
            // Not more than this message, unless no other connection has a turn.
            let most = if is_stream && self.work.connections == 1 {
                self.buffer.len()
            } else {
                end.incoming.missing()
            };
            let len = end
                .socket
                .receive(&mut self.buffer[..most], self.work.wait)?;
            let first = end.incoming.number();
            let came = end.incoming.take(&self.buffer[..len], run.is_thorough)?;
            if !is_stream {
                answer(end, &mut self.reply, first..first + came, self.work.wait)?;
            }
            if came > 0 {
                turn = (turn + 1) % self.ends.len();
            }
            complete += came;
        }
        Ok(())
    }

    /// Whatever has come, wherever.
    fn by_events(&mut self, run: Run) -> anyhow::Result<()> {
        let epoll = self.epoll.as_ref().context("no set of events")?;
        let is_stream = self.work.mode == Mode::Stream;
        let mut room = [EpollEvent::empty(); EVENTS];
        let mut complete = 0;
        while complete < run.count {
            for index in events(epoll, &mut room, EpollTimeout::NONE)? {
                let end = self.ends.get_mut(index).context("an event of nobody")?;
                let Some(len) = end.socket.look(&mut self.buffer)? else {
                    continue;
                };
                let first = end.incoming.number();
                let came = end.incoming.take(&self.buffer[..len], run.is_thorough)?;
                if !is_stream {
                    answer(end, &mut self.reply, first..first + came, self.work.wait)?;
                }
                complete += came;
            }
        }
        Ok(())
    }
}

fn answer(
    end: &mut End,
    reply: &mut [u8],
    numbers: std::ops::Range<u64>,
    wait: Wait,
) -> anyhow::Result<()> {
    for number in numbers {
        stamp(reply, number);
        end.socket.send(reply, wait)?;
    }
    Ok(())
}

/// Accepts `count` connections, each with a message of `size` bytes there and back, and sees their end.
fn connections(listener: &Listener, size: usize, count: u64) -> anyhow::Result<()> {
    let mut message = blank(size);
    for _ in 0..count {
        let mut socket = listener.accept()?;
        socket.receive_all(&mut message, Wait::Blocking)?;
        socket.send(&message, Wait::Blocking)?;
        match socket.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => anyhow::bail!("a byte behind the last one of a connection"),
            Err(error) => return Err(error).context("end of a connection"),
        }
    }
    Ok(())
}
