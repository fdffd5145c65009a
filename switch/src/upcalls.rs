//! The switch's side of the upcalls: descriptors that it hands to providers, with one context word each.
//!
//! Place: a provider calls these from inside its own functions and, for completions, from any thread.
//! Invariants: a handle carries a generation and the index of its provider, so a stale or foreign one is answered `NotSock`
//! (`Inval` for completions, R-60); outside the span between start-up and the last clean-up every upcall is refused. The
//! table's lock is a leaf: no call is made under it, and none of the switch's other locks is taken inside an upcall.

use std::sync::{Arc, Mutex, PoisonError};

use driver::spi::{OVERLAPPED_DONE, Overlapped, SwitchHandle, Upcalls};
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicU32, AtomicU64, Ordering};

/// Most handles of one provider in one process.
const MAX_HANDLES: usize = 1 << 20;
/// Bits of the slot index in a handle; 12 bits of provider and 28 of generation stand above.
const INDEX_BITS: u32 = 24;
const PROVIDER_BITS: u32 = 12;
const GENERATION_MASK: u32 = (1 << 28) - 1;

const STARTING: u32 = 0;
const RUNNING: u32 = 1;
const CLEANED: u32 = 2;

/// The upcall table of one provider.
pub struct ProviderUpcalls {
    provider: u32,
    span: AtomicU32,
    handles: Mutex<Handles>,
    completions: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Handles {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Slot {
    generation: u32,
    context: Option<u64>,
}

impl ProviderUpcalls {
    /// Makes the table of provider number `provider`; `wake` is called after a completion was filed.
    #[must_use]
    pub fn new(provider: u32, wake: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            provider,
            span: AtomicU32::new(STARTING),
            handles: Mutex::default(),
            completions: AtomicU64::new(0),
            wake,
        })
    }

    /// Start-up has returned: upcalls are allowed from now on.
    pub fn open(&self) {
        // Relaxed: the flag orders nothing; the table has its own lock.
        self.span.store(RUNNING, Ordering::Relaxed);
    }

    /// The last clean-up begins: no upcall is allowed any more.
    pub fn shut(&self) {
        // Relaxed: as in `open`.
        self.span.store(CLEANED, Ordering::Relaxed);
    }

    /// Handles that were created and not closed.
    #[must_use]
    pub fn live(&self) -> usize {
        let handles = self.lock();
        handles.slots.len() - handles.free.len()
    }

    /// Completions that came by upcall.
    #[must_use]
    pub fn completions(&self) -> u64 {
        // Relaxed: a counter.
        self.completions.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_running(&self) -> bool {
        // Relaxed: as in `open`.
        self.span.load(Ordering::Relaxed) == RUNNING
    }

    fn handle(&self, index: u32, generation: u32) -> SwitchHandle {
        let provider = u64::from(self.provider & ((1 << PROVIDER_BITS) - 1));
        SwitchHandle(
            u64::from(generation) << (INDEX_BITS + PROVIDER_BITS)
                | provider << INDEX_BITS
                | u64::from(index),
        )
    }

    /// Index of the slot that `handle` names, if it is a live handle of this provider.
    fn slot(&self, handles: &Handles, handle: SwitchHandle) -> Option<usize> {
        let index = usize::try_from(handle.0 & ((1 << INDEX_BITS) - 1)).ok()?;
        let slot = handles.slots.get(index)?;
        slot.context?;
        let expected = self.handle(u32::try_from(index).ok()?, slot.generation);
        (expected == handle).then_some(index)
    }
}

impl Upcalls for ProviderUpcalls {
    fn wpu_create_socket_handle(
        &self,
        _provider: u32,
        context: u64,
    ) -> Result<SwitchHandle, WsaError> {
        if !self.is_running() {
            return Err(WsaError::NoBufs);
        }
        let mut handles = self.lock();
        let index = match handles.free.pop() {
            Some(index) => index,
            None if handles.slots.len() < MAX_HANDLES => {
                let index = u32::try_from(handles.slots.len()).map_err(|_| WsaError::NoBufs)?;
                handles.slots.push(Slot {
                    generation: 0,
                    context: None,
                });
                index
            }
            None => return Err(WsaError::NoBufs),
        };
        let slot = &mut handles.slots[index as usize];
        // 0 is never a generation, so no handle is 0.
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        if slot.generation == 0 {
            slot.generation = 1;
        }
        slot.context = Some(context);
        let generation = slot.generation;
        drop(handles);
        Ok(self.handle(index, generation))
    }

    fn wpu_close_socket_handle(&self, handle: SwitchHandle) -> Result<(), WsaError> {
        let mut handles = self.lock();
        let index = self.slot(&handles, handle).ok_or(WsaError::NotSock)?;
        handles.slots[index].context = None;
        handles
            .free
            .push(u32::try_from(index).map_err(|_| WsaError::NotSock)?);
        Ok(())
    }

    fn wpu_query_socket_handle_context(&self, handle: SwitchHandle) -> Result<u64, WsaError> {
        if !self.is_running() {
            return Err(WsaError::NotSock);
        }
        let handles = self.lock();
        let index = self.slot(&handles, handle).ok_or(WsaError::NotSock)?;
        handles.slots[index].context.ok_or(WsaError::NotSock)
    }

    fn wpu_complete_overlapped_request(
        &self,
        handle: SwitchHandle,
        overlapped: &Overlapped,
        error: u32,
        bytes: u32,
    ) -> Result<(), WsaError> {
        if !self.is_running() {
            return Err(WsaError::Inval);
        }
        self.slot(&self.lock(), handle).ok_or(WsaError::Inval)?;
        // Relaxed: published by the state word below.
        overlapped.error.store(error, Ordering::Relaxed);
        overlapped.bytes.store(bytes, Ordering::Relaxed);
        // EDGE overlapped-done (release): error, bytes and flags. Acquired where the state is polled.
        overlapped.state.store(OVERLAPPED_DONE, Ordering::Release);
        // Relaxed: a counter.
        self.completions.fetch_add(1, Ordering::Relaxed);
        (self.wake)();
        Ok(())
    }
}

impl core::fmt::Debug for ProviderUpcalls {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ProviderUpcalls")
            .field("provider", &self.provider)
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}
