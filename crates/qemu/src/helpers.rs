//! Programs beside QEMU: a guest's TPM, and those that carry its shared directories.
//!
//! They are members of the guest's cgroup, so that who freezes or kills the guest does so to all of it. They are started before QEMU,
//! which connects to them, and end with its connection. Who says that a guest has ended says that none of them is left: they
//! write for it.

use crate::process::{self, Process};
use crate::rundir::Meta;
use crate::tpm::KEY as TPM;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use stead_model::Vmid;

/// How long one may take to end once QEMU is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// One of them.
#[derive(Debug)]
struct Helper {
    /// The option that it is there for.
    key: String,
    process: Process,
}

/// All of a guest's.
#[derive(Debug, Default)]
pub struct Helpers(Vec<Helper>);

impl Helpers {
    /// One more.
    pub fn add(&mut self, key: &str, process: Process) {
        self.0.push(Helper { key: key.to_owned(), process });
    }

    /// Those that an earlier daemon started; says so of each that is not there any more.
    pub fn find(meta: &Meta, missing: impl Fn(&str, u32)) -> Self {
        let tpm = meta.tpm.iter().map(|known| (TPM, *known));
        let shares = meta.shares.iter().map(|(key, known)| (key.as_str(), *known));
        let mut found = Self::default();
        for (key, (pid, start)) in tpm.chain(shares) {
            match Process::open(pid, Some(start)) {
                Ok(process) => found.add(key, process),
                Err(_) => missing(key, pid),
            }
        }
        found
    }

    /// Writes down which they are.
    pub fn note(&self, meta: &mut Meta) {
        let known = |helper: &Helper| (helper.process.pid, helper.process.start);
        meta.tpm = self.0.iter().find(|h| h.key == TPM).map(known);
        let shares = self.0.iter().filter(|h| h.key != TPM);
        meta.shares = shares.map(|h| (h.key.clone(), known(h))).collect::<BTreeMap<_, _>>();
    }

    /// SIGKILL to all of them.
    pub fn kill(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|helper| helper.process.kill())
    }

    /// SIGKILL to all of them, and to what they may have become.
    pub fn kill_and_reap(&self) {
        for helper in &self.0 {
            let below = below(&helper.process);
            for process in below.iter().chain([&helper.process]) {
                let _ = process.kill();
            }
            helper.process.reap();
        }
    }

    /// Waits for the end that they come to when QEMU is gone, and sees to it. `ran`: QEMU has connected, and the guest may have run.
    pub async fn gone(&self, ran: bool) {
        join_all(self.0.iter().map(|helper| helper.gone(ran))).await;
    }

    /// Says so where one ends before its guest. Returns never: its guest's end ends it.
    pub async fn watch(&self, vmid: Vmid) {
        let each = self.0.iter().map(|helper| async move {
            helper.process.exited().await;
            // At the guest's end this is a moment earlier than that; nothing but its end tells the two apart.
            tokio::time::sleep(PATIENCE).await;
            lost(vmid, &helper.key, helper.process.pid);
        });
        join_all(each).await;
        std::future::pending::<()>().await;
    }
}

/// Says that one has ended before its guest.
pub fn lost(vmid: Vmid, key: &str, pid: u32) {
    tracing::error!(%vmid, key, pid, "a program beside the guest has ended before it: what it was there for does not answer until the guest is started again");
}

/// Whatever it has started: to put itself into a sandbox, a program may go on in a child.
fn below(process: &Process) -> Vec<Process> {
    let children: Vec<_> =
        process::children(process.pid).into_iter().filter_map(|pid| Process::open(pid, None).ok()).collect();
    // Its pid may be another's by now, whose children these are.
    let is_itself = process::stat(process.pid).is_some_and(|s| s.start == process.start);
    if is_itself { children } else { vec![] }
}

impl Helper {
    async fn gone(&self, ran: bool) {
        let Self { key, process } = self;
        // One to which nobody has connected waits for ever, and has nothing to finish.
        let patience = if ran || key == TPM { PATIENCE } else { Duration::ZERO };
        let below = below(process);
        let all = || below.iter().chain([process]);
        if key == TPM
            // QEMU may never have connected. It flushes what it keeps then, too.
            && let Err(e) = process.terminate()
        {
            tracing::warn!(pid = process.pid, key, error = %e, "a program beside a guest could not be told to end");
        }
        let ended = || join_all(all().map(Process::exited));
        if tokio::time::timeout(patience, ended()).await.is_err() {
            if !patience.is_zero() {
                let pid = process.pid;
                tracing::warn!(pid, key, "a program beside a guest does not end with it, and is killed");
            }
            for process in all() {
                if let Err(e) = process.kill() {
                    tracing::error!(pid = process.pid, key, error = %e, "a program beside a guest could not be killed");
                }
            }
            // Whoever says that the guest has ended says that nobody writes for it.
            ended().await;
        }
        process.reap();
    }
}
