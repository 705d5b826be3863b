//! CPUs: what is recorded of nodes, what all of them can run, and what becomes of names where a VM starts and moves.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use stead_conf::Txn;
use stead_driver::capabilities::Capabilities;
use stead_driver::guest::Incoming;
use stead_model::cpu::{CpuFacts, level_features};
use stead_model::cpu_models::ModelOptions;
use stead_model::{VmConfig, paths};
use stead_ops::guest::Asked;
use stead_ops::guest::preconditions::FitsRequest;
use stead_ops::{OpsError, store};
use stead_ops_testing::{Node, name, root, vmid};

fn map(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn features(level: &str, more: &[&str]) -> Vec<String> {
    let of_level = level_features(level).unwrap();
    of_level.iter().chain(more).map(|f| (*f).to_owned()).collect()
}

fn can(level: &str, more: &[&str]) -> Capabilities {
    Capabilities {
        accel: "kvm".into(),
        vendor: "GenuineIntel".into(),
        features: features(level, more).into_iter().collect(),
        models: [("Haswell".to_owned(), vec![]), ("Skylake".to_owned(), vec!["rtm".to_owned()])].into(),
        ..Capabilities::default()
    }
}

async fn record(node: &Node, other: &str, level: &str, more: &[&str]) {
    let facts = CpuFacts {
        accel: "kvm".into(),
        vendor: "GenuineIntel".into(),
        features: features(level, more).into_iter().collect(),
        models: ["Haswell".to_owned()].into(),
        ..CpuFacts::default()
    };
    node.commit(Txn::new("test").put(paths::cpu(&name(other)), store::bytes(&facts).unwrap())).await;
}

async fn started_with(node: &Node, cpu: &str) -> Result<String, String> {
    let upid = node.ops.create_vm(&root(), vmid(100), &map(&[("cpu", cpu)]), false).unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    match node.ended(&upid).await.0.as_str() {
        "OK" => {
            let told = VmConfig::parse(&node.machines.config("n1", vmid(100)).unwrap()).unwrap();
            Ok(told.current.get("cpu").unwrap().to_owned())
        }
        failed => Err(failed.to_owned()),
    }
}

#[tokio::test]
async fn what_a_cpu_can_do_is_recorded_once() {
    let node = Node::start().await;
    let revision = || node.ops.conf.view(|t| t.get(&paths::cpu(&name("n1"))).map(|e| e.revision));
    node.ops.record_cpu().await.unwrap();
    assert_eq!(revision(), None, "who tells nothing has no record");
    node.machines.set_capabilities("n1", can("x86-64-v3", &[]));
    node.ops.record_cpu().await.unwrap();
    let first = revision();
    assert_eq!(node.ops.cpu_facts()[&name("n1")].models.iter().collect::<Vec<_>>(), ["Haswell"]);
    node.ops.record_cpu().await.unwrap();
    assert_eq!(revision(), first, "it is as it was");
    node.machines.set_capabilities("n1", can("x86-64-v3", &["pcid"]));
    node.ops.record_cpu().await.unwrap();
    let second = revision();
    assert_ne!(second, first);
    node.machines.set_capabilities("n1", Capabilities { accel: "kvm".into(), ..Capabilities::default() });
    node.ops.record_cpu().await.unwrap();
    assert_eq!(revision(), second, "a program that did not tell said nothing of the CPU");
}

#[tokio::test]
async fn a_vm_gets_what_every_node_can_run_and_keeps_it() {
    let node = Node::of_three().await;
    let unknown = started_with(&node, "cluster").await.unwrap_err();
    assert!(unknown.starts_with("cpu: what the CPU of node 'n1' can do is not recorded yet"), "{unknown}");
    node.machines.set_capabilities("n1", can("x86-64-v3", &["pcid", "rdrand", "vmx"]));
    node.ops.record_cpu().await.unwrap();
    // Lost, and it may come back.
    record(&node, "n2", "x86-64-v2-AES", &["pcid", "rdrand", "vmx"]).await;
    record(&node, "gone", "x86-64-v2", &[]).await;
    let shown = node.ops.common_cpu_view().unwrap();
    assert_eq!(
        (shown.cpu.as_str(), shown.model.as_str()),
        ("x86-64-v2-AES,flags=+pcid;+rdrand", "x86-64-v2-AES")
    );
    assert_eq!(shown.unknown, [name("n3")]);
    assert!(shown.lacking["x86-64-v3"]["n2"].contains(&"avx2".to_owned()));
    let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
    assert_eq!(node.ended(&upid).await.0, "OK");
    let process = node.ops.guests.state(vmid(100)).await.unwrap();
    assert_eq!(process.model.as_deref(), Some("x86-64-v2-AES,flags=+pcid;+rdrand"));
    let stored = node.ops.guest_at(vmid(100)).unwrap().config.value;
    assert!(stored.contains("cpu: cluster\n"), "{stored}");
    // What joins later changes nothing for a VM that runs.
    record(&node, "n3", "x86-64-v2", &[]).await;
    assert_eq!(node.ops.common_cpu_view().unwrap().cpu, "x86-64-v2");
    assert_eq!(process.as_incoming().cpu, process.model);
}

#[tokio::test]
async fn a_model_of_ones_own_is_made_and_spelled_out() {
    let node = Node::start().await;
    let options = |all: &[(&str, &str)]| -> ModelOptions { map(all) };
    let fast = options(&[("reported-model", "Haswell"), ("flags", "+aes;-pcid"), ("hidden", "1")]);
    node.ops.cpu_model_add(&root(), "fast", fast.clone()).await.unwrap();
    let again = node.ops.cpu_model_add(&root(), "custom-fast", fast).await.unwrap_err().to_string();
    assert_eq!(again, "cputype: CPU model 'custom-fast' already exists");
    assert_eq!(
        started_with(&node, "custom-fast,flags=+pcid").await.unwrap(),
        "Haswell,flags=+aes;+pcid,hidden=1"
    );
    let seen = node.ops.cpu_model_view("custom-fast").unwrap();
    assert_eq!((seen.cputype.as_str(), seen.hidden), ("custom-fast", Some(true)));
    let change = options(&[("phys-bits", "40")]);
    let out = ["hidden".to_owned()];
    node.ops.cpu_model_change(&root(), "fast", change, &out, Some(&seen.digest)).await.unwrap();
    let now = node.ops.cpu_model_view("fast").unwrap();
    assert_eq!((now.hidden, now.phys_bits.as_deref()), (None, Some("40")));
    for (given, why) in
        [(options(&[("flags", "aes")]), "flags"), (options(&[("guest-phys-bits", "9")]), "guest-phys-bits")]
    {
        let e = node.ops.cpu_model_change(&root(), "fast", given, &[], None).await.unwrap_err();
        assert!(matches!(&e, OpsError::Invalid { parameter, .. } if parameter == why), "{e}");
    }
    node.ops.cpu_model_remove(&root(), "fast").await.unwrap();
    let none = map(&[("cpu", "custom-fast")]);
    let e = node.ops.check_options(&none).await.unwrap_err().to_string();
    assert_eq!(e, "cpu: CPU model 'custom-fast' does not exist");
}

#[tokio::test]
async fn all_that_a_cpu_can_do_moves_to_its_like_alone() {
    let node = Node::of_three().await;
    node.machines.set_capabilities("n1", can("x86-64-v3", &["pcid"]));
    node.ops.record_cpu().await.unwrap();
    record(&node, "n3", "x86-64-v3", &["rdrand"]).await;
    let why = async |cpu: &str, source: &str| {
        let incoming = Incoming { cpu: Some(cpu.to_owned()), ..Incoming::stream("pc", "kvm") };
        let (config, source) = ("memory: 64\n".to_owned(), Some(name(source)));
        let rq = FitsRequest { vmid: vmid(100), config, incoming: Some(incoming), source, carried: vec![] };
        node.ops.fits(rq).await.unwrap().join("\n")
    };
    let unlike = why("host,kvm=off", "n3").await;
    assert!(unlike.contains("it lacks rdrand; it has pcid beyond"), "{unlike}");
    assert!(why("max", "n2").await.contains("node 'n2' can do is not recorded yet"));
    assert_eq!(why("Haswell,enforce", "n3").await, "", "what a named model needs its program knows");
    record(&node, "n3", "x86-64-v3", &["pcid"]).await;
    assert_eq!(why("host", "n3").await, "");
}
