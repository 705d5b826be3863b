//! Scenarios: our own, with their recorded stories, and those from elsewhere, where they are at hand.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use stead_sim::cluster::play;
use stead_sim::scenario::{Scenario, Story, folder, text};

/// Fewer than this are not all that there were.
const OURS: usize = 60;

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn played(name: &str, scenario: &Scenario) -> Story {
    let story = play(scenario).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(story.broken, None, "{name}");
    assert_eq!(story.unsafe_starts(), Vec::<String>::new(), "{name}");
    story
}

#[test]
fn our_scenarios_go_as_recorded() {
    let record = std::env::var_os("STEAD_RECORD").is_some();
    let (mut seen, mut differ) = (0, vec![]);
    for path in files(&PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("scenarios")) {
        let (name, file) = (name(&path), std::fs::read_to_string(&path).unwrap());
        let (input, recorded) = text::split(&file);
        assert!(input.starts_with("# "), "{name}: the first line says what it is about");
        let scenario = text::read(input).unwrap_or_else(|e| panic!("{name}: {e}"));
        let told = played(&name, &scenario).to_text();
        seen += 1;
        if record {
            std::fs::write(&path, format!("{input}{}{told}", text::LINE)).unwrap();
        } else if told != recorded {
            differ.push(format!("{name} now goes:\n{told}"));
        }
    }
    assert!(differ.is_empty(), "{}\nRun with STEAD_RECORD=1, and look at the difference.", differ.join("\n"));
    assert!(seen >= OURS, "{seen} scenarios");
}

/// What comes of a scenario, by its own and our states of the same meaning.
fn class(state: Option<&str>) -> Option<&str> {
    match state? {
        "request_start" | "request_start_balance" | "migrate" | "relocate" => Some("started"),
        "request_stop" => Some("stopped"),
        "fence" => Some("recovery"),
        other => Some(other),
    }
}

fn shared() -> Option<PathBuf> {
    let beside = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../../shared");
    let shared = std::env::var_os("STEAD_SHARED").map_or(beside, PathBuf::from);
    Some(shared.join("ha-scenarios")).filter(|d| d.is_dir())
}

/// How unevenly the services' load lies on the nodes: the spread of the nodes' shares of CPU and of memory, over
/// their mean.
fn imbalance(scenario: &Scenario, places: &BTreeMap<String, Option<String>>) -> f64 {
    let spread = |share: &dyn Fn(&stead_sim::scenario::Load, &stead_sim::scenario::Hardware) -> f64| {
        let on = |h: &stead_sim::scenario::Hardware| {
            let here = |sid: &str| places.get(sid).cloned().flatten().is_some_and(|n| n == h.name.as_str());
            scenario.loads().filter(|(sid, _)| here(sid)).map(|(_, l)| share(&l, h)).sum::<f64>()
        };
        let loads: Vec<f64> = scenario.nodes.iter().map(on).collect();
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let variance = loads.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / loads.len() as f64;
        if mean > 0.0 { variance.sqrt() / mean } else { 0.0 }
    };
    let dynamic = scenario.crs.contains("ha=dynamic");
    let cpu = spread(&|l, h| if dynamic { l.cpu } else { l.maxcpu } / h.maxcpu);
    let mem = spread(&|l, h| if dynamic { l.mem } else { l.maxmem } as f64 / h.maxmem as f64);
    (cpu + mem) / 2.0
}

fn places(services: &Value) -> BTreeMap<String, Option<String>> {
    let services = services.as_object().cloned().unwrap_or_default();
    services.into_iter().map(|(sid, s)| (sid, s["running_on"].as_str().map(str::to_owned))).collect()
}

/// What differs on purpose.
const OTHERWISE: [(&str, &str); 2] = [
    // Two nodes hold members of the group; the rules are kept on either.
    ("test-resource-affinity-strict-mixed3", "is on"),
    // It was being moved when its manager ended, and the ownership record says that the move is complete.
    ("test-service-command7", ""),
];

/// Every difference that counts between what came of a scenario and what should.
fn differences(scenario: &Scenario, expected: &Value, got: &Value) -> Vec<String> {
    let mut found = vec![];
    let (want, have) = (&expected["final"]["services"], &got["final"]["services"]);
    let scheduler = expected["category"] == "scheduler";
    let forced = !scheduler;
    for (sid, w) in want.as_object().cloned().unwrap_or_default() {
        let h = &have[&sid];
        if w["running_on"].is_null() != h["running_on"].is_null() {
            found.push(format!("{sid} runs on {}, not on {}", h["running_on"], w["running_on"]));
        }
        if class(w["state"].as_str()) != class(h["state"].as_str()) {
            found.push(format!("{sid} is {}, not {}: {}", h["state"], w["state"], h["reason"]));
        }
        if forced && (&w["node"], &w["running_on"]) != (&h["node"], &h["running_on"]) {
            found.push(format!("{sid} is on {}, not on {}: {}", h["node"], w["node"], h["reason"]));
        }
    }
    let (was, is) = (imbalance(scenario, &places(want)), imbalance(scenario, &places(have)));
    if scheduler && is > was + 1e-9 {
        found.push(format!("the imbalance is {is:.3}, not {was:.3}"));
    }
    found
}

#[test]
fn scenarios_from_elsewhere_end_as_they_should() {
    let Some(dir) = shared() else {
        eprintln!("skipped: the scenarios are not at hand (STEAD_SHARED)");
        return;
    };
    let mut wrong = vec![];
    let mut seen = 0;
    for dir in files(&dir).into_iter().filter(|d| d.is_dir()) {
        let name = name(&dir);
        let scenario = folder::read(&dir).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = std::fs::read_to_string(dir.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let got = played(&name, &scenario).to_json();
        let mut found = differences(&scenario, &expected, &got);
        found.retain(|d| !OTHERWISE.iter().any(|(n, what)| *n == name && d.contains(what)));
        wrong.extend(found.into_iter().map(|d| format!("{name}: {d}")));
        seen += 1;
    }
    assert!(seen > 0, "{} is empty", dir.display());
    assert!(wrong.is_empty(), "of {seen} scenarios:\n{}", wrong.join("\n"));
}
