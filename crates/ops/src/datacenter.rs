//! Options of the whole cluster, and its log of changes.

use crate::{Actor, Ops, OpsError, store};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use stead_api_derive::Schema;
use stead_conf::Revision;
use stead_model::datacenter::Datacenter;
use stead_model::{NodeName, paths};

/// Options that everybody may read: what a console must know to draw itself.
const PUBLIC: [&str; 7] =
    ["console", "tag-style", "registered-tags", "user-tag-access", "allowed-tags", "description", "next-id"];

/// An entry of the cluster's log. Its fields are those that clients know of a log of lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct LogEntry {
    /// The revision that the change made.
    pub uid: u64,
    /// Seconds since 1970.
    pub time: u64,
    /// Who changed something.
    pub user: String,
    /// What.
    pub msg: String,
    /// The first file of it.
    pub path: String,
    /// The node that was asked.
    pub node: NodeName,
    /// As of syslog: 6, information.
    pub pri: u8,
    /// No process.
    pub pid: u32,
    /// Which part of the system.
    pub tag: &'static str,
}

impl Ops {
    /// How generated hardware addresses begin.
    pub(crate) fn mac_prefix(&self) -> Result<String, OpsError> {
        Ok(self.datacenter()?.0.mac_prefix().to_owned())
    }

    pub(crate) fn datacenter(&self) -> Result<(Datacenter, Option<Revision>), OpsError> {
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
    pub fn cluster_log(&self, actor: &Actor, max: usize) -> Vec<LogEntry> {
        let all = actor.may("/", "Sys.Syslog");
        let mut last = None;
        let mut out = vec![];
        for c in self.conf.recent(max.saturating_mul(4)) {
            if last == Some(c.revision) || !(all || c.author == actor.who) {
                continue;
            }
            last = Some(c.revision);
            out.push(LogEntry {
                uid: c.revision.0,
                time: c.at_ms / 1000,
                user: c.author,
                msg: if c.note.is_empty() { c.path.clone() } else { c.note },
                path: c.path,
                node: self.me.name.clone(),
                pri: 6,
                pid: 0,
                tag: "conf",
            });
            if out.len() == max {
                break;
            }
        }
        out
    }
}

impl Ops {
    /// The nodes that vote, as last known.
    pub fn conf_voters(&self) -> Vec<stead_model::RaftId> {
        self.conf.status().borrow().voters.to_vec()
    }
}
