// SPDX-License-Identifier: Apache-2.0
//! What a plugin that connects pods does for each verb.

use serde_json::Value;

use super::input::version;
use super::ipam::Ipam;
use super::{REPAIR, unknown_verb};
use crate::exec::Call;
use crate::types::{AddResult, PluginError};

type Act<C> = fn(&C, &Call) -> Result<(), PluginError>;

pub(super) struct Verbs<C> {
    pub(super) add: fn(&C, &Call) -> Result<AddResult, PluginError>,
    pub(super) delete: Act<C>,
    pub(super) check: Act<C>,
    pub(super) collect: Act<C>,
    pub(super) repair: Act<C>,
}

impl<C> Verbs<C> {
    /// Does what the call asks for. STATUS is its address plugin's.
    pub(super) fn run(
        &self,
        conf: &C,
        ipam: &Ipam,
        call: &Call,
    ) -> Result<Option<Value>, PluginError> {
        let act = match call.verb {
            "ADD" => {
                let result = (self.add)(conf, call)?;
                return Ok(Some(result.to_json(version(call))));
            }
            "STATUS" => return ipam.ask(call, "STATUS").map(|_| None),
            "DEL" => self.delete,
            "CHECK" => self.check,
            "GC" => self.collect,
            REPAIR => self.repair,
            _ => return Err(unknown_verb(call)),
        };
        act(conf, call).map(|()| None)
    }
}
