//! The processes of a node, wherever they have gone: a tree below the keeper, from /proc.
//!
//! Place: the keeper signals nodes and looks for listeners by it. Invariants: only descendants of the asking process are named, so that nobody
//! else's process is ever signalled; who has left its parent counts to the node that its environment names. Source: proc(5).
//! Leaves out: processes that cut themselves off with another environment and another parent at once; they end with the keeper.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// All processes at one moment.
#[derive(Debug)]
pub(crate) struct Processes {
    children: HashMap<u32, Vec<u32>>,
    own: u32,
}

impl Processes {
    /// Looks at the processes there are.
    pub(crate) fn look() -> Self {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if let Some(parent) = parent_of(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        Self {
            children,
            own: std::process::id(),
        }
    }

    /// Direct children of the asking process.
    pub(crate) fn own_children(&self) -> &[u32] {
        self.children.get(&self.own).map_or(&[], Vec::as_slice)
    }

    /// A process and everything below it.
    pub(crate) fn tree(&self, root: u32) -> Vec<u32> {
        let mut all = vec![root];
        let mut next = 0;
        while let Some(&pid) = all.get(next) {
            all.extend(self.children.get(&pid).into_iter().flatten());
            next += 1;
        }
        all
    }

    /// Processes of a node: the trees of its programs, and of those that lost their parent and name the node. `programs` are those of
    /// all nodes, `others` are no programs.
    pub(crate) fn of_node(
        &self,
        node: &str,
        own: &[u32],
        is_known: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let adopted = self
            .own_children()
            .iter()
            .copied()
            .filter(|&pid| !is_known(pid) && node_of(pid).as_deref() == Some(node));
        let roots: Vec<u32> = own.iter().copied().chain(adopted).collect();
        roots.into_iter().flat_map(|root| self.tree(root)).collect()
    }
}

/// Sends a signal to processes below this one; those that have ended meanwhile do not matter.
pub(crate) fn signal(pids: &[u32], signal: Signal) {
    for &pid in pids {
        if let Ok(pid) = i32::try_from(pid) {
            // ESRCH: it ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Takes the status of adopted processes that have ended.
pub(crate) fn reap_adopted(is_known: impl Fn(u32) -> bool) {
    let own = std::process::id();
    let text = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    for pid in text.split_whitespace().filter_map(|word| word.parse().ok()) {
        if !is_known(pid) {
            reap(pid);
        }
    }
}

fn reap(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else {
        return true;
    };
    !matches!(
        waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)),
        Ok(nix::sys::wait::WaitStatus::StillAlive) | Err(Errno::EINTR)
    )
}

/// Kills everything below this process but what `is_spared` names with its own descendants, until nothing of it is left.
pub(crate) fn kill_all(is_spared: impl Fn(u32) -> bool) {
    loop {
        let processes = Processes::look();
        let roots: Vec<u32> = processes
            .own_children()
            .iter()
            .copied()
            .filter(|&pid| !is_spared(pid))
            .collect();
        if roots.is_empty() {
            return;
        }
        for &root in &roots {
            signal(&processes.tree(root), Signal::SIGKILL);
        }
        // Their children come to this process, which takes them in the next round.
        for &root in &roots {
            reap(root);
        }
        crate::signals::pause(std::time::Duration::from_millis(2));
    }
}

/// Whether a process holds a descriptor of the socket with this inode.
pub(crate) fn holds_socket(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
}

/// Inodes of sockets that listen on this port in the network namespace of a process.
pub(crate) fn listeners(pid: u32, port: u16) -> Vec<u64> {
    ["tcp", "tcp6"]
        .iter()
        .flat_map(|table| {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            let inodes: Vec<u64> = text
                .lines()
                .skip(1)
                .filter_map(|row| listener_on(row, port))
                .collect();
            inodes
        })
        .collect()
}

/// The inode of a row of /proc/net/tcp that listens on this port.
fn listener_on(row: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = row.split_whitespace().collect();
    let (_, row_port) = words.get(1)?.split_once(':')?;
    let is_it = u16::from_str_radix(row_port, 16) == Ok(port) && words.get(3) == Some(&LISTEN);
    if !is_it {
        return None;
    }
    words.get(9)?.parse().ok()
}

/// Whether a process still is the launcher, and not yet the program.
pub(crate) fn is_launcher(pid: u32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|&byte| byte == 0).nth(1) == Some(super::LAUNCHER.as_bytes())
}

/// The node that a process was started for.
fn node_of(pid: u32) -> Option<String> {
    /// More than any environment that matters.
    const LIMIT: u64 = 1 << 20;
    let mut environment = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(LIMIT).read_to_end(&mut environment).ok()?;
    let prefix = format!("{}=", ring_proto::channel::ENV_NODE);
    environment
        .split(|&byte| byte == 0)
        .find_map(|variable| variable.strip_prefix(prefix.as_bytes()))
        .map(|name| String::from_utf8_lossy(name).into_owned())
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: state, parent.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_listeners_are_told_from_others() {
        let row = |port: &str, state: &str| {
            format!(
                "  0: 01004D7F:{port} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 4711 1 x"
            )
        };
        assert_eq!(listener_on(&row("18EB", "0A"), 6379), Some(4711));
        assert_eq!(listener_on(&row("18EB", "01"), 6379), None);
        assert_eq!(listener_on(&row("18EC", "0A"), 6379), None);
        assert_eq!(listener_on("", 6379), None);
    }

    #[test]
    fn a_process_is_below_its_parent_and_holds_its_sockets() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = std::process::id();
        let inodes = listeners(own, port);
        assert!(inodes.iter().any(|&inode| holds_socket(own, inode)));
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let processes = Processes::look();
        assert!(processes.own_children().contains(&child.id()));
        assert!(processes.tree(own).contains(&child.id()));
        assert!(!inodes.iter().any(|&inode| holds_socket(child.id(), inode)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
