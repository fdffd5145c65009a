//! `python3 -m http.server` and `curl` between two nodes.

mod harness;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use harness::{Lab, Road, kernel, programs};

const FILE_LEN: u64 = 256 << 20;
const PORT: u16 = 8000;

#[test]
fn curl_fetches_256_mib_from_http_server() {
    let Some([python, curl, sum]) = programs::find(["python3", "curl", "sha256sum"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("curl_fetches_256_mib_from_http_server");
        let cluster = lab.up_on(road);
        let site = lab.directory().join("site");
        std::fs::create_dir(&site).expect("a fresh directory");
        write_file(&site.join("file"), FILE_LEN);

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
        assert_eq!(sha256(&sum, &site.join("file")), sha256(&sum, &copy));

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
        let cluster = lab.up_on(road);
        let site = lab.directory().join("site");
        std::fs::create_dir(&site).expect("a fresh directory");
        for number in 0..20 {
            write_file(&site.join(number.to_string()), 100_000 + number * 7919);
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
            let original = std::fs::read(site.join(number.to_string())).expect("the file");
            let copy =
                std::fs::read(lab.directory().join(format!("copy{number}"))).expect("the copy");
            assert!(original == copy, "file {number}");
        }
        cluster.assert_road(road, &["a", "b", "c"]);
    }
}

/// A file whose every block differs, so that a block at a wrong place shows.
fn write_file(path: &Path, len: u64) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("a fresh file"));
    let mut word = len | 1;
    for _ in 0..len / 8 {
        word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        file.write_all(&word.to_le_bytes())
            .expect("room for the file");
    }
    file.write_all(&vec![7; (len % 8) as usize])
        .expect("room for the file");
    file.flush().expect("room for the file");
}

fn sha256(sum: &Path, file: &Path) -> String {
    let output = Command::new(sum)
        .arg(file)
        .output()
        .expect("sha256sum runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_whitespace().next().expect("a sum").to_owned()
}
