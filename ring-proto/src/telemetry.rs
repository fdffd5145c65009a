//! Telemetry memfd: what a process tells about its connections, for `sanlab stat`.
//!
//! Place: written by the switch, read by the emulator, which trusts none of it and folds the totals when the process ends.
//! Invariants: 8-byte words, each written by one process; an entry is live while its `state` word is [`LIVE`], written last.
//! Source: ours. Leaves out: anything the NIC knows itself.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::admin::SockAddr;

/// Value of [`Header::magic`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"SANTELE1");
/// Connection entries.
pub const ENTRIES: usize = 4096;
/// Bytes of the memfd.
pub const LEN: usize = size_of::<Header>() + ENTRIES * size_of::<Entry>();
/// [`Entry::state`] of an entry in use.
pub const LIVE: u64 = 1;

/// Header of the memfd.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// Process id, as the process sees it.
    pub pid: u64,
    /// Name of the program, UTF-8, zero padded.
    pub program: [u8; 64],
    /// Stream bytes sent over the SAN, cumulative.
    pub san_tx_bytes: u64,
    /// Stream bytes received over the SAN, cumulative.
    pub san_rx_bytes: u64,
    /// Connections established over TCP between nodes or from and to them, cumulative.
    pub tcp_connections: u64,
    /// Connections established over the SAN, cumulative.
    pub san_connections: u64,
    /// Entries ever used: no live entry lies at or behind this index.
    pub entries_used: u64,
    /// Fall-backs by [`Reason`], cumulative.
    pub fallbacks: [u64; 32],
    /// Zero.
    pub reserved: [u64; 3],
}

/// One connection.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Entry {
    /// 0 free, [`LIVE`] in use.
    pub state: u64,
    /// [`ROAD_TCP`] or [`ROAD_SAN`] in bits 0..8, [`Reason`] in bits 8..16, mode in bits 16..24; the others are the process's own.
    pub road: u64,
    /// Local address, logical.
    pub local: SockAddr,
    /// Remote address, logical.
    pub remote: SockAddr,
    /// Stream bytes sent.
    pub tx_bytes: u64,
    /// Stream bytes received.
    pub rx_bytes: u64,
    /// SAN: stream bytes that the session took from its programs since it began, whichever process sent them.
    pub accepted: u64,
    /// SAN: stream bytes that its programs took from the session since it began.
    pub taken: u64,
    /// SAN: of the accepted ones, those that were not yet delivered when this process looked last.
    pub unsent: u64,
    /// SAN: credits in bits 0..32, [`FlowState`] in bits 32..40.
    pub flow: u64,
}

const _: () = {
    assert!(size_of::<Header>() == 400);
    assert!(size_of::<Entry>() == 112);
};

/// Road of an entry: kernel TCP.
pub const ROAD_TCP: u64 = 0;
/// Road of an entry: SAN.
pub const ROAD_SAN: u64 = 1;

/// Where a SAN connection stands, by the names of TCP's states.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "TCP's names")]
pub enum FlowState {
    #[default]
    Estab = 0,
    FinWait = 1,
    CloseWait = 2,
    Closing = 3,
    Close = 4,
}

impl FlowState {
    /// Name as `ss` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Estab => "ESTAB",
            Self::FinWait => "FIN-WAIT",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Closing => "CLOSING",
            Self::Close => "CLOSE",
        }
    }

    /// State of a number; an unknown one is what it is to somebody who asks: not closed yet.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::FinWait,
            2 => Self::CloseWait,
            3 => Self::Closing,
            4 => Self::Close,
            _ => Self::Estab,
        }
    }
}

/// Why a connection took TCP. The list is closed; names are part of the command line's JSON.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the names are the documentation, see docs/session.md"
)]
pub enum Reason {
    Loopback = 1,
    OffSubnet = 2,
    BindNotSan = 3,
    Option = 4,
    NoProvider = 5,
    SpSocket = 6,
    SpBind = 7,
    SpSetsockopt = 8,
    SpListen = 9,
    SpEventSelect = 10,
    SpConnect = 11,
    NoSanListener = 12,
    SanTimeout = 13,
    BacklogFull = 14,
    ProviderDown = 15,
    LinkDown = 16,
    StaticBinary = 17,
    GoBinary = 18,
    SetidBinary = 19,
    MuslBinary = 20,
    OldGlibc = 21,
    LinkCut = 22,
    Datagrams = 23,
    PeerLimit = 24,
}

impl Reason {
    /// All reasons, in numerical order.
    pub const ALL: [Self; 24] = [
        Self::Loopback,
        Self::OffSubnet,
        Self::BindNotSan,
        Self::Option,
        Self::NoProvider,
        Self::SpSocket,
        Self::SpBind,
        Self::SpSetsockopt,
        Self::SpListen,
        Self::SpEventSelect,
        Self::SpConnect,
        Self::NoSanListener,
        Self::SanTimeout,
        Self::BacklogFull,
        Self::ProviderDown,
        Self::LinkDown,
        Self::StaticBinary,
        Self::GoBinary,
        Self::SetidBinary,
        Self::MuslBinary,
        Self::OldGlibc,
        Self::LinkCut,
        Self::Datagrams,
        Self::PeerLimit,
    ];

    /// Name in JSON and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::OffSubnet => "off_subnet",
            Self::BindNotSan => "bind_not_san",
            Self::Option => "option",
            Self::NoProvider => "no_provider",
            Self::SpSocket => "sp_socket",
            Self::SpBind => "sp_bind",
            Self::SpSetsockopt => "sp_setsockopt",
            Self::SpListen => "sp_listen",
            Self::SpEventSelect => "sp_event_select",
            Self::SpConnect => "sp_connect",
            Self::NoSanListener => "no_san_listener",
            Self::SanTimeout => "san_timeout",
            Self::BacklogFull => "backlog_full",
            Self::ProviderDown => "provider_down",
            Self::LinkDown => "link_down",
            Self::StaticBinary => "static_binary",
            Self::GoBinary => "go_binary",
            Self::SetidBinary => "setid_binary",
            Self::MuslBinary => "musl_binary",
            Self::OldGlibc => "old_glibc",
            Self::LinkCut => "link_cut",
            Self::Datagrams => "datagrams",
            Self::PeerLimit => "peer_limit",
        }
    }

    /// Reason of a number, `None` for an unknown one.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|&r| r as u64 == number)
    }
}
