//! Answers to the requests of who looks for faults: inspect, recorder, pause, step, continue, advance.
//!
//! Place: the reactor hands such requests here; the work is done on the engine's thread. Invariants: none of them changes what the device
//! does, but for when. Source: ours (docs/validation.md). Leaves out: text, which is the asking side's.

use ring_proto::ids::FunctionId;

use super::runtime::{EngineGone, EngineHandle};
use crate::control::connection::Connection;
use crate::control::{Clock, Engine, Inspected, Recorded, Request, SCHEMA};
use crate::device::Device;

/// Answers one of them; any other request is left unanswered.
pub(crate) fn answer(
    engine: &EngineHandle,
    cluster: &str,
    request: Request,
    connection: &mut Connection,
) -> Result<(), EngineGone> {
    match request {
        Request::Inspect { topics } => {
            let inspection = engine.call(move |device| device.inspect(&topics))?;
            let reply = Inspected {
                schema: SCHEMA,
                cluster: cluster.to_owned(),
                emulator_pid: std::process::id(),
                inspection,
            };
            connection.answer(&reply, Vec::new());
        }
        Request::Recorder { function } => {
            let only = function.map(FunctionId);
            let look = move |device: &mut Device| (device.recordings(only), device.dumps(only));
            let (live, dumps) = engine.call(look)?;
            let reply = Recorded {
                schema: SCHEMA,
                live,
                dumps,
            };
            connection.answer(&reply, Vec::new());
        }
        Request::Advance { ns } => match engine.advance(ns)? {
            Some(now_ns) => connection.answer(&Clock { ok: true, now_ns }, Vec::new()),
            None => connection.refuse("the device's time is real, or it stands still"),
        },
        Request::Pause => {
            let paused = engine.call(|device| {
                device.pause();
                device.paused().map(str::to_owned)
            })?;
            connection.answer(&engine_state(0, paused), Vec::new());
        }
        Request::Step => match engine.call(Device::step)? {
            Some(stepped) => {
                let reply = engine_state(stepped.served, Some(stepped.paused));
                connection.answer(&reply, Vec::new());
            }
            None => connection.refuse("the engine is not paused"),
        },
        Request::Continue => {
            if engine.call(Device::resume)? {
                connection.answer(&engine_state(0, None), Vec::new());
            } else {
                connection.refuse("the engine is not paused");
            }
        }
        _ => {}
    }
    Ok(())
}

fn engine_state(served: u64, paused: Option<String>) -> Engine {
    Engine {
        ok: true,
        served,
        paused,
    }
}
