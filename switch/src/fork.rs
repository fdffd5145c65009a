//! The switch around `fork`: nobody inside while it happens, holds cloned for the child, the parent's undertakings left to it.
//!
//! Place: called by the preload library's `pthread_atfork` handlers. Invariants: no lock of the switch is held at the moment of the
//! fork; the child owns no event object, no waiter and no connect of its parent; its inherited listeners and connections work.
//! Source, R-212 (b).

use std::sync::{MutexGuard, PoisonError};

use driver::sys::SignalsBlocked;
use ring_proto::sync::Ordering;

use crate::gate;
use crate::service::ServiceState;
use crate::socket::{Stage, SwitchSocket};
use crate::switch::Switch;

impl Switch {
    /// In the parent, before the fork.
    pub fn before_fork(&self) {
        // A handler that runs between here and the end of the fork would meet closed doors.
        let signals = SignalsBlocked::new();
        gate::close();
        *self.lock_fork_signals() = Some(signals);
        for provider in self.lock_table().providers() {
            if let Some(sharing) = &provider.sharing
                && let Err(error) = sharing.before_fork()
            {
                // The child will find sockets that it does not hold: they answer `NotSock` there.
                provider.note(error);
            }
        }
    }

    /// In the parent, after the fork, whether it succeeded or not.
    pub fn after_fork_in_parent(&self, has_forked: bool) {
        for provider in self.lock_table().providers() {
            if let Some(sharing) = &provider.sharing {
                sharing.after_fork_in_parent(has_forked);
            }
        }
        let signals = self.lock_fork_signals().take();
        gate::open();
        drop(signals);
    }

    /// In the child. Its service thread is to be started anew when [`crate::Host::wake_service`] is called.
    pub fn after_fork_in_child(&self) {
        for provider in self.lock_table().providers() {
            if let Some(sharing) = &provider.sharing {
                sharing.after_fork_in_child();
            }
        }
        // Relaxed: the child has one thread.
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.events.forget();
        self.pace.forget();
        *self.lock_service() = ServiceState::default();
        self.sleeps_until_ns.store(u64::MAX, Ordering::Relaxed);
        let (connecting, draining) = {
            let mut registry = self.lock_registry();
            (
                core::mem::take(&mut registry.connecting),
                core::mem::take(&mut registry.draining),
            )
        };
        for socket in self.lock_registry().connected.values() {
            if let Some(socket) = socket.upgrade()
                && let Some(conn) = socket.conn()
            {
                conn.after_fork_in_child();
            }
        }
        for conn in draining {
            // The parent drains; the child's hold must not keep the connection alive.
            if let Some(sharing) = &conn.provider().sharing {
                sharing.release(conn.sp()).ok();
            }
        }
        for socket in connecting {
            self.disown_attempt(&socket);
        }
        for listener in self.listeners() {
            // What this process negotiated is negotiated by the parent.
            if let Some(listening) = listener.lock().listening.clone() {
                listening.negotiations().clear();
            }
        }
        let signals = self.lock_fork_signals().take();
        gate::open();
        drop(signals);
    }

    fn lock_fork_signals(&self) -> MutexGuard<'_, Option<SignalsBlocked>> {
        self.fork_signals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A connect that the parent goes on with: in the child it failed. DEVIATION: kernel TCP would complete in both.
    fn disown_attempt(&self, socket: &SwitchSocket) {
        let mut state = socket.lock();
        let Some(attempt) = state.attempt.take() else {
            return;
        };
        // Others keep it: the parent does. Its event object is the parent's too; only the child's number is closed here.
        let _is_kept = attempt.companion.is_kept_by_others();
        state.error = Some(libc::ECONNABORTED);
        socket.enter(Stage::Failed);
    }
}
