//! The fence process: started by the daemon where nothing else has, and started again should it ever end. It outlives
//! the daemon.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use stead_agents::fence_client::{FenceClient, PROTOCOL};

/// How the fence process is started.
#[derive(Debug, Clone)]
pub struct FenceProgram {
    /// Its program.
    pub program: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// What it may do as its last resort.
    pub power: String,
    /// Where its words go.
    pub log: PathBuf,
}

impl FenceProgram {
    /// Beside this program unless told otherwise.
    pub fn new(given: Option<&Path>, home: &crate::identity::Home, power: &str) -> Result<Self> {
        let program = match given {
            Some(p) => p.to_owned(),
            None => {
                std::env::current_exe().context("can't find this program")?.with_file_name("stead-fenced")
            }
        };
        if !program.exists() {
            bail!("the fence process {} is not there: name it with --fenced", program.display());
        }
        Ok(Self {
            program,
            socket: home.at("run/fenced.sock"),
            power: power.to_owned(),
            log: home.at("run/fenced.log"),
        })
    }

    /// Starts it in a session of its own.
    fn start(&self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("can't write {}", self.log.display()))?;
        let mut command = tokio::process::Command::new("setsid");
        command
            .arg("--fork")
            .arg(&self.program)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--power")
            .arg(&self.power);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().context("can't start the fence process (setsid)")?;
        // It forks and ends at once.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }
}

/// What a fence process says of the power that it was given.
fn power_name(given: &str) -> &str {
    given.split(':').next().unwrap_or(given)
}

/// Makes sure that a fence process answers, one with the power and of the version that are wanted; then watches it.
pub async fn ensure(program: FenceProgram, client: FenceClient) -> Result<()> {
    if client.version().await.is_err() {
        program.start()?;
        let up = async {
            while client.version().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), up)
            .await
            .with_context(|| format!("the fence process does not answer; see {}", program.log.display()))?;
    }
    let version = client.version().await?;
    if version.protocol != PROTOCOL || version.power != power_name(&program.power) {
        bail!(
            "a fence process (pid {}) answers that speaks version {} and has power '{}', wanted are {PROTOCOL} and '{}'. It \
             guards this node's guests and outlives the daemon: stop the guests or move them away, then run '{} --socket \
             {} --stand-down' and start the daemon again",
            version.pid,
            version.protocol,
            version.power,
            program.power,
            program.program.display(),
            program.socket.display(),
        );
    }
    tracing::info!(
        "fence process {} answers (pid {}, power: {})",
        version.version,
        version.pid,
        version.power
    );
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if client.version().await.is_err() {
                tracing::error!(
                    "the fence process is gone: starting it again; guests under HA are unguarded until then"
                );
                if let Err(e) = program.start() {
                    tracing::error!("{e:#}");
                }
            }
        }
    });
    Ok(())
}
