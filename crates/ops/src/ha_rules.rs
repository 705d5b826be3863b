//! HA rules: made, changed and taken out, with their conflicts named before anything is written.
//!
//! A change that would bring a *new* conflict is refused; one that was there before (a node has left the cluster, a
//! file was written by hand) does not stand in the way of mending it, and is shown with the rule.

use crate::store;
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use stead_api_derive::Schema;
use stead_conf::Revision;
use stead_ha::rules::{Conflict, conflicts};
use stead_model::ha_cfg::{self, HaCfgError, HaRule, HaRuleKind, HaRules};
use stead_model::sectionconfig::SectionError;
use stead_model::{NodeName, ServiceId, paths};

/// Options of a rule as a client gives them. Nothing given: nothing changed.
#[derive(Debug, Clone, Default)]
pub struct RuleOptions {
    /// `vm:100,ct:101`.
    pub resources: Option<String>,
    /// `n1:2,n2`, for node affinity.
    pub nodes: Option<String>,
    /// On these nodes alone, for node affinity.
    pub strict: Option<bool>,
    /// `positive` or `negative`.
    pub affinity: Option<String>,
    /// The rule does not count.
    pub disable: Option<bool>,
    /// For people.
    pub comment: Option<String>,
}

/// A rule as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct RuleView {
    /// Its name.
    pub rule: String,
    /// `node-affinity` or `resource-affinity`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `vm:100,ct:101`.
    pub resources: String,
    /// `n1:2,n2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// 1: on these nodes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<u8>,
    /// `positive` or `negative`.
    pub affinity: String,
    /// 1: it does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable: Option<u8>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Why it is left out, by option.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, Vec<String>>,
    /// The file's version.
    pub digest: String,
}

fn refused(e: HaCfgError) -> OpsError {
    match e {
        HaCfgError::Option { key, why } => OpsError::invalid(key, why),
        HaCfgError::Section(SectionError::Exists(id)) => {
            OpsError::invalid("rule", format!("HA rule '{id}' is defined already"))
        }
        HaCfgError::Section(SectionError::Missing(id)) => OpsError::failed(format!("no such HA rule '{id}'")),
        HaCfgError::Section(e) => OpsError::failed(e.to_string()),
    }
}

fn missing<T>(key: &str) -> Result<T, OpsError> {
    Err(OpsError::invalid(key, "property is missing and it is not optional"))
}

fn not_for<T>(key: &str, kind: &str) -> Result<T, OpsError> {
    Err(OpsError::invalid(key, format!("a rule of type '{kind}' has no such property")))
}

/// The rule of `old` with what is given.
fn with(mut old: HaRule, given: RuleOptions) -> Result<HaRule, OpsError> {
    let affinity = given.affinity.as_deref().map(ha_cfg::positive).transpose().map_err(refused)?;
    let kind = old.kind.as_str();
    match &mut old.kind {
        HaRuleKind::NodeAffinity { nodes, strict, positive } => {
            if let Some(text) = &given.nodes {
                *nodes = ha_cfg::nodes(text).map_err(refused)?;
            }
            *strict = given.strict.unwrap_or(*strict);
            *positive = affinity.unwrap_or(*positive);
        }
        HaRuleKind::ResourceAffinity { positive } => {
            if given.nodes.is_some() {
                return not_for("nodes", kind);
            }
            if given.strict.is_some() {
                return not_for("strict", kind);
            }
            *positive = affinity.unwrap_or(*positive);
        }
    }
    if let Some(text) = &given.resources {
        old.resources = ha_cfg::resources(text).map_err(refused)?;
    }
    old.disable = given.disable.unwrap_or(old.disable);
    old.comment = given.comment.or(old.comment);
    Ok(old)
}

/// A new rule from what is given.
fn new(id: &str, kind: &str, given: RuleOptions) -> Result<HaRule, OpsError> {
    if given.resources.is_none() {
        return missing("resources");
    }
    let kind = match kind {
        "node-affinity" if given.nodes.is_none() => return missing("nodes"),
        "node-affinity" => HaRuleKind::NodeAffinity { nodes: BTreeMap::new(), strict: false, positive: true },
        "resource-affinity" if given.affinity.is_none() => return missing("affinity"),
        "resource-affinity" => HaRuleKind::ResourceAffinity { positive: true },
        other => return Err(OpsError::invalid("type", format!("'{other}' is no type of rule"))),
    };
    let blank = HaRule { id: id.to_owned(), resources: BTreeSet::new(), disable: false, comment: None, kind };
    with(blank, given)
}

fn shown(rule: &HaRule, conflicts: &[Conflict], digest: &str) -> RuleView {
    let one = |flag: bool| flag.then_some(1);
    let (nodes, strict, positive) = match &rule.kind {
        HaRuleKind::NodeAffinity { nodes, strict, positive } => {
            let text = |(n, p): (&NodeName, &u32)| if *p == 0 { n.to_string() } else { format!("{n}:{p}") };
            let nodes: Vec<String> = nodes.iter().map(text).collect();
            (Some(nodes.join(",")), one(*strict), *positive)
        }
        HaRuleKind::ResourceAffinity { positive } => (None, None, *positive),
    };
    let resources: Vec<String> = rule.resources.iter().map(ToString::to_string).collect();
    let reasons: Vec<String> =
        conflicts.iter().filter(|c| c.rules.contains(&rule.id)).map(|c| c.reason.clone()).collect();
    RuleView {
        rule: rule.id.clone(),
        kind: rule.kind.as_str().to_owned(),
        resources: resources.join(","),
        nodes,
        strict,
        affinity: if positive { "positive" } else { "negative" }.to_owned(),
        disable: one(rule.disable),
        comment: rule.comment.clone(),
        errors: if reasons.is_empty() { BTreeMap::new() } else { [("resources".to_owned(), reasons)].into() },
        digest: digest.to_owned(),
    }
}

impl Ops {
    fn ha_rules_cfg(&self) -> Result<(HaRules, Option<Revision>), OpsError> {
        let (text, revision) = self.file(paths::HA_RULES)?;
        let rules = HaRules::parse(&text)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::HA_RULES)))?;
        Ok((rules, revision))
    }

    fn ha_conflicts(&self, rules: &HaRules) -> Vec<Conflict> {
        let nodes = self.guest_nodes().into_iter().map(|n| n.name).collect();
        conflicts(&rules.list().0, &nodes)
    }

    /// Every rule, or those of a type, or those that name a resource.
    pub fn ha_rules(
        &self,
        kind: Option<&str>,
        resource: Option<ServiceId>,
    ) -> Result<Vec<RuleView>, OpsError> {
        let (rules, _) = self.ha_rules_cfg()?;
        let (conflicts, digest) =
            (self.ha_conflicts(&rules), stead_model::vmconfig::digest(&rules.to_string()));
        let wanted = |r: &&HaRule| {
            kind.is_none_or(|k| r.kind.as_str() == k) && resource.is_none_or(|s| r.resources.contains(&s))
        };
        Ok(rules.list().0.iter().filter(wanted).map(|r| shown(r, &conflicts, &digest)).collect())
    }

    /// One rule.
    pub fn ha_rule(&self, id: &str) -> Result<RuleView, OpsError> {
        let found = self.ha_rules(None, None)?.into_iter().find(|r| r.rule == id);
        found.ok_or_else(|| OpsError::failed(format!("no such HA rule '{id}'")))
    }

    /// Makes a rule.
    pub async fn ha_rule_add(
        &self,
        actor: &Actor,
        id: &str,
        kind: &str,
        given: RuleOptions,
    ) -> Result<(), OpsError> {
        let (before, revision) = self.ha_rules_cfg()?;
        let rule = new(id, kind, given)?;
        let mut after = before.clone();
        after.add(&rule).map_err(refused)?;
        self.known(&rule)?;
        self.commit_rules(actor, format!("HA rule '{id}' added"), (&before, revision), &after).await
    }

    /// Changes a rule.
    pub async fn ha_rule_change(
        &self,
        actor: &Actor,
        id: &str,
        kind: &str,
        given: RuleOptions,
        delete: &[String],
        digest: Option<&str>,
    ) -> Result<(), OpsError> {
        let (before, revision) = self.ha_rules_cfg()?;
        if digest.is_some_and(|d| d != stead_model::vmconfig::digest(&before.to_string())) {
            return Err(OpsError::failed(
                "detected modified configuration - file changed by other user? Try again.",
            ));
        }
        let old = before.get(id).map_err(refused)?;
        let mut old = old.ok_or_else(|| OpsError::failed(format!("no such HA rule '{id}'")))?;
        if old.kind.as_str() != kind {
            return Err(OpsError::invalid("type", format!("the rule '{id}' is a '{}'", old.kind.as_str())));
        }
        for key in delete {
            match (key.as_str(), &mut old.kind) {
                ("comment", _) => old.comment = None,
                ("disable", _) => old.disable = false,
                ("strict", HaRuleKind::NodeAffinity { strict, .. }) => *strict = false,
                ("affinity", HaRuleKind::NodeAffinity { positive, .. }) => *positive = true,
                _ => {
                    return Err(OpsError::invalid(
                        "delete",
                        format!("'{key}' can't be taken out of the rule"),
                    ));
                }
            }
        }
        let rule = with(old, given)?;
        let mut after = before.clone();
        after.update(&rule).map_err(refused)?;
        self.known(&rule)?;
        self.commit_rules(actor, format!("HA rule '{id}' changed"), (&before, revision), &after).await
    }

    /// Takes a rule out.
    pub async fn ha_rule_remove(&self, actor: &Actor, id: &str) -> Result<(), OpsError> {
        let (before, revision) = self.ha_rules_cfg()?;
        let mut after = before.clone();
        after.remove(id).map_err(refused)?;
        self.commit_rules(actor, format!("HA rule '{id}' removed"), (&before, revision), &after).await
    }

    /// The rules without a resource, if any names it.
    pub(crate) fn rules_without(
        &self,
        sid: ServiceId,
    ) -> Result<Option<(String, Option<Revision>)>, OpsError> {
        let (mut rules, revision) = self.ha_rules_cfg()?;
        let naming: Vec<HaRule> = rules.list().0.into_iter().filter(|r| r.resources.contains(&sid)).collect();
        for mut rule in naming.iter().cloned() {
            rule.resources.remove(&sid);
            let least = if matches!(rule.kind, HaRuleKind::NodeAffinity { .. }) { 1 } else { 2 };
            if rule.resources.len() < least {
                rules.remove(&rule.id).map_err(refused)?;
            } else {
                rules.update(&rule).map_err(refused)?;
            }
        }
        Ok((!naming.is_empty()).then(|| (rules.to_string(), revision)))
    }

    /// Nodes that a rule names must be members.
    fn known(&self, rule: &HaRule) -> Result<(), OpsError> {
        let HaRuleKind::NodeAffinity { nodes, .. } = &rule.kind else { return Ok(()) };
        let members: BTreeSet<NodeName> = self.guest_nodes().into_iter().map(|n| n.name).collect();
        let unknown: Vec<String> =
            nodes.keys().filter(|n| !members.contains(*n)).map(ToString::to_string).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(OpsError::invalid("nodes", format!("the cluster has no node {}", unknown.join(", "))))
    }

    /// Refuses rules that conflict where they did not before.
    pub(crate) fn bring_no_conflict(&self, before: &HaRules, after: &HaRules) -> Result<(), OpsError> {
        let old = self.ha_conflicts(before);
        let brought: Vec<String> =
            self.ha_conflicts(after).into_iter().filter(|c| !old.contains(c)).map(|c| c.reason).collect();
        if !brought.is_empty() {
            return Err(OpsError::invalid(
                "resources",
                format!("the rules would conflict: {}", brought.join("; ")),
            ));
        }
        Ok(())
    }

    async fn commit_rules(
        &self,
        actor: &Actor,
        note: String,
        (before, revision): (&HaRules, Option<Revision>),
        after: &HaRules,
    ) -> Result<(), OpsError> {
        self.bring_no_conflict(before, after)?;
        let mut txn = store::txn(&actor.who, note);
        store::put_over(&mut txn, paths::HA_RULES, revision, after.to_string());
        self.conf.transact(txn).await?;
        Ok(())
    }
}
