//! `/cluster/ha/rules` and below.

use crate::framework::{Access, Error, Json, Null};
use stead_api_derive::Params;
use stead_model::ServiceId;
use stead_ops::ha_rules::{RuleOptions, RuleView};

choice! {
    /// What a rule is about.
    pub enum RuleType { Node = "node-affinity", Resource = "resource-affinity" }
}

choice! {
    /// Together, or on these nodes; or apart, or on any but these.
    pub enum Affinity { Positive = "positive", Negative = "negative" }
}

#[derive(Params)]
pub struct ListRules {
    /// Rules of this type alone.
    #[param(name = "type")]
    kind: Option<RuleType>,
    /// Rules that name this resource alone.
    resource: Option<ServiceId>,
}

#[derive(Params)]
pub struct OneRule {
    /// The rule's name.
    rule: String,
}

/// What may be said of a rule, new or old.
#[derive(Params)]
pub struct Given {
    /// Nodes with priorities, for node affinity: `n1:2,n2`. The highest that are there are taken.
    nodes: Option<String>,
    /// On these nodes alone: stopped, rather than elsewhere.
    strict: Option<bool>,
    /// Together (or on these nodes), or apart (or on any but these).
    affinity: Option<Affinity>,
    /// Keep it, but let it not count.
    disable: Option<bool>,
    /// For people.
    #[param(max_length = 4096)]
    comment: Option<String>,
}

impl Given {
    fn with(self, resources: Option<String>) -> RuleOptions {
        RuleOptions {
            resources,
            nodes: self.nodes,
            strict: self.strict,
            affinity: self.affinity.map(|a| a.word().to_owned()),
            disable: self.disable,
            comment: self.comment,
        }
    }
}

#[derive(Params)]
pub struct AddRule {
    /// The rule's name.
    rule: String,
    /// What it is about.
    #[param(name = "type")]
    kind: RuleType,
    /// Resources: `vm:100,ct:101`.
    resources: String,
    /// Its options.
    #[param(flatten)]
    options: Given,
}

#[derive(Params)]
pub struct ChangeRule {
    /// The rule's name.
    rule: String,
    /// What it is about. It can't be changed.
    #[param(name = "type")]
    kind: RuleType,
    /// Options to take out.
    delete: Vec<String>,
    /// Change only if the file is still this version.
    #[param(max_length = 64)]
    digest: Option<String>,
    /// Resources: `vm:100,ct:101`.
    resources: Option<String>,
    /// Its options.
    #[param(flatten)]
    options: Given,
}

const READ: Access = Access::All("/", &["Sys.Audit"]);
const WRITE: Access = Access::All("/", &["Sys.Console"]);

endpoint! {
    /// The rules that say where resources may be, with the conflicts among them.
    List = get("/cluster/ha/rules"), Anywhere, READ;
    fn call(cx, p: ListRules) -> Json<Vec<RuleView>> {
        Ok(Json(cx.ops().ha_rules(p.kind.map(RuleType::word), p.resource)?))
    }
}

endpoint! {
    /// Makes a rule; refused if it can't be kept together with the others.
    Add = post("/cluster/ha/rules"), Anywhere, WRITE;
    fn call(cx, p: AddRule) -> Null {
        let given = p.options.with(Some(p.resources));
        cx.ops().ha_rule_add(&cx.actor(), &p.rule, p.kind.word(), given).await?;
        Ok(Null)
    }
}

endpoint! {
    /// One rule.
    Read = get("/cluster/ha/rules/{rule}"), Anywhere, READ;
    fn call(cx, p: OneRule) -> Json<RuleView> {
        Ok(Json(cx.ops().ha_rule(&p.rule)?))
    }
}

endpoint! {
    /// Changes a rule; refused if it can't be kept together with the others.
    Change = put("/cluster/ha/rules/{rule}"), Anywhere, WRITE;
    fn call(cx, p: ChangeRule) -> Null {
        let given = p.options.with(p.resources);
        let (kind, digest) = (p.kind.word(), p.digest.as_deref());
        cx.ops().ha_rule_change(&cx.actor(), &p.rule, kind, given, &p.delete, digest).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Takes a rule out.
    Remove = delete("/cluster/ha/rules/{rule}"), Anywhere, WRITE;
    fn call(cx, p: OneRule) -> Null {
        cx.ops().ha_rule_remove(&cx.actor(), &p.rule).await?;
        Ok(Null)
    }
}

#[derive(Params)]
pub struct OneGroup {
    /// The group's name.
    group: String,
}

fn no_groups<T>() -> Result<T, Error> {
    Err(Error::failed("HA groups have become rules: use /cluster/ha/rules with type 'node-affinity'"))
}

endpoint! {
    /// The groups of older versions: there are none, node-affinity rules have taken their place.
    Groups = get("/cluster/ha/groups"), Anywhere, READ;
    fn call(_cx, _p: crate::version::Nothing) -> Json<Vec<RuleView>> {
        Ok(Json(vec![]))
    }
}

endpoint! {
    /// Answers that groups have become rules.
    Group = get("/cluster/ha/groups/{group}"), Anywhere, READ;
    fn call(_cx, p: OneGroup) -> Null {
        let _no_such_group = p.group;
        no_groups()
    }
}
