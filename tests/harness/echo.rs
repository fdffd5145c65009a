//! An echo server on node b, and Python programs given as text that talk to it.
//!
//! Place: suites of commands that change what connections meet. Invariants: the server outlives connections that break under it.

use super::{Cluster, Lab, Process, programs};

const ECHO: &str = "
import socket
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', 7000))
listener.listen()
while True:
    peer, _ = listener.accept()
    try:
        while data := peer.recv(65536):
            peer.sendall(data)
    except OSError:
        pass
";

/// Whether this machine can run them; says so if not.
pub(crate) fn is_installed() -> bool {
    programs::find(["python3"]).is_some()
}

/// The words of a program that is given as text.
pub(crate) fn python(code: &str, arguments: &[&str]) -> Vec<String> {
    let mut words = vec!["python3".to_owned(), "-c".into(), code.into()];
    words.extend(arguments.iter().map(|&word| word.to_owned()));
    words
}

/// Answers on port 7000 of node b with what it reads, for ever.
pub(crate) fn start(lab: &Lab, cluster: &Cluster<'_>) -> Process {
    let server = lab.spawn("echo", cluster.run("b", python(ECHO, &[])));
    cluster.wait_listening("b", 7000);
    server
}
