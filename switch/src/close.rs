//! Closing and shutting down, by stage.
//!
//! Place: the preload library calls [`Switch::close`] for the last descriptor of a socket in this process, before it closes the
//! kernel's: companion first, then the descriptor that keeps the port. Invariants: what other processes share stays;
//! what the program never saw is closed abortively; established connections end by the session's rules.
//! Source.

use std::sync::Arc;

use crate::accept::close_accepted;
use crate::gate;
use crate::listen::Listening;
use crate::outcome::Errno;
use crate::session::{CloseStep, How};
use crate::socket::{SocketState, Stage, SwitchSocket};
use crate::switch::Switch;

impl Switch {
    /// Ends this process's use of a socket. `Draining`: the service thread goes on sending what was accepted.
    pub fn close(&self, socket: &Arc<SwitchSocket>) -> CloseStep {
        let step = {
            let _inside = gate::enter();
            let mut state = socket.lock();
            let step = self.close_locked(socket, &mut state);
            socket.enter(Stage::Closed);
            step
        };
        if step == CloseStep::Draining {
            self.leave_to_service();
        }
        step
    }

    fn close_locked(&self, socket: &SwitchSocket, state: &mut SocketState) -> CloseStep {
        match socket.stage() {
            Stage::SanListening => {
                if let Some(listening) = state.listening.take() {
                    self.close_listener(&listening, false);
                }
                CloseStep::Closed
            }
            Stage::SanConnecting | Stage::Negotiating => {
                self.cancel_attempt(socket, state);
                CloseStep::Closed
            }
            Stage::SanConnected => {
                self.lock_registry().connected.remove(&socket.id());
                let Some(conn) = socket.conn() else {
                    return CloseStep::Closed;
                };
                let step = conn.close(state.options.linger());
                if step == CloseStep::Draining {
                    self.lock_registry().draining.push(Arc::clone(conn));
                }
                step
            }
            _ => CloseStep::Closed,
        }
    }

    /// `shutdown`: the session's on an established connection, else the kernel's, whose result counts.
    ///
    /// # Errors
    /// TCP's; `ENOTCONN`.
    pub fn shutdown(&self, socket: &Arc<SwitchSocket>, how: i32) -> Result<(), Errno> {
        let result = {
            let _inside = gate::enter();
            let mut state = socket.lock();
            match socket.stage() {
                Stage::SanConnected => {
                    let how = match how {
                        libc::SHUT_RD => How::Read,
                        libc::SHUT_WR => How::Write,
                        libc::SHUT_RDWR => How::Both,
                        _ => return Err(libc::EINVAL),
                    };
                    socket
                        .conn()
                        .map_or(Err(libc::ENOTCONN), |c| c.shutdown(how))
                }
                Stage::SanListening => {
                    self.tcp.shutdown(socket.fd(), how)?;
                    // the kernel's accept answers EINVAL from now on, in every process.
                    if how != libc::SHUT_WR
                        && let Some(listening) = state.listening.take()
                    {
                        self.close_listener(&listening, true);
                        socket.enter(Stage::Tcp);
                    }
                    Ok(())
                }
                Stage::SanConnecting | Stage::Negotiating => {
                    // As the kernel does with a connect under way.
                    self.cancel_attempt(socket, &mut state);
                    self.restart(socket, &mut state);
                    Ok(())
                }
                _ => self.tcp.shutdown(socket.fd(), how),
            }
        };
        if result.is_ok() {
            self.host.socket_changed(socket);
        }
        result
    }

    /// Closes the SAN side of a listener: for this process, or `for_all` that share it.
    pub(crate) fn close_listener(&self, listening: &Listening, for_all: bool) {
        if !listening.shut() {
            return;
        }
        let companions: Vec<_> = core::mem::take(&mut *listening.companions());
        let kept: Vec<bool> = companions
            .iter()
            .map(|c| !for_all && c.companion.is_kept_by_others())
            .collect();
        let queue = listening.queue();
        let negotiations = core::mem::take(&mut *listening.negotiations());
        if kept.iter().any(|&k| k) {
            // others go on. Sessions that this process negotiates are theirs now.
            queue.lock().disown();
            drop(negotiations);
        } else {
            let left = {
                let locked = queue.lock();
                locked.set_closed();
                locked.drain()
            };
            // accepted, never seen by the program. Negotiating ones among them end here too.
            for waiting in left {
                if let Some(provider) = self.provider_by_number(waiting.provider) {
                    close_accepted(&provider, waiting.socket);
                }
            }
            if !for_all {
                queue.free();
            }
        }
        for (c, _) in companions.iter().zip(&kept).filter(|(_, k)| !**k) {
            c.companion.close();
        }
    }
}
