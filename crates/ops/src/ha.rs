//! HA resources and requests to the HA manager.
//!
//! What is wanted lies in `ha/resources.cfg`; one-time requests (move there, now) lie as small records below
//! `ha/crm_commands/` until the manager has taken them.

use crate::guest::view::VmHa;
use crate::store;
use crate::{Actor, Ops, OpsError};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{Check, Op, Revision, Tree, Txn};
use stead_model::ha_cfg::HaRules;
use stead_model::sectionconfig::{Section, SectionConfig, SectionError};
use stead_model::{GuestKind, NodeName, ServiceId, Upid, Vmid, paths};

use stead_ha::StorageFault;
pub use stead_ha::{Cause, Change, DisarmMode, History, MovePreview, Request};

/// How long a node that answers may take until the manager counts on it: a few heartbeats of the slowest profile.
const COMES_BACK: Duration = Duration::from_secs(10);

/// Below it: requests that the manager has not taken yet.
pub const COMMANDS: &str = "ha/crm_commands/";

/// Below it: what became of each resource, and why ([`stead_ha::History`]).
pub const HISTORY: &str = "ha/history/";

/// Where a request lies: one of a kind for each of whom it is about, so that a later one takes the place of an earlier.
fn command_path(request: &Request) -> String {
    match request {
        Request::Move { sid, .. } => format!("{COMMANDS}{}", sid.vmid),
        Request::Stop { sid, .. } => format!("{COMMANDS}stop-{}", sid.vmid),
        Request::Maintenance { node, .. } => format!("{COMMANDS}maintenance-{node}"),
        Request::Disarm { .. } | Request::Arm => format!("{COMMANDS}arm"),
    }
}

/// What was asked of the manager about a resource, and it has not taken yet.
pub(crate) fn asked_of(tree: &Tree, sid: ServiceId) -> Vec<String> {
    let commands = [format!("{COMMANDS}{}", sid.vmid), format!("{COMMANDS}stop-{}", sid.vmid)];
    commands.into_iter().filter(|c| tree.get(c).is_some()).collect()
}

/// Takes requests back with what else a transaction does: who comes under HA again later is not moved by an old word.
pub(crate) fn forget(txn: &mut Txn, asked: Vec<String>) {
    for command in asked {
        txn.checks.push(Check::Exists(command.clone()));
        txn.ops.push(Op::Delete(command));
    }
}

/// Options of a resource, with their checks.
const OPTIONS: [&str; 7] =
    ["state", "group", "max_restart", "max_relocate", "failback", "auto-rebalance", "comment"];

fn parse(text: &str) -> Result<SectionConfig, OpsError> {
    SectionConfig::parse(text)
        .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_RESOURCES)))
}

fn section(cfg: &SectionConfig, vmid: Vmid) -> Option<&Section> {
    cfg.get(&vmid.to_string()).filter(|s| matches!(s.kind(), "vm" | "ct"))
}

/// Whether a text of `ha/resources.cfg` puts a guest under HA's care.
pub fn maintains(text: &str, vmid: Vmid) -> Result<bool, OpsError> {
    Ok(section(&parse(text)?, vmid).is_some_and(|s| s.get("state") != Some("ignored")))
}

/// Whether a text of `ha/resources.cfg` says that HA shall have a guest run.
pub fn wants_running(text: &str, vmid: Vmid) -> Result<bool, OpsError> {
    let state = section(&parse(text)?, vmid).map(|s| s.get("state").unwrap_or("started").to_owned());
    Ok(state.is_some_and(|s| matches!(s.as_str(), "started" | "enabled")))
}

fn check_option(key: &str, value: &str) -> Result<(), OpsError> {
    let number = |max: u32| match value.parse::<u32>() {
        Ok(n) if n <= max => Ok(()),
        _ => Err(OpsError::invalid(key, format!("value '{value}' must be a number from 0 to {max}"))),
    };
    match key {
        "state" if ["started", "stopped", "enabled", "disabled", "ignored"].contains(&value) => Ok(()),
        "state" => Err(OpsError::invalid(
            key,
            format!("value '{value}' is not one of started, stopped, enabled, disabled, ignored"),
        )),
        "group" => Err(OpsError::invalid(key, "groups are not supported: use node-affinity rules")),
        "max_restart" | "max_relocate" => number(10),
        "failback" | "auto-rebalance" => number(1),
        _ if OPTIONS.contains(&key) => Ok(()),
        _ => Err(OpsError::invalid(
            key,
            "property is not defined in schema and the schema does not allow additional properties",
        )),
    }
}

fn refused(e: SectionError) -> OpsError {
    match e {
        SectionError::Exists(id) => OpsError::failed(format!("resource ID '{id}' already defined")),
        SectionError::Missing(id) => {
            OpsError::failed(format!("no such resource 'vm:{id}': it does not exist"))
        }
        e => OpsError::Failed(e.to_string()),
    }
}

impl Ops {
    fn resources_cfg(&self) -> Result<(SectionConfig, Option<Revision>), OpsError> {
        let (text, revision) = self.file(paths::HA_RESOURCES)?;
        Ok((parse(&text)?, revision))
    }

    async fn commit_resources(
        &self,
        who: &str,
        note: String,
        cfg: &SectionConfig,
        revision: Option<Revision>,
        extra: impl FnOnce(&mut Txn),
    ) -> Result<(), OpsError> {
        let mut txn = store::txn(who, note);
        store::put_over(&mut txn, paths::HA_RESOURCES, revision, cfg.to_string());
        extra(&mut txn);
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// `ha/resources`.
    pub fn ha_resources(&self) -> Result<Vec<Value>, OpsError> {
        let (cfg, _) = self.resources_cfg()?;
        Ok(cfg.iter().filter(|s| matches!(s.kind(), "vm" | "ct")).map(shown).collect())
    }

    /// `ha/resources/{sid}`.
    pub fn ha_resource(&self, sid: ServiceId) -> Result<Value, OpsError> {
        let (cfg, _) = self.resources_cfg()?;
        let found = section(&cfg, sid.vmid).map(shown);
        let mut value = found.ok_or_else(|| OpsError::failed(format!("no such resource '{sid}'")))?;
        if let Value::Object(o) = &mut value {
            o.insert("digest".into(), json!(stead_model::vmconfig::digest(&cfg.to_string())));
        }
        Ok(value)
    }

    /// Puts a guest under HA's care.
    pub async fn ha_add(
        &self,
        actor: &Actor,
        sid: ServiceId,
        options: &[(String, String)],
    ) -> Result<(), OpsError> {
        self.may_be_resource(sid)?;
        let (mut cfg, revision) = self.resources_cfg()?;
        let kind = if sid.kind == GuestKind::Qemu { "vm" } else { "ct" };
        let mut new = Section::new(kind, &sid.vmid.to_string()).map_err(refused)?;
        for (key, value) in options {
            check_option(key, value)?;
            new.set(key, value).map_err(refused)?;
        }
        if new.get("state").is_none() {
            new.set("state", "started").map_err(refused)?;
        }
        cfg.insert(new).map_err(refused)?;
        self.commit_resources(&actor.who, format!("HA resource '{sid}' added"), &cfg, revision, |_| {}).await
    }

    /// Refuses a guest that is not there, or that other nodes could not start.
    pub(crate) fn may_be_resource(&self, sid: ServiceId) -> Result<(), OpsError> {
        let guest = self.guest_at(sid.vmid)?;
        if guest.own.value.kind != sid.kind {
            return Err(OpsError::failed(format!(
                "unable to add resource '{sid}': guest {} is of another kind",
                sid.vmid
            )));
        }
        let local = self.local_volumes(&crate::guest::config::parse(&guest.config.value)?)?;
        if !local.is_empty() {
            return Err(OpsError::failed(format!(
                "unable to add resource '{sid}': other nodes could not start it without these volumes: {}; move them to a \
                 shared storage first",
                local.join(", ")
            )));
        }
        Ok(())
    }

    /// Changes a resource.
    pub async fn ha_change(
        &self,
        who: &str,
        sid: ServiceId,
        set: &[(String, String)],
        delete: &[String],
        digest: Option<&str>,
    ) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.resources_cfg()?;
        if digest.is_some_and(|d| d != stead_model::vmconfig::digest(&cfg.to_string())) {
            return Err(OpsError::failed(
                "detected modified configuration - file changed by other user? Try again.",
            ));
        }
        let s = cfg.get_mut(&sid.vmid.to_string()).map_err(refused)?;
        for key in delete {
            check_option(key, "0")
                .or_else(|e| if OPTIONS.contains(&key.as_str()) { Ok(()) } else { Err(e) })?;
            s.remove(key);
        }
        for (key, value) in set {
            check_option(key, value)?;
            s.set(key, value).map_err(refused)?;
        }
        self.commit_resources(who, format!("HA resource '{sid}' changed"), &cfg, revision, |_| {}).await
    }

    /// Takes a guest out of HA's care; it goes on as it is.
    ///
    /// With `purge` it leaves every rule, too; a rule that would say nothing without it goes with it.
    pub async fn ha_delete(&self, actor: &Actor, sid: ServiceId, purge: bool) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.resources_cfg()?;
        cfg.remove(&sid.vmid.to_string()).map_err(refused)?;
        let asked = self.conf.view(|t| asked_of(t, sid));
        let rules = if purge { self.rules_without(sid)? } else { None };
        self.commit_resources(&actor.who, format!("HA resource '{sid}' removed"), &cfg, revision, |txn| {
            if let Some((text, revision)) = rules {
                store::put_over(txn, paths::HA_RULES, revision, text);
            }
            forget(txn, asked);
        })
        .await
    }

    /// Takes a guest out of HA's care if it is in it.
    pub(crate) async fn ha_remove_quietly(&self, actor: &Actor, vmid: Vmid) -> Result<(), OpsError> {
        let (cfg, _) = self.resources_cfg()?;
        if section(&cfg, vmid).is_none() {
            return Ok(());
        }
        self.ha_delete(actor, crate::guest::service(vmid), true).await
    }

    /// Sets a resource's requested state, as a task that ends when it has been recorded.
    pub(crate) async fn ha_set_state(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        worker: &'static str,
        state: &'static str,
    ) -> Result<Upid, OpsError> {
        let (ops, who) = (self.clone(), actor.who.clone());
        self.task(worker, &vmid.to_string(), &actor.who, move |cx| async move {
            let sid = crate::guest::service(vmid);
            cx.log(format!("Requesting HA state '{state}' for {sid}"));
            ops.ha_change(&who, sid, &[("state".into(), state.into())], &[], None).await?;
            ops.await_ha(&cx, vmid, state).await;
            Ok(())
        })
    }

    /// Waits a little for HA to have done it, so that who waits for the task sees its result; HA goes on anyway.
    async fn await_ha(&self, cx: &stead_tasks::TaskContext, vmid: Vmid, state: &str) {
        let reached = async {
            let (mut receiver, mut period) =
                (self.events.follow(None).1, tokio::time::interval(Duration::from_secs(1)));
            loop {
                let Ok(guest) = self.guest_at(vmid) else { return };
                let known = self.status.guest(&guest.own.value.owner, vmid);
                let runs = matches!(&known, crate::status::GuestKnown::Process(p) if p.state == stead_driver::guest::RunState::Running);
                let stopped = known == crate::status::GuestKnown::Absent;
                if (state == "started" && runs) || (state != "started" && stopped) {
                    return;
                }
                tokio::select! {
                    _ = receiver.recv() => {}
                    _ = period.tick() => {}
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), reached).await.is_err() {
            cx.warn(format!("HA has not brought VM {vmid} to '{state}' within 60 s; it goes on trying"));
        }
    }

    /// Asks the manager to move a resource, as a task that ends when the request has been recorded.
    pub(crate) async fn ha_move(
        self: &Arc<Self>,
        actor: &Actor,
        vmid: Vmid,
        target: &NodeName,
        live: bool,
    ) -> Result<Upid, OpsError> {
        let (ops, who, target) = (self.clone(), actor.who.clone(), target.clone());
        self.task("hamigrate", &vmid.to_string(), &actor.who, move |cx| async move {
            let sid = crate::guest::service(vmid);
            cx.log(format!("Requesting HA migration for VM {vmid} to node {target}"));
            ops.wait_for_ha(&target).await;
            ops.ha_request(&who, &Request::Move { sid, target, relocate: !live }).await
        })
    }

    /// Records a one-time request for the manager; a later one replaces it.
    pub async fn ha_request(&self, who: &str, request: &Request) -> Result<(), OpsError> {
        let note = match request {
            Request::Move { sid, target, .. } => {
                self.ha_resource(*sid)?;
                self.member(target)?;
                self.ha_counts_on(target)?;
                format!("HA: move {sid} to '{target}'")
            }
            Request::Stop { sid, timeout } => return self.ha_stop(who, *sid, *timeout).await,
            Request::Maintenance { node, on } => {
                self.member(node)?;
                format!("HA: maintenance of '{node}' {}", if *on { "begins" } else { "ends" })
            }
            Request::Disarm { mode } => format!("HA: disarm, resources: {mode:?}").to_lowercase(),
            Request::Arm => "HA: arm".to_owned(),
        };
        let mut txn = store::txn(who, note);
        // Somebody has looked: guests start with their nodes again.
        if matches!(request, Request::Arm) && self.conf.view(|t| t.get(paths::RESTORED).is_some()) {
            txn.ops.push(Op::Delete(paths::RESTORED.to_owned()));
        }
        txn.ops.push(Op::Put(command_path(request), store::bytes(request)?.into()));
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Gives the manager a moment to see that a node has come back: it answers before it holds a lease.
    async fn wait_for_ha(&self, target: &NodeName) {
        let mut commits = self.conf.watch();
        let is_there = self.node_record(target).is_ok_and(|n| self.online(&n.value));
        let counted = async { while self.ha_counts_on(target).is_err() && commits.next().await.is_some() {} };
        if is_there {
            // Too late or not, the request says what stands.
            let _ = tokio::time::timeout(COMES_BACK, counted).await;
        }
    }

    /// Fails where the manager would refuse a move to a node: of what it refuses, only the log of its own node tells.
    fn ha_counts_on(&self, target: &NodeName) -> Result<(), OpsError> {
        let status = self.ha_manager_status()?;
        match status.pointer(&format!("/node_status/{target}")).and_then(Value::as_str) {
            // It has not looked at that node yet.
            None | Some("online") => Ok(()),
            Some(other) => Err(OpsError::failed(format!(
                "HA does not count on target node '{target}' now ({other}): nothing is moved there until it is online (stead ha status)"
            ))),
        }
    }

    /// Stops a resource within so many seconds: sets its requested state, and tells the manager the time.
    async fn ha_stop(&self, who: &str, sid: ServiceId, timeout: u32) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.resources_cfg()?;
        let s = cfg.get_mut(&sid.vmid.to_string()).map_err(refused)?;
        s.set("state", "stopped").map_err(refused)?;
        let request = Request::Stop { sid, timeout };
        let data = store::bytes(&request)?;
        self.commit_resources(who, format!("HA: stop {sid} within {timeout} s"), &cfg, revision, |txn| {
            txn.ops.push(Op::Put(command_path(&request), data.into()));
        })
        .await
    }

    /// What a move of a resource would mean by the rules: who goes with it, and what speaks against it.
    pub fn ha_preview(&self, sid: ServiceId, target: &NodeName) -> Result<MovePreview, OpsError> {
        let (text, _) = self.file(paths::HA_RULES)?;
        let rules = HaRules::parse(&text)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_RULES)))?;
        let nodes = self.guest_nodes().into_iter().map(|n| n.name).collect();
        let state = serde_json::from_value(self.ha_manager_status()?)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_STATUS)))?;
        Ok(stead_ha::preview(&rules.list().0, &nodes, &state, sid, target))
    }

    /// What became of a resource, and why: the oldest first.
    pub fn ha_history(&self, sid: ServiceId) -> Result<History, OpsError> {
        let path = format!("{HISTORY}{}", sid.vmid);
        let found = self.conf.view(|t| store::record::<History>(t, &path))?;
        Ok(found.map(|f| f.value).unwrap_or_default())
    }

    /// `status/current`'s `ha`.
    pub(crate) fn ha_of(&self, vmid: Vmid) -> Result<VmHa, OpsError> {
        let (cfg, _) = self.resources_cfg()?;
        let Some(s) = section(&cfg, vmid) else { return Ok(VmHa::default()) };
        let requested = Some(s.get("state").unwrap_or("started").to_owned());
        Ok(VmHa { managed: true, requested, state: self.ha_state_of(vmid)? })
    }

    /// The manager's state of a guest, if it is a resource.
    pub(crate) fn ha_state_of(&self, vmid: Vmid) -> Result<Option<String>, OpsError> {
        let (cfg, _) = self.resources_cfg()?;
        if section(&cfg, vmid).is_none() {
            return Ok(None);
        }
        let status = self.ha_manager_status()?;
        let state = status.pointer(&format!("/service_status/vm:{vmid}/state")).and_then(Value::as_str);
        Ok(Some(state.unwrap_or("queued").to_owned()))
    }

    /// What a node reports to be wrong with its storages, for people.
    fn lost_storages(&self, node: &NodeName) -> Vec<String> {
        let report = self.status.node(node);
        let lost = report.iter().flat_map(|r| &r.storages).filter_map(|s| Some((s, s.loss.as_ref()?)));
        lost.map(|(s, loss)| match &loss.fault {
            StorageFault::Silent => {
                format!("storage '{}' has not answered for {} s", s.storage, loss.seconds)
            }
            StorageFault::Inactive { why } => format!("storage '{}' can't be used: {why}", s.storage),
        })
        .collect()
    }

    /// The manager's state as it keeps it.
    pub fn ha_manager_status(&self) -> Result<Value, OpsError> {
        let (text, _) = self.file(paths::HA_STATUS)?;
        if text.is_empty() {
            return Ok(json!({}));
        }
        serde_json::from_str(&text)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_STATUS)))
    }

    /// `ha/status/current`: quorum, manager, agents, resources.
    pub fn ha_status(&self) -> Result<Vec<Value>, OpsError> {
        let quorate = self.quorate();
        let status = self.ha_manager_status()?;
        let mut quorum = json!({
            "id": "quorum", "type": "quorum", "node": self.me.name, "quorate": u8::from(quorate),
            "status": if quorate { "OK" } else { "No quorum on node!" },
        });
        // In a row that clients know, since they may not take a row of a type that they don't.
        if let Some(outlook) = self.status.outlook() {
            quorum["survives"] = json!(u8::from(outlook.survives));
            quorum["outlook"] = json!(outlook.to_string());
        }
        let mut out = vec![quorum];
        if let Some(master) = status.get("master_node").and_then(Value::as_str) {
            out.push(json!({
                "id": "master", "type": "master", "node": master, "timestamp": status.get("timestamp"),
                "status": format!("{master} (active)"),
            }));
        }
        let armed = match (status.pointer("/disarm"), status.pointer("/disarm/done").and_then(Value::as_bool))
        {
            (None, _) if status.get("master_node").is_none() => "standby",
            (None, _) => "armed",
            (Some(_), Some(true)) => "disarmed",
            (Some(_), _) => "disarming",
        };
        out.push(json!({
            "id": "fencing", "type": "fencing", "node": self.me.name, "status": armed, "armed-state": armed,
            "resource_mode": status.pointer("/disarm/mode"),
        }));
        for n in self.guest_nodes() {
            let lease = self.status.node(&n.name).is_some_and(|r| r.lease);
            let word = match (n.state.is_lost(), lease) {
                (true, _) => "lost",
                (false, true) => "active",
                (false, false) => "no lease",
            };
            let fenced = self.fenced_words(&n);
            let mut more = fenced.as_ref().map(|f| format!(", {f}")).unwrap_or_default();
            for lost in self.lost_storages(&n.name) {
                more = format!("{more}, {lost}");
            }
            let mut row = json!({
                "id": format!("lrm:{}", n.name), "type": "lrm", "node": n.name,
                "status": format!("{} ({word}{more})", n.name),
            });
            if let Some(fenced) = fenced {
                row["fenced"] = json!(fenced);
            }
            out.push(row);
        }
        let (cfg, _) = self.resources_cfg()?;
        for s in cfg.iter().filter(|s| matches!(s.kind(), "vm" | "ct")) {
            let sid = format!("{}:{}", s.kind(), s.id());
            let service = status.pointer(&format!("/service_status/{sid}"));
            let text =
                |key: &str| service.and_then(|v| v.get(key)).and_then(Value::as_str).map(str::to_owned);
            let own = s.id().parse().ok().and_then(|v| self.guest_at(v).ok()).map(|g| g.own.value);
            // A guest that runs unguarded is not recovered: whoever watches should see it.
            let guarded = own.as_ref().is_none_or(|o| o.armed || !o.running);
            let node = text("node").or(own.map(|o| o.owner.to_string())).unwrap_or_default();
            let state = text("state").unwrap_or_else(|| "queued".into());
            out.push(json!({
                "id": format!("service:{sid}"), "type": "service", "sid": sid, "node": node, "state": state,
                "crm_state": state, "request_state": s.get("state").unwrap_or("started"),
                "max_restart": number(s, "max_restart", 1), "max_relocate": number(s, "max_relocate", 1),
                "status": format!("{sid} ({node}, {state}{})", if guarded { "" } else { ", not guarded yet" }),
                "guarded": u8::from(guarded), "reason": text("reason"),
            }));
        }
        Ok(out)
    }
}

fn number(s: &Section, key: &str, default: u32) -> u32 {
    s.get(key).and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn shown(s: &Section) -> Value {
    let mut o = Map::new();
    o.insert("sid".into(), json!(format!("{}:{}", s.kind(), s.id())));
    o.insert("type".into(), json!(s.kind()));
    o.insert("state".into(), json!("started"));
    for (key, value) in s.iter() {
        let value = if matches!(key, "max_restart" | "max_relocate" | "failback" | "auto-rebalance") {
            value.parse::<u32>().map_or_else(|_| json!(value), |n| json!(n))
        } else {
            json!(value)
        };
        o.insert(key.to_owned(), value);
    }
    Value::Object(o)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ha_maintains_all_but_the_ignored() {
        let text = "vm: 100\n\tstate started\n\nvm: 101\n\tstate ignored\n\nvm: 102\n";
        let at = |n: u32| maintains(text, Vmid::new(n).unwrap()).unwrap();
        assert!(at(100) && !at(101) && at(102) && !at(103));
    }

    #[test]
    fn ha_wants_running_what_it_starts() {
        let text = "vm: 100\n\tstate started\n\nvm: 101\n\tstate stopped\n\nvm: 102\n\nvm: 103\n\tstate enabled\n\n\
                    vm: 104\n\tstate ignored\n";
        let wanted = |n: &u32| wants_running(text, Vmid::new(*n).unwrap()).unwrap();
        assert_eq!((100..=105).filter(wanted).collect::<Vec<_>>(), [100, 102, 103]);
    }

    #[test]
    fn options_are_checked_by_name_and_value() {
        assert!(check_option("state", "started").is_ok());
        assert_eq!(
            check_option("max_restart", "99").unwrap_err().to_string(),
            "max_restart: value '99' must be a number from 0 to 10"
        );
        assert!(check_option("colour", "red").is_err());
    }
}
