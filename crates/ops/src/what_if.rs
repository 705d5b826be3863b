//! What if these nodes were lost now? The question to [`stead_ha::what_if`], asked of the live cluster.
//!
//! Any node answers: each has the whole configuration and every node's report. Whether the cluster survives the loss of any one
//! node is found out by the node that leads, every few seconds, and told to all in its report.

use crate::ha_view::{self, Known};
use crate::{Ops, OpsError};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use stead_api_derive::Schema;
use stead_ha::{Fate, Forecast, GuestFate, Outlook, WhatIf};
use stead_model::{NodeName, ServiceId};

/// What becomes of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Schema)]
#[serde(rename_all = "lowercase")]
pub enum FateWord {
    /// It is started on another node, or goes on there.
    Runs,
    /// It is taken to another node, stopped, as it shall be.
    Stopped,
    /// It stays with its node, and does not run.
    Down,
    /// Its node pauses it until a majority is back.
    Paused,
}

/// A guest that the loss concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct GuestForecast {
    /// `vm:100`.
    pub sid: ServiceId,
    /// Where it is now.
    pub from: NodeName,
    /// Where it is then, if that is another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeName>,
    /// What becomes of it.
    pub fate: FateWord,
    /// HA maintains it.
    pub ha: bool,
    /// It is to run: HA is asked for that, and has not given it up; or it runs without HA.
    pub wanted: bool,
    /// Why.
    pub reason: String,
}

/// A node's memory. Bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct NodeForecast {
    /// The node.
    pub node: NodeName,
    /// What it has; 0: not known.
    pub total: u64,
    /// In use now, and what is on its way there.
    pub used: u64,
    /// In use then. Not there of a node that is lost, or silent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Left then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<u64>,
}

/// A rule that is not kept then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct RuleForecast {
    /// Its name.
    pub rule: String,
    /// Who stands against it, where.
    pub reason: String,
}

/// Whether the cluster survives the loss of any one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct OutlookView {
    /// When that was found out: seconds since 1970.
    pub at: u64,
    /// All that HA keeps running would run again, whichever node is lost.
    pub survives: bool,
    /// How many nodes it was asked of: all that are there.
    pub nodes: usize,
    /// How many of them it can't lose.
    pub failing: usize,
    /// The first of those.
    pub without: Vec<NodeName>,
    /// The first reasons.
    pub reasons: Vec<String>,
    /// How many guests run that are not under HA, and would stay down with their node.
    pub unmanaged: usize,
    /// All this in one line, for people.
    pub text: String,
}

impl From<&Outlook> for OutlookView {
    fn from(o: &Outlook) -> Self {
        Self {
            at: o.at,
            survives: o.survives,
            nodes: o.nodes,
            failing: o.failing,
            without: o.without.clone(),
            reasons: o.reasons.clone(),
            unmanaged: o.unmanaged,
            text: o.to_string(),
        }
    }
}

/// What the loss of these nodes would mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct LossForecast {
    /// The nodes that are asked about.
    pub lost: Vec<NodeName>,
    /// All that HA keeps running would run again.
    pub survives: bool,
    /// A majority would be left. Without one nothing is recovered.
    pub quorate: bool,
    /// Every guest that goes elsewhere or does not run any more.
    pub guests: Vec<GuestForecast>,
    /// All nodes.
    pub nodes: Vec<NodeForecast>,
    /// Rules that are not kept then, though they are now.
    pub rules: Vec<RuleForecast>,
}

/// What the loss of nodes would mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct WhatIfView {
    /// Of the nodes that are asked about, all lost at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossForecast>,
    /// Of any one node alone; not there before the node that leads has found it out.
    #[serde(rename = "any-one", skip_serializing_if = "Option::is_none")]
    pub any_one: Option<OutlookView>,
}

impl From<GuestFate> for GuestForecast {
    fn from(g: GuestFate) -> Self {
        let (to, fate) = match g.fate {
            Fate::Moves { to, runs: true } => (Some(to), FateWord::Runs),
            Fate::Moves { to, runs: false } => (Some(to), FateWord::Stopped),
            Fate::Down => (None, FateWord::Down),
            Fate::Paused => (None, FateWord::Paused),
        };
        Self { sid: g.sid, from: g.from, to, fate, ha: g.ha, wanted: g.wanted, reason: g.reason }
    }
}

impl From<WhatIf> for LossForecast {
    fn from(found: WhatIf) -> Self {
        let (survives, quorate) = (found.survives(), found.quorate);
        let node = |(node, room): (NodeName, stead_ha::Room)| NodeForecast {
            node,
            total: room.total,
            used: room.used,
            after: room.after,
            left: room.after.map(|after| room.total.saturating_sub(after)),
        };
        Self {
            lost: found.lost.into_iter().collect(),
            survives,
            quorate,
            guests: found.guests.into_iter().map(GuestForecast::from).collect(),
            nodes: found.nodes.into_iter().map(node).collect(),
            rules: found.broken.into_iter().map(|(rule, reason)| RuleForecast { rule, reason }).collect(),
        }
    }
}

impl Ops {
    /// What the loss of these nodes at once would mean for the cluster as it is now, and what that of any one node would.
    ///
    /// # Errors
    /// If there is no such node.
    pub async fn ha_what_if(self: &Arc<Self>, lost: Vec<NodeName>) -> Result<WhatIfView, OpsError> {
        for node in &lost {
            self.member(node)
                .map_err(|_| OpsError::invalid("nodes", format!("no such cluster node '{node}'")))?;
        }
        let lost: BTreeSet<NodeName> = lost.into_iter().collect();
        let any_one = self.status.outlook().as_ref().map(OutlookView::from);
        if lost.is_empty() {
            return Ok(WhatIfView { loss: None, any_one });
        }
        let ops = self.clone();
        // Of a large cluster every configuration is read.
        let found = tokio::task::spawn_blocking(move || {
            let now = ha_view::now(&ops, &mut Known::default(), |_| true)?;
            Ok::<_, OpsError>(Forecast::new(&now).without(&lost))
        });
        let found =
            found.await.map_err(|e| OpsError::failed(format!("it could not be found out: {e}")))??;
        Ok(WhatIfView { loss: Some(found.into()), any_one })
    }
}
