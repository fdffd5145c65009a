//! Blocked calls on SAN connections that a cancelled thread or a `longjmp` leaves, epoll that knew a socket before its connect, and a
//! connection that a child and its parent use in turn: one C program, on both roads with the same result.

#[path = "../harness/mod.rs"]
mod harness;

use std::process::Command;

use harness::{Lab, Road, programs};

const PORT: u16 = 6100;

#[test]
fn blocked_calls_can_be_left_and_connections_shared_on_both_roads() {
    let Some([gcc]) = programs::find(["gcc"]) else {
        return;
    };
    let lab = Lab::new("blocked_calls_can_be_left_and_connections_shared_on_both_roads");
    let source = lab.write("waits.c", include_str!("waits.c"));
    let program = lab.directory().join("waits");
    let mut compile = Command::new(gcc);
    compile
        .args(["-O1", "-pthread", "-o"])
        .arg(&program)
        .arg(source);
    lab.spawn("gcc", compile).succeed();

    for road in [Road::San, Road::Tcp] {
        let cluster = lab.up_on(road);
        let port = PORT.to_string();
        let address = cluster.address("a");
        let mut server = lab.spawn(
            "server",
            cluster.run("a", [program.as_os_str(), port.as_ref()]),
        );
        cluster.wait_listening("a", PORT);
        let mut client = cluster.run("b", [program.as_os_str()]);
        client.arg(address.to_string()).arg(&port);
        lab.spawn("client", client).succeed();
        assert!(server.wait().success(), "{}", server.stderr());
        assert_eq!(
            server.stdout(),
            "into a nested set: 0
a set with it: 0
after exec: 0
"
        );
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
    }
}
