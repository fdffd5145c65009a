//! `socat` and `ncat` between two nodes: half close, a process per connection, programs behind a socket.

mod harness;

use std::path::Path;
use std::process::Stdio;

use harness::{Cluster, Lab, Process, Road, content, programs, wait_until};

const PORT: u16 = 9000;

#[test]
fn socat_carries_a_file_one_way_and_ends_it() {
    let Some([socat]) = programs::find(["socat"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("socat_carries_a_file_one_way_and_ends_it");
        let cluster = lab.up_on(road).audited();
        let [original, copy] = ["original", "copy"].map(|name| lab.directory().join(name));
        content::write(&original, 20_000_003);
        let target = format!("CREATE:{}", copy.display());
        let sink = listen(
            &lab,
            &cluster,
            &socat,
            &["-u", "TCP-LISTEN:9000,reuseaddr"],
            &target,
        );
        let source = format!("OPEN:{}", original.display());
        let mut client = cluster.run("b", [&socat]);
        client.args(["-u", &source, "TCP:a:9000"]);
        lab.spawn("source", client).succeed();
        sink.succeed();
        content::assert_same(&original, &copy);
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
    }
}

#[test]
fn socat_runs_a_program_for_each_connection_that_answers_after_the_half_close() {
    let Some([socat, _sort]) = programs::find(["socat", "sort"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("socat_runs_a_program_for_each_connection");
        let cluster = lab.up_on(road).audited();
        let listen_on = ["TCP-LISTEN:9000,reuseaddr,fork"];
        let _server = listen(&lab, &cluster, &socat, &listen_on, "EXEC:sort");
        for round in 0..3 {
            let clients: Vec<_> = (0..4)
                .map(|number| {
                    let mut client = cluster.run(["b", "c"][number % 2], [&socat]);
                    client
                        .args(["-t30", "-", "TCP:a:9000"])
                        .stdin(Stdio::piped());
                    let mut client = lab.spawn(&format!("client{round}{number}"), client);
                    client.write(&format!("c{number}\nb{number}\na{number}\n"));
                    client.close_stdin();
                    client
                })
                .collect();
            for (number, client) in clients.into_iter().enumerate() {
                let sorted = format!("a{number}\nb{number}\nc{number}\n");
                assert_eq!(client.succeed(), sorted);
            }
        }
        cluster.assert_road(road, &["a", "b", "c"]);
    }
}

#[test]
fn ncat_talks_to_a_program_behind_ncat() {
    let Some([ncat, _cat]) = programs::find(["ncat", "cat"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("ncat_talks_to_a_program_behind_ncat");
        let cluster = lab.up_on(road).audited();
        let options = ["--listen", "--keep-open", "9000", "--exec"];
        let _server = listen(&lab, &cluster, &ncat, &options, "/bin/cat");
        for word in ["one", "two"] {
            let mut client = cluster.run("b", [&ncat]);
            client.args(["a", "9000"]).stdin(Stdio::piped());
            let mut client = lab.spawn("client", client);
            client.write(&format!("{word}\n"));
            client.wait_output(&format!("{word}\n"));
            client.write("more\n");
            client.wait_output(&format!("{word}\nmore\n"));
            client.close_stdin();
            assert!(client.wait().success());
        }
        cluster.assert_road(road, &["a", "b"]);
    }
}

#[test]
fn two_pipes_through_ncat_meet_in_both_directions() {
    let Some([ncat]) = programs::find(["ncat"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("two_pipes_through_ncat_meet_in_both_directions");
        let cluster = lab.up_on(road).audited();
        let mut server = cluster.run("a", [&ncat]);
        server.args(["--listen", "9000"]).stdin(Stdio::piped());
        let mut server = lab.spawn("server", server);
        cluster.wait_listening("a", PORT);
        let mut client = cluster.run("b", [&ncat]);
        client.args(["a", "9000"]).stdin(Stdio::piped());
        let mut client = lab.spawn("client", client);
        client.write("from b\n");
        server.wait_output("from b\n");
        server.write("from a\n");
        client.wait_output("from a\n");
        client.close_stdin();
        server.close_stdin();
        assert!(client.wait().success());
        assert!(server.wait().success());
        wait_until(|| cluster.counter("a", "qps") == 0);
        cluster.assert_road(road, &["a", "b"]);
    }
}

fn listen(
    lab: &Lab,
    cluster: &Cluster<'_>,
    program: &Path,
    options: &[&str],
    last: &str,
) -> Process {
    let mut server = cluster.run("a", [program]);
    server.args(options).arg(last);
    let server = lab.spawn("server", server);
    cluster.wait_listening("a", PORT);
    server
}
