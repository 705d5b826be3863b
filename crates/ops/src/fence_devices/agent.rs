//! Fence agents: the field's programs that speak to power switches, service processors and hypervisors (Debian's package
//! `fence-agents` has about eighty).
//!
//! An agent reads `key=value` lines from its standard input, passwords among them, so that nothing of it stands on its command line (that of what it starts is its own);
//! `action` says what to do. It exits with 0 when it has done it. Asked for the `status`, it exits with 0 for *on* and 2 for *off*.
//!
//! An agent is ended with all that it has started (`ipmitool`, `ssh`, …) when its time is over, or nobody waits for it any more.

use rustix::process::{Pid, Signal, kill_process_group};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use stead_model::fence_cfg::{AgentCall, is_secret};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

/// Where Debian's package puts them.
pub const AGENTS: &str = "/usr/sbin";

/// So many agents run at once at most; others wait for their turn.
const AT_ONCE: usize = 16;
/// How much of an agent's words is kept: the end.
const KEEP: usize = 4096;
/// How much of it is told.
const TELL: usize = 400;

/// What agents say when they are to turn off what is off. Whoever turned it off wants it off.
const ALREADY: &str = "Already OFF";

/// What an agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take the power.
    Off,
    /// Give the power back.
    On,
    /// Say whether it is there.
    Status,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Status => "status",
        }
    }

    /// How long it may take. Service processors take seconds for a thought, and agents ask them several times.
    fn limit(self) -> Duration {
        Duration::from_secs(if self == Self::Status { 10 } else { 40 })
    }
}

/// How an agent has ended that did what it was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By 0: done, or *on*.
    Done,
    /// By 0, asked to take power that was not there.
    WasOff,
    /// By 2, asked for the status: *off*.
    Off,
}

/// Why an agent did not do what it was to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// There is no such program here.
    #[error("{device}: '{path}' is not there: install the package fence-agents on every node")]
    Missing {
        /// Of which device.
        device: String,
        /// The program.
        path: String,
    },
    /// It could not be started or watched.
    #[error("{device}: '{path}' could not be run: {why}")]
    Broken {
        /// Of which device.
        device: String,
        /// The program.
        path: String,
        /// Why.
        why: String,
    },
    /// It took too long, and was ended.
    #[error("{device}: '{action}' took longer than {seconds} s{said}")]
    Late {
        /// Of which device.
        device: String,
        /// What it was to do.
        action: &'static str,
        /// Its time.
        seconds: u64,
        /// Its words, if it said any.
        said: String,
    },
    /// It failed.
    #[error("{device}: '{action}' failed ({how}){said}")]
    Failed {
        /// Of which device.
        device: String,
        /// What it was to do.
        action: &'static str,
        /// How it ended.
        how: String,
        /// Its words, if it said any.
        said: String,
    },
}

/// Runs agents.
#[derive(Debug)]
pub struct Agents {
    dir: PathBuf,
    turns: Semaphore,
}

/// A process with all that it has started; ended when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended by itself, with all of its own.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Agents {
    /// Those in a folder.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), turns: Semaphore::new(AT_ONCE) }
    }

    /// Whether that agent is there.
    pub fn has(&self, agent: &str) -> bool {
        self.dir.join(agent).is_file()
    }

    /// Has one device do something. Ends the agent when dropped.
    ///
    /// # Errors
    /// Anything but a clear success; with the agent's own words, without secrets.
    pub async fn run(&self, call: &AgentCall, action: Action) -> Result<Ended, AgentError> {
        self.run_within(call, action, action.limit()).await
    }

    async fn run_within(
        &self,
        call: &AgentCall,
        action: Action,
        limit: Duration,
    ) -> Result<Ended, AgentError> {
        let device = call.device.to_string();
        let path = self.dir.join(&call.agent);
        let shown = path.display().to_string();
        if !path.is_file() {
            return Err(AgentError::Missing { device, path: shown });
        }
        let broken = |e: std::io::Error| AgentError::Broken {
            device: device.clone(),
            path: shown.clone(),
            why: e.to_string(),
        };
        let _turn = self.turns.acquire().await.map_err(|e| broken(std::io::Error::other(e)))?;
        let mut child = Command::new(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(broken)?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let mut words = Words::default();
        let ended = tokio::time::timeout(limit, talk(&mut child, &input(call, action), &mut words)).await;
        drop(group);
        let said = || words.told(call);
        match ended {
            Err(_) => {
                let (action, seconds) = (action.word(), limit.as_secs());
                Err(AgentError::Late { device: device.clone(), action, seconds, said: said() })
            }
            Ok(Err(e)) => Err(broken(e)),
            Ok(Ok(status)) => match (status.code(), action) {
                (Some(0), Action::Off) if words.say(ALREADY) => Ok(Ended::WasOff),
                (Some(0), _) => Ok(Ended::Done),
                (Some(2), Action::Status) => Ok(Ended::Off),
                _ => Err(AgentError::Failed {
                    device: device.clone(),
                    action: action.word(),
                    how: status.to_string(),
                    said: said(),
                }),
            },
        }
    }
}

/// What an agent reads.
fn input(call: &AgentCall, action: Action) -> String {
    let mut text: String = call.options.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    text.push_str("action=");
    text.push_str(action.word());
    text.push('\n');
    text
}

async fn talk(
    child: &mut Child,
    input: &str,
    words: &mut Words,
) -> Result<std::process::ExitStatus, std::io::Error> {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that reads nothing says by its exit what it thinks of that.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), out, err, status) =
        tokio::join!(write, keep_end(out, &mut words.out), keep_end(err, &mut words.err), child.wait());
    out.and(err)?;
    status
}

/// Reads to the end, and keeps the end.
async fn keep_end(from: Option<impl AsyncRead + Unpin>, to: &mut Vec<u8>) -> Result<(), std::io::Error> {
    let Some(mut from) = from else { return Ok(()) };
    let mut part = [0; 1024];
    loop {
        let read = from.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        to.extend_from_slice(&part[..read]);
        to.drain(..to.len().saturating_sub(KEEP));
    }
}

/// What an agent has said.
#[derive(Default)]
struct Words {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Words {
    fn say(&self, what: &str) -> bool {
        String::from_utf8_lossy(&self.out).contains(what)
    }

    /// For the reason: on one line, without secrets and without the advice to call for help.
    fn told(&self, call: &AgentCall) -> String {
        let text = [&self.err[..], &self.out[..]].concat();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().map(str::trim);
        let lines: Vec<&str> = lines.filter(|l| !l.is_empty() && !l.starts_with("Please use '-h'")).collect();
        let mut said = lines.join("; ");
        for (key, value) in call.options.iter().filter(|(key, value)| is_secret(key) && !value.is_empty()) {
            said = said.replace(value.as_str(), &format!("<{key}>"));
        }
        said.retain(|c| !c.is_control());
        if said.is_empty() {
            return said;
        }
        let from = said.char_indices().rev().nth(TELL).map_or(0, |(at, _)| at);
        format!(": {}", &said[from..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// An agent that is that shell script.
    fn agents(script: &str) -> (tempfile::TempDir, Agents, AgentCall) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence_test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let options = [("ip", "::1"), ("password", "s3cret")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let call = AgentCall {
            device: "bmc1".parse().unwrap(),
            agent: "fence_test".to_owned(),
            options: options.into(),
        };
        let agents = Agents::new(dir.path());
        (dir, agents, call)
    }

    #[tokio::test]
    async fn options_go_to_standard_input_and_the_exit_is_the_answer() {
        let (dir, agents, call) = agents(
            "cat > \"$0.in\"; echo \"$#\" > \"$0.args\"; [ $(tail -n1 \"$0.in\") = action=status ] && exit 2; exit 0",
        );
        assert_eq!(agents.run(&call, Action::Off).await, Ok(Ended::Done));
        let read = |end: &str| std::fs::read_to_string(dir.path().join(format!("fence_test.{end}"))).unwrap();
        assert_eq!(read("in"), "ip=::1\npassword=s3cret\naction=off\n");
        assert_eq!(read("args"), "0\n", "nothing stands on the command line");
        assert_eq!(agents.run(&call, Action::Status).await, Ok(Ended::Off));
        assert_eq!(agents.run(&call, Action::On).await, Ok(Ended::Done));
    }

    #[tokio::test]
    async fn a_failure_tells_the_agents_words_and_no_secrets() {
        let (_dir, agents, call) =
            agents("echo 'login with s3cret refused' >&2; echo; echo \"Please use '-h' for usage\"; exit 1");
        let e = agents.run(&call, Action::Off).await.unwrap_err().to_string();
        assert_eq!(e, "bmc1: 'off' failed (exit status: 1): login with <password> refused");
        // Off by another exit than the status's is none, and 2 is no success of anything else.
        let (_dir, agents, call) = self::agents("exit 2");
        assert!(agents.run(&call, Action::Off).await.is_err());
        let (_dir, agents, call) = self::agents("kill -9 $$");
        assert!(agents.run(&call, Action::Status).await.unwrap_err().to_string().contains("signal: 9"));
        let missing = AgentCall { agent: "fence_none".to_owned(), ..call };
        let e = agents.run(&missing, Action::Off).await.unwrap_err();
        assert!(matches!(&e, AgentError::Missing { .. }) && e.to_string().contains("fence-agents"), "{e}");
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_ended_with_its_children() {
        let (dir, agents, call) = agents("echo trying >&2; sleep 600 & echo $! > \"$0.pid\"; wait");
        let e = agents.run_within(&call, Action::Off, Duration::from_millis(1500)).await.unwrap_err();
        assert_eq!(e.to_string(), "bmc1: 'off' took longer than 1 s: trying");
        let child = std::fs::read_to_string(dir.path().join("fence_test.pid")).unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        let gone = async {
            while stat().is_ok_and(|s| !s.contains(") Z ")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    }
}
