//! Processes around one connection: servers that fork, start programs on it, replace themselves, or hand it to programs without the
//! library. Each on both roads with the same result.

#[path = "../harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Cluster, Lab, Road, kernel, programs, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PORT: u16 = 6200;

/// What every connection of the tests carries there and back.
const CONTENT: usize = 300_000;

/// A client that sends, ends its direction, and compares what comes back until the end.
const ECHOED: &str = r"
import socket, sys, threading
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
content = bytes(i % 251 for i in range(count))
s = socket.create_connection((host, port))
def send():
    s.sendall(content)
    s.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
got = b''.join(iter(lambda: s.recv(65536), b''))
sender.join()
assert got == content, (len(got), len(content))
print('right')
";

/// Starts a server on node a, and lets clients on node b use it one after the other.
fn serve(test: &str, road: Road, script: &str, extra: &[&Path], clients: usize) {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let lab = Lab::new(test);
    let cluster = lab.up_on(road);
    let port = PORT.to_string();
    let mut server = cluster.run("a", [python.as_os_str(), "-c".as_ref(), script.as_ref()]);
    server.arg(&port).args(extra);
    let mut server = lab.spawn("server", server);
    cluster.wait_listening("a", PORT);
    for _ in 0..clients {
        let mut client = cluster.run("b", [python.as_os_str(), "-c".as_ref(), ECHOED.as_ref()]);
        client.args(["a", &port, &CONTENT.to_string()]);
        assert_eq!(lab.spawn("client", client).succeed(), "right\n");
    }
    assert!(server.wait().success(), "{}", server.stderr());
    wait_for_nothing(&cluster);
    assert_road(&cluster, road);
}

/// Waits until nothing of ended programs is left at the NICs.
fn wait_for_nothing(cluster: &Cluster<'_>) {
    cluster.wait_no_connections();
    for node in ["a", "b"] {
        wait_until(|| cluster.counter(node, "qps") + cluster.counter(node, "orphans") == 0);
        wait_until(|| cluster.counter(node, "functions") == 0);
    }
}

/// All connections between the nodes took this road; those of pumps to their programs are nobody's business.
fn assert_road(cluster: &Cluster<'_>, road: Road) {
    match road {
        Road::San => {
            assert!(cluster.total("b", "san_connections") > 0);
            assert_eq!(cluster.total("b", "tcp_connections"), 0);
        }
        Road::Tcp => assert_eq!(cluster.total("b", "san_connections"), 0),
    }
}

/// A C program without the C library's shared object, which echoes its standard input.
fn static_echo(lab: &Lab) -> Option<PathBuf> {
    let [gcc] = programs::find(["gcc"])?;
    let source = lab.write(
        "echo.c",
        "#include <unistd.h>\nint main(void) { char b[4096]; ssize_t n;\n\
         while ((n = read(0, b, sizeof b)) > 0) for (ssize_t k = 0, w; k < n; k += w)\n\
         if ((w = write(1, b + k, n - k)) <= 0) return 1;\nreturn n < 0; }\n",
    );
    let program = lab.directory().join("echo");
    let mut compile = Command::new(gcc);
    compile
        .args(["-O1", "-static", "-o"])
        .arg(&program)
        .arg(source);
    lab.spawn("gcc", compile).succeed();
    Some(program)
}

#[test]
fn a_server_starts_a_program_on_each_connection() {
    let starts = [
        // Standard streams, as inetd leaves them, by fork and exec.
        "subprocess.Popen(['cat'], stdin=s, stdout=s)",
        // A program without the library.
        "subprocess.Popen([sys.argv[2]], stdin=s, stdout=s)",
        "subprocess.Popen([sys.argv[2]], stdin=s, stdout=s, close_fds=False)",
        // By posix_spawn with file actions.
        "spawn('/bin/cat', ['cat'])",
        "spawn(sys.argv[2], ['echo'])",
        // A descriptor under its own number, used by calls.
        "subprocess.Popen([sys.executable, '-c', echo, str(s.fileno())], pass_fds=[s.fileno()])",
        // With nothing in the environment.
        "subprocess.Popen([sys.executable, '-c', echo, str(s.fileno())], pass_fds=[s.fileno()], env={})",
    ];
    let script = format!(
        r"
import os, socket, subprocess, sys
echo = '''
import socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
assert s.getpeername()[0].startswith('127.77.')
for piece in iter(lambda: s.recv(65536), b''):
    s.sendall(piece)
'''
class Spawned:
    def __init__(self, pid): self.pid = pid
    def wait(self): return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
def spawn(path, argv):
    fd = s.fileno()
    actions = [(os.POSIX_SPAWN_DUP2, fd, 0), (os.POSIX_SPAWN_DUP2, fd, 1), (os.POSIX_SPAWN_CLOSE, fd)]
    return Spawned(os.posix_spawn(path, argv, os.environ, file_actions=actions))
l = socket.create_server(('', int(sys.argv[1])))
for start in [{}]:
    s, peer = l.accept()
    child = start()
    s.close()
    assert child.wait() == 0
",
        starts.map(|start| format!("lambda: {start}")).join(", ")
    );
    for road in Road::BOTH {
        let lab = Lab::new("static_echo");
        let Some(echo) = static_echo(&lab) else {
            return;
        };
        let test = "a_server_starts_a_program_on_each_connection";
        serve(test, road, &script, &[&echo], starts.len());
    }
}

#[test]
fn forking_servers_of_every_kind_share_their_sockets() {
    let scripts = [
        // A child for each connection.
        r"
import os, socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        for piece in iter(lambda: self.request.recv(65536), b''):
            self.request.sendall(piece)
server = socketserver.ForkingTCPServer(('', int(sys.argv[1])), Echo)
for _ in range(3): server.handle_request()
server.server_close()
",
        // Children that accept for their parent, which closed the listener.
        r"
import os, socket, sys
l = socket.create_server(('', int(sys.argv[1])))
children = []
for _ in range(3):
    if (pid := os.fork()) == 0:
        s, _ = l.accept()
        l.close()
        for piece in iter(lambda: s.recv(65536), b''):
            s.sendall(piece)
        os._exit(0)
    children.append(pid)
l.close()
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
",
        // A daemon: two forks and a session of its own, its first parents gone. Parent reads, child writes.
        r"
import os, socket, sys
l = socket.create_server(('', int(sys.argv[1])))
done, end = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.close(done)
        for _ in range(3):
            s, _ = l.accept()
            into, out = os.pipe()
            if (pid := os.fork()) == 0:
                os.close(out)
                with os.fdopen(into, 'rb', buffering=0) as source:
                    for piece in iter(lambda: source.read(65536), b''):
                        s.sendall(piece)
                os._exit(0)
            os.close(into)
            for piece in iter(lambda: s.recv(65536), b''):
                while piece:
                    piece = piece[os.write(out, piece):]
            os.close(out)
            assert os.waitpid(pid, 0)[1] == 0
            s.close()
        os.write(end, b'1')
    os._exit(0)
os.close(end)
l.close()
assert os.read(done, 1) == b'1'
",
        // Workers of multiprocessing, forked and started anew, get sockets of their parent.
        r"
import multiprocessing, os, socket, sys
def work(l):
    s, _ = l.accept()
    for piece in iter(lambda: s.recv(65536), b''):
        s.sendall(piece)
l = socket.create_server(('', int(sys.argv[1])))
workers = [multiprocessing.get_context('fork').Process(target=work, args=(l,)) for _ in range(3)]
for w in workers: w.start()
for w in workers: w.join()
assert all(w.exitcode == 0 for w in workers)
",
    ];
    for road in Road::BOTH {
        for script in scripts {
            let test = "forking_servers_of_every_kind_share_their_sockets";
            serve(test, road, script, &[], 3);
        }
    }
}

#[test]
fn socat_starts_programs_on_its_connections() {
    let Some([socat, python]) = programs::find(["socat", "python3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("socat_starts_programs_on_its_connections");
        let cluster = lab.up_on(road);
        let listen = format!("TCP-LISTEN:{PORT},fork,reuseaddr");
        for how in ["EXEC:cat,nofork", "EXEC:cat", "SYSTEM:cat"] {
            let server = cluster.run("a", [socat.as_os_str(), listen.as_ref(), how.as_ref()]);
            let mut server = lab.spawn("socat", server);
            cluster.wait_listening("a", PORT);
            let mut client = cluster.run("b", [python.as_os_str(), "-c".as_ref()]);
            client.args([ECHOED, "a", &PORT.to_string(), &CONTENT.to_string()]);
            assert_eq!(lab.spawn("client", client).succeed(), "right\n", "{how}");
            server.signal(Signal::SIGTERM);
            server.wait();
            wait_for_nothing(&cluster);
        }
        assert_road(&cluster, road);
    }
}

#[test]
fn nginx_is_replaced_while_it_serves() {
    let Some([nginx, curl]) = programs::find(["nginx", "curl"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("nginx_is_replaced_while_it_serves");
        let cluster = lab.up_on(road);
        let home = lab.directory();
        let pid_file = home.join("nginx.pid");
        let config = lab.write(
            "nginx.conf",
            &format!(
                "worker_processes 2;\npid {pid};\nerror_log {home}/error.log;\n\
                 events {{ worker_connections 64; }}\n\
                 http {{ access_log off; client_body_temp_path {home}/t1; proxy_temp_path {home}/t2;\n\
                 fastcgi_temp_path {home}/t3; uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;\n\
                 server {{ listen {PORT}; location / {{ return 200 \"$pid\\n\"; }} }} }}\n",
                pid = pid_file.display(),
                home = home.display(),
            ),
        );
        let mut server = cluster.run("a", [&nginx]);
        // As a daemon: in the foreground it takes the signal for a mistake.
        server.arg("-c").arg(&config);
        lab.spawn("nginx", server).succeed();
        let old_file = home.join("nginx.pid.oldbin");
        let _daemons = Daemons([pid_file.clone(), old_file.clone()]);
        cluster.wait_listening("a", PORT);
        let first = wait_for(|| master(&pid_file));
        assert!(fetch(&lab, &cluster, &curl) > 0);
        // The new binary: it inherits the listeners by number, with an environment of nginx's making.
        kill(first, Signal::SIGUSR2).expect("nginx runs");
        wait_until(|| master(&old_file) == Some(first));
        let second = wait_for(|| master(&pid_file).filter(|pid| *pid != first));
        assert!(fetch(&lab, &cluster, &curl) > 0);
        // The old one goes; only workers of the new one are left to answer.
        kill(first, Signal::SIGQUIT).expect("nginx runs");
        wait_until(|| !kernel::is_alive(first.as_raw().unsigned_abs()));
        for _ in 0..4 {
            let worker = fetch(&lab, &cluster, &curl);
            assert_eq!(kernel::parent_of(worker), second.as_raw().unsigned_abs());
        }
        kill(second, Signal::SIGQUIT).expect("nginx runs");
        wait_for_nothing(&cluster);
        assert_road(&cluster, road);
    }
}

/// Daemons by their files: none outlives the test.
struct Daemons([PathBuf; 2]);

impl Drop for Daemons {
    fn drop(&mut self) {
        for pid in self.0.iter().filter_map(|file| master(file)) {
            // One that is gone has taken its file along, or is gone all the same.
            let _ = kill(pid, Signal::SIGTERM);
        }
    }
}

fn master(file: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok().map(Pid::from_raw)
}

/// The process id of the worker that answers.
fn fetch(lab: &Lab, cluster: &Cluster<'_>, curl: &Path) -> u32 {
    let mut client = cluster.run("b", [curl]);
    client.args(["-sS", "--fail", &format!("http://a:{PORT}/")]);
    let answer = lab.spawn("curl", client).succeed();
    answer.trim().parse().expect("nginx tells a process id")
}

#[test]
fn descriptors_run_out_at_most_16_earlier_than_without_the_library() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    // Prints how many connections it got at each limit: a low one from the start, a raised one, a lowered one.
    let client = r"
import errno, resource, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
counts = []
for limit in (48, 200, 120):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 200))
    ends = []
    try:
        while True:
            ends.append(socket.create_connection((host, port)))
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    for k, end in enumerate(ends):
        end.sendall(b'%d' % (k % 10))
        assert end.recv(1) == b'%d' % (k % 10)
    counts.append(len(ends))
    for end in ends: end.close()
print(*counts)
";
    let server = r"
import selectors, socket, sys
l = socket.create_server(('', int(sys.argv[1])), backlog=512)
s = selectors.DefaultSelector()
s.register(l, selectors.EVENT_READ)
while True:
    for key, _ in s.select():
        if key.fileobj is l:
            end, _ = l.accept()
            s.register(end, selectors.EVENT_READ)
        elif piece := key.fileobj.recv(100):
            key.fileobj.sendall(piece)
        else:
            s.unregister(key.fileobj)
            key.fileobj.close()
";
    let lab = Lab::new("descriptors_run_out_at_most_16_earlier_than_without_the_library");
    let cluster = lab.up_on(Road::San);
    let port = PORT.to_string();
    let mut command = cluster.run("a", [python.as_os_str(), "-c".as_ref(), server.as_ref()]);
    command.arg(&port);
    let mut server = lab.spawn("server", command);
    cluster.wait_listening("a", PORT);
    let counts = |mut command: Command, host: &str| -> Vec<usize> {
        command.args([host, &port]);
        let said = lab.spawn("client", command).succeed();
        let numbers = said.split_whitespace();
        numbers.map(|n| n.parse().expect("a number")).collect()
    };
    let hooked = cluster.run("b", [python.as_os_str(), "-c".as_ref(), client.as_ref()]);
    let hooked = counts(hooked, "a");
    assert_eq!(cluster.total("b", "tcp_connections"), 0);
    let mut plain = Command::new(&python);
    plain.args(["-c", client]);
    let plain = counts(plain, &cluster.address("a").to_string());
    for (hooked, plain) in hooked.iter().zip(&plain) {
        // The channel is inherited, the rest is opened with the first connection.
        assert!(
            hooked <= plain && plain - hooked <= 16,
            "{hooked:?} {plain:?}"
        );
    }
    server.kill();
    wait_for_nothing(&cluster);
}

#[test]
fn what_is_killed_at_any_stage_leaves_nothing() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    // Each stage stops where it stands; the family is killed one by one, in both orders.
    let stages = [
        // Before accept, in a child.
        "os.fork(); say(os.getpid()); time.sleep(60)",
        // With a connection that both have.
        "s, _ = l.accept(); os.fork(); say(os.getpid()); time.sleep(60)",
        // After exec, by whom it was left.
        "s, _ = l.accept(); os.set_inheritable(s.fileno(), True); say(os.getpid()); \
         os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)'])",
        // With a pump.
        "s, _ = l.accept(); os.dup2(s.fileno(), 0); s.close(); say(os.getpid()); time.sleep(60)",
        // With a program that was started on it.
        "s, _ = l.accept(); p = subprocess.Popen(['sleep', '60'], stdin=s, stdout=s); say(os.getpid(), p.pid); time.sleep(60)",
        // In the middle of a message to another process.
        "s, _ = l.accept(); a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [s.fileno()]); say(os.getpid()); time.sleep(60)",
    ];
    let lab = Lab::new("what_is_killed_at_any_stage_leaves_nothing");
    let cluster = lab.up_on(Road::San);
    let client = r"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
try:
    # Whoever reads may be killed before all is on its way.
    s.sendall(b'x' * 100000)
    while s.recv(65536): pass
except (ConnectionResetError, BrokenPipeError): pass
";
    for (stage, is_reversed) in stages
        .iter()
        .flat_map(|stage| [(stage, false), (stage, true)])
    {
        let script = format!(
            "import os, socket, subprocess, sys, time\n\
             # A line in one piece: two members of a family write at once.\n\
             def say(*words): os.write(1, b' '.join(b'%d' % word for word in words) + b'\\n')\n\
             l = socket.create_server(('', int(sys.argv[1])))\n{stage}\n"
        );
        let port = PORT.to_string();
        let mut server = cluster.run("a", [python.as_os_str(), "-c".as_ref(), script.as_ref()]);
        server.arg(&port);
        let server = lab.spawn("server", server);
        cluster.wait_listening("a", PORT);
        let has_client = stage.contains("accept");
        let client = has_client.then(|| {
            let mut command =
                cluster.run("b", [python.as_os_str(), "-c".as_ref(), client.as_ref()]);
            command.args(["a", &port]);
            lab.spawn("client", command)
        });
        let members = if stage.contains("fork") { 2 } else { 1 };
        let mut pids: Vec<i32> = wait_for(|| {
            let said = server.stdout();
            (said.lines().count() >= members).then(|| {
                said.split_whitespace()
                    .map(|pid| pid.parse().expect("a process id"))
                    .collect()
            })
        });
        if is_reversed {
            pids.reverse();
        }
        for pid in pids {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        }
        drop(server);
        if let Some(client) = client {
            client.succeed();
        }
        wait_for_nothing(&cluster);
        assert_eq!(cluster.counter("a", "listeners"), 0);
    }
}
