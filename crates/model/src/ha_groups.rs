//! `ha/groups.cfg`: the older form of node-affinity rules. Read, and turned into rules; never written.

use crate::ha_cfg::{HaCfgError, HaResource, HaRule, HaRuleKind, nodes};
use crate::sectionconfig::SectionConfig;
use crate::text::FormatError;
use crate::{NodeName, ServiceId};
use std::collections::{BTreeMap, BTreeSet};

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaGroup {
    /// Its name.
    pub id: String,
    /// Nodes with their priorities.
    pub nodes: BTreeMap<NodeName, u32>,
    /// Its services run on these nodes only.
    pub restricted: bool,
    /// Its services stay where they are when a better node is back.
    pub nofailback: bool,
    /// Free text.
    pub comment: Option<String>,
}

/// Reads the file's text: every group that can be read, and why the others cannot.
///
/// # Errors
/// Names the line that cannot be read.
#[expect(clippy::type_complexity, reason = "good ones and bad ones, as the other lists have it")]
pub fn parse(text: &str) -> Result<(Vec<HaGroup>, Vec<(String, HaCfgError)>), FormatError> {
    let (mut good, mut bad) = (vec![], vec![]);
    for section in SectionConfig::parse(text)?.iter().filter(|s| s.kind() == "group") {
        let flag = |key: &str| section.flag(key).unwrap_or(false);
        match nodes(section.get("nodes").unwrap_or_default()) {
            Ok(nodes) if nodes.is_empty() => {
                let why = format!("the group '{}' has none", section.id());
                bad.push((section.id().to_owned(), HaCfgError::Option { key: "nodes".to_owned(), why }));
            }
            Ok(nodes) => good.push(HaGroup {
                id: section.id().to_owned(),
                nodes,
                restricted: flag("restricted"),
                nofailback: flag("nofailback"),
                comment: section.get("comment").map(crate::text::decode),
            }),
            Err(e) => bad.push((section.id().to_owned(), e)),
        }
    }
    Ok((good, bad))
}

/// The rules that say what the groups say: a group that resources name becomes a node-affinity rule, strict if it was
/// `restricted`, and `nofailback` becomes the resources' `failback 0`. A resource that a node-affinity rule names
/// already keeps to that rule.
pub fn to_rules(
    groups: &[HaGroup],
    rules: &[HaRule],
    resources: &mut BTreeMap<ServiceId, HaResource>,
) -> Vec<HaRule> {
    let ruled: BTreeSet<ServiceId> = rules
        .iter()
        .filter(|r| matches!(r.kind, HaRuleKind::NodeAffinity { .. }) && !r.disable)
        .flat_map(|r| r.resources.iter().copied())
        .collect();
    let mut out = vec![];
    for group in groups {
        let mut members = BTreeSet::new();
        for resource in resources.values_mut().filter(|r| r.group.as_deref() == Some(&group.id)) {
            if group.nofailback {
                resource.failback = false;
            }
            if !ruled.contains(&resource.sid) {
                members.insert(resource.sid);
            }
        }
        if members.is_empty() {
            continue;
        }
        let kind =
            HaRuleKind::NodeAffinity { nodes: group.nodes.clone(), strict: group.restricted, positive: true };
        let (id, comment) = (format!("ha-group-{}", group.id), group.comment.clone());
        out.push(HaRule { id, resources: members, disable: false, comment, kind });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_become_rules() {
        let text = "group: near\n\tnodes n1:2,n2\n\trestricted 1\n\tnofailback 1\n\ngroup: empty\n\ngroup: unused\n\tnodes n3\n";
        let (groups, bad) = parse(text).unwrap();
        assert_eq!(groups.len(), 2);
        assert_eq!(bad[0].1.to_string(), "nodes: the group 'empty' has none");
        let sid = |t: &str| t.parse::<ServiceId>().unwrap();
        let resource = |t: &str| HaResource { group: Some("near".into()), ..HaResource::new(sid(t)) };
        let mut resources: BTreeMap<_, _> =
            [resource("vm:100"), resource("vm:101"), HaResource::new(sid("vm:102"))]
                .map(|r| (r.sid, r))
                .into();
        let rules = to_rules(&groups, &[], &mut resources);
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].resources, [sid("vm:100"), sid("vm:101")].into());
        assert!(
            matches!(&rules[0].kind, HaRuleKind::NodeAffinity { strict: true, nodes, .. } if nodes.len() == 2)
        );
        assert!(!resources[&sid("vm:100")].failback && resources[&sid("vm:102")].failback);
        let own = HaRule { id: "own".into(), resources: [sid("vm:100")].into(), ..rules[0].clone() };
        assert_eq!(to_rules(&groups, &[own], &mut resources)[0].resources, [sid("vm:101")].into());
    }
}
