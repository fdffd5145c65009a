//! `sanlab top`: a cluster on one screen, while it runs.
//!
//! Place: samples the emulator as `stat`, `link show` and `inspect` do, and draws. Invariants: whatever way it ends, signals and panics
//! included, the terminal is as it was; an emulator that is slow or gone is told, not waited for.
//! Source: ours, after top(1).

mod model;
mod view;

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossterm::event::{self, Event, KeyEventKind};
use nic_emu::control::client;
use nic_emu::device::Topic;

use crate::cli;
use crate::cluster;
use crate::exit::Failure;
use crate::paths;
use crate::signals::{self, StopSignals, Waited};

use model::Sample;
use view::{Asked, Screen};

/// Shortest and longest time between two looks.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// Shows a cluster until told to stop.
pub(crate) fn top(arguments: &cli::Top) -> Result<(), Failure> {
    let cluster = cluster::select(arguments.choice.name())?;
    cluster.require_running()?;
    if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        return Err(Failure::usage(
            "`sanlab top` needs a terminal; `sanlab stat --watch` does not",
        ));
    }
    let socket = paths::control_socket(&cluster.directory);
    let start = Instant::now();
    let first = look(&socket, start)?;
    let stop = StopSignals::catch()?;
    let every = Duration::from_millis(arguments.interval);
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let _restored = Restored;
    let mut app = App {
        screen: Screen::default(),
        before: None,
        now: first,
        every,
        looked: Instant::now(),
    };
    loop {
        terminal
            .draw(|frame| app.screen.draw(frame, app.before.as_ref(), &app.now))
            .context("cannot draw")?;
        let left = app.every.saturating_sub(app.looked.elapsed());
        let stdin = std::io::stdin();
        match stop.wait(&[stdin.as_fd()], Some(left))? {
            Waited::Stop => return Ok(()),
            // Asked first: crossterm reads from a terminal that is gone for ever.
            Waited::Ready(_) => {
                if signals::has_hung_up(stdin.as_fd())? || app.take_keys()? {
                    return Ok(());
                }
            }
            Waited::TimedOut => {}
        }
        if app.looked.elapsed() >= app.every {
            app.looked = Instant::now();
            if !app.screen.is_paused {
                let now = look(&socket, start)?;
                app.before = Some(std::mem::replace(&mut app.now, now));
            }
        }
    }
}

/// Restores the terminal when it goes.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

struct App {
    screen: Screen,
    before: Option<Sample>,
    now: Sample,
    every: Duration,
    looked: Instant,
}

impl App {
    /// Takes the keys that are there; true when one of them ends it.
    fn take_keys(&mut self) -> Result<bool, Failure> {
        let is_there = || event::poll(Duration::ZERO).context("cannot read the terminal");
        while is_there()? {
            let Event::Key(key) = event::read().context("cannot read the terminal")? else {
                continue;
            };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            match self.screen.key(key.code, key.modifiers) {
                Asked::Quit => return Ok(true),
                Asked::Slower => self.every = (self.every * 2).min(INTERVALS.1),
                Asked::Faster => self.every = (self.every / 2).max(INTERVALS.0),
                Asked::Nothing => {}
            }
        }
        Ok(false)
    }
}

fn look(socket: &Path, start: Instant) -> Result<Sample, Failure> {
    let failed = |error: client::ControlError| Failure::from(anyhow::Error::from(error));
    Ok(Sample {
        at: start.elapsed().as_secs_f64(),
        stat: client::stat(socket).map_err(failed)?,
        links: client::links(socket).map_err(failed)?,
        queues: client::inspect(socket, &[Topic::Qps])
            .map_err(failed)?
            .inspection
            .qps,
    })
}
