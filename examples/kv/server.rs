//! The server: keys, echo and streams, a thread for each connection.
//!
//! Place: `kv server`. Invariants: it prints one line with its address once it accepts, and runs until it is ended.
//! Source: ours.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::Error;
use super::pattern::Pattern;
use super::protocol::{self, ECHO, GET, Header, PIECE, PUT, SINK, SOURCE};

type Store = Arc<Mutex<HashMap<u64, Vec<u8>>>>;

/// Serves until the process is ended.
pub(crate) fn serve(listen: &str) -> Result<(), Error> {
    let listener = TcpListener::bind(listen)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    let store = Store::default();
    for stream in listener.incoming() {
        let stream = stream?;
        let store = Arc::clone(&store);
        thread::spawn(move || {
            if let Err(error) = converse(stream, &store) {
                // A closed standard error leaves nowhere to complain.
                let _ = writeln!(std::io::stderr(), "kv server: {error}");
            }
        });
    }
    Ok(())
}

fn converse(mut stream: TcpStream, store: &Store) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    while let Some(request) = Header::read(&mut stream)? {
        answer(&mut stream, store, request)?;
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, store: &Store, request: Header) -> Result<(), Error> {
    let done = Header { len: 0, ..request };
    match request.what {
        PUT => {
            let value = protocol::read_value(stream, request.len)?;
            let mut keys = store.lock().unwrap_or_else(PoisonError::into_inner);
            keys.insert(request.key, value);
            drop(keys);
            protocol::write_message(stream, done, &[])
        }
        GET => {
            let keys = store.lock().unwrap_or_else(PoisonError::into_inner);
            let value = keys.get(&request.key).cloned().unwrap_or_default();
            drop(keys);
            let len = value.len() as u64;
            protocol::write_message(stream, Header { len, ..request }, &value)
        }
        ECHO => {
            let value = protocol::read_value(stream, request.len)?;
            protocol::write_message(stream, request, &value)
        }
        SINK => {
            let pattern = Pattern::new(request.key);
            let mut buffer = vec![0; PIECE];
            let mut offset = 0;
            while offset < request.len {
                let limit = usize::try_from(request.len - offset)?.min(PIECE);
                let len = stream.read(&mut buffer[..limit])?;
                if len == 0 {
                    return Err(format!("the stream ends after {offset} bytes").into());
                }
                pattern
                    .compare(offset, &buffer[..len])
                    .map_err(|at| format!("byte {at} of the stream is wrong"))?;
                offset += len as u64;
            }
            protocol::write_message(stream, done, &[])
        }
        SOURCE => {
            let pattern = Pattern::new(request.key);
            protocol::write_message(stream, request, &[])?;
            let mut offset = 0;
            while offset < request.len {
                let limit = usize::try_from(request.len - offset)?.min(PIECE);
                let piece = pattern.piece(offset, limit);
                stream.write_all(piece)?;
                offset += piece.len() as u64;
            }
            Ok(())
        }
        other => Err(format!("nobody knows the request {other}").into()),
    }
}
