//! `python3 -m http.server` and `curl` between two nodes.

mod harness;

use harness::{Lab, Road, content, kernel, programs};

const FILE_LEN: u64 = 256 << 20;
const PORT: u16 = 8000;

#[test]
fn curl_fetches_256_mib_from_http_server() {
    let Some([python, curl]) = programs::find(["python3", "curl"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("curl_fetches_256_mib_from_http_server");
        let cluster = lab.up_on(road);
        let site = lab.directory().join("site");
        std::fs::create_dir(&site).expect("a fresh directory");
        content::write(&site.join("file"), FILE_LEN);

        let port = PORT.to_string();
        let mut server = cluster.run(
            "a",
            [
                python.as_os_str(),
                "-m".as_ref(),
                "http.server".as_ref(),
                port.as_ref(),
            ],
        );
        server.current_dir(&site);
        let mut server = lab.spawn("server", server);
        let address = cluster.address("a");
        cluster.wait_listening("a", PORT);
        // Of an earlier cluster on the same subnet.
        let before = kernel::connections_on_port(address, PORT);

        let copy = lab.directory().join("copy");
        let url = format!("http://a:{PORT}/file");
        let mut client = cluster.run(
            "b",
            [
                curl.as_os_str(),
                "-sS".as_ref(),
                "--fail".as_ref(),
                "-o".as_ref(),
            ],
        );
        client.arg(&copy).arg(&url);
        lab.spawn("curl", client).succeed();
        content::assert_same(&site.join("file"), &copy);

        server.signal(nix::sys::signal::Signal::SIGTERM);
        server.wait();
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
        if road == Road::San {
            assert!(cluster.counter("a", "tx_payload_bytes") >= FILE_LEN);
            assert!(cluster.counter("b", "rx_payload_bytes") >= FILE_LEN);
            assert!(cluster.total("a", "san_tx_bytes") >= FILE_LEN);
            assert_eq!(
                cluster.total("a", "san_tx_bytes"),
                cluster.total("b", "san_rx_bytes")
            );
            assert_eq!(
                cluster.total("b", "san_tx_bytes"),
                cluster.total("a", "san_rx_bytes")
            );
            // A connection would still be there, in TIME_WAIT.
            let kernel = kernel::connections_on_port(address, PORT);
            assert!(kernel.iter().all(|one| before.contains(one)), "{kernel:?}");
        }
    }
}

#[test]
fn twenty_clients_at_once_get_their_files() {
    let Some([python, curl]) = programs::find(["python3", "curl"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("twenty_clients_at_once_get_their_files");
        let cluster = lab.up_on(road).audited();
        let site = lab.directory().join("site");
        std::fs::create_dir(&site).expect("a fresh directory");
        for number in 0..20 {
            content::write(&site.join(number.to_string()), 100_000 + number * 7919);
        }
        let port = PORT.to_string();
        let mut server = cluster.run(
            "a",
            [
                python.as_os_str(),
                "-m".as_ref(),
                "http.server".as_ref(),
                port.as_ref(),
            ],
        );
        server.current_dir(&site);
        let _server = lab.spawn("server", server);
        let address = cluster.address("a");
        cluster.wait_listening("a", PORT);

        let clients: Vec<_> = (0..20)
            .map(|number| {
                let node = ["b", "c"][number % 2];
                let mut client = cluster.run(
                    node,
                    [
                        curl.as_os_str(),
                        "-sS".as_ref(),
                        "--fail".as_ref(),
                        "-o".as_ref(),
                    ],
                );
                client.arg(lab.directory().join(format!("copy{number}")));
                client.arg(format!("http://{address}:{PORT}/{number}"));
                lab.spawn(&format!("curl{number}"), client)
            })
            .collect();
        for client in clients {
            client.succeed();
        }
        for number in 0..20 {
            let copy = lab.directory().join(format!("copy{number}"));
            content::assert_same(&site.join(number.to_string()), &copy);
        }
        cluster.assert_road(road, &["a", "b", "c"]);
    }
}
