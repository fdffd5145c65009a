//! `sanlab doctor`: what this machine allows, with a remedy for what it does not.
//!
//! Place: runs every check of [`checks`] and prints their answers.
//! Invariants: a check changes nothing on the machine and needs no privileges. Exit 1 only for what clusters cannot do without today.
//! Source: ours; each check names the setting it reads.

mod checks;

use nic_emu::server::sandbox;
use serde_json::{Value, json};

use crate::cli;
use crate::exit::{FAILED, Failure};
use crate::output::{self, Table};

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    /// It is there.
    Ok,
    /// Clusters run without it; something else does not.
    Warn,
    /// Clusters cannot run.
    Fail,
}

/// The answer of one check.
#[derive(Clone, Debug)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    detail: String,
    /// What to do, empty when all is well.
    remedy: String,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            remedy: String::new(),
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Warn,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(name, detail, remedy)
        }
    }
}

/// Checks the machine.
pub(crate) fn doctor(arguments: &cli::Doctor) -> Result<(), Failure> {
    let checks = checks::all();
    let is_fit = checks.iter().all(|check| check.status != Status::Fail);
    if arguments.json {
        let rows: Vec<Value> = checks.iter().map(describe).collect();
        output::json(&json!({ "schema": 1, "checks": rows, "ok": is_fit }))?;
    } else {
        output::answer(&render(&checks, is_fit))?;
    }
    if is_fit {
        Ok(())
    } else {
        Err(Failure::silent(FAILED))
    }
}

/// Makes a user namespace in this process, which was started for that alone.
pub(crate) fn probe_user_namespace() -> Result<(), Failure> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)
        .map_err(|error| Failure::new(FAILED, error))
}

/// Confines this process, which was started for that alone, and tells how far that went.
pub(crate) fn probe_sandbox() -> Result<(), Failure> {
    let walls = sandbox::enter(&sandbox::Reach::default());
    output::json(&json!(walls))
}

fn describe(check: &Check) -> Value {
    json!({
        "name": check.name,
        "status": check.status.name(),
        "detail": check.detail,
        "remedy": (!check.remedy.is_empty()).then_some(&check.remedy),
    })
}

fn render(checks: &[Check], is_fit: bool) -> String {
    let mut table = Table::new(&["CHECK", "", "FOUND"]);
    for check in checks {
        table.row([
            check.name.to_owned(),
            check.status.name().to_owned(),
            check.detail.clone(),
        ]);
    }
    let mut text = table.render("");
    for check in checks.iter().filter(|check| !check.remedy.is_empty()) {
        text.push_str(&format!("\n{}: {}", check.name, check.remedy));
    }
    text.push_str(if is_fit {
        "\nclusters can run on this machine\n"
    } else {
        "\nclusters cannot run on this machine until what failed is mended\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_well_has_a_remedy() {
        for check in checks::all() {
            assert_eq!(
                check.status == Status::Ok,
                check.remedy.is_empty(),
                "{check:?}"
            );
            assert!(!check.detail.is_empty(), "{check:?}");
        }
    }
}
