//! What must hold for every endpoint, and how the registry compares with the API that clients know.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use stead_access::Directory;
use stead_access::directory::User;
use stead_api::framework::params::{Kind, ParamSchema};
use stead_api::framework::{Access, Caller, Meta, Raw, openapi};
use stead_api::registry;

fn nobody() -> Caller {
    let mut directory = Directory::default();
    directory.users.insert("u@pve".into(), User { enabled: true, expire: 0 });
    Caller { id: "u@pve".parse().unwrap(), directory: Arc::new(directory), now: 1 }
}

/// A value that a parameter takes.
fn example(s: &ParamSchema) -> String {
    if let Some(word) = s.choices.first() {
        return word.clone();
    }
    let by_format = match s.format {
        Some("pve-node") => Some("n1"),
        Some("pve-storage-id") => Some("local"),
        Some("pve-userid" | "pve-authid") => Some("root@pam"),
        Some("pve-ha-resource-or-vm-id") => Some("vm:100"),
        Some("ip") => Some("192.0.2.1"),
        Some("pve-upid") => Some("UPID:n1:00000001:00000001:00000001:t:1:root@pam:"),
        _ => None,
    };
    if let Some(text) = by_format {
        return text.to_owned();
    }
    match (s.name.as_str(), s.kind) {
        ("size", _) => "1G".to_owned(),
        (_, Kind::Integer | Kind::Number) => s.min.unwrap_or(1.0).to_string(),
        (_, Kind::Boolean) => "1".to_owned(),
        (_, Kind::String) => "abc".to_owned(),
    }
}

fn required(meta: &Meta) -> Raw {
    let mut raw = Raw::default();
    for s in meta.params.iter().filter(|s| !s.optional) {
        raw.add(s.name.clone(), example(s));
    }
    raw
}

#[test]
fn without_privileges_nothing_can_be_changed() {
    let mut checked = 0;
    for handler in registry().iter().filter(|h| h.meta().route.changes()) {
        let meta = handler.meta();
        let name = format!("{} {}", meta.route.method, meta.route.path);
        if meta.access == Access::Everyone {
            assert_eq!(name, "POST /access/ticket", "the one change that needs no privilege");
            continue;
        }
        let error = handler.authorize(&nobody(), required(meta)).expect_err(&name);
        assert_eq!(error.status, 403, "{name}: {error:?}");
        let root = Caller { id: "root@pam".parse().unwrap(), ..nobody() };
        let allowed = handler.authorize(&root, required(meta));
        assert!(allowed.is_ok(), "{name}: these parameters should do: {allowed:?}");
        checked += 1;
    }
    assert!(checked > 30, "only {checked} changing endpoints were found");
}

#[test]
fn what_only_shows_is_refused_where_the_declaration_says_so() {
    for handler in registry().iter().filter(|h| !h.meta().route.changes()) {
        let meta = handler.meta();
        let open = matches!(meta.access, Access::Everyone | Access::Authenticated);
        let name = format!("{} {}", meta.route.method, meta.route.path);
        match handler.authorize(&nobody(), required(meta)) {
            Ok(()) => assert!(open || name == "GET /access/permissions", "{name} is open to everybody"),
            Err(e) => assert!(!open && e.status == 403, "{name}: {e:?}"),
        }
    }
}

#[test]
fn routes_are_well_formed_and_unique() {
    let mut seen = BTreeSet::new();
    for handler in registry().iter() {
        let meta = handler.meta();
        assert!(seen.insert((meta.route.method, meta.route.path)), "{:?} is declared twice", meta.route);
        for capture in meta.route.captures() {
            assert!(
                meta.params.iter().any(|p| p.name == capture),
                "{:?} has no parameter {capture}",
                meta.route
            );
        }
        assert!(!meta.about.trim().is_empty(), "{:?} says nothing of itself", meta.route);
        for p in &meta.params {
            let index = meta.about == "Lists what is below.";
            assert!(
                index || !p.description.is_empty(),
                "{:?}: {} says nothing of itself",
                meta.route,
                p.name
            );
        }
    }
}

#[test]
fn the_document_names_every_operation_once() {
    let document = openapi::document(&registry());
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, op) in item.as_object().unwrap() {
            let id = op["operationId"].as_str().unwrap().to_owned();
            assert!(ids.insert(id.clone()), "{method} {path}: {id} is there twice");
        }
    }
    assert_eq!(ids.len(), registry().iter().count());
    assert!(document["paths"]["/nodes/{node}/qemu"]["post"]["x-not-supported"].is_array());
}

/// Answers that are JSON without a type: what is kept, or what a program says.
const OPEN: [&str; 2] = ["GET /cluster/ha/profile", "GET /cluster/ha/status/manager_status"];

#[test]
fn every_answer_is_declared() {
    let is_open = |schema: &Value| {
        let any = |s: &Value| s.as_object().is_some_and(|o| !o.keys().any(|k| k == "type" || k == "anyOf"));
        any(schema) || schema.get("items").is_some_and(any)
    };
    let registry = registry();
    let open = registry.iter().map(|h| h.meta()).filter(|m| is_open(&m.returns));
    let open: BTreeSet<String> = open.map(|m| format!("{} {}", m.route.method, m.route.path)).collect();
    let undeclared: Vec<_> = open.iter().filter(|name| !OPEN.contains(&name.as_str())).collect();
    assert!(undeclared.is_empty(), "these answers have no type: {undeclared:?}");
}

/// Compares with a file beside the crate, or writes it when `STEAD_RECORD` is set.
fn is_recorded(file: &str, now: &str) {
    let path = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join(file);
    if std::env::var_os("STEAD_RECORD").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == now,
        "what {file} says has changed: run this test with STEAD_RECORD=1 and look at the difference"
    );
}

#[test]
fn the_checked_in_document_is_what_the_registry_says() {
    is_recorded(
        "openapi.json",
        &(serde_json::to_string_pretty(&openapi::document(&registry())).unwrap() + "\n"),
    );
}

#[test]
fn the_page_of_options_is_what_their_rules_say() {
    is_recorded("../../docs/vm-options.md", &stead_model::vmconfig::options_page());
}

#[test]
fn the_table_for_users_is_what_the_registry_says() {
    let registry = registry();
    let mut metas: Vec<&Meta> = registry.iter().map(|h| h.meta()).collect();
    metas.sort_by_key(|m| (m.route.path, m.route.method));
    let mut text = "# The API's endpoints\n\n\
        Made from the registry. Paths are below `/api2/json` (or `/api2/extjs`); all else answers 501. A parameter that\n\
        is not taken may be given as 0 or empty: then it asks for nothing.\n\n\
        Any node answers for all: a request is handed on to the node that its path names. What looks at a guest is handed\n\
        on to the guest's node, whichever the path names; what changes a guest must name the node that it is on, and else\n\
        fails: \"VM … does not exist on node …\".\n\n\
        | endpoint | what | allowed for | parameters not taken |\n|---|---|---|---|\n"
        .to_owned();
    for m in metas {
        let (route, access) = (m.route, m.access.describe());
        let cells = [
            format!("`{} {}`", route.method, route.path),
            m.about.trim().into(),
            access,
            m.missing.join("; "),
        ];
        text += &format!("| {} |\n", cells.map(|c| c.replace('|', "\\|")).join(" | "));
    }
    is_recorded("../../docs/api.md", &text);
}

/// The schema that clients are written against, where it lies beside the checkout.
fn known() -> Option<BTreeMap<(String, String), Value>> {
    let beside = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../../shared");
    let dir = std::env::var_os("STEAD_SHARED").map_or(beside, PathBuf::from);
    let text = std::fs::read_to_string(dir.join("pve-api/schema.jsonl")).ok()?;
    let one = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        ((v["method"].as_str().unwrap().to_owned(), v["path"].as_str().unwrap().to_owned()), v)
    };
    Some(text.lines().map(one).collect())
}

/// What Stead has and Proxmox VE has not.
const BEYOND: [(&str, &str); 34] = [
    ("POST", "/nodes/{node}/qemu/{vmid}/quick_migrate"),
    ("GET", "/cluster/qemu/common"),
    ("GET", "/cluster/config/expected"),
    ("POST", "/cluster/config/expected"),
    ("POST", "/cluster/config/rejoin"),
    ("GET", "/cluster/config/aside"),
    ("DELETE", "/cluster/config/aside/{node}"),
    ("GET", "/cluster/config/links"),
    ("POST", "/cluster/config/certificates"),
    ("PUT", "/cluster/config/nodes/{node}"),
    ("GET", "/cluster/ha/fence/devices"),
    ("POST", "/cluster/ha/fence/devices"),
    ("GET", "/cluster/ha/fence/devices/{device}"),
    ("PUT", "/cluster/ha/fence/devices/{device}"),
    ("DELETE", "/cluster/ha/fence/devices/{device}"),
    ("GET", "/cluster/ha/fence/nodes/{node}"),
    ("GET", "/cluster/ha/what-if"),
    ("POST", "/cluster/config/join-token"),
    ("GET", "/cluster/ha/profile"),
    ("PUT", "/cluster/ha/profile"),
    ("GET", "/cluster/events"),
    ("GET", "/cluster/history"),
    ("GET", "/cluster/history/file"),
    ("POST", "/cluster/history/rollback"),
    ("GET", "/cluster/history/status"),
    ("PUT", "/cluster/history/status"),
    ("GET", "/cluster/history/backup"),
    ("POST", "/cluster/config/nodes/{node}/confirm-off"),
    ("POST", "/nodes/{node}/depart"),
    ("GET", "/nodes/{node}/place"),
    ("PUT", "/nodes/{node}/place"),
    ("GET", "/cluster/ha/resources/{sid}/history"),
    ("POST", "/cluster/ha/resources/{sid}/stop"),
    ("PUT", "/cluster/ha/status/maintenance/{node}"),
];

/// Names that the endpoint takes or refuses with a reason.
fn named(meta: &Meta) -> BTreeSet<String> {
    let refused = meta.missing.iter().map(|m| m.split(": ").next().unwrap().to_owned());
    meta.params.iter().map(|p| p.name.clone()).chain(refused).collect()
}

/// A schema's properties: of alternatives all, each optional unless every alternative wants it.
fn properties(schema: &Value) -> BTreeMap<String, Value> {
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        all.insert(name.clone(), property.clone());
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        all.extend(properties(part));
    }
    let alternatives: Vec<_> = schema["oneOf"].as_array().into_iter().flatten().map(properties).collect();
    for (name, property) in alternatives.iter().flatten() {
        let wanted = |a: &BTreeMap<String, Value>| a.get(name).is_some_and(|p| p["optional"] != 1);
        let mut property = property.clone();
        property["optional"] = u8::from(!alternatives.iter().all(wanted)).into();
        all.insert(name.clone(), property);
    }
    if let (Some(name), property @ Value::Object(_)) =
        (schema["type-property"].as_str(), &schema["type-property-schema"])
    {
        all.insert(name.to_owned(), property.clone());
    }
    all
}

#[test]
fn the_registry_is_a_part_of_the_api_that_clients_know() {
    let Some(known) = known() else {
        println!("SKIPPED: no pve-api/schema.jsonl in $STEAD_SHARED or beside the checkout");
        assert!(std::env::var_os("STEAD_STRICT").is_none(), "STEAD_STRICT allows no skips");
        return;
    };
    let mut wrong = vec![];
    for handler in registry().iter() {
        let meta = handler.meta();
        let (method, path) = (meta.route.method, meta.route.path);
        if BEYOND.contains(&(method, path)) {
            continue;
        }
        let Some(theirs) = known.get(&(method.to_owned(), path.to_owned())) else {
            wrong.push(format!("{method} {path}: clients know no such endpoint"));
            continue;
        };
        let theirs = &properties(&theirs["parameters"]);
        let ours = named(meta);
        for name in ours.iter().filter(|n| !theirs.contains_key(*n)) {
            wrong.push(format!("{method} {path}: clients know no parameter '{name}'"));
        }
        for (name, schema) in theirs {
            let optional = schema["optional"] == 1;
            match meta.params.iter().find(|p| p.name == *name) {
                Some(p) if p.optional && !optional => {
                    wrong.push(format!("{method} {path}: '{name}' must be required"));
                }
                Some(p) if !p.optional && optional => {
                    wrong.push(format!("{method} {path}: '{name}' must not be required"));
                }
                Some(_) => {}
                None if ours.contains(name) => {}
                None => wrong
                    .push(format!("{method} {path}: '{name}' is neither taken nor refused with a reason")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}
