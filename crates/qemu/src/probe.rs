//! What a QEMU binary can do, asked once.

use crate::accel::Accel;
use crate::qmp::{Qmp, QmpError};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

/// The machine types and CPUs of a binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machines {
    /// Every name.
    pub names: BTreeSet<String>,
    /// The newest of the `pc-i440fx` family.
    pub pc: String,
    /// The newest of the `pc-q35` family.
    pub q35: String,
    /// Its models of CPUs, each with the features that it has and this host has not.
    pub cpus: BTreeMap<String, Vec<String>>,
    /// Features of CPUs that it knows.
    pub flags: BTreeSet<String>,
    /// Those that a guest can have here.
    pub features: BTreeSet<String>,
    /// The binary's version.
    pub version: String,
    /// The same, as numbers.
    pub numbers: (u64, u64, u64),
}

/// Why it could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be started.
    #[error("'{0}' cannot be started ({1}): is QEMU installed?")]
    Start(String, String),
    /// It does not answer.
    #[error("it does not tell its machine types: {0}")]
    Ask(#[from] QmpError),
    /// It has none of the machines that guests need.
    #[error("it has no machine type '{0}'")]
    Missing(&'static str),
}

/// Starts the binary without a machine, under the accelerator that guests get, and asks.
pub async fn machines(binary: &Path, accel: Accel) -> Result<Machines, ProbeError> {
    let start = |e: std::io::Error| ProbeError::Start(binary.display().to_string(), e.to_string());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(start)?;
    ours.set_nonblocking(true).map_err(start)?;
    let ours = tokio::net::UnixStream::from_std(ours).map_err(start)?;
    let output = OwnedFd::from(theirs.try_clone().map_err(start)?);
    let mut child = tokio::process::Command::new(binary)
        .args([
            "-machine",
            "none",
            "-accel",
            accel.as_str(),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-S",
            "-qmp",
            "stdio",
        ])
        .stdin(OwnedFd::from(theirs))
        .stdout(output)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let found = ask(ours).await;
    // It has told all it was started for.
    let _ = child.kill().await;
    found
}

async fn ask(stream: tokio::net::UnixStream) -> Result<Machines, ProbeError> {
    let late =
        |_| QmpError::Silent { command: "greeting".to_owned(), seconds: crate::qmp::PATIENCE.as_secs() };
    let qmp = tokio::time::timeout(crate::qmp::PATIENCE, Qmp::over(stream)).await.map_err(late)??;
    let listed = qmp.ask("query-machines").await?;
    let all = listed.as_array().cloned().unwrap_or_default();
    let newest = |alias: &'static str| {
        let found = all.iter().find(|m| m["alias"] == alias).and_then(|m| m["name"].as_str());
        found.map(str::to_owned).ok_or(ProbeError::Missing(alias))
    };
    let listed = qmp.ask("query-cpu-definitions").await?;
    let cpus = listed.as_array().cloned().unwrap_or_default();
    let (major, minor, micro) = qmp.version();
    let names = |list: &[Value]| -> BTreeSet<String> {
        list.iter().filter_map(|m| Some(m["name"].as_str()?.to_owned())).collect()
    };
    // A program that does not tell checks what it is given all the same.
    let all_it_can = json!({ "type": "full", "model": { "name": "max" } });
    let told = qmp.execute("query-cpu-model-expansion", all_it_can).await.unwrap_or_default();
    let switches = told["model"]["props"].as_object().cloned().unwrap_or_default();
    let those = |is: fn(&Value) -> bool| -> BTreeSet<String> {
        switches.iter().filter(|(_, value)| is(value)).map(|(name, _)| name.clone()).collect()
    };
    Ok(Machines {
        names: names(&all),
        cpus: cpus.iter().filter_map(model).collect(),
        flags: those(Value::is_boolean),
        features: those(|value| *value == Value::Bool(true)),
        pc: newest("pc")?,
        q35: newest("q35")?,
        version: format!("{major}.{minor}.{micro}"),
        numbers: (major, minor, micro),
    })
}

/// A model's name, and what it has and this host has not.
fn model(told: &Value) -> Option<(String, Vec<String>)> {
    let missing = told["unavailable-features"].as_array().map(Vec::as_slice).unwrap_or_default();
    let missing = missing.iter().filter_map(|f| f.as_str().map(str::to_owned));
    Some((told["name"].as_str()?.to_owned(), missing.collect()))
}
