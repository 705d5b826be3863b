//! Takes status reports and turns what changed into events.

use crate::Ops;
use crate::status::NodeReport;
use serde_json::{Value, json};
use std::collections::BTreeMap;

impl Ops {
    /// Merges a report and publishes what it changes.
    pub fn take_report(&self, report: &NodeReport) {
        let before = self.status.node(&report.node);
        let node = report.node.clone();
        if !self.status.merge(report.clone()) && before.is_none() {
            return;
        }
        if before.as_ref().map(|b| b.lease) != Some(report.lease) {
            self.events.emit("node", format!("node/{node}"), json!({"lease": u8::from(report.lease)}));
        }
        let old: BTreeMap<_, _> = before.iter().flat_map(|b| &b.guests).map(|g| (g.vmid, g.state)).collect();
        let new: BTreeMap<_, _> = report.guests.iter().map(|g| (g.vmid, g.state)).collect();
        for (vmid, state) in &new {
            if old.get(vmid) != Some(state) {
                self.events.emit("guest", format!("qemu/{vmid}"), json!({"node": node, "state": state}));
            }
        }
        for vmid in old.keys().filter(|v| !new.contains_key(v)) {
            self.events.emit("guest", format!("qemu/{vmid}"), json!({"node": node, "state": "stopped"}));
        }
        self.task_events(before.as_ref(), report);
    }

    fn task_events(&self, before: Option<&NodeReport>, report: &NodeReport) {
        let ended = |t: &Value| t.get("endtime").is_some_and(|e| !e.is_null());
        let upid = |t: &Value| t.get("upid").and_then(Value::as_str).map(str::to_owned);
        let old: BTreeMap<_, _> =
            before.iter().flat_map(|b| &b.tasks).filter_map(|t| Some((upid(t)?, ended(t)))).collect();
        for task in &report.tasks {
            let Some(id) = upid(task) else { continue };
            let was = old.get(&id).copied();
            // A first report names tasks of long ago.
            if before.is_some() && was.is_none() {
                self.events.emit("task-start", id.clone(), task.clone());
            }
            if before.is_some() && ended(task) && was != Some(true) {
                self.events.emit("task-end", id, task.clone());
            }
        }
    }
}
