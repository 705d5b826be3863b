//! The crash matrix of moves: each kind of move × each of its steps × each fault, with real QEMU.
//!
//! A cell puts a VM where the move needs it, begins the move, waits for the step, and lets the fault come. Then all is whole again,
//! and within a bound the VM must be one: at most one copy, and one where nothing has killed it; a configuration that names its node;
//! its disk with what was written on it before; no volume that no configuration names; no lock but one that says what to do. It must
//! start, and go on as what it was.
//!
//! Kinds and steps are data ([`kinds`]); a test for each kind has a cluster of its own, which all its cells share. `STEAD_MATRIX` names
//! cells to run, by `KIND/STEP/FAULT`, with `*` for any and what is left out for any: `live,quick/handed,*/*/target-off`.

mod bed;
mod cell;
mod kinds;
mod spot;

use super::support::namespaces;
use anyhow::{Result, bail};
use bed::Bed;
use kinds::{Fault, Kind, Step};
use std::time::Instant;

/// What became of a cell.
struct Row {
    name: String,
    outcome: String,
    seconds: f64,
    is_well: bool,
}

impl Row {
    fn print(&self) {
        let mark = if self.is_well { "ok  " } else { "FAIL" };
        println!("{mark} {:<42} {:>6.1} s  {}", self.name, self.seconds, self.outcome.replace('\n', " | "));
    }
}

/// Whether the user has asked for a cell.
fn is_wanted(filter: &str, cell: &str) -> bool {
    let fits = |pattern: &str| {
        let mut parts = cell.split('/');
        pattern.split('/').all(|want| parts.next().is_some_and(|is| want == "*" || want == is))
    };
    filter.is_empty() || filter.split(',').any(|pattern| fits(pattern.trim()))
}

/// Runs all cells of a kind, also when some fail.
fn matrix(kind: &'static Kind) {
    let filter = std::env::var("STEAD_MATRIX").unwrap_or_default();
    let name = |step: &Step, fault: &Fault| format!("{}/{}/{}", kind.name, step.name, fault.name());
    let mut cells: Vec<(&Step, Fault)> = vec![];
    for step in kind.steps {
        cells.extend(kind.faults(step).map(|fault| (step, fault)));
    }
    cells.retain(|(step, fault)| is_wanted(&filter, &name(step, fault)));
    if cells.is_empty() {
        return;
    }
    namespaces(async |builder| {
        let mut bed = Bed::make(builder, kind).await?;
        let mut rows: Vec<Row> = vec![];
        for (step, fault) in &cells {
            let began = Instant::now();
            let done = cell::run(&mut bed, kind, step, *fault).await;
            let (outcome, is_well) = match done {
                Ok(outcome) => (outcome, true),
                Err(e) => (format!("{e:#}"), false),
            };
            let row =
                Row { name: name(step, fault), outcome, seconds: began.elapsed().as_secs_f64(), is_well };
            row.print();
            rows.push(row);
            if !is_well {
                bed.keep_logs();
                bed.begin_anew().await?;
            }
        }
        let failed: Vec<&Row> = rows.iter().filter(|r| !r.is_well).collect();
        let seconds: f64 = rows.iter().map(|r| r.seconds).sum();
        println!("{}: {} cells, {} failed, {seconds:.0} s", kind.name, rows.len(), failed.len());
        if !failed.is_empty() {
            let told: Vec<String> = failed.iter().map(|r| format!("{}: {}", r.name, r.outcome)).collect();
            bail!("{} of {} cells failed:\n{}", failed.len(), rows.len(), told.join("\n"));
        }
        Result::<()>::Ok(())
    });
}

/// A test for each kind, called as its constant.
macro_rules! kinds {
    ($($test:ident: $kind:ident),* $(,)?) => {
        $(#[test]
        fn $test() {
            matrix(&kinds::$kind);
        })*
    };
}

kinds! {
    live: LIVE,
    live_with_local_disks: ALONG,
    live_and_fetched: FETCHED,
    quick: QUICK,
    offline: OFFLINE,
    offline_with_local_disks: CARRIED,
    disk_of_a_stopped_vm: DISK,
    disk_of_a_running_vm: DISK_LIVE,
    snapshot_with_memory: SNAPSHOT,
    rollback: ROLLBACK,
    suspend_to_disk: SUSPEND,
    resume_from_disk: RESUME,
}

#[test]
fn cells_are_named_by_parts() {
    for wanted in ["", "live", "quick, live/sent", "*/*/cut", "live/sent/cut"] {
        assert!(is_wanted(wanted, "live/sent/cut"), "{wanted}");
    }
    for other in ["quick", "live/handed", "*/*/cancel", "live/sent/cut/more"] {
        assert!(!is_wanted(other, "live/sent/cut"), "{other}");
    }
}
