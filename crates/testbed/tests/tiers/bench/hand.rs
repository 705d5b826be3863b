//! QEMU by hand: what an administrator without Stead would do, with the very command line that Stead uses.

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use stead_testbed::netns::NetNs;
use stead_testbed::node::Node;

/// An answer of the monitor takes no longer.
const ANSWER: Duration = Duration::from_secs(60);

/// A command line.
#[derive(Debug, Clone)]
pub struct Line(Vec<String>);

impl Line {
    /// That of a guest which runs on a node.
    pub fn of(node: &Node, vmid: u32) -> Result<Self> {
        let dir = format!("{}/", run_dir(node, vmid));
        let all = node.processes();
        let guest =
            all.iter().find(|p| p.is_qemu() && p.command.contains(&dir)).context("it does not run")?;
        let bytes = fs::read(format!("/proc/{}/cmdline", guest.pid))?;
        let words = bytes.split(|b| *b == 0).filter(|w| !w.is_empty());
        Ok(Self(words.map(|w| String::from_utf8_lossy(w).into_owned()).collect()))
    }

    /// The same with something replaced wherever it stands.
    #[must_use]
    pub fn with(&self, from: &str, to: &str) -> Self {
        Self(self.0.iter().map(|w| w.replace(from, to)).collect())
    }

    /// The same, waiting for a migration.
    #[must_use]
    pub fn waiting(&self) -> Self {
        let mut line = self.clone();
        line.0.extend(["-incoming", "defer"].map(str::to_owned));
        line
    }

    /// Whether something stands in one of its words.
    pub fn contains(&self, text: &str) -> bool {
        self.0.iter().any(|w| w.contains(text))
    }

    /// What follows a word.
    pub fn option(&self, flag: &str) -> Option<&str> {
        let at = self.0.iter().position(|w| w == flag)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// Executes it, in this network if one is given, and waits for the monitor's greeting. Its sockets lie in `dir`, as the command line has
    /// to say; the monitors' are handed over open, as Stead does it.
    pub fn start(&self, dir: &Path, network: Option<&NetNs>) -> Result<Hand> {
        // Left over from an earlier one.
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
        let mut words = self.0.clone();
        let mut sockets = Vec::new();
        for id in ["qmp", "fence"] {
            let listener = UnixListener::bind(dir.join(id))?;
            fcntl_setfd(&listener, FdFlags::empty())?;
            let begin = format!("socket,id={id},");
            let word = words.iter_mut().find(|w| w.starts_with(&begin)).context("it has no such monitor")?;
            *word = format!("{begin}fd={},server=on,wait=off", listener.as_raw_fd());
            sockets.push(listener);
        }
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(network) = network {
            network.inside(&mut command);
        }
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        drop(sockets);
        let stream = UnixStream::connect(dir.join("qmp"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        // From here on it is killed when something fails.
        let mut hand = Hand { child, lines: BufReader::new(stream.try_clone()?), stream };
        hand.read().context("the monitor's greeting")?;
        hand.ask("qmp_capabilities", &json!({}))?;
        Ok(hand)
    }
}

/// Where a node keeps a guest's sockets.
pub fn run_dir(node: &Node, vmid: u32) -> String {
    format!("{}/run/{vmid}", node.dir().display())
}

/// A QEMU that runs; killed when dropped.
#[derive(Debug)]
pub struct Hand {
    child: Child,
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Hand {
    /// Its process.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.child.id().try_into()?)
    }

    /// One command of the monitor; events before its answer are passed over.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments});
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let answer = self.read().with_context(|| format!("the answer to {command}"))?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
        }
    }

    /// Waits for the end of a migration that was begun here.
    pub fn migrated(&mut self) -> Result<()> {
        loop {
            let event = self.read().context("waiting for the migration")?;
            match event["data"]["status"].as_str().filter(|_| event["event"] == "MIGRATION") {
                Some("completed") => return Ok(()),
                Some(how @ ("failed" | "cancelled")) => bail!("the migration has {how}"),
                _ => {}
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("QEMU has closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
