//! Fault rules as JSON objects: what the control socket takes.
//!
//! Place: a request of the control socket -> [`FaultRule::from_fields`]. Invariants: each field is looked at by name, so that an error
//! names it and what it may be; nothing is guessed and nothing ignored. Source: ours (docs/control.md). Hot: nothing.

use ring_proto::status::WcStatus;
use serde_json::{Map, Value};

use super::call;
use super::rule::{FaultAction, FaultPoint, FaultRule, FaultWhen, status_names};
use crate::device::fields::{FieldError, Fields};

/// Fields of a rule in the order of the page.
const FIELDS: [&str; 15] = [
    "at", "action", "node", "function", "qpn", "opcode", "call", "nth", "every", "ppm", "count",
    "seed", "delay_ns", "status", "code",
];

impl FaultRule {
    /// Reads the fields of a rule; [`FaultRule::check`] is for the device.
    pub(crate) fn from_fields(fields: &Map<String, Value>) -> Result<Self, FieldError> {
        let fields = Fields::new(fields, &FIELDS)?;
        let points: Vec<_> = FaultPoint::ALL.iter().map(|at| at.name()).collect();
        let points = points.join(", ");
        let Some(name) = fields.text("at", &points)? else {
            return Err(FieldError::Missing {
                field: "at",
                allowed: points,
            });
        };
        let Some(&at) = FaultPoint::ALL.iter().find(|at| at.name() == name) else {
            return Err(FieldError::value("at", format!("{name:?}"), points));
        };
        let mut rule = Self::new(at, action(&fields, at)?);
        rule.node = fields.text("node", "the name of a node")?.map(Into::into);
        rule.function = fields.small("function", u32::MAX)?;
        rule.qpn = fields.small("qpn", u32::MAX)?;
        rule.opcode = fields
            .text(at.operation(), "the name of an operation")?
            .map(Into::into);
        let other = if at == FaultPoint::Call {
            "opcode"
        } else {
            "call"
        };
        if fields.has(other) {
            return Err(FieldError::NotHere {
                field: other,
                place: format!("at {at}"),
                allowed: at.operation().into(),
            });
        }
        rule.count = fields.number("count")?;
        rule.seed = fields.number("seed")?.unwrap_or(0);
        rule.when = when(&fields)?;
        Ok(rule)
    }
}

fn action(fields: &Fields<'_>, at: FaultPoint) -> Result<FaultAction, FieldError> {
    let allowed = at.actions().join(", ");
    let Some(name) = fields.text("action", &allowed)? else {
        return Err(FieldError::Missing {
            field: "action",
            allowed,
        });
    };
    let action = match name {
        "delay" => {
            let Some(ns) = fields.number("delay_ns")? else {
                return Err(FieldError::Missing {
                    field: "delay_ns",
                    allowed: "1 and above".into(),
                });
            };
            FaultAction::Delay { ns }
        }
        "drop" => FaultAction::Drop,
        "duplicate" => FaultAction::Duplicate,
        "corrupt" => FaultAction::Corrupt,
        "status" => {
            let Some(wanted) = fields.text("status", &status_names())? else {
                return Err(FieldError::Missing {
                    field: "status",
                    allowed: status_names(),
                });
            };
            let mut all = WcStatus::ALL.iter();
            let Some(&status) = all.find(|status| status.name() == Some(wanted)) else {
                let value = format!("{wanted:?}");
                return Err(FieldError::value("status", value, status_names()));
            };
            FaultAction::Status { status }
        }
        "qp_err" => FaultAction::QpErr,
        "nic_reset" => FaultAction::NicReset,
        "cq_overrun" => FaultAction::CqOverrun,
        "rnr" => FaultAction::Rnr,
        "fail" => {
            let Some(wanted) = fields.text("code", &call::code_names())? else {
                return Err(FieldError::Missing {
                    field: "code",
                    allowed: call::code_names(),
                });
            };
            let Some(code) = call::code_number(wanted) else {
                let value = format!("{wanted:?}");
                return Err(FieldError::value("code", value, call::code_names()));
            };
            FaultAction::Fail { code }
        }
        _ => {
            let value = format!("{name:?} at {at}");
            return Err(FieldError::value("action", value, allowed));
        }
    };
    for (field, needs) in [
        ("delay_ns", "delay"),
        ("status", "status"),
        ("code", "fail"),
    ] {
        if name != needs && fields.has(field) {
            return Err(FieldError::NotHere {
                field,
                place: format!("with action {name:?}"),
                allowed: format!("it beside action {needs:?}"),
            });
        }
    }
    Ok(action)
}

fn when(fields: &Fields<'_>) -> Result<FaultWhen, FieldError> {
    let (nth, every, ppm) = (
        fields.number("nth")?,
        fields.number("every")?,
        fields.small("ppm", 1_000_000)?,
    );
    match (nth, every, ppm) {
        (None, None, None) => Ok(FaultWhen::Always),
        (Some(nth), None, None) => Ok(FaultWhen::Nth(nth)),
        (None, Some(every), None) => Ok(FaultWhen::Every(every)),
        (None, None, Some(ppm)) => Ok(FaultWhen::Random { ppm }),
        _ => {
            let second = if nth.is_some() && every.is_some() {
                "every"
            } else {
                "ppm"
            };
            Err(FieldError::NotHere {
                field: second,
                place: "beside another of its kind".into(),
                allowed: "one of nth, every, ppm".into(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{FaultAction, FaultPoint, FaultRule, FaultWhen, WcStatus};

    fn read(value: &Value) -> Result<FaultRule, String> {
        let rule = FaultRule::from_fields(value.as_object().unwrap());
        let rule = rule.map_err(|error| error.to_string())?;
        rule.check().map_err(|error| error.to_string())?;
        Ok(rule)
    }

    #[test]
    fn whole_rules_are_read_as_they_are_built() {
        let delay = FaultAction::Delay { ns: 5 };
        for (value, rule) in [
            (
                json!({"at": "packet", "action": "drop"}),
                FaultRule::new(FaultPoint::Packet, FaultAction::Drop),
            ),
            (
                json!({"at": "packet", "action": "delay", "delay_ns": 5, "node": "a", "function": 3, "qpn": 17,
                       "opcode": "READ_RESPONSE", "ppm": 10_000, "count": 2, "seed": 9}),
                FaultRule::new(FaultPoint::Packet, delay)
                    .node("a")
                    .function(3)
                    .qpn(17)
                    .opcode("READ_RESPONSE")
                    .ppm(10_000)
                    .count(2)
                    .seed(9),
            ),
            (
                json!({"at": "wqe", "action": "status", "status": "REM_ACCESS_ERR", "opcode": "SEND", "nth": 2, "node": null}),
                FaultRule::new(
                    FaultPoint::Wqe,
                    FaultAction::Status {
                        status: WcStatus::REM_ACCESS_ERR,
                    },
                )
                .opcode("SEND")
                .nth(2),
            ),
            (
                json!({"at": "interrupt", "action": "drop", "every": 3}),
                FaultRule {
                    when: FaultWhen::Every(3),
                    ..FaultRule::new(FaultPoint::Interrupt, FaultAction::Drop)
                },
            ),
        ] {
            assert_eq!(read(&value), Ok(rule), "{value}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (value, field, allowed) in [
            (json!({"action": "drop"}), "\"at\" is missing", "interrupt"),
            (
                json!({"at": "cable", "action": "drop"}),
                "\"at\" cannot be \"cable\"",
                "wqe, packet",
            ),
            (
                json!({"at": 3, "action": "drop"}),
                "\"at\" cannot be 3",
                "wqe, packet",
            ),
            (json!({"at": "wqe"}), "\"action\" is missing", "nic_reset"),
            (
                json!({"at": "wqe", "action": "drop"}),
                "\"action\" cannot be \"drop\" at wqe",
                "delay, status, qp_err, nic_reset",
            ),
            (
                json!({"at": "wqe", "action": "explode"}),
                "\"action\" cannot be \"explode\"",
                "qp_err",
            ),
            (
                json!({"at": "packet", "action": "delay"}),
                "\"delay_ns\" is missing",
                "1 and above",
            ),
            (
                json!({"at": "packet", "action": "delay", "delay_ns": 0}),
                "\"delay_ns\" cannot be 0",
                "1 and above",
            ),
            (
                json!({"at": "packet", "action": "delay", "delay_ns": "5ms"}),
                "\"delay_ns\" cannot be \"5ms\"",
                "numbers",
            ),
            (
                json!({"at": "packet", "action": "drop", "delay_ns": 5}),
                "\"delay_ns\" means nothing with action \"drop\"",
                "\"delay\"",
            ),
            (
                json!({"at": "wqe", "action": "status"}),
                "\"status\" is missing",
                "REM_OP_ERR",
            ),
            (
                json!({"at": "wqe", "action": "status", "status": "SUCCESS"}),
                "\"status\" cannot be SUCCESS",
                "REM_OP_ERR",
            ),
            (
                json!({"at": "wqe", "action": "status", "status": "BAD"}),
                "\"status\" cannot be \"BAD\"",
                "REM_OP_ERR",
            ),
            (
                json!({"at": "wqe", "action": "qp_err", "opcode": "ACK"}),
                "\"opcode\" cannot be \"ACK\" at wqe",
                "RDMA_READ",
            ),
            (
                json!({"at": "doorbell", "action": "drop", "opcode": "SEND"}),
                "\"opcode\" means nothing at doorbell",
                "qpn",
            ),
            (
                json!({"at": "interrupt", "action": "drop", "qpn": 1}),
                "\"qpn\" means nothing at interrupt",
                "function",
            ),
            (
                json!({"at": "call", "action": "fail"}),
                "\"code\" is missing",
                "WSAENOBUFS",
            ),
            (
                json!({"at": "call", "action": "fail", "code": "EPERM"}),
                "\"code\" cannot be \"EPERM\"",
                "WSAENOBUFS",
            ),
            (
                json!({"at": "call", "action": "fail", "code": "WSAENOBUFS", "call": "wsp_dance"}),
                "\"call\" cannot be \"wsp_dance\"",
                "wsp_socket, wsp_bind",
            ),
            (
                json!({"at": "call", "action": "fail", "code": "WSAENOBUFS", "opcode": "SEND"}),
                "\"opcode\" means nothing at call",
                "call",
            ),
            (
                json!({"at": "packet", "action": "drop", "call": "wsp_bind"}),
                "\"call\" means nothing at packet",
                "opcode",
            ),
            (
                json!({"at": "packet", "action": "drop", "qpn": 4_294_967_296_u64}),
                "\"qpn\" cannot be 4294967296",
                "4294967295",
            ),
            (
                json!({"at": "packet", "action": "drop", "nth": 0}),
                "\"nth\" cannot be 0",
                "1 and above",
            ),
            (
                json!({"at": "packet", "action": "drop", "every": 0}),
                "\"every\" cannot be 0",
                "1 and above",
            ),
            (
                json!({"at": "packet", "action": "drop", "ppm": 1_000_001}),
                "\"ppm\" cannot be 1000001",
                "0 to 1000000",
            ),
            (
                json!({"at": "packet", "action": "drop", "ppm": 5, "nth": 5}),
                "\"ppm\" means nothing beside",
                "one of nth, every, ppm",
            ),
            (
                json!({"at": "packet", "action": "drop", "count": 0}),
                "\"count\" cannot be 0",
                "1 and above",
            ),
            (
                json!({"at": "packet", "action": "drop", "lossy": true}),
                "unknown field \"lossy\"",
                "at, action, node",
            ),
        ] {
            let text = read(&value).unwrap_err();
            assert!(
                text.contains(field) && text.contains(allowed),
                "{value}: {text}"
            );
        }
    }
}
