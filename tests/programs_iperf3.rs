//! `iperf3` between two nodes: one stream and several, both directions, by sendfile, interrupted.

mod harness;

use harness::{Lab, Road, kernel, programs, wait_until};
use nix::sys::signal::Signal;

const PORT: u16 = 5201;

#[test]
fn iperf3_with_one_stream() {
    for road in Road::BOTH {
        measure("iperf3_with_one_stream", road, &[]);
    }
}

#[test]
fn iperf3_with_four_streams() {
    for road in Road::BOTH {
        measure("iperf3_with_four_streams", road, &["-P", "4"]);
    }
}

#[test]
fn iperf3_in_reverse() {
    for road in Road::BOTH {
        measure("iperf3_in_reverse", road, &["-R"]);
    }
}

#[test]
fn iperf3_in_both_directions() {
    for road in Road::BOTH {
        measure("iperf3_in_both_directions", road, &["--bidir"]);
    }
}

#[test]
fn iperf3_with_eight_streams_by_sendfile() {
    for road in Road::BOTH {
        measure(
            "iperf3_with_eight_streams_by_sendfile",
            road,
            &["-P", "8", "-Z"],
        );
    }
}

#[test]
fn an_interrupted_iperf3_says_what_it_has_and_its_server_serves_the_next() {
    let Some([iperf3]) = programs::find(["iperf3"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("an_interrupted_iperf3_says_what_it_has_and_its_server_serves_the_next");
        let cluster = lab.up_on(road).audited();
        let server = cluster.run("a", [iperf3.as_os_str(), "-s".as_ref()]);
        let _server = lab.spawn("server", server);
        cluster.wait_listening("a", PORT);
        let client = |options: &[&str]| {
            let mut client = cluster.run("b", [iperf3.as_os_str(), "-c".as_ref(), "a".as_ref()]);
            client.args(options);
            client
        };
        // The interval lines are written at once: the transfer is under way when the first is there.
        let mut interrupted = lab.spawn("interrupted", client(&["-t", "1000", "--forceflush"]));
        interrupted.wait_output("MBytes");
        interrupted.signal(Signal::SIGINT);
        interrupted.wait();
        let said = interrupted.stdout() + &interrupted.stderr();
        assert!(
            said.contains("interrupt - the client has terminated"),
            "{said}"
        );
        assert!(said.contains("sender"), "{said}");

        // The server may still be busy with the end of the first.
        wait_until(|| {
            let mut next = lab.spawn("next", client(&["-n", "1M"]));
            next.wait().success()
        });
        cluster.assert_road(road, &["a", "b"]);
    }
}

fn measure(test: &str, road: Road, options: &[&str]) {
    let Some([iperf3]) = programs::find(["iperf3"]) else {
        return;
    };
    let lab = Lab::new(test);
    let cluster = lab.up_on(road).audited();
    let mut server = lab.spawn(
        "server",
        cluster.run("a", [iperf3.as_os_str(), "-s".as_ref(), "-1".as_ref()]),
    );
    let address = cluster.address("a");
    cluster.wait_listening("a", PORT);
    // Of an earlier cluster on the same subnet.
    let before = kernel::connections_on_port(address, PORT);

    let mut client = cluster.run("b", [iperf3.as_os_str(), "-c".as_ref()]);
    client
        .arg(address.to_string())
        .args(["-J", "-n", "128M"])
        .args(options);
    let said = lab.spawn("client", client).succeed();
    let report: serde_json::Value = serde_json::from_str(&said).expect("iperf3 prints JSON");
    assert!(report["error"].is_null(), "{report:#}");
    let moved = report["end"]["sum_received"]["bytes"]
        .as_u64()
        .expect("a number of bytes");
    assert!(moved > 0, "{report:#}");
    assert!(server.wait().success(), "{}", server.stderr());

    cluster.wait_no_connections();
    cluster.assert_road(road, &["a", "b"]);
    if road == Road::San {
        let sender = if options.contains(&"-R") { "a" } else { "b" };
        assert!(cluster.counter(sender, "tx_payload_bytes") >= moved);
        let kernel = kernel::connections_on_port(address, PORT);
        assert!(kernel.iter().all(|one| before.contains(one)), "{kernel:?}");
    }
}
