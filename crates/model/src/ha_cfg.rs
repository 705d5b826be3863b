//! `ha/resources.cfg` and `ha/rules.cfg`: which guests HA keeps in which state, and where they may be.
//!
//! Both are [`SectionConfig`]s: what this version does not know stays as it is.

use crate::sectionconfig::{Section, SectionConfig, SectionError};
use crate::text::{FormatError, is_config_id, split_list};
use crate::{GuestKind, NodeName, ServiceId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A resource or rule that cannot be as it is asked for, or as the file has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HaCfgError {
    /// An option with a wrong value.
    #[error("{key}: {why}")]
    Option {
        /// The option, as the API names the parameter.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The section is there, or is not.
    #[error(transparent)]
    Section(#[from] SectionError),
}

fn refuse<T>(key: &str, why: impl fmt::Display) -> Result<T, HaCfgError> {
    Err(HaCfgError::Option { key: key.to_owned(), why: why.to_string() })
}

/// What HA keeps a guest in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestedState {
    /// Running. Also written `enabled`.
    #[default]
    Started,
    /// Stopped, and recovered on another node when its node is lost.
    Stopped,
    /// Stopped, and left where it is.
    Disabled,
    /// Left alone.
    Ignored,
}

impl RequestedState {
    /// Its word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Disabled => "disabled",
            Self::Ignored => "ignored",
        }
    }

    /// The one of that word.
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "started" | "enabled" => Some(Self::Started),
            "stopped" => Some(Self::Stopped),
            "disabled" => Some(Self::Disabled),
            "ignored" => Some(Self::Ignored),
            _ => None,
        }
    }
}

/// A guest under HA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaResource {
    /// The guest.
    pub sid: ServiceId,
    /// What it is kept in.
    pub state: RequestedState,
    /// Attempts to start it again on its node. Default 1.
    pub max_restart: u32,
    /// Attempts on other nodes after that. Default 1.
    pub max_relocate: u32,
    /// Whether it goes back to a better node when that returns. Default: yes.
    pub failback: bool,
    /// Whether it may be moved to balance load. Default: yes.
    pub auto_rebalance: bool,
    /// A group of an older version; rules have taken their place.
    pub group: Option<String>,
    /// Free text.
    pub comment: Option<String>,
}

impl HaResource {
    /// One with the defaults.
    pub fn new(sid: ServiceId) -> Self {
        Self {
            sid,
            state: RequestedState::Started,
            max_restart: 1,
            max_relocate: 1,
            failback: true,
            auto_rebalance: true,
            group: None,
            comment: None,
        }
    }

    fn read(section: &Section) -> Result<Self, HaCfgError> {
        let sid = match section.kind() {
            "vm" | "ct" => format!("{}:{}", section.kind(), section.id()).parse(),
            other => return refuse("sid", format_args!("'{other}' is no type of resource")),
        };
        let mut read = Self::new(sid.or_else(|e: crate::IdError| refuse("sid", e))?);
        for (key, value) in section.iter() {
            match key {
                "state" => read.state = state(value)?,
                "max_restart" => read.max_restart = number(key, value)?,
                "max_relocate" => read.max_relocate = number(key, value)?,
                "failback" => read.failback = flag(section, key)?,
                "auto-rebalance" => read.auto_rebalance = flag(section, key)?,
                "group" => read.group = Some(value.to_owned()),
                "comment" => read.comment = Some(crate::text::decode(value)),
                _ => {}
            }
        }
        Ok(read)
    }

    fn write(&self, section: &mut Section) -> Result<(), HaCfgError> {
        let unless = |default: bool, text: String| (!default).then_some(text);
        let bit = |on: bool| u8::from(on).to_string();
        let options = [
            ("state", Some(self.state.as_str().to_owned())),
            ("max_restart", unless(self.max_restart == 1, self.max_restart.to_string())),
            ("max_relocate", unless(self.max_relocate == 1, self.max_relocate.to_string())),
            ("failback", unless(self.failback, bit(self.failback))),
            ("auto-rebalance", unless(self.auto_rebalance, bit(self.auto_rebalance))),
            ("group", self.group.clone()),
            ("comment", comment_text(self.comment.as_deref())?),
        ];
        for (key, value) in options {
            section.assign(key, value.as_deref())?;
        }
        Ok(())
    }
}

/// The state of that word, for parameters of the API.
///
/// # Errors
/// Names the words there are.
pub fn state(text: &str) -> Result<RequestedState, HaCfgError> {
    match RequestedState::from_text(text) {
        Some(state) => Ok(state),
        None => refuse(
            "state",
            format_args!("value '{text}' is not one of started, stopped, enabled, disabled, ignored"),
        ),
    }
}

fn number(key: &str, text: &str) -> Result<u32, HaCfgError> {
    text.parse().or_else(|_| refuse(key, format_args!("'{text}' is not a whole number of at least 0")))
}

fn flag(section: &Section, key: &str) -> Result<bool, HaCfgError> {
    match section.flag(key) {
        Some(on) => Ok(on),
        None => {
            refuse(key, format_args!("'{}' is not a boolean (1 or 0)", section.get(key).unwrap_or_default()))
        }
    }
}

fn comment_text(comment: Option<&str>) -> Result<Option<String>, HaCfgError> {
    let Some(comment) = comment.map(str::trim).filter(|c| !c.is_empty()) else { return Ok(None) };
    if comment.chars().count() > 4096 {
        return refuse("comment", "value must have at most 4096 characters");
    }
    Ok(Some(crate::text::encode(comment)))
}

/// `ha/resources.cfg`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HaResources {
    sections: SectionConfig,
}

impl HaResources {
    /// Reads the file's text; `Display` prints it.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        Ok(Self { sections: text.parse()? })
    }

    /// Every resource that can be read, and why the others cannot: one with a wrong value must not take HA from
    /// the rest.
    pub fn list(&self) -> (BTreeMap<ServiceId, HaResource>, Vec<(String, HaCfgError)>) {
        let (mut good, mut bad) = (BTreeMap::new(), Vec::new());
        for section in self.sections.iter() {
            match HaResource::read(section) {
                Ok(resource) => drop(good.insert(resource.sid, resource)),
                Err(e) => bad.push((format!("{}:{}", section.kind(), section.id()), e)),
            }
        }
        (good, bad)
    }

    /// One resource.
    ///
    /// # Errors
    /// If a value in the file is wrong.
    pub fn get(&self, sid: ServiceId) -> Result<Option<HaResource>, HaCfgError> {
        let same = |s: &&Section| s.kind() == kind_of(sid);
        self.sections.get(&sid.vmid.to_string()).filter(same).map(HaResource::read).transpose()
    }

    /// Adds a resource.
    ///
    /// # Errors
    /// If it is there, or a text is too long.
    pub fn add(&mut self, resource: &HaResource) -> Result<(), HaCfgError> {
        let mut section = Section::new(kind_of(resource.sid), &resource.sid.vmid.to_string())?;
        resource.write(&mut section)?;
        Ok(self.sections.insert(section)?)
    }

    /// Changes a resource; options that this version does not know stay.
    ///
    /// # Errors
    /// If it does not exist, or a text is too long.
    pub fn update(&mut self, resource: &HaResource) -> Result<(), HaCfgError> {
        let section = self.sections.get_mut(&resource.sid.vmid.to_string())?;
        let mut new = section.clone();
        resource.write(&mut new)?;
        *section = new;
        Ok(())
    }

    /// Takes a resource out.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn remove(&mut self, sid: ServiceId) -> Result<(), HaCfgError> {
        self.sections.remove(&sid.vmid.to_string())?;
        Ok(())
    }
}

fn kind_of(sid: ServiceId) -> &'static str {
    match sid.kind {
        GuestKind::Qemu => "vm",
        GuestKind::Lxc => "ct",
    }
}

impl fmt::Display for HaResources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sections.fmt(f)
    }
}

/// What a rule asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaRuleKind {
    /// Resources and nodes.
    NodeAffinity {
        /// The nodes with their priorities; the highest available one is taken. Default priority 0.
        nodes: BTreeMap<NodeName, u32>,
        /// Without one of the nodes a resource stays stopped, instead of going to another.
        strict: bool,
        /// Whether resources are to be on these nodes (default) or on any but these.
        positive: bool,
    },
    /// Resources among themselves.
    ResourceAffinity {
        /// Whether they are to be on one node or each on another.
        positive: bool,
    },
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaRule {
    /// Its name.
    pub id: String,
    /// The guests that it is about.
    pub resources: BTreeSet<ServiceId>,
    /// Whether it is switched off.
    pub disable: bool,
    /// Free text.
    pub comment: Option<String>,
    /// What it asks for.
    pub kind: HaRuleKind,
}

impl HaRuleKind {
    /// The type's name in the file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NodeAffinity { .. } => "node-affinity",
            Self::ResourceAffinity { .. } => "resource-affinity",
        }
    }
}

impl HaRule {
    fn read(section: &Section) -> Result<Self, HaCfgError> {
        let optional = |key: &str| if section.get(key).is_some() { flag(section, key) } else { Ok(false) };
        let kind = match section.kind() {
            "node-affinity" => HaRuleKind::NodeAffinity {
                nodes: nodes(required(section, "nodes")?)?,
                strict: optional("strict")?,
                positive: section.get("affinity").map_or(Ok(true), positive)?,
            },
            "resource-affinity" => {
                HaRuleKind::ResourceAffinity { positive: positive(required(section, "affinity")?)? }
            }
            other => return refuse("type", format_args!("'{other}' is no type of rule")),
        };
        Ok(Self {
            id: section.id().to_owned(),
            resources: resources(required(section, "resources")?)?,
            disable: optional("disable")?,
            comment: section.get("comment").map(crate::text::decode),
            kind,
        })
    }

    fn write(&self, section: &mut Section) -> Result<(), HaCfgError> {
        let on = |flag: bool| flag.then(|| "1".to_owned());
        let sign = |positive: bool| Some(if positive { "positive" } else { "negative" }.to_owned());
        let resources: Vec<String> = self.resources.iter().map(ToString::to_string).collect();
        if resources.is_empty() {
            return refuse("resources", "a rule must name a resource");
        }
        section.set("resources", &resources.join(","))?;
        match &self.kind {
            HaRuleKind::NodeAffinity { nodes, strict, positive } => {
                if nodes.is_empty() {
                    return refuse("nodes", "a rule must name a node");
                }
                let texts: Vec<String> = nodes
                    .iter()
                    .map(|(n, p)| if *p == 0 { n.to_string() } else { format!("{n}:{p}") })
                    .collect();
                section.set("nodes", &texts.join(","))?;
                section.assign("strict", on(*strict).as_deref())?;
                section.assign("affinity", if *positive { None } else { sign(false) }.as_deref())?;
            }
            HaRuleKind::ResourceAffinity { positive } => {
                section.assign("affinity", sign(*positive).as_deref())?;
            }
        }
        section.assign("disable", on(self.disable).as_deref())?;
        section.assign("comment", comment_text(self.comment.as_deref())?.as_deref())?;
        Ok(())
    }
}

fn required<'s>(section: &'s Section, key: &str) -> Result<&'s str, HaCfgError> {
    match section.get(key).filter(|v| !v.is_empty()) {
        Some(value) => Ok(value),
        None => refuse(key, format_args!("the rule '{}' has none", section.id())),
    }
}

/// `positive` or `negative`.
///
/// # Errors
/// If it is neither.
pub fn positive(text: &str) -> Result<bool, HaCfgError> {
    match text {
        "positive" => Ok(true),
        "negative" => Ok(false),
        _ => refuse("affinity", format_args!("value '{text}' is not one of positive, negative")),
    }
}

/// `node1:2,node2`: nodes with priorities.
///
/// # Errors
/// If a name or a priority is wrong, or a node is given twice.
pub fn nodes(text: &str) -> Result<BTreeMap<NodeName, u32>, HaCfgError> {
    let mut all = BTreeMap::new();
    for part in split_list(text) {
        let (name, priority) = part.split_once(':').unwrap_or((part, "0"));
        let name: NodeName = name.parse().or_else(|e| refuse("nodes", e))?;
        let priority = number("nodes", priority)?;
        if all.insert(name, priority).is_some() {
            return refuse("nodes", format_args!("'{part}': the node is given twice"));
        }
    }
    Ok(all)
}

/// `vm:100,ct:101`: resources.
///
/// # Errors
/// If one is none.
pub fn resources(text: &str) -> Result<BTreeSet<ServiceId>, HaCfgError> {
    split_list(text).map(|s| s.parse().or_else(|e| refuse("resources", e))).collect()
}

/// `ha/rules.cfg`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HaRules {
    sections: SectionConfig,
}

impl HaRules {
    /// Reads the file's text; `Display` prints it.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        Ok(Self { sections: text.parse()? })
    }

    /// Every rule that can be read, in order, and why the others cannot.
    pub fn list(&self) -> (Vec<HaRule>, Vec<(String, HaCfgError)>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for section in self.sections.iter() {
            match HaRule::read(section) {
                Ok(rule) => good.push(rule),
                Err(e) => bad.push((section.id().to_owned(), e)),
            }
        }
        (good, bad)
    }

    /// One rule.
    ///
    /// # Errors
    /// If a value in the file is wrong.
    pub fn get(&self, id: &str) -> Result<Option<HaRule>, HaCfgError> {
        self.sections.get(id).map(HaRule::read).transpose()
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// If its name is taken or wrong, or it names nothing.
    pub fn add(&mut self, rule: &HaRule) -> Result<(), HaCfgError> {
        if rule.id.len() < 2 || !is_config_id(&rule.id) {
            return refuse(
                "rule",
                format_args!("'{}' is not a valid name of a rule", rule.id.escape_debug()),
            );
        }
        let mut section = Section::new(rule.kind.as_str(), &rule.id)?;
        rule.write(&mut section)?;
        Ok(self.sections.insert(section)?)
    }

    /// Changes a rule, not its type; options that this version does not know stay.
    ///
    /// # Errors
    /// If it does not exist, is of another type, or names nothing.
    pub fn update(&mut self, rule: &HaRule) -> Result<(), HaCfgError> {
        let section = self.sections.get_mut(&rule.id)?;
        if section.kind() != rule.kind.as_str() {
            return refuse("type", format_args!("the rule '{}' is a '{}'", rule.id, section.kind()));
        }
        let mut new = section.clone();
        rule.write(&mut new)?;
        *section = new;
        Ok(())
    }

    /// Takes a rule out.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn remove(&mut self, id: &str) -> Result<(), HaCfgError> {
        self.sections.remove(id)?;
        Ok(())
    }
}

impl fmt::Display for HaRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sections.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESOURCES: &str = "\
vm: 100
\tstate started
\tmax_relocate 2
\tfuture x
\tcomment the front end%3A web

ct: 101
\tfailback 0
\tgroup old
";
    const RULES: &str = "\
node-affinity: near-disks
\tnodes n1:2,n2
\tresources vm:100,ct:101
\tstrict 1

resource-affinity: apart
\tdisable
\tresources vm:100,vm:102
\taffinity negative
";

    fn sid(text: &str) -> ServiceId {
        text.parse().unwrap()
    }

    #[test]
    fn resources_are_typed() {
        let mut cfg = HaResources::parse(RESOURCES).unwrap();
        assert_eq!(cfg.to_string(), RESOURCES);
        let (all, bad) = cfg.list();
        assert!(bad.is_empty());
        let web = &all[&sid("vm:100")];
        assert_eq!((web.state, web.max_restart, web.max_relocate), (RequestedState::Started, 1, 2));
        assert_eq!(web.comment.as_deref(), Some("the front end: web"));
        let old = &all[&sid("ct:101")];
        assert_eq!(
            (old.state, old.failback, old.group.as_deref()),
            (RequestedState::Started, false, Some("old"))
        );
        assert_eq!(cfg.get(sid("ct:100")), Ok(None), "the type belongs to the name");

        let changed =
            HaResource { state: RequestedState::Ignored, max_relocate: 1, comment: None, ..web.clone() };
        cfg.update(&changed).unwrap();
        cfg.remove(sid("ct:101")).unwrap();
        assert_eq!(cfg.to_string(), "vm: 100\n\tstate ignored\n\tfuture x\n");
        assert_eq!(cfg.add(&changed).unwrap_err().to_string(), "'100' already exists");
        assert_eq!(
            cfg.update(&HaResource::new(sid("vm:7777"))).unwrap_err().to_string(),
            "'7777' does not exist"
        );
    }

    #[test]
    fn a_wrong_resource_does_not_hide_the_others() {
        let cfg = HaResources::parse("vm: 100\n\tstate on\n\nvm: 7\n\nfa: 1001\n\nvm: 101\n").unwrap();
        let (good, bad) = cfg.list();
        assert_eq!(good.keys().map(ToString::to_string).collect::<Vec<_>>(), ["vm:101"]);
        let said: Vec<String> = bad.iter().map(|(id, e)| format!("{id}: {e}")).collect();
        assert_eq!(
            said,
            [
                "vm:100: state: value 'on' is not one of started, stopped, enabled, disabled, ignored",
                "vm:7: sid: '7' is not a valid VMID: it must lie in 100 to 999999999",
                "fa:1001: sid: 'fa' is no type of resource",
            ]
        );
    }

    #[test]
    fn rules_are_typed() {
        let mut cfg = HaRules::parse(RULES).unwrap();
        assert_eq!(cfg.to_string(), RULES);
        let (all, bad) = cfg.list();
        assert!(bad.is_empty());
        let HaRuleKind::NodeAffinity { nodes, strict, positive } = &all[0].kind else {
            panic!("a node affinity")
        };
        assert_eq!(nodes.values().copied().collect::<Vec<_>>(), [2, 0]);
        assert!(*strict && *positive && !all[0].disable);
        assert_eq!(all[1].kind, HaRuleKind::ResourceAffinity { positive: false });
        assert!(all[1].disable);

        let changed = HaRule { disable: false, comment: Some("a: b".to_owned()), ..all[1].clone() };
        cfg.update(&changed).unwrap();
        cfg.remove("near-disks").unwrap();
        let text =
            "resource-affinity: apart\n\tresources vm:100,vm:102\n\taffinity negative\n\tcomment a%3A b\n";
        assert_eq!(cfg.to_string(), text);
        let other = HaRule { kind: all[0].kind.clone(), ..changed };
        assert_eq!(
            cfg.update(&other).unwrap_err().to_string(),
            "type: the rule 'apart' is a 'resource-affinity'"
        );
        let empty = HaRule { id: "new".to_owned(), resources: BTreeSet::new(), ..other };
        assert_eq!(cfg.add(&empty).unwrap_err().to_string(), "resources: a rule must name a resource");
        assert!(
            super::nodes("n1,n1:2").is_err() && super::nodes("n1:x").is_err() && resources("vm:1").is_err()
        );
        assert_eq!(cfg.to_string(), text, "a refused change leaves nothing behind");
    }

    proptest! {
        #[test]
        fn a_resource_reads_as_it_was_written(
            n in 100..9999u32, vm in any::<bool>(), state in 0..4usize, limits in any::<(u32, u32)>(),
            flags in any::<(bool, bool)>(), comment in proptest::option::of("\\PC{1,20}"),
        ) {
            let all = [
                RequestedState::Started, RequestedState::Stopped, RequestedState::Disabled, RequestedState::Ignored,
            ];
            let resource = HaResource {
                state: all[state],
                max_restart: limits.0,
                max_relocate: limits.1,
                failback: flags.0,
                auto_rebalance: flags.1,
                comment: comment.map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()),
                ..HaResource::new(sid(&format!("{}:{n}", if vm { "vm" } else { "ct" })))
            };
            let mut cfg = HaResources::default();
            cfg.add(&resource).unwrap();
            let read = HaResources::parse(&cfg.to_string()).unwrap();
            prop_assert_eq!(read.get(resource.sid).unwrap(), Some(resource));
        }
    }
}
