//! The fence process: started by the daemon where nothing else has, and started again should it ever end; or run by the
//! service manager, as a unit of its own, and awaited. It outlives the daemon.

use crate::args::Args;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use stead_agents::fence_client::{FenceClient, PROTOCOL};
use stead_fenced::notify;

/// How the fence process is started.
#[derive(Debug, Clone)]
pub struct FenceProgram {
    /// Its program; none where the service manager runs it.
    pub program: Option<PathBuf>,
    /// Its socket.
    pub socket: PathBuf,
    /// What it may do as its last resort.
    pub power: String,
    /// Where its words go.
    pub log: PathBuf,
}

impl FenceProgram {
    /// Beside this program unless told otherwise.
    pub fn new(args: &Args, home: &crate::identity::Home) -> Result<Self> {
        let program = match &args.fenced {
            _ if args.await_fence => None,
            Some(p) => Some(p.clone()),
            None => {
                let me = std::env::current_exe().context("can't find this program")?;
                Some(me.with_file_name("stead-fenced"))
            }
        };
        if let Some(missing) = program.as_ref().filter(|p| !p.exists()) {
            bail!("the fence process {} is not there: name it with --fenced", missing.display());
        }
        Ok(Self {
            program,
            socket: home.at("run/fenced.sock"),
            power: args.power.clone(),
            log: home.at("run/fenced.log"),
        })
    }

    /// Where its words are.
    fn words(&self) -> String {
        match &self.program {
            Some(_) => self.log.display().to_string(),
            None => "the service manager's log of it".to_owned(),
        }
    }

    /// Starts it in a session of its own, unless the service manager does.
    fn start(&self) -> Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("can't write {}", self.log.display()))?;
        let mut command = tokio::process::Command::new("setsid");
        command.arg("--fork").arg(program).arg("--socket").arg(&self.socket).arg("--power").arg(&self.power);
        // What a service manager is told is the daemon's own.
        command.env_remove(notify::SOCKET).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
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
            .with_context(|| format!("the fence process does not answer; see {}", program.words()))?;
    }
    let version = client.version().await?;
    let other_power = version.power != power_name(&program.power);
    if other_power && program.program.is_none() {
        // It keeps what it was started with; a node without a daemon would lose its guests for it.
        tracing::warn!(
            "the fence process has power '{}' until it is started anew, with the host; '{}' is wanted",
            version.power,
            program.power
        );
    }
    if version.protocol != PROTOCOL || (other_power && program.program.is_some()) {
        bail!(
            "a fence process (pid {}) answers that speaks version {} and has power '{}', wanted are {PROTOCOL} and '{}'. It \
             guards this node's guests and outlives the daemon: stop the guests or move them away, then run 'stead-fenced \
             --socket {} --stand-down' and start the daemon again",
            version.pid,
            version.protocol,
            version.power,
            program.power,
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
                    "the fence process is gone: guests under HA are unguarded until it is started again"
                );
                if let Err(e) = program.start() {
                    tracing::error!("{e:#}");
                }
            }
        }
    });
    Ok(())
}
