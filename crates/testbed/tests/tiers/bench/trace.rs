//! What QEMU itself says of its CPUs and its migration, and when: trace events, in a file for each process.
//!
//! Stead's answers come from reports and its own monitor. A benchmark takes QEMU's word: the moment at which
//! `query-status` begins to say *running* is an event in these files, with microseconds, and nobody has to ask for it.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use stead_testbed::api::until;

/// A folder of traces.
#[derive(Debug)]
pub struct Traces(PathBuf);

/// The trace of one process: seconds since 1970, and the event.
#[derive(Debug)]
pub struct Trace {
    /// Whose.
    pub pid: i32,
    /// When the process began to write it, right after its start.
    pub begun: f64,
    events: Vec<(f64, String)>,
}

impl Traces {
    /// Traces below a testbed's folder.
    pub fn new(bed: &Path) -> Result<Self> {
        let dir = bed.join("trace");
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// A VM's option `args` that makes its QEMU write its trace here.
    pub fn args(&self) -> String {
        let dir = self.0.display();
        format!("-D {dir}/%d -msg timestamp=on -trace vm_state_notify -trace migrate_set_state")
    }

    /// The processes that have written so far.
    pub fn pids(&self) -> BTreeSet<i32> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    }

    /// Those of them that live. The traces of the others are removed: their pids come again, sooner or later.
    pub fn living(&self) -> Result<BTreeSet<i32>> {
        let (living, dead): (BTreeSet<i32>, BTreeSet<i32>) =
            self.pids().into_iter().partition(|pid| Path::new(&format!("/proc/{pid}")).exists());
        for pid in dead {
            fs::remove_file(self.0.join(pid.to_string()))
                .with_context(|| format!("removing the trace of {pid}"))?;
        }
        Ok(living)
    }

    /// The trace of a process.
    pub fn of(&self, pid: i32) -> Result<Trace> {
        let path = self.0.join(pid.to_string());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let begun = fs::metadata(&path)?.created().context("this file system has no birth times")?;
        let begun = begun.duration_since(UNIX_EPOCH)?.as_secs_f64();
        Ok(Trace { pid, begun, events: text.lines().filter_map(parse).collect() })
    }

    /// Waits for a process that was not there before and whose CPUs run.
    pub async fn new_running(&self, before: &BTreeSet<i32>, within: Duration) -> Result<Trace> {
        until("a new QEMU runs", within, async || {
            let new = self.pids().into_iter().filter(|pid| !before.contains(pid));
            let traces = new.map(|pid| self.of(pid)).collect::<Result<Vec<_>>>()?;
            Ok(traces.into_iter().find(|t| t.running().is_some()))
        })
        .await
    }

    /// Waits until CPUs run that were first let run after `begin`; gives that moment. Where machines count their processes each
    /// by itself, an id may come again, and its trace is then written anew.
    pub async fn running_after(&self, begin: f64, within: Duration) -> Result<f64> {
        until("a QEMU that was started since runs", within, async || {
            let traces = self.pids().into_iter().map(|pid| self.of(pid)).collect::<Result<Vec<_>>>()?;
            Ok(traces.iter().filter_map(Trace::running).find(|at| *at > begin))
        })
        .await
    }
}

/// `4711@1795244663.949066:vm_state_notify running 1 reason 9 (running)`
fn parse(line: &str) -> Option<(f64, String)> {
    let (_, rest) = line.split_once('@')?;
    let (at, event) = rest.split_once(':')?;
    Some((at.parse().ok()?, event.to_owned()))
}

impl Trace {
    fn all(&self, event: &str) -> impl DoubleEndedIterator<Item = f64> {
        self.events.iter().filter(move |(_, e)| e.starts_with(event)).map(|(at, _)| *at)
    }

    /// When its CPUs first ran.
    pub fn running(&self) -> Option<f64> {
        self.all("vm_state_notify running 1").next()
    }

    /// When its CPUs last stopped.
    pub fn stopped(&self) -> Option<f64> {
        self.all("vm_state_notify running 0").next_back()
    }

    /// For how long its CPUs have stood in all since they first ran, as far as they run again.
    pub fn stood(&self) -> f64 {
        let states = self.events.iter().filter(|(_, e)| e.starts_with("vm_state_notify running "));
        let (mut since, mut stood) = (None, 0.0);
        for (at, event) in states.skip_while(|(_, e)| !e.contains("running 1")) {
            if event.contains("running 0") {
                since.get_or_insert(*at);
            } else if let Some(since) = since.take() {
                stood += at - since;
            }
        }
        stood
    }

    /// When it said that its state was sent, as the source of its last migration.
    pub fn sent(&self) -> Option<f64> {
        self.all("migrate_set_state new state completed").next_back()
    }

    /// How long its state was being sent: from the begin of its last migration to its completion. (A source may have been
    /// a target before.)
    pub fn sending(&self) -> Option<f64> {
        let state = |name: &str| self.all(&format!("migrate_set_state new state {name}")).next_back();
        Some(self.sent()? - state("setup")?)
    }
}

#[test]
fn standing_is_between_a_stop_and_the_next_run() {
    let of = |states: &[(f64, u8)]| {
        let events = states.iter().map(|(at, run)| (*at, format!("vm_state_notify running {run} reason 1")));
        Trace { pid: 1, begun: 0.0, events: events.collect() }.stood()
    };
    assert!((of(&[(1.0, 0), (2.0, 1), (5.0, 0), (6.0, 0), (7.5, 1), (9.0, 0)]) - 2.5).abs() < 1e-9);
    assert!(of(&[(1.0, 0)]).abs() < 1e-9);
}

#[test]
fn a_trace_is_read() {
    let line = "14177@1795244663.949066:vm_state_notify running 1 reason 9 (running)";
    let (at, event) = parse(line).unwrap();
    assert!((at - 1_795_244_663.949_066).abs() < 1e-6);
    let events = vec![(at, event), (at + 1.0, "vm_state_notify running 0 reason 4 (paused)".to_owned())];
    let trace = Trace { pid: 1, begun: at, events };
    assert!(trace.running().is_some() && trace.stopped() > trace.running() && trace.sending().is_none());
    assert!(parse("qemu-system-x86_64: warning: no stamp here").is_none());
}
