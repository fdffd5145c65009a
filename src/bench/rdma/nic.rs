//! The NIC that is measured: a process of its own, or this one.
//!
//! Place: started by [`super::measure`]. Invariants: the process ends with the handle, and with this program whatever ends that; its
//! socket lies in a private directory that goes with it. Forks before any thread of this program is made.
#![expect(unsafe_code, reason = "forks, and ends the fork")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use driver::function::Function;
use driver::verbs::{Access, Cq, Mr, Pd, Qp, QpOptions};
use driver::vfio::client::Client;
use nic_emu::device::DeviceOptions;
use nic_emu::embedded::EmbeddedDevice;
use nic_emu::server::{DebugConfig, DeviceSocket, NodeSpec, Sandbox, serve_devices};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getppid};
use ring_proto::attach::Attachment;
use ring_proto::ids::NodeId;

use super::super::BenchError;
use super::super::pair::pin;
use super::Plan;

/// Where in an end's memory its receives lie; what comes before is for RDMA.
pub(super) const RECEIVES: u32 = 1 << 24;

/// Where the NIC is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Via {
    /// A process of its own, reached over vfio-user.
    #[default]
    Process,
    /// This process and thread.
    Embedded,
}

impl Via {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Process => "NIC process",
            Self::Embedded => "embedded",
        }
    }
}

/// A running NIC.
pub(super) enum Nic {
    Process {
        child: Pid,
        directory: PathBuf,
    },
    Embedded {
        device: EmbeddedDevice,
        node: NodeId,
    },
}

impl Nic {
    /// Starts one; an engine of its own runs on processor `cpu`.
    pub(super) fn start(via: Via, cpu: Option<usize>) -> Result<Self, BenchError> {
        if via == Via::Embedded {
            let device = EmbeddedDevice::new(DeviceOptions::default());
            let node = device.add_node("bench", &[]);
            return Ok(Self::Embedded { device, node });
        }
        let directory = std::env::temp_dir().join(format!("sanlab-bench-{}", std::process::id()));
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        builder
            .create(&directory)
            .map_err(BenchError::system("directory of the NIC's socket"))?;
        let (mut ours, theirs) = UnixStream::pair().map_err(BenchError::system("socketpair"))?;
        let parent = Pid::this();
        // SAFETY: the program has one thread (module), so the child finds no lock held by another.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                drop(ours);
                let code = i32::from(serve(parent, &directory, cpu, theirs).is_err());
                // SAFETY: ends the child at once: nothing of the parent's is flushed or dropped twice.
                unsafe { libc::_exit(code) }
            }
            Ok(ForkResult::Parent { child }) => {
                drop(theirs);
                let nic = Self::Process { child, directory };
                let mut ready = [0];
                // An end of file: the child ended without being ready.
                ours.read_exact(&mut ready)
                    .map_err(|_| BenchError::Nic("the NIC's process did not start".into()))?;
                Ok(nic)
            }
            Err(errno) => {
                let _ = fs::remove_dir_all(&directory);
                Err(BenchError::errno("fork")(errno))
            }
        }
    }

    /// A new function of it.
    pub(super) fn attach(&self) -> Result<Arc<dyn Attachment>, BenchError> {
        match self {
            Self::Process { directory, .. } => {
                let client = Client::connect(&directory.join(SOCKET));
                Ok(Arc::new(
                    client.map_err(|error| BenchError::Nic(error.to_string()))?,
                ))
            }
            Self::Embedded { device, node } => {
                let function = device.attach(*node);
                Ok(Arc::new(
                    function.map_err(|error| BenchError::Nic(error.to_string()))?,
                ))
            }
        }
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        if let Self::Process { child, directory } = self {
            // It may have ended by itself.
            let _ = kill(*child, Signal::SIGTERM);
            let _ = waitpid(*child, None);
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Name of the socket in its directory.
const SOCKET: &str = "nic0.sock";

/// The child's life.
fn serve(
    parent: Pid,
    directory: &Path,
    cpu: Option<usize>,
    mut ready: UnixStream,
) -> Result<(), BenchError> {
    prctl::set_pdeathsig(Signal::SIGTERM).map_err(BenchError::errno("PR_SET_PDEATHSIG"))?;
    if getppid() != parent {
        // It ended before it could be watched.
        return Ok(());
    }
    pin(cpu).map_err(BenchError::errno("sched_setaffinity"))?;
    let node = NodeSpec {
        name: "bench".into(),
        addresses: Vec::new(),
        limits: nic_emu::device::Limits::default(),
    };
    let path = directory.join(SOCKET);
    let devices = vec![DeviceSocket { node, path }];
    let on_ready = || {
        // Whoever waits sees the end of this process otherwise.
        let _ = ready.write_all(&[1]);
    };
    serve_devices(devices, Sandbox::Off, DebugConfig::default(), on_ready)
        .map_err(|error| BenchError::Nic(error.to_string()))
}

/// One end: a queue pair with its queue of completions and its memory.
pub(super) struct End {
    pub(super) qp: Qp,
    pub(super) cq: Cq,
    pub(super) memory: Mr,
}

impl End {
    pub(super) fn new(attachment: Arc<dyn Attachment>, plan: &Plan) -> Result<Self, BenchError> {
        let function = Function::attach(attachment).map_err(nic)?;
        let pd = Pd::new(&function).map_err(nic)?;
        let len = RECEIVES + plan.size.max(8);
        let memory = pd.register(len, Access::all()).map_err(nic)?;
        let mut cq = Cq::new(&function, (2 * plan.tx_depth).max(64)).map_err(nic)?;
        let options = QpOptions {
            sq_depth: plan.tx_depth.max(64),
            rq_depth: plan.tx_depth.max(64),
            ..QpOptions::default()
        };
        let qp = Qp::new(&pd, &mut cq, options).map_err(nic)?;
        Ok(Self { qp, cq, memory })
    }

    pub(super) fn connect(&mut self, other: &Self) -> Result<(), BenchError> {
        self.qp.connect(other.qp.address()).map_err(nic)
    }

    pub(super) fn post_receive(&mut self, size: u32) -> Result<(), BenchError> {
        let sges = [self.memory.sge(RECEIVES, size)];
        self.qp.post_recv(0, &sges).map_err(nic)
    }

    /// Fills the memory of RDMA and of receives with a pattern.
    pub(super) fn fill(&self, size: u32, pattern: u8) {
        let bytes = vec![pattern; size.max(8) as usize];
        self.memory.write(0, &bytes);
        self.memory.write(RECEIVES, &bytes);
    }

    /// Whether the memory at `offset` holds a pattern.
    pub(super) fn holds(&self, offset: u32, size: u32, pattern: u8) -> bool {
        let mut bytes = vec![!pattern; size as usize];
        self.memory.read(offset, &mut bytes) && bytes.iter().all(|&byte| byte == pattern)
    }

    /// The first word of the memory.
    pub(super) fn word(&self) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn nic(error: impl std::fmt::Display) -> BenchError {
    BenchError::Nic(error.to_string())
}
