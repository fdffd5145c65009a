//! Datagrams to other nodes, which no link governs in loopback mode.
//!
//! Place: the preload library asks before a datagram or a connect of a datagram socket goes to the kernel. Invariants: only addresses
//! of other nodes are meant; where nothing is placed, as in namespace mode, the links govern everything.
//! Source: ours (docs/cluster.md, `cluster.ungoverned`). Leaves out: what is done about them, which the cluster decides.

use core::net::SocketAddr;
use std::os::fd::RawFd;

use crate::sys;
use crate::tcp::KernelTcp;

/// How a datagram stands to the links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Course {
    /// It stays on the node, leaves the cluster, or its way is governed.
    Governed,
    /// It goes to another node past the links; `is_news`: the first of its socket.
    PastLinks {
        /// Whether the socket did so for the first time.
        is_news: bool,
    },
}

impl KernelTcp {
    /// How a datagram from `fd` to the logical name `to` stands to the links.
    #[must_use]
    pub fn course(&self, fd: RawFd, to: SocketAddr) -> Course {
        let Some((placement, endpoint)) = self.placed(fd) else {
            return Course::Governed;
        };
        let is_other = sys::inner_v4(to.ip())
            .is_some_and(|v4| placement.is_in_cluster(v4) && !placement.is_own(v4));
        if !is_other || !endpoint.shape().datagram {
            return Course::Governed;
        }
        Course::PastLinks {
            is_news: endpoint.mark_ungoverned(),
        }
    }
}
