//! A campaign of faults: programs and the emulator killed, links cut and lossy, ports down, at random points of checked traffic.
//!
//! Afterwards no byte was wrong, no process hangs, and the NICs hold nothing of what has ended. Forty events; a thousand and more with
//! `SANLAB_LONG=1`. `SANLAB_SEED` chooses another course.

#[path = "../harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Cluster, Lab, Process, Road, kernel, programs, wait_until};
use nic_emu::control::client;
use nic_emu::device::{LinkChange, LinkParameters};
use nix::sys::signal::Signal;

const PORT: u16 = 7000;
const SERVERS: [&str; 2] = ["a", "b"];
const CLIENTS: [&str; 3] = ["b", "c", "c"];
const NODES: [&str; 3] = ["a", "b", "c"];
const EVENTS_PER_ROUND: u32 = 20;
const SCRIPT: &str = include_str!("traffic.py");

#[test]
fn faults_at_random_points_damage_no_byte_hang_nothing_and_leave_nothing() {
    let Some([python]) = programs::find(["python3"]) else {
        return;
    };
    let is_long = std::env::var_os("SANLAB_LONG").is_some();
    let seed = std::env::var("SANLAB_SEED").map_or(Ok(7), |text| text.parse());
    let mut chance = Chance(seed.expect("SANLAB_SEED is a number"));
    let rounds = if is_long { 52 } else { 2 };
    let patience = Duration::from_secs(if is_long { 3600 } else { 300 });
    let lab = Lab::patient(
        "faults_at_random_points_damage_no_byte_hang_nothing_and_leave_nothing",
        patience,
    );
    let mut cluster = lab.up_on(Road::San);
    let mut counts = Counts::default();
    for round in 0..rounds {
        let mut world = World::start(&lab, &cluster, &python, &mut chance);
        for _ in 0..EVENTS_PER_ROUND {
            world.event(&mut chance, &mut counts);
        }
        if round % 4 == 1 {
            // `sanlab run` needs it; what runs goes on with listeners and new connections over TCP.
            for client in &mut world.clients {
                client.wait_output("ready\n");
            }
            cluster.kill_emulator();
            counts.emulators += 1;
            world.assert_alive();
            world.end();
            drop(cluster);
            cluster = lab.up_on(Road::San);
        } else {
            world.mend();
            world.assert_alive();
            world.end();
            assert_nothing_is_left(&cluster);
        }
    }
    println!("{counts:?}");
    for file in std::fs::read_dir(lab.directory()).expect("the test's own") {
        let file = file.expect("an entry").path();
        let said = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(!said.contains("WRONG"), "{}: {said}", file.display());
    }
}

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    clients: u32,
    workers: u32,
    servers: u32,
    cuts: u32,
    losses: u32,
    ports: u32,
    emulators: u32,
}

/// The programs of a round, and what is wrong with the network at the moment.
struct World<'a> {
    lab: &'a Lab,
    cluster: &'a Cluster<'a>,
    python: &'a Path,
    control: PathBuf,
    servers: Vec<Process>,
    clients: Vec<Process>,
}

impl<'a> World<'a> {
    fn start(
        lab: &'a Lab,
        cluster: &'a Cluster<'a>,
        python: &'a Path,
        chance: &mut Chance,
    ) -> Self {
        let mut world = Self {
            lab,
            cluster,
            python,
            control: cluster.directory().join("control.sock"),
            servers: Vec::new(),
            clients: Vec::new(),
        };
        for node in SERVERS {
            let server = world.serve(node);
            world.servers.push(server);
        }
        for node in CLIENTS {
            let client = world.ask(node, chance);
            world.clients.push(client);
        }
        world
    }

    fn serve(&self, node: &str) -> Process {
        let mut command = self.cluster.run(node, [self.python]);
        command.args(["-c", SCRIPT, "serve", &PORT.to_string(), "2"]);
        let mut server = self.lab.spawn(&format!("server-{node}"), command);
        server.wait_output("ready\n");
        server
    }

    fn ask(&self, node: &str, chance: &mut Chance) -> Process {
        let mut command = self.cluster.run(node, [self.python]);
        let seed = chance.below(u64::MAX).to_string();
        command.args(["-c", SCRIPT, "ask", &seed, &PORT.to_string()]);
        // A node's connections to itself take TCP, which is not the subject.
        command.args(SERVERS.iter().filter(|server| **server != node));
        self.lab.spawn(&format!("client-{node}"), command)
    }

    fn event(&mut self, chance: &mut Chance, counts: &mut Counts) {
        chance.pause();
        match chance.below(10) {
            0..=2 => {
                let at = chance.index(CLIENTS.len());
                self.clients[at].kill();
                self.clients[at] = self.ask(CLIENTS[at], chance);
                counts.clients += 1;
            }
            3..=4 => {
                let children = kernel::children(self.servers[chance.index(SERVERS.len())].pid());
                if let Some(worker) = children.first() {
                    kernel::kill_9(*worker);
                    counts.workers += 1;
                }
            }
            5 => {
                let at = chance.index(SERVERS.len());
                self.servers[at].kill();
                self.servers[at] = self.serve(SERVERS[at]);
                counts.servers += 1;
            }
            6..=7 => {
                let up = chance.below(2) == 0;
                self.change(chance, |change| change.up = Some(up));
                counts.cuts += 1;
            }
            8 => {
                let loss_ppm = u32::try_from(chance.below(50_000)).expect("small");
                self.change(chance, |change| {
                    change.loss_ppm = Some(loss_ppm);
                    change.latency_ns = Some(u64::from(loss_ppm) * 4);
                });
                counts.losses += 1;
            }
            _ => {
                let node = NODES[chance.index(NODES.len())];
                let up = chance.below(2) == 0;
                client::port(&self.control, node, up).expect("a port");
                counts.ports += 1;
            }
        }
    }

    /// Changes the link between two nodes, in one direction or both.
    fn change(&self, chance: &mut Chance, set: impl FnOnce(&mut LinkChange)) {
        let from = chance.index(NODES.len());
        let to = (from + 1 + chance.index(NODES.len() - 1)) % NODES.len();
        let both = chance.below(2) == 0;
        let mut change = LinkChange::default();
        set(&mut change);
        client::change_link(&self.control, (NODES[from], NODES[to]), both, change).expect("a link");
    }

    /// Ends everything that is wrong with the network.
    fn mend(&self) {
        for node in NODES {
            client::port(&self.control, node, true).expect("a port");
            for other in NODES.into_iter().filter(|other| *other != node) {
                client::link(&self.control, node, other, LinkParameters::default())
                    .expect("a link");
            }
        }
    }

    /// Waits until every client has had two whole answers more.
    fn assert_alive(&mut self) {
        for client in &mut self.clients {
            let before = client.stdout().matches("whole").count();
            wait_until(|| {
                assert!(client.is_running(), "{}", client.stderr());
                client.stdout().matches("whole").count() >= before + 2
            });
        }
    }

    /// Lets the clients end what they have begun, then ends the servers.
    fn end(self) {
        for group in [self.clients, self.servers] {
            for mut process in group {
                process.signal(Signal::SIGTERM);
                let status = process.wait();
                assert!(status.success(), "{status}: {}", process.stderr());
            }
        }
    }
}

/// Waits until the NICs hold nothing any more: orphans live up to a minute.
fn assert_nothing_is_left(cluster: &Cluster<'_>) {
    cluster.wait_no_connections();
    for node in NODES {
        for kind in ["functions", "qps", "cqs", "mrs", "listeners", "orphans"] {
            wait_until(|| cluster.counter(node, kind) == 0);
        }
    }
}

/// Numbers by chance, the same for the same seed (xorshift64*).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("an index")
    }

    /// Lets the traffic go on for a moment, so that the next event meets it anywhere.
    fn pause(&mut self) {
        std::thread::sleep(Duration::from_micros(self.below(60_000)));
    }
}
