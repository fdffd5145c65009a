//! What the kernel says of sockets and processes.
//!
//! Place: tests ask it instead of trusting the system under test. Source: proc(5), /proc/net/tcp.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A kernel TCP socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TcpSocket {
    pub(crate) local: SocketAddrV4,
    pub(crate) remote: SocketAddrV4,
    /// Whether it listens.
    pub(crate) is_listener: bool,
}

/// All kernel TCP sockets with IPv4 addresses, mapped ones included.
pub(crate) fn tcp_sockets() -> Vec<TcpSocket> {
    const LISTEN: &str = "0A";
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let rows: Vec<TcpSocket> = text
                .lines()
                .skip(1)
                .filter_map(|line| {
                    let mut words = line.split_whitespace().skip(1);
                    let local = address(words.next()?)?;
                    let remote = address(words.next()?)?;
                    Some(TcpSocket {
                        local,
                        remote,
                        is_listener: words.next()? == LISTEN,
                    })
                })
                .collect();
            rows
        })
        .collect()
}

/// Whether a kernel socket listens on exactly this address.
pub(crate) fn is_listening(address: SocketAddrV4) -> bool {
    tcp_sockets()
        .iter()
        .any(|socket| socket.is_listener && socket.local == address)
}

/// Kernel TCP connections with this port at one end, of any state but listening: also those that ended within the last minute.
pub(crate) fn connections_on_port(ip: Ipv4Addr, port: u16) -> Vec<TcpSocket> {
    let end = SocketAddrV4::new(ip, port);
    let mut sockets = tcp_sockets();
    sockets.retain(|socket| !socket.is_listener && (socket.local == end || socket.remote == end));
    sockets
}

fn address(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u32>> = (0..ip.len() / 8)
        .map(|i| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok())
        .collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => match Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?) {
            // The far end of a listener.
            Ipv6Addr::UNSPECIFIED => Ipv4Addr::UNSPECIFIED,
            ip => ip.to_ipv4_mapped()?,
        },
    };
    Some(SocketAddrV4::new(ip, port))
}

/// Ids of emulator processes whose cluster lies below this directory.
pub(crate) fn emulators_below(directory: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
        let place = words.get(2).map(|word| {
            Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(word))
        });
        if words.get(1) == Some(&&b"__emulator"[..])
            && place.is_some_and(|place| place.starts_with(directory))
        {
            pids.push(pid);
        }
    }
    pids
}

/// Kills the emulators whose cluster lies below this directory.
pub(crate) fn end_emulators_below(directory: &Path) {
    for pid in emulators_below(directory) {
        end(pid);
    }
}

/// Kills a process that may have ended.
pub(crate) fn end(pid: u32) {
    // It may end by itself in between.
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
}

/// Kills a process that is not our child.
pub(crate) fn kill_9(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    super::wait_until(|| !is_alive(pid));
}

/// Whether a process exists and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ") && !status.contains("State:\tX")
}

/// Children of a process that has one thread.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let list = fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Processor time that a process has used, in clock ticks.
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The parent of a process, 0 when it is gone.
pub(crate) fn parent_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|parent| parent.trim().parse().ok())
        .unwrap_or(0)
}
