//! Options of the whole cluster, and its log of changes.

use crate::{Actor, Ops, OpsError, store};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use stead_conf::{Change, ChangeKind, Revision};
use stead_model::datacenter::Datacenter;
use stead_model::paths;

/// Options that everybody may read: what a console must know to draw itself.
const PUBLIC: [&str; 7] =
    ["console", "tag-style", "registered-tags", "user-tag-access", "allowed-tags", "description", "next-id"];

impl Ops {
    fn datacenter(&self) -> Result<(Datacenter, Option<Revision>), OpsError> {
        let (text, revision) = self.file(paths::DATACENTER_CFG)?;
        let cfg = Datacenter::parse(&text)
            .map_err(|e| OpsError::failed(format!("datacenter.cfg cannot be read: {e}")))?;
        Ok((cfg, revision))
    }

    /// The cluster's options; those that are nobody's secret without `Sys.Audit`.
    pub fn cluster_options(&self, actor: &Actor) -> Result<Value, OpsError> {
        let (cfg, _) = self.datacenter()?;
        let all = actor.may("/", "Sys.Audit");
        let seen = cfg.settings.iter().filter(|(key, _)| all || PUBLIC.contains(key));
        let mut o: Map<String, Value> = seen.map(|(k, v)| (k.to_owned(), json!(v))).collect();
        o.insert("allowed-tags".into(), json!(cfg.registered_tags()));
        if let Some(text) = cfg.settings.description().filter(|_| all) {
            o.insert("description".into(), json!(text));
        }
        Ok(Value::Object(o))
    }

    /// Changes the cluster's options.
    pub async fn set_cluster_options(
        &self,
        actor: &Actor,
        set: &BTreeMap<String, String>,
        delete: &[String],
    ) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.datacenter()?;
        for key in delete {
            cfg.delete(key)?;
        }
        for (key, value) in set {
            cfg.set(key, value)?;
        }
        let mut txn = store::txn(&actor.who, "options of the cluster");
        store::put_over(&mut txn, paths::DATACENTER_CFG, revision, cfg.to_string());
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Who changed what, the latest first: one entry a transaction. Without `Sys.Syslog` one's own alone.
    pub fn cluster_log(&self, actor: &Actor, max: usize) -> Vec<Value> {
        let all = actor.may("/", "Sys.Syslog");
        let mut last = None;
        let mut out = vec![];
        for c in self.conf.recent(max.saturating_mul(4)) {
            if last == Some(c.revision) || !(all || c.author == actor.who) {
                continue;
            }
            last = Some(c.revision);
            let what = if c.note.is_empty() { c.path.clone() } else { c.note.clone() };
            out.push(json!({
                "uid": c.revision.0, "time": c.at_ms / 1000, "user": c.author, "msg": what, "path": c.path,
                "node": self.me.name, "pri": 6, "pid": 0, "tag": "conf",
            }));
            if out.len() == max {
                break;
            }
        }
        out
    }

    /// Changes of the configuration, the latest first: of all files, of one, or of all below a folder. Secrets and
    /// who owns guests have no history.
    pub fn history(&self, path: Option<&str>, limit: usize) -> Vec<Value> {
        let shown = |c: &Change| {
            let what = match &c.kind {
                ChangeKind::Put => json!({"kind": "put"}),
                ChangeKind::Delete => json!({"kind": "delete"}),
                ChangeKind::MovedFrom(from) => json!({"kind": "moved-here", "other": from}),
                ChangeKind::MovedTo(to) => json!({"kind": "moved-away", "other": to}),
            };
            let mut row = json!({
                "revision": c.revision.0, "time": c.at_ms / 1000, "author": c.author, "path": c.path,
                "note": c.note,
            });
            if let (Value::Object(row), Value::Object(what)) = (&mut row, what) {
                row.extend(what);
            }
            row
        };
        let Some(path) = path.map(|p| p.trim_matches('/')).filter(|p| !p.is_empty()) else {
            return self.conf.recent(limit).iter().map(shown).collect();
        };
        let below = format!("{path}/");
        let all = self.conf.recent(usize::MAX);
        let of = all.iter().filter(|c| c.path == path || c.path.starts_with(&below));
        of.take(limit).map(shown).collect()
    }
}

impl Ops {
    /// The nodes that vote, as last known.
    pub fn conf_voters(&self) -> Vec<stead_model::RaftId> {
        self.conf.status().borrow().voters.to_vec()
    }
}
