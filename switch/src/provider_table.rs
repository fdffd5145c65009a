//! The provider table: SAN providers that are installed, started and usable by this process.
//!
//! Place: built at the first listen or connect that could use a provider (R-13, lazily), asked by the determination, grown by
//! newly installed providers. Invariants: a provider that fails to start, or lacks a mandatory extension, is not in the
//! table; the table is read under a lock that is never held across a provider's function.
//! Source.

use core::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driver::spi::{
    Extension, Ioctl, IoctlReply, ServiceProvider, SharedMemory, Sharing, SpSocket, TCP_INFO,
    WSA_FLAG_OVERLAPPED, WSD_VERSION, Waiting, options,
};
use driver::wsa::WsaError;
use ring_proto::sync::{AtomicU32, Ordering};

use crate::config::NodeConfig;
use crate::subnet::SubnetTable;
use crate::upcalls::ProviderUpcalls;

/// Extensions without which a provider is not used.
const MANDATORY: [Extension; 5] = [
    Extension::RegisterMemory,
    Extension::DeregisterMemory,
    Extension::RegisterRdmaMemory,
    Extension::DeregisterRdmaMemory,
    Extension::RdmaWrite,
];

/// A started provider.
pub struct Provider {
    /// Number in the table.
    pub index: u32,
    /// Name for logs.
    pub name: &'static str,
    /// Its functions.
    pub sp: Arc<dyn ServiceProvider>,
    /// Memory its NIC can reach.
    pub memory: Arc<dyn SharedMemory>,
    /// Waiting for its completions and events.
    pub waiting: Arc<dyn Waiting>,
    /// Sharing of its sockets between processes.
    pub sharing: Option<Arc<dyn Sharing>>,
    /// Most sends plus RDMA operations outstanding per socket.
    pub send_depth: u32,
    /// Most receives outstanding per socket.
    pub recv_depth: u32,
    /// Whether it has `wsp_rdma_read`.
    pub has_rdma_read: bool,
    /// Whether it caches registrations and wants to hear of unmapping.
    pub has_registration_cache: bool,
    upcalls: Arc<ProviderUpcalls>,
    addresses: Mutex<Vec<Ipv4Addr>>,
    state: AtomicU32,
}

/// A provider, shared by every socket that uses it.
pub type ProviderRef = Arc<Provider>;

/// [`Provider::state`]: usable.
const UP: u32 = 0;
/// [`Provider::state`]: a function answered `NetDown`.
const DOWN: u32 = 1;
/// [`Provider::state`]: its NIC had no socket to give when it was asked for its addresses, and may have one later.
const STARVED: u32 = 2;

impl Provider {
    /// Starts a provider: start-up, extension pointers, address list.
    ///
    /// # Errors
    /// The provider's code; `OpNotSupp` when a mandatory extension is missing.
    pub fn start(
        index: u32,
        sp: Arc<dyn ServiceProvider>,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Result<ProviderRef, WsaError> {
        let upcalls = ProviderUpcalls::new(index, wake);
        let data = sp.wsp_startup_ex(WSD_VERSION, &TCP_INFO, Arc::clone(&upcalls) as _)?;
        upcalls.open();
        let has = |extension| sp.wsp_ioctl(None, Ioctl::ExtensionFunctionPointer(extension));
        let checked = MANDATORY.iter().try_for_each(|&e| has(e).map(drop));
        if let Err(error) = checked {
            upcalls.shut();
            // The provider is out of use either way.
            let _ended = sp.wsp_cleanup();
            return Err(error);
        }
        let has_rdma_read = has(Extension::RdmaRead).is_ok();
        let has_registration_cache = has(Extension::MemoryRegistrationCacheCallback).is_ok();
        let provider = Arc::new(Self {
            index,
            name: data.name,
            memory: data.memory,
            waiting: data.waiting,
            sharing: data.sharing,
            send_depth: data.send_depth,
            recv_depth: data.recv_depth,
            has_rdma_read,
            has_registration_cache,
            upcalls,
            addresses: Mutex::default(),
            state: AtomicU32::new(UP),
            sp,
        });
        if provider.refresh().is_err() {
            // no list, no entries; asked again at the next change.
            provider.lock_addresses().clear();
        }
        Ok(provider)
    }

    /// Asks the provider for the addresses of its NICs, over a probe socket that is closed at once.
    ///
    /// # Errors
    /// The provider's code; the list is then empty.
    pub fn refresh(&self) -> Result<(), WsaError> {
        let list = self.query_addresses();
        let mut addresses = self.lock_addresses();
        addresses.clear();
        // Relaxed: as in `is_up`.
        if matches!(list, Err(WsaError::NoBufs)) {
            self.state.store(STARVED, Ordering::Relaxed);
        }
        addresses.extend(list?);
        // A provider that answers again is usable again.
        self.state.store(UP, Ordering::Relaxed);
        Ok(())
    }

    fn query_addresses(&self) -> Result<Vec<Ipv4Addr>, WsaError> {
        let probe = self.socket()?;
        let reply = self.sp.wsp_ioctl(Some(probe), Ioctl::AddressListQuery);
        let closed = self.sp.wsp_close_socket(probe);
        let IoctlReply::AddressList(list) = reply? else {
            return Err(WsaError::Inval);
        };
        closed?;
        Ok(list.iter().map(|a| *a.ip()).collect())
    }

    /// A new socket of this provider: always an IP stream, always overlapped, never a raw one.
    ///
    /// # Errors
    /// The provider's code.
    pub fn socket(&self) -> Result<SpSocket, WsaError> {
        self.sp.wsp_socket(
            TCP_INFO.family,
            TCP_INFO.socket_type,
            TCP_INFO.protocol,
            &TCP_INFO,
            WSA_FLAG_OVERLAPPED,
        )
    }

    /// Whether `address` belongs to one of the provider's NICs.
    #[must_use]
    pub fn owns(&self, address: Ipv4Addr) -> bool {
        self.lock_addresses().contains(&address)
    }

    /// Addresses of the provider's NICs.
    #[must_use]
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.lock_addresses().clone()
    }

    /// Whether it has not failed as a whole.
    #[must_use]
    pub fn is_up(&self) -> bool {
        // Relaxed: a hint for routing; every function answers for itself.
        self.state.load(Ordering::Relaxed) != DOWN
    }

    /// Whether it had no socket to tell its addresses over.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        // Relaxed: as in `is_up`.
        self.state.load(Ordering::Relaxed) == STARVED
    }

    /// Takes note of an error: `NetDown` says that the whole provider failed.
    pub fn note(&self, error: WsaError) {
        if error == WsaError::NetDown {
            // Relaxed: as in `is_up`.
            self.state.store(DOWN, Ordering::Relaxed);
            self.lock_addresses().clear();
        }
    }

    /// Name of this process in the provider's family; 1 for a provider that shares nothing.
    #[must_use]
    pub fn self_id(&self) -> u64 {
        self.sharing.as_ref().map_or(1, |s| s.self_id())
    }

    /// Whether process `id` of the family is alive.
    #[must_use]
    pub fn is_alive(&self, id: u64) -> bool {
        self.sharing.as_ref().is_none_or(|s| s.is_alive(id))
    }

    /// Value of one of the provider's own options, `None` where it has none.
    #[must_use]
    pub fn limit(&self, s: SpSocket, name: u32) -> Option<u32> {
        self.sp.wsp_get_sock_opt(s, libc::SOL_SOCKET, name).ok()
    }

    /// Longest message of a socket.
    #[must_use]
    pub fn max_message(&self, s: SpSocket) -> Option<u32> {
        self.limit(s, options::SO_MAX_MSG_SIZE)
    }

    /// Switch handles this provider holds now.
    #[must_use]
    pub fn live_handles(&self) -> usize {
        self.upcalls.live()
    }

    /// Ends the use of the provider. Upcalls are allowed until its clean-up has returned.
    ///
    /// # Errors
    /// The provider's code.
    pub fn cleanup(&self) -> Result<(), WsaError> {
        let result = self.sp.wsp_cleanup();
        self.upcalls.shut();
        result
    }

    fn lock_addresses(&self) -> MutexGuard<'_, Vec<Ipv4Addr>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl core::fmt::Debug for Provider {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Provider")
            .field("index", &self.index)
            .field("name", &self.name)
            .field("up", &self.is_up())
            .finish_non_exhaustive()
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct ProviderTable {
    providers: Vec<ProviderRef>,
    subnets: SubnetTable,
}

impl ProviderTable {
    /// Adds a started provider and rebuilds the subnets.
    pub fn add(&mut self, provider: ProviderRef, config: &NodeConfig) {
        self.providers.push(provider);
        self.rebuild(config);
    }

    /// Rebuilds the subnet table from the providers' lists.
    pub fn rebuild(&mut self, config: &NodeConfig) {
        let mut subnets = SubnetTable::default();
        for (index, provider) in self.providers.iter().enumerate() {
            for address in provider.addresses() {
                if let Some(prefix) = config.prefix_of(address) {
                    subnets.add(crate::config::AddressPrefix { address, prefix }, index);
                }
            }
        }
        self.subnets = subnets;
    }

    /// Providers in order of preference.
    #[must_use]
    pub fn providers(&self) -> &[ProviderRef] {
        &self.providers
    }

    /// Whether a provider had no socket to tell its addresses over.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.providers.iter().any(|p| p.is_starved())
    }

    /// The subnets.
    #[must_use]
    pub fn subnets(&self) -> &SubnetTable {
        &self.subnets
    }
}
