//! Entry of the key-value example: `server` or `client`, and their options.
//!
//! Place: `main.rs` of the example, and the demo of `sanlab`, which includes this file and runs both as processes of their own.
//! Invariants: plain `std`, so that whatever carries these bytes is not the program's doing.
//! Source: ours.

mod client;
mod pattern;
mod protocol;
mod server;

/// What goes wrong in a small program.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "usage:
  kv server --listen ADDRESS:PORT
  kv client --connect ADDRESS:PORT [--seed N] [--keys N] [--trips N] [--mib N] [--hold]";

/// Runs the program with its arguments.
pub(crate) fn run(arguments: Vec<String>) -> Result<(), Error> {
    let mut arguments = arguments.into_iter();
    match arguments.next().as_deref() {
        Some("server") => server::serve(&server_options(arguments)?),
        Some("client") => client::run(&client_options(arguments)?),
        _ => Err(USAGE.into()),
    }
}

fn server_options(mut arguments: impl Iterator<Item = String>) -> Result<String, Error> {
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("--listen"), Some(address)) => Ok(address),
        _ => Err(USAGE.into()),
    }
}

fn client_options(mut arguments: impl Iterator<Item = String>) -> Result<client::Options, Error> {
    let mut options = client::Options::default();
    while let Some(option) = arguments.next() {
        if option == "--hold" {
            options.hold = true;
            continue;
        }
        let value = arguments.next().ok_or(USAGE)?;
        match option.as_str() {
            "--connect" => options.connect = value,
            "--seed" => options.seed = value.parse()?,
            "--keys" => options.keys = value.parse()?,
            "--trips" => options.trips = value.parse()?,
            "--mib" => options.mib = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    if options.connect.is_empty() {
        return Err(USAGE.into());
    }
    Ok(options)
}
