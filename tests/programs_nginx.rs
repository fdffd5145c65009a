//! `nginx` with a master and two workers on one node, `curl` and `ab` on others.

mod harness;

use std::path::{Path, PathBuf};

use harness::{Cluster, Lab, Process, Road, content, programs, wait_until};
use nix::sys::signal::Signal;

const PORT: u16 = 8080;

#[test]
fn a_large_file_by_sendfile_arrives_whole() {
    let Some([nginx, curl]) = programs::find(["nginx", "curl"]) else {
        return;
    };
    let long = std::env::var_os("SANLAB_LONG").is_some();
    let len = if long { 1 << 30 } else { 128 << 20 };
    for road in Road::BOTH {
        let lab = Lab::new("a_large_file_by_sendfile_arrives_whole");
        let cluster = lab.up_on(road).audited();
        let site = Site::new(&lab, "sendfile on;");
        content::write(&site.file("large"), len);
        let server = site.serve(&lab, &cluster, &nginx);

        let copy = lab.directory().join("copy");
        let client = fetch(&cluster, "b", &curl, "large", &copy);
        lab.spawn("curl", client).succeed();
        content::assert_same(&site.file("large"), &copy);

        stop(server);
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
        if road == Road::San {
            assert!(cluster.total("b", "san_rx_bytes") >= len);
        }
    }
}

#[test]
fn requests_on_kept_and_on_closed_connections_are_all_answered() {
    let Some([nginx, ab]) = programs::find(["nginx", "ab"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("requests_on_kept_and_on_closed_connections_are_all_answered");
        let cluster = lab.up_on(road).audited();
        let site = Site::new(&lab, "sendfile on;");
        content::write(&site.file("small"), 612);
        let server = site.serve(&lab, &cluster, &nginx);

        let kept = ask(&lab, &cluster, &ab, &["-k", "-c", "50", "-n", "10000"]);
        let count = kept.split("Keep-Alive requests:").nth(1);
        let count = count.and_then(|rest| rest.split_whitespace().next());
        let count: u32 = count.expect("a line").parse().expect("a number");
        assert!(count >= 9000, "{kept}");
        ask(&lab, &cluster, &ab, &["-c", "20", "-n", "1000"]);

        stop(server);
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
    }
}

#[test]
fn a_reload_under_load_loses_no_request() {
    let Some([nginx, ab]) = programs::find(["nginx", "ab"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_reload_under_load_loses_no_request");
        let cluster = lab.up_on(road).audited();
        let site = Site::new(&lab, "sendfile on;");
        content::write(&site.file("small"), 612);
        let server = site.serve(&lab, &cluster, &nginx);

        let load = request(&cluster, &ab, &["-c", "8", "-n", "2000"]);
        let mut load = lab.spawn("ab", load);
        let mut reloads = 0;
        while load.is_running() && reloads < 4 {
            let workers = site.count_workers();
            server.signal(Signal::SIGHUP);
            reloads += 1;
            wait_until(|| site.count_workers() >= workers + 2);
        }
        let said = load.succeed();
        assert!(said.contains("Failed requests:        0"), "{said}");
        assert!(reloads > 0);

        stop(server);
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "b"]);
    }
}

#[test]
fn a_thousand_parallel_transfers_of_curl_end_well() {
    let Some([nginx, curl]) = programs::find(["nginx", "curl"]) else {
        return;
    };
    for road in Road::BOTH {
        let lab = Lab::new("a_thousand_parallel_transfers_of_curl_end_well");
        let cluster = lab.up_on(road).audited();
        let site = Site::new(&lab, "sendfile off;");
        content::write(&site.file("small"), 6120);
        let server = site.serve(&lab, &cluster, &nginx);

        let mut transfers = String::new();
        for number in 0..1000 {
            let copy = lab.directory().join(format!("copy{number}"));
            transfers.push_str(&format!(
                "url = \"http://a:{PORT}/small\"\noutput = \"{}\"\n",
                copy.display()
            ));
        }
        let transfers = lab.write("transfers", &transfers);
        let mut client = cluster.run("c", [&curl]);
        client
            .args(["-sS", "--fail", "--parallel", "--parallel-max", "300", "-K"])
            .arg(transfers);
        lab.spawn("curl", client).succeed();
        for number in 0..1000 {
            let copy = lab.directory().join(format!("copy{number}"));
            content::assert_same(&site.file("small"), &copy);
        }

        stop(server);
        cluster.wait_no_connections();
        cluster.assert_road(road, &["a", "c"]);
    }
}

/// What one nginx serves, with everything it writes beside it.
struct Site {
    directory: PathBuf,
}

impl Site {
    fn new(lab: &Lab, directive: &str) -> Self {
        let directory = lab.directory().join("nginx");
        std::fs::create_dir_all(directory.join("files")).expect("a fresh directory");
        let root = directory.display();
        // Root starts workers as an unprivileged user else, who may not enter the directory of the test.
        let user = if nix::unistd::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let configuration = format!(
            "daemon off; master_process on; worker_processes 2; {user}
            pid {root}/pid; error_log {root}/error.log notice;
            events {{ worker_connections 1024; }}
            http {{
                access_log off; {directive} keepalive_requests 1000000;
                client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
                uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
                server {{ listen {PORT}; root {root}/files; }}
            }}"
        );
        std::fs::write(directory.join("nginx.conf"), configuration).expect("room");
        Self { directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join("files").join(name)
    }

    fn serve(&self, lab: &Lab, cluster: &Cluster<'_>, nginx: &Path) -> Process {
        let mut command = cluster.run("a", [nginx]);
        command
            .arg("-p")
            .arg(&self.directory)
            .arg("-c")
            .arg(self.directory.join("nginx.conf"))
            .arg("-e")
            .arg(self.directory.join("error.log"));
        let server = lab.spawn("nginx", command);
        cluster.wait_listening("a", PORT);
        wait_until(|| self.count_workers() >= 2);
        server
    }

    /// Workers started so far, as its log tells.
    fn count_workers(&self) -> usize {
        let log = std::fs::read_to_string(self.directory.join("error.log")).unwrap_or_default();
        log.matches("start worker process ").count()
    }
}

fn stop(mut server: Process) {
    server.signal(Signal::SIGQUIT);
    let status = server.wait();
    assert!(status.success(), "{status}: {}", server.stderr());
}

fn fetch(
    cluster: &Cluster<'_>,
    node: &str,
    curl: &Path,
    name: &str,
    copy: &Path,
) -> std::process::Command {
    let mut client = cluster.run(node, [curl]);
    client.args(["-sS", "--fail", "-o"]).arg(copy);
    client.arg(format!("http://a:{PORT}/{name}"));
    client
}

fn request(cluster: &Cluster<'_>, ab: &Path, options: &[&str]) -> std::process::Command {
    let mut client = cluster.run("b", [ab]);
    client.args(["-q", "-s", "60"]).args(options);
    client.arg(format!("http://a:{PORT}/small"));
    client
}

/// Makes requests, all of which must be answered.
fn ask(lab: &Lab, cluster: &Cluster<'_>, ab: &Path, options: &[&str]) -> String {
    let said = lab.spawn("ab", request(cluster, ab, options)).succeed();
    assert!(said.contains("Failed requests:        0"), "{said}");
    said
}
