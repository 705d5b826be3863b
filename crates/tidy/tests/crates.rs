//! The crate graph against DESIGN's "Rules of the house": imports point down only.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Every crate, and what of ours it may use. A crate that is not here is a question to answer first.
const MAY_USE: &[(&str, &[&str])] = &[
    // The pure cores.
    ("model", &[]),
    ("membership", &["model"]),
    ("ha", &["model"]),
    ("guest", &["model"]),
    // What the use cases stand on.
    ("driver", &["model", "guest"]),
    ("conf", &["model"]),
    ("transport", &["model"]),
    ("tasks", &["model"]),
    ("access", &["model"]),
    // Concrete drivers: the traits and the pure cores, never each other.
    ("qemu", &["driver", "guest", "model"]),
    ("storage", &["driver", "guest", "model"]),
    // The fence process stays tiny.
    ("fenced", &["membership", "model"]),
    (
        "ops",
        &[
            "access",
            "api-derive",
            "conf",
            "driver",
            "guest",
            "ha",
            "membership",
            "model",
            "tasks",
            "transport",
        ],
    ),
    (
        "agents",
        &[
            "access",
            "conf",
            "driver",
            "fenced",
            "guest",
            "ha",
            "membership",
            "model",
            "ops",
            "tasks",
            "transport",
        ],
    ),
    // The configuration as files: a shell beside `api`.
    ("files", &["conf", "model", "ops"]),
    // A node's folder, and its store while no daemon runs.
    ("home", &["conf", "model", "ops", "transport"]),
    // One node's use cases over fakes, for tests.
    ("ops-testing", &["conf", "driver", "model", "ops", "tasks", "transport"]),
    ("api-derive", &[]),
    ("api", &["access", "api-derive", "model", "ops"]),
    // Wiring: everything that runs in the daemon.
    (
        "node",
        &[
            "access",
            "agents",
            "api",
            "conf",
            "driver",
            "fenced",
            "files",
            "guest",
            "ha",
            "home",
            "membership",
            "model",
            "ops",
            "qemu",
            "storage",
            "tasks",
            "transport",
        ],
    ),
    ("sim", &["conf", "driver", "guest", "ha", "membership", "model"]),
    ("testbed", &["driver", "model", "qemu", "sim", "storage", "transport"]),
    // It speaks to the API and holds no logic of the cluster's.
    ("cli", &["model", "sim", "testbed", "transport"]),
    ("tidy", &[]),
];

/// What the pure crates may use of others: no runtime, clock, random source, file or socket among them.
const PURE: &[&str] = &["model", "membership", "ha", "guest"];
const PURE_MAY_USE: &[&str] =
    &["base64", "serde", "serde_json", "thiserror", "uuid", "sha1", "sha2", "indexmap", "bytes"];

struct Package {
    name: String,
    manifest: String,
    /// Name and kind (empty for normal, `dev`, `build`).
    uses: Vec<(String, String)>,
}

fn packages() -> Vec<Package> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"])
        .arg(Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../Cargo.toml"))
        .output()
        .unwrap();
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let of = |p: &Value| Package {
        name: text(&p["name"]).trim_start_matches("stead-").to_owned(),
        manifest: text(&p["manifest_path"]),
        uses: p["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| (text(&d["name"]), text(&d["kind"])))
            .collect(),
    };
    metadata["packages"].as_array().unwrap().iter().map(of).collect()
}

/// A crate of ours by its package's name.
fn ours(package: &str) -> Option<&str> {
    package.strip_prefix("stead-")
}

fn complain(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn imports_point_down_only() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        MAY_USE.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for p in packages() {
        let Some(may) = allowed.get(p.name.as_str()) else {
            wrong.push(format!("{} has no place in the list of {}", p.name, file!()));
            continue;
        };
        for (used, kind) in &p.uses {
            let Some(used) = ours(used) else { continue };
            // A test may stand on what the crate itself may not, but drivers never meet.
            let tests_may = kind == "dev" && !(["qemu", "storage"].contains(&used) && p.name != "node");
            if !may.contains(used) && !tests_may {
                wrong.push(format!("{} must not use {used}", p.name));
            }
        }
    }
    complain(&wrong);
}

#[test]
fn the_list_itself_has_no_cycle() {
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    let mut left: Vec<_> = MAY_USE.to_vec();
    while !left.is_empty() {
        let before = left.len();
        left.retain(|(name, uses)| {
            let ready = uses.iter().all(|u| placed.contains(u));
            if ready {
                placed.insert(name);
            }
            !ready
        });
        assert!(left.len() < before, "a cycle among {:?}", left.iter().map(|(n, _)| n).collect::<Vec<_>>());
    }
}

#[test]
fn pure_crates_use_nothing_impure() {
    let mut wrong = Vec::new();
    for p in packages().iter().filter(|p| PURE.contains(&p.name.as_str())) {
        for (used, kind) in p.uses.iter().filter(|(used, _)| ours(used).is_none()) {
            if kind != "dev" && !PURE_MAY_USE.contains(&used.as_str()) {
                wrong.push(format!("{} is pure and must not use {used}", p.name));
            }
        }
    }
    complain(&wrong);
}

#[test]
fn manifests_inherit_from_the_workspace() {
    let mut wrong = Vec::new();
    for p in packages() {
        let text = std::fs::read_to_string(&p.manifest).unwrap();
        for line in ["license.workspace = true", "edition.workspace = true", "publish.workspace = true"] {
            if !text.lines().any(|l| l == line) {
                wrong.push(format!("{}: no line `{line}`", p.manifest));
            }
        }
        if !text.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{}: the workspace's lints are not taken", p.manifest));
        }
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            } else if section.contains("dependencies]")
                && line.contains('=')
                && !line.contains("workspace = true")
            {
                wrong.push(format!("{}: `{line}`: versions and features stand in the workspace", p.manifest));
            }
        }
    }
    complain(&wrong);
}

/// All Rust text below a folder.
fn rust_below(dir: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
            text.push_str(&rust_below(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
    text
}

fn names(text: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !part(text[..at].chars().next_back()) && !part(text[at + word.len()..].chars().next()))
}

#[test]
fn what_is_declared_is_used() {
    let mut wrong = Vec::new();
    for p in packages() {
        let text = rust_below(Path::new(&p.manifest).parent().unwrap());
        let unused = p.uses.iter().filter(|(used, _)| !names(&text, &used.replace('-', "_")));
        wrong.extend(unused.map(|(used, _)| format!("{} declares {used} and does not use it", p.name)));
    }
    complain(&wrong);
}
