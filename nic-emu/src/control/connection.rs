//! Server side of one control connection: a line in, a line out, closed.
//!
//! Place: the control thread calls [`Connection::ready`], answers the request it gives out, and calls it again until it is done.
//! Invariants: a request has at most [`LINE_LIMIT`] bytes, a connection at most one request and one reply; a client that does not
//! read its reply keeps that one reply and nothing else waiting. Source: ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde::Serialize;

use super::{Refusal, Request};
use crate::server::epoll::Interest;
use crate::server::fd_pass::{self, Wait};

/// Longest request line, newline included.
pub(crate) const LINE_LIMIT: usize = 16 * 1024;

/// A control connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    state: State,
}

#[derive(Debug)]
enum State {
    Reading(Vec<u8>),
    /// The request has been given out.
    Asked,
    Writing {
        bytes: Vec<u8>,
        sent: usize,
        fds: Vec<OwnedFd>,
    },
}

/// What the caller has to do.
#[derive(Debug)]
pub(crate) enum Step {
    /// Answer this by [`Connection::answer`] or [`Connection::refuse`] and call again.
    Request(Request),
    /// Wait for the socket.
    Open(Interest),
    /// Close it.
    Closed,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            state: State::Reading(Vec::new()),
        }
    }

    /// Goes on as far as possible without waiting.
    pub(crate) fn ready(&mut self) -> Step {
        loop {
            match &mut self.state {
                State::Reading(line) => match read_line(&self.socket, line) {
                    Line::Partial => return Step::Open(Interest::READ),
                    Line::End => return Step::Closed,
                    Line::TooLong => {
                        self.refuse(&format!("a request has at most {LINE_LIMIT} bytes"));
                    }
                    Line::Whole => match parse(line) {
                        Ok(request) => {
                            self.state = State::Asked;
                            return Step::Request(request);
                        }
                        Err(error) => self.refuse(&format!("not a request: {error}")),
                    },
                },
                // The caller forgot to answer: there is nothing to wait for.
                State::Asked => return Step::Closed,
                State::Writing { bytes, sent, fds } => {
                    match fd_pass::send(self.socket.as_fd(), &bytes[*sent..], fds, Wait::No) {
                        Ok(n) => {
                            *sent += n;
                            fds.clear();
                            if *sent == bytes.len() {
                                return Step::Closed;
                            }
                        }
                        Err(Errno::EAGAIN) => {
                            return Step::Open(Interest {
                                read: false,
                                write: true,
                            });
                        }
                        Err(_) => return Step::Closed,
                    }
                }
            }
        }
    }

    /// Sets the reply.
    pub(crate) fn answer(&mut self, reply: &impl Serialize, fds: Vec<OwnedFd>) {
        let mut bytes =
            serde_json::to_vec(reply).expect("replies are made of strings, numbers and lists");
        bytes.push(b'\n');
        self.state = State::Writing {
            bytes,
            sent: 0,
            fds,
        };
    }

    /// Sets an error as the reply.
    pub(crate) fn refuse(&mut self, error: &str) {
        self.answer(
            &Refusal {
                ok: false,
                error: error.to_owned(),
            },
            Vec::new(),
        );
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The request of a line. Only an object is one, though `serde` would take a tagged list of values too.
pub(crate) fn parse(line: &[u8]) -> Result<Request, serde_json::Error> {
    if line.trim_ascii_start().first() == Some(&b'{') {
        serde_json::from_slice(line)
    } else {
        Err(serde::de::Error::custom("expected an object"))
    }
}

enum Line {
    Partial,
    Whole,
    TooLong,
    End,
}

/// Reads up to the first newline; what follows it is nobody's request.
fn read_line(socket: &OwnedFd, line: &mut Vec<u8>) -> Line {
    let mut chunk = [0; 512];
    loop {
        let room = (LINE_LIMIT - line.len()).min(chunk.len());
        if room == 0 {
            return Line::TooLong;
        }
        // Descriptors that come along are closed: nobody asked for any.
        match fd_pass::receive(socket.as_fd(), &mut chunk[..room], 0, Wait::No) {
            Ok(received) if received.bytes == 0 => return Line::End,
            Ok(received) => {
                let got = &chunk[..received.bytes];
                if let Some(end) = got.iter().position(|&b| b == b'\n') {
                    line.extend_from_slice(&got[..end]);
                    return Line::Whole;
                }
                line.extend_from_slice(got);
            }
            Err(Errno::EAGAIN) => return Line::Partial,
            Err(_) => return Line::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Done;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (Connection, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        (Connection::new(ours), theirs)
    }

    fn say(socket: &OwnedFd, bytes: &[u8]) {
        fd_pass::send(socket.as_fd(), bytes, &[], Wait::No).unwrap();
    }

    fn hear(socket: &OwnedFd) -> String {
        let mut bytes = [0; 8192];
        let n = fd_pass::receive(socket.as_fd(), &mut bytes, 0, Wait::No)
            .unwrap()
            .bytes;
        String::from_utf8(bytes[..n].to_vec()).unwrap()
    }

    #[test]
    fn a_request_in_pieces_is_answered_once() {
        let (mut connection, client) = pair();
        for piece in [&b"{\"cmd\":"[..], b"\"pi", b"ng\"}"] {
            say(&client, piece);
            assert!(matches!(connection.ready(), Step::Open(Interest::READ)));
        }
        say(&client, b"\n{\"cmd\":\"stat\"}\n");
        assert!(matches!(connection.ready(), Step::Request(Request::Ping)));
        connection.answer(&Done { ok: true }, Vec::new());
        assert!(matches!(connection.ready(), Step::Closed));
        assert_eq!(hear(&client), "{\"ok\":true}\n");
    }

    #[test]
    fn garbage_and_overlong_lines_are_refused() {
        let (mut connection, client) = pair();
        say(&client, b"{\"cmd\":\"reboot\"}\n");
        assert!(matches!(connection.ready(), Step::Closed));
        assert!(hear(&client).starts_with("{\"ok\":false,\"error\":\"not a request:"));

        let (mut connection, client) = pair();
        say(&client, &[b'x'; LINE_LIMIT + 1]);
        assert!(matches!(connection.ready(), Step::Closed));
        assert!(hear(&client).contains(&LINE_LIMIT.to_string()));
    }

    // Found by the table of requests: the list form of a tagged enum was taken for a request.
    #[test]
    fn regression_a_list_is_no_request() {
        let (mut connection, client) = pair();
        say(&client, b"[\"shutdown\"]\n");
        assert!(matches!(connection.ready(), Step::Closed));
        assert!(hear(&client).starts_with("{\"ok\":false,\"error\":\"not a request:"));
    }

    #[test]
    fn a_client_that_does_not_read_leaves_one_reply_waiting() {
        let (mut connection, client) = pair();
        say(&client, b"{\"cmd\":\"stat\"}\n");
        assert!(matches!(connection.ready(), Step::Request(Request::Stat)));
        connection.answer(&"x".repeat(1 << 20), Vec::new());
        assert!(matches!(
            connection.ready(),
            Step::Open(Interest { write: true, .. })
        ));
        drop(client);
        assert!(matches!(connection.ready(), Step::Closed));
    }
}
