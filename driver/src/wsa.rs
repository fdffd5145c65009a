//! Windows Sockets error codes as the SPI speaks them, and their Linux errno.
//!
//! Place: every SPI function returns them; the preload library alone turns them into `errno`.
//! Source: Winsock headers for the numbers; the errno of each is what kernel TCP answers in that case.

use core::fmt;

macro_rules! wsa {
    ($($(#[$doc:meta])* $name:ident = $number:literal => $errno:ident,)*) => {
        /// Error of an SPI function.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum WsaError {
            $($(#[$doc])* $name = $number,)*
        }

        impl WsaError {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The Winsock number.
            #[must_use]
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// Code of a number, `None` for one that is not in the table.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The errno an application sees when this code reaches it.
            #[must_use]
            pub const fn errno(self) -> i32 {
                match self {
                    $(Self::$name => libc::$errno,)*
                }
            }

            /// The Winsock name without the `WSA` prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

wsa! {
    /// WSA_INVALID_HANDLE.
    InvalidHandle = 6 => EBADF,
    /// WSA_OPERATION_ABORTED.
    OperationAborted = 995 => ECANCELED,
    /// WSA_IO_INCOMPLETE.
    IoIncomplete = 996 => EINPROGRESS,
    /// WSA_IO_PENDING.
    IoPending = 997 => EINPROGRESS,
    /// WSAEINTR; never returned by a provider.
    Intr = 10004 => EINTR,
    /// WSAEACCES.
    Acces = 10013 => EACCES,
    /// WSAEFAULT.
    Fault = 10014 => EFAULT,
    /// WSAEINVAL.
    Inval = 10022 => EINVAL,
    /// WSAEMFILE.
    Mfile = 10024 => EMFILE,
    /// WSAEWOULDBLOCK.
    WouldBlock = 10035 => EAGAIN,
    /// WSAEINPROGRESS; never returned by a provider.
    InProgress = 10036 => EINPROGRESS,
    /// WSAEALREADY.
    Already = 10037 => EALREADY,
    /// WSAENOTSOCK.
    NotSock = 10038 => ENOTSOCK,
    /// WSAEMSGSIZE.
    MsgSize = 10040 => EMSGSIZE,
    /// WSAEPROTOTYPE.
    Prototype = 10041 => EPROTOTYPE,
    /// WSAENOPROTOOPT.
    NoProtoOpt = 10042 => ENOPROTOOPT,
    /// WSAEPROTONOSUPPORT.
    ProtoNoSupport = 10043 => EPROTONOSUPPORT,
    /// WSAESOCKTNOSUPPORT.
    SocktNoSupport = 10044 => ESOCKTNOSUPPORT,
    /// WSAEOPNOTSUPP.
    OpNotSupp = 10045 => EOPNOTSUPP,
    /// WSAEAFNOSUPPORT.
    AfNoSupport = 10047 => EAFNOSUPPORT,
    /// WSAEADDRINUSE.
    AddrInUse = 10048 => EADDRINUSE,
    /// WSAEADDRNOTAVAIL.
    AddrNotAvail = 10049 => EADDRNOTAVAIL,
    /// WSAENETDOWN: the whole provider failed.
    NetDown = 10050 => ENETDOWN,
    /// WSAENETUNREACH.
    NetUnreach = 10051 => ENETUNREACH,
    /// WSAENETRESET: keep-alive death.
    NetReset = 10052 => ETIMEDOUT,
    /// WSAECONNABORTED: local failure of an established connection.
    ConnAborted = 10053 => ECONNRESET,
    /// WSAECONNRESET: reset by the peer; from connect: nobody listens.
    ConnReset = 10054 => ECONNRESET,
    /// WSAENOBUFS.
    NoBufs = 10055 => ENOBUFS,
    /// WSAEISCONN.
    IsConn = 10056 => EISCONN,
    /// WSAENOTCONN.
    NotConn = 10057 => ENOTCONN,
    /// WSAESHUTDOWN; made by the switch.
    Shutdown = 10058 => EPIPE,
    /// WSAETIMEDOUT; from connect: try TCP.
    TimedOut = 10060 => ETIMEDOUT,
    /// WSAECONNREFUSED.
    ConnRefused = 10061 => ECONNREFUSED,
    /// WSAEHOSTUNREACH.
    HostUnreach = 10065 => EHOSTUNREACH,
    /// WSAEPROCLIM.
    ProcLim = 10067 => EMFILE,
    /// WSASYSNOTREADY.
    SysNotReady = 10091 => ENETDOWN,
    /// WSAVERNOTSUPPORTED.
    VerNotSupported = 10092 => ENETDOWN,
    /// WSANOTINITIALISED.
    NotInitialised = 10093 => ENETDOWN,
    /// WSAEDISCON.
    Discon = 10101 => ESHUTDOWN,
    /// WSATRY_AGAIN.
    TryAgain = 11002 => EAGAIN,
}

impl fmt::Display for WsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.code())
    }
}

impl core::error::Error for WsaError {}

#[cfg(test)]
mod tests {
    use super::WsaError;

    #[test]
    fn every_code_survives_the_round_trip_and_has_an_errno() {
        for &code in WsaError::ALL {
            assert_eq!(WsaError::from_code(code.code()), Some(code));
            assert!(code.errno() > 0);
        }
        assert_eq!(WsaError::from_code(1), None);
        assert_eq!(WsaError::ConnReset.code(), 10054);
        assert_eq!(WsaError::ConnAborted.errno(), libc::ECONNRESET);
    }
}
