//! What processes tell the emulator, read here in its place.

use std::process::Stdio;

use ring_proto::channel::{self, Message};
use ring_proto::telemetry::{Entry, Header, LEN, LIVE, MAGIC};
use switch::sys;
use zerocopy::FromBytes;

use crate::harness::{Cluster, Running, has, wait_for};

/// The emulator's end of a channel, and the end that programs inherit.
struct Channel {
    emulator: i32,
    inherited: i32,
}

impl Channel {
    fn new() -> Self {
        let [emulator, inherited] =
            sys::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC).unwrap();
        sys::fcntl(inherited, libc::F_SETFD, 0).unwrap();
        Self {
            emulator,
            inherited,
        }
    }
}

fn receive(socket: i32, kind: u16) -> i32 {
    wait_for("a message", || {
        let mut bytes = [0; 32];
        let (len, fd) = match sys::receive_with_fd(socket, &mut bytes) {
            Err(libc::EAGAIN) => return None,
            received => received.unwrap(),
        };
        assert_eq!(len, 32, "the socket hangs up instead");
        let message = Message::read_from_bytes(&bytes).unwrap();
        assert!(message.is_sound());
        assert_eq!(message.kind, kind);
        Some(fd.unwrap())
    })
}

fn is_hung_up(socket: i32) -> Option<()> {
    (sys::receive_with_fd(socket, &mut [0; 32]) == Ok((0, None))).then_some(())
}

fn read(memfd: i32) -> (Header, Vec<Entry>) {
    let mut bytes = vec![0; LEN];
    let file = std::fs::File::open(format!("/proc/self/fd/{memfd}")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    let (header, rest) = Header::read_from_prefix(&bytes).unwrap();
    assert_eq!(header.magic, MAGIC);
    let entries = rest.chunks_exact(size_of::<Entry>());
    let live = entries
        .map(|e| Entry::read_from_bytes(e).unwrap())
        .filter(|e| e.state == LIVE)
        .collect();
    (header, live)
}

#[test]
fn a_process_and_its_child_report_their_connections() {
    if !has("python3") {
        return;
    }
    let script = r"
import os, socket, sys
channel = int(os.environ['SANLAB_CHANNEL'])
listener = socket.create_server((os.environ['ADDR'], 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(b'x' * 1000)
assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
# The library's descriptors cannot be seen, closed or written over.
def internal():
    return [fd for fd in os.listdir('/proc/self/fd') if int(fd) >= 400 or int(fd) == channel]
before = internal()
assert len(before) >= 2
for attempt in (lambda: os.close(channel), lambda: os.dup(channel), lambda: os.dup2(0, channel)):
    try:
        attempt()
        raise AssertionError('the channel can be reached')
    except OSError:
        pass
os.closerange(300, 5000)
assert internal() == before
child = os.fork()
if child == 0:
    server.sendall(b'y' * 500)
    print('child', flush=True)
    sys.stdin.readline()
    os._exit(0)
client.recv(500, socket.MSG_WAITALL)
print('parent', flush=True)
sys.stdin.readline()
os.waitpid(child, 0)
";
    let cluster = Cluster::claim();
    let channel = Channel::new();
    let mut command = cluster.command(1, "python3");
    command
        .args(["-u", "-c", script])
        .env("SANLAB_CHANNEL", channel.inherited.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut program = Running::start(&mut command);
    let pid = u64::from(program.child().id());

    let process = receive(channel.emulator, channel::PROCESS);
    let memfd = receive(process, channel::TELEMETRY);
    let child = receive(process, channel::PROCESS);
    let of_child = receive(child, channel::TELEMETRY);
    let (header, _) = read(memfd);
    assert_eq!(header.pid, pid);
    assert!(header.program.starts_with(b"python3"));
    wait_for("the parent's counts", || {
        let (header, entries) = read(memfd);
        let received: u64 = entries.iter().map(|e| e.rx_bytes).sum();
        let sent: u64 = entries.iter().map(|e| e.tx_bytes).sum();
        (header.tcp_connections == 2 && (sent, received) == (1000, 1500)).then_some(())
    });
    wait_for("the child's counts", || {
        let (header, entries) = read(of_child);
        let sent: u64 = entries.iter().map(|e| e.tx_bytes).sum();
        (header.pid != pid && header.tcp_connections == 0 && sent == 500).then_some(())
    });

    // The end of each is seen on its own.
    assert_eq!(is_hung_up(child), None);
    drop(program.child().stdin.take());
    wait_for("the child's end", || is_hung_up(child));
    wait_for("the parent's end", || is_hung_up(process));
    assert!(program.child().wait().unwrap().success());
}
