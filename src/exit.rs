//! Exit codes, and the one way in which a command fails.
//!
//! Place: every command returns [`Failure`]; `main` prints it and exits.
//! Invariants: one line on standard error per failure, with the remedy in it; codes are part of the command-line contract.
//! Source: 125, 126 and 127 as `env`, `nice`, `timeout` and container launchers use them.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;

/// The command did not do what it was asked.
pub(crate) const FAILED: u8 = 1;
/// Wrong arguments or configuration; nothing was started.
pub(crate) const USAGE: u8 = 2;
/// `sanlab run --audit=fail`: the program succeeded, and system calls went past the library.
pub(crate) const AUDIT_FAILED: u8 = 123;
/// `sanlab run` itself failed before the program was started.
pub(crate) const RUN_FAILED: u8 = 125;
/// The program of `sanlab run` was found and cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The program of `sanlab run` was not found.
pub(crate) const NOT_FOUND: u8 = 127;
/// Ended by Ctrl-C, as a shell shows it.
pub(crate) const INTERRUPTED: u8 = 130;
/// The reader of the output went away, as a shell shows it.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    error: Option<anyhow::Error>,
}

impl Failure {
    /// A failure with a code and its text.
    pub(crate) fn new(code: u8, text: impl fmt::Display) -> Self {
        Self {
            code,
            error: Some(anyhow::Error::msg(text.to_string())),
        }
    }

    /// A usage or configuration error.
    pub(crate) fn usage(text: impl fmt::Display) -> Self {
        Self::new(USAGE, text)
    }

    /// Ends with a code and prints nothing, because everything has been said.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, error: None }
    }

    /// The same failure under another exit code.
    pub(crate) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Whether the error is one of usage.
    pub(crate) fn is_usage(&self) -> bool {
        self.code == USAGE
    }

    /// Whether the user ended the command.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.code == INTERRUPTED
    }

    /// Prints the failure on standard error and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if let Some(error) = &self.error {
            diagnostic(format_args!("{error:#}"));
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{error:#}"),
            None => write!(f, "ended with code {}", self.code),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            code: FAILED,
            error: Some(error),
        }
    }
}

/// Writes one diagnostic line to standard error.
pub(crate) fn diagnostic(text: fmt::Arguments<'_>) {
    // A closed standard error leaves nowhere to complain, and must not change what the command does.
    let _ = writeln!(std::io::stderr().lock(), "sanlab: {text}");
}

/// Prints what clap has to say: help and version are answers, everything else is a usage error.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // The reader of the text may have gone away.
    let _ = error.print();
    if !error.use_stderr() {
        if error.kind() == ErrorKind::DisplayHelp {
            // Help that ends with an example ends without a line end.
            let _ = writeln!(std::io::stdout());
        }
        return ExitCode::SUCCESS;
    }
    // A program under `sanlab run` may itself end with 2, so the launcher's own errors have a code apart.
    let is_run = std::env::args_os().nth(1).is_some_and(|word| word == "run");
    ExitCode::from(if is_run { RUN_FAILED } else { USAGE })
}
