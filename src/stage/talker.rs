//! A program that answers in lines.
//!
//! Place: [`super::Stage`] says where it runs, the command what it is told. Invariants: as of [`super`]; standard error is that of the command.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use crate::emulator;
use crate::exit::{self, Failure};
use crate::signals::{StopSignals, Waited};

/// How long one program may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A running program. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Talker {
    what: String,
    child: Child,
    stdout: ChildStdout,
    said: Vec<u8>,
    limit: Duration,
}

impl Talker {
    /// Starts a program; `what` is its name in errors.
    pub(crate) fn start(mut command: Command, what: &str) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the {what}"))?;
        let stdout = child.stdout.take().context("a program without a pipe")?;
        Ok(Self {
            what: what.to_owned(),
            child,
            stdout,
            said: Vec::new(),
            limit: ANSWER_LIMIT,
        })
    }

    /// A program whose answers take longer than others'.
    pub(crate) fn patient(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something, in a line.
    pub(crate) fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .context("a program without a pipe")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("the {} listens no more", self.what))
    }

    /// Lets it find the end of its standard input.
    pub(crate) fn end_of_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The next line it prints.
    pub(crate) fn line(&mut self, stop: &StopSignals) -> Result<String, Failure> {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(end) = self.said.iter().position(|&byte| byte == b'\n') {
                let rest = self.said.split_off(end + 1);
                let line = std::mem::replace(&mut self.said, rest);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.wait(stop, deadline)?;
            let mut piece = [0; 4096];
            let len = self
                .stdout
                .read(&mut piece)
                .context("cannot hear from a program")?;
            if len == 0 {
                let status = self.child.wait().context("cannot wait for a program")?;
                return Err(anyhow!("the {} ended without an answer ({status})", self.what).into());
            }
            self.said.extend_from_slice(&piece[..len]);
        }
    }

    /// Everything it prints until it ends by itself, which must be with success.
    pub(crate) fn everything(mut self, stop: &StopSignals) -> Result<String, Failure> {
        self.end_of_input();
        let deadline = Instant::now() + self.limit;
        loop {
            self.wait(stop, deadline)?;
            let mut piece = [0; 4096];
            let len = self
                .stdout
                .read(&mut piece)
                .context("cannot hear from a program")?;
            if len == 0 {
                break;
            }
            self.said.extend_from_slice(&piece[..len]);
        }
        let said = String::from_utf8_lossy(&std::mem::take(&mut self.said)).into_owned();
        self.finish(stop).map_err(|failure| {
            if said.is_empty() || failure.is_interrupted() {
                failure
            } else {
                anyhow!("{failure}; it said:\n{}", said.trim_end()).into()
            }
        })?;
        Ok(said)
    }

    /// Waits until it has ended by itself, with success.
    pub(crate) fn finish(&mut self, stop: &StopSignals) -> Result<(), Failure> {
        let process = emulator::process_descriptor(self.child.id())?;
        let deadline = Instant::now() + self.limit;
        let left = deadline.saturating_duration_since(Instant::now());
        match stop.wait(&[process.as_fd()], Some(left))? {
            Waited::Stop => return Err(Failure::silent(exit::INTERRUPTED)),
            Waited::TimedOut => return Err(self.too_slow()),
            Waited::Ready(_) => {}
        }
        let status = self.child.wait().context("cannot wait for a program")?;
        if status.success() {
            Ok(())
        } else {
            Err(anyhow!("the {} failed ({status})", self.what).into())
        }
    }

    fn wait(&self, stop: &StopSignals, deadline: Instant) -> Result<(), Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        match stop.wait(&[self.stdout.as_fd()], Some(left))? {
            Waited::Stop => Err(Failure::silent(exit::INTERRUPTED)),
            Waited::TimedOut => Err(self.too_slow()),
            Waited::Ready(_) => Ok(()),
        }
    }

    fn too_slow(&self) -> Failure {
        Failure::from(anyhow!(
            "the {} gave no answer in {} s",
            self.what,
            self.limit.as_secs()
        ))
    }

    /// Ends it.
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot end a program")?;
        self.child.wait().context("cannot wait for a program")?;
        Ok(())
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        // Both fail only for a program that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
