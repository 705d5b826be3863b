//! Hook scripts: a program of the administrator's that is run around the starts and stops of a guest.
//!
//! | phase | when | if it fails | its time |
//! |---|---|---|---|
//! | `pre-start` | before anything of a start is recorded | the guest is not started | 300 s, within the start's own limit |
//! | `post-start` | once the guest runs | a warning | the same |
//! | `pre-stop` | before a request stops it | a warning | half of a shutdown's limit, [`BRIEF`] before a plain stop |
//! | `post-stop` | once its end is recorded | a warning | what is left of a shutdown's limit, [`BRIEF`] after any other end |
//!
//! `post-stop` goes with the commit that takes *running* out of the guest's record, so that of two who notice an end one runs it;
//! a daemon that dies between the two leaves it out. It also follows a start that failed after its `pre-start`.
//!
//! A script runs as the daemon does, under the guest's mutex: only root may name one, and its time is bounded. What holds the mutex
//! unasked is shorter than a start waits for it: a guest that HA starts again is not given up because of a script. Copies that
//! migrate have no scripts, nor have guests of a lost node, on which nothing runs any more.

use super::config::parse;
use crate::store::GuestAt;
use crate::{Ops, OpsError};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use stead_model::{Vmid, VolumeId};
use stead_tasks::TaskContext;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// The most that a script may take.
pub(super) const LIMIT: Duration = Duration::from_secs(300);
/// The same where nobody expects to wait. A start waits ten seconds for the mutex, of which the report of an end may take two.
pub(super) const BRIEF: Duration = Duration::from_secs(6);
/// How long what is being configured may take to be looked at: somebody waits for the answer.
const LOOK: Duration = Duration::from_secs(3);
/// So many lines of what it says are kept, of each of its two outputs.
const LINES: usize = 200;
/// So many bytes of each.
const LINE: usize = 1000;
/// How long the rest of its words may take once it has ended: what it has left running may hold its output open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// When a script is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    PreStart,
    PostStart,
    PreStop,
    PostStop,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::PreStart => "pre-start",
            Self::PostStart => "post-start",
            Self::PreStop => "pre-stop",
            Self::PostStop => "post-stop",
        }
    }
}

/// Takes each line that a script says.
type Say<'a> = &'a (dyn Fn(&str) + Sync);

/// Whether a guest has a script at all.
pub(super) fn has_script(guest: &GuestAt) -> bool {
    parse(&guest.config.value).is_ok_and(|config| config.current.get("hookscript").is_some())
}

impl Ops {
    /// Runs the guest's script, if it has one; who stops the task stops it.
    pub(super) async fn hook(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        phase: Phase,
        limit: Duration,
    ) -> Result<(), OpsError> {
        let say = |line: &str| cx.log(line);
        let run = self.run_hook(guest, phase, limit, &say);
        cx.or_cancelled(run).await.map_err(|e| OpsError::failed(e.to_string()))?
    }

    /// The same where a failure changes nothing but what is said.
    pub(super) async fn hook_or_warn(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        phase: Phase,
        limit: Duration,
    ) {
        if let Err(e) = self.hook(cx, guest, phase, limit).await {
            cx.warn(e.to_string());
        }
    }

    /// Before a request stops the guest. An error says that somebody has stopped the request.
    pub(super) async fn hook_before_stop(
        &self,
        cx: &TaskContext,
        guest: &GuestAt,
        limit: Duration,
    ) -> Result<(), OpsError> {
        self.hook_or_warn(cx, guest, Phase::PreStop, limit).await;
        cx.check().map_err(|e| OpsError::failed(e.to_string()))
    }

    /// After an end that nobody asked for, which has just been recorded. Under the guest's mutex.
    pub(super) async fn hook_after_end(&self, guest: &GuestAt) {
        let say = |line: &str| tracing::info!("guest {}: hook script: {line}", guest.vmid);
        if let Err(e) = self.run_hook(guest, Phase::PostStop, BRIEF, &say).await {
            tracing::warn!("{e}");
        }
    }

    async fn run_hook(
        &self,
        guest: &GuestAt,
        phase: Phase,
        limit: Duration,
        say: Say<'_>,
    ) -> Result<(), OpsError> {
        let config = parse(&guest.config.value)?;
        let Some(script) = config.current.get("hookscript") else { return Ok(()) };
        let vmid = guest.vmid;
        let work = async { run(&self.script(script).await?, vmid, phase, say).await };
        let done = tokio::time::timeout(limit.min(LIMIT), work).await;
        let late = |_| format!("it has not ended within {} s, and was killed", limit.min(LIMIT).as_secs());
        done.unwrap_or_else(|e| Err(late(e))).map_err(|why| {
            OpsError::failed(format!("hook script '{script}' of VM {vmid}, {}: {why}", phase.as_str()))
        })
    }

    /// Refuses a script that could not be run now.
    pub(super) async fn check_script(&self, script: &str) -> Result<(), OpsError> {
        let looked = tokio::time::timeout(LOOK, self.script(script)).await;
        let looked = looked.unwrap_or_else(|_| Err("its storage does not answer".to_owned()));
        looked.map(drop).map_err(|why| OpsError::invalid("hookscript", format!("'{script}': {why}")))
    }

    /// Where a script lies, which can be run.
    async fn script(&self, script: &str) -> Result<PathBuf, String> {
        let volume: VolumeId = script.parse().map_err(|e| format!("{e}"))?;
        let storage = self.storage(&volume.storage).map_err(|e| e.to_string())?;
        if !storage.holds("snippets") {
            return Err(format!("storage '{}' holds no snippets: add that to its content", volume.storage));
        }
        let path = self.resolve_volume(&volume).await.map_err(|e| e.to_string())?.path;
        let shown = path.display();
        let found = tokio::fs::metadata(&path).await.map_err(|e| format!("{shown}: {e}"))?;
        if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
            return Err(format!("it is not executable: chmod +x {shown}"));
        }
        Ok(path)
    }
}

/// A script with all that it has started; ended when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Runs a script to its end; ended with all that it has started when dropped.
async fn run(path: &Path, vmid: Vmid, phase: Phase, say: Say<'_>) -> Result<(), String> {
    // The shell is what is waited for until it has begun: the script's own storage may hang.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" \"$@\""])
        .arg(path)
        .args([&vmid.to_string(), phase.as_str()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let said = async { tokio::join!(pass_on(out, say), pass_on(err, say)) };
    let mut said = std::pin::pin!(said);
    let status = tokio::select! {
        status = child.wait() => {
            // Its number may be another's from now on. What it has left running is its own affair.
            group.0 = None;
            let _ = tokio::time::timeout(LAST_WORDS, &mut said).await;
            status
        }
        _ = &mut said => {
            let status = child.wait().await;
            group.0 = None;
            status
        }
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

/// Passes on the first lines, each to its limit. The rest is read, too: nobody must wait because a pipe is full.
async fn pass_on(from: Option<impl AsyncRead + Unpin>, say: Say<'_>) {
    let Some(mut from) = from else { return };
    let (mut part, mut line, mut told) = ([0; 4096], vec![], 0);
    let mut end = |line: &mut Vec<u8>| {
        if told < LINES {
            say(String::from_utf8_lossy(line).trim_end());
        }
        told += 1;
        line.clear();
    };
    while let Ok(read @ 1..) = from.read(&mut part).await {
        for byte in &part[..read] {
            match byte {
                b'\n' => end(&mut line),
                _ if line.len() < LINE => line.push(*byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        end(&mut line);
    }
    if told > LINES {
        say(&format!("({} further lines)", told - LINES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn script(text: &str) -> tempfile::TempPath {
        let file = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempfile();
        let path = file.unwrap().into_temp_path();
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        path
    }

    async fn ran(text: &str, limit: Duration) -> (Option<Result<(), String>>, Vec<String>) {
        let path = script(text);
        let said = Mutex::new(vec![]);
        let say = |line: &str| said.lock().unwrap().push(line.to_owned());
        let work = run(&path, Vmid::new(100).unwrap(), Phase::PreStart, &say);
        let done = tokio::time::timeout(limit, work).await.ok();
        (done, said.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_script_is_told_what_happens_and_is_heard() {
        let (done, said) = ran("echo $#: $1 $2; printf 'last word'; exit 3", LIMIT).await;
        assert_eq!(done, Some(Err("exit status: 3".to_owned())));
        assert_eq!(said, ["2: 100 pre-start", "last word"]);
    }

    #[tokio::test]
    async fn what_it_says_is_bounded() {
        let (done, said) =
            ran("head -c 3000000 /dev/zero | tr '\\0' x; echo; seq 300; echo oh >&2", LIMIT).await;
        assert_eq!(done, Some(Ok(())));
        assert!(said.iter().any(|l| *l == "x".repeat(LINE)), "the first line is cut");
        assert!(
            said.contains(&"(101 further lines)".to_owned()) && said.contains(&"oh".to_owned()),
            "{said:?}"
        );
        assert!(!said.contains(&"250".to_owned()));
    }

    /// Waits for a process's end, which its descriptor tells.
    async fn gone(pid: &str) {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            return;
        };
        let ended = tokio::task::spawn_blocking(move || {
            let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
        });
        tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn it_is_killed_with_its_children_when_nobody_waits_any_more() {
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let say = move |line: &str| drop(told.send(line.to_owned()));
        let path = script("sleep 600 & echo $! $$; sleep 600");
        let work = run(&path, Vmid::new(100).unwrap(), Phase::PreStart, &say);
        let pids = tokio::select! {
            _ = work => panic!("it has ended"),
            line = heard.recv() => line.unwrap(),
        };
        for pid in pids.split_ascii_whitespace() {
            gone(pid).await;
        }
    }

    #[tokio::test]
    async fn what_it_leaves_running_is_not_waited_for() {
        let (done, _) = ran("sleep 20 & true", Duration::from_secs(10)).await;
        assert_eq!(done, Some(Ok(())));
    }
}
