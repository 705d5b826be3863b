//! Whether the cluster survives the loss of any one node.

use super::{Forecast, WhatIf};
use crate::state::{NodeWord, StorageFault};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use stead_model::NodeName;

/// How many nodes and reasons are named.
const NAMED: usize = 3;

/// What the loss of one node alone would mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which node.
    pub node: NodeName,
    /// All that HA keeps running would run again.
    pub survives: bool,
    /// Why not: the first reasons.
    pub reasons: Vec<String>,
    /// How many guests would stay down that are not under HA.
    pub unmanaged: usize,
}

/// Whether the cluster survives the loss of any one node. Small, whatever the cluster's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// When that was found out: seconds since 1970.
    pub at: u64,
    /// It does.
    pub survives: bool,
    /// How many nodes it was asked of: all that are there.
    pub nodes: usize,
    /// How many of them it can't lose.
    pub failing: usize,
    /// The first of those.
    #[serde(default)]
    pub without: Vec<NodeName>,
    /// The first reasons.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// How many guests there are on these nodes that run, are not under HA, and would stay down with their node.
    #[serde(default)]
    pub unmanaged: usize,
    /// How many storages nodes have lost now, though they are well themselves: a storage counts for each node.
    #[serde(default)]
    pub lost_storages: usize,
    /// The first of those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storages: Vec<String>,
}

impl WhatIf {
    /// Why HA's promise is not kept: the first reasons.
    pub fn reasons(&self) -> Vec<String> {
        let lost: Vec<String> = self.lost.iter().map(|n| format!("'{n}'")).collect();
        let without = format!("without {}", lost.join(", "));
        if !self.quorate {
            return vec![format!(
                "{without} no majority is left: nothing is recovered, and what HA guards elsewhere is paused"
            )];
        }
        let broken = self.guests.iter().filter(|g| g.breaks_promise());
        let mut out: Vec<String> = broken
            .take(NAMED)
            .map(|g| format!("{without} {} does not run again: {}", g.sid, g.reason))
            .collect();
        if !self.settled {
            out.push(format!("{without} HA does not come to rest"));
        }
        out
    }
}

impl Forecast<'_> {
    /// What the loss of one node alone would mean.
    pub fn verdict(&self, node: &NodeName) -> Verdict {
        let found = self.without(&BTreeSet::from([node.clone()]));
        Verdict {
            node: node.clone(),
            survives: found.survives(),
            reasons: found.reasons(),
            unmanaged: found.unmanaged_down(),
        }
    }

    /// The same question for each node that is there, witnesses too.
    pub fn any_one(&self) -> Outlook {
        let there = self.view.nodes.iter().filter(|(_, n)| n.word == NodeWord::Online).map(|(n, _)| n);
        let outlook = Outlook::of(self.now.at, there.chain(&self.now.witnesses).map(|n| self.verdict(n)));
        let mut storages = self.lost_storages();
        let lost_storages = storages.len();
        storages.truncate(NAMED);
        Outlook { storages, lost_storages, ..outlook }
    }

    fn lost_storages(&self) -> Vec<String> {
        let nodes = self.view.nodes.iter().filter(|(_, n)| n.word == NodeWord::Online);
        let lost = nodes.flat_map(|(name, n)| n.lost_storages.iter().map(move |(id, loss)| (name, id, loss)));
        lost.map(|(name, id, loss)| match &loss.fault {
            StorageFault::Silent => format!("storage '{id}' does not answer on '{name}'"),
            StorageFault::Inactive { why } => format!("'{name}' has lost storage '{id}' ({why})"),
        })
        .collect()
    }
}

impl Outlook {
    /// Sums up verdicts.
    pub fn of(at: u64, verdicts: impl IntoIterator<Item = Verdict>) -> Self {
        let (without, reasons) = (vec![], vec![]);
        let mut out = Self {
            at,
            survives: false,
            nodes: 0,
            failing: 0,
            without,
            reasons,
            unmanaged: 0,
            lost_storages: 0,
            storages: vec![],
        };
        for verdict in verdicts {
            out.nodes += 1;
            out.unmanaged += verdict.unmanaged;
            if verdict.survives {
                continue;
            }
            out.failing += 1;
            if out.without.len() < NAMED {
                out.without.push(verdict.node);
                // Of each node one, so that the first does not hide the others.
                out.reasons.extend(verdict.reasons.into_iter().take(1));
            }
        }
        out.survives = out.nodes > 0 && out.failing == 0;
        out
    }
}

/// One line, for people.
impl std::fmt::Display for Outlook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this cluster survives the loss of any one node: ")?;
        if self.survives {
            f.write_str("yes, HA starts all of its guests elsewhere")?;
        } else if self.nodes == 0 {
            f.write_str("no, because none is there")?;
        } else {
            write!(f, "no, because {}", self.reasons.join("; "))?;
            let more = self.failing.saturating_sub(self.without.len());
            if more > 0 {
                write!(f, "; and so for {more} more")?;
            }
        }
        match self.unmanaged {
            0 => {}
            1 => f.write_str(" (1 guest that runs is not under HA, and stays down with its node)")?,
            n => write!(f, " ({n} guests that run are not under HA, and stay down with their nodes)")?,
        }
        if self.storages.is_empty() {
            return Ok(());
        }
        write!(f, ". Look at this: {}", self.storages.join("; "))?;
        match self.lost_storages.saturating_sub(self.storages.len()) {
            0 => Ok(()),
            more => write!(f, "; and {more} more storages of nodes"),
        }
    }
}
