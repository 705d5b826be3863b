//! Takes status reports and turns what changed into events.

use crate::Ops;
use crate::status::NodeReport;
use crate::task_view::TaskRow;
use serde_json::json;
use std::collections::BTreeMap;
use stead_model::Upid;

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
        // A first report names tasks of long ago.
        let Some(before) = before else { return };
        let ended = |t: &TaskRow| t.endtime.is_some();
        let old: BTreeMap<&Upid, bool> = before.tasks.iter().map(|t| (&t.head.upid, ended(t))).collect();
        for task in &report.tasks {
            let was = old.get(&task.head.upid).copied();
            if was.is_none() {
                self.events.emit("task-start", task.head.upid.to_string(), json!(task));
            }
            if ended(task) && was != Some(true) {
                self.events.emit("task-end", task.head.upid.to_string(), json!(task));
            }
        }
    }
}
