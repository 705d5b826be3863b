//! Watches this node's guests: adopts them after a restart of the daemon, records what ended, and reconciles
//! processes, fence process and records every few seconds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::GuestEvent;
use stead_model::{BootId, Vmid, paths};
use stead_ops::guest::Asked;
use stead_ops::{Actor, Ops, store};
use tokio::sync::broadcast::error::RecvError;

/// How often everything is reconciled without a cause.
const PERIOD: Duration = Duration::from_secs(5);

/// How often a node looks whether its CPU can do what is recorded: it changes with packages and kernels.
const LOOK_AT_CPU: Duration = Duration::from_secs(30);

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    // Beside the guests: recording waits for a majority.
    tokio::select! {
        () = follow(ops.clone()) => {}
        () = keep_cpu_recorded(ops) => {}
    }
}

/// Never ends.
async fn keep_cpu_recorded(ops: Arc<Ops>) {
    loop {
        let next = match ops.record_cpu().await {
            Ok(()) => LOOK_AT_CPU,
            Err(e) => {
                tracing::debug!("what the CPU can do is not recorded now: {e}");
                PERIOD
            }
        };
        tokio::time::sleep(next).await;
    }
}

async fn follow(ops: Arc<Ops>) {
    let mut events = ops.guests.events();
    let mut watch = ops.conf.watch();
    let mut period = tokio::time::interval(PERIOD);
    for guest in ops.guests.adopt().await {
        tracing::info!("guest {}: found running (pid {}, {:?})", guest.vmid, guest.pid, guest.state);
    }
    ops.flush.now().await;
    let mut reconciled = reconcile(&ops).await;
    let mut autostarted = false;
    loop {
        if reconciled && !autostarted {
            autostarted = true;
            tokio::spawn(autostart(ops.clone()));
        }
        let event = tokio::select! {
            event = events.recv() => event,
            _ = period.tick() => {
                reconciled |= reconcile(&ops).await;
                continue;
            }
            change = watch.next() => match change {
                // What has just come under HA's care is unguarded, and not recovered, until it is armed.
                Some(c) if store::touches(&c, paths::HA_RESOURCES) => {
                    reconciled |= reconcile(&ops).await;
                    continue;
                }
                // The node has entered the cluster: what its end has left is put right now.
                Some(c) if !reconciled && store::touches(&c, &paths::node(&ops.me.name)) => {
                    reconciled = reconcile(&ops).await;
                    continue;
                }
                Some(_) => continue,
                None => return,
            },
        };
        match event {
            Ok(GuestEvent::Gone { vmid, epoch, clean }) => {
                let how = if clean { "has shut down" } else { "has died" };
                tracing::info!("guest {vmid} (epoch {epoch}) {how}");
                // Beside the loop: recording waits for a majority.
                tokio::spawn(record_exit(ops.clone(), vmid));
            }
            Ok(GuestEvent::Unplugged { vmid }) => {
                // Its configuration may still have the device.
                tokio::spawn(device_gone(ops.clone(), vmid));
            }
            Ok(GuestEvent::State { .. }) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

async fn reconcile(ops: &Arc<Ops>) -> bool {
    match ops.reconcile().await {
        Ok(done) => done,
        Err(e) => {
            tracing::debug!("guests are not reconciled now: {e}");
            false
        }
    }
}

/// Records the end of a guest, unless a request is at it, which does so itself.
async fn record_exit(ops: Arc<Ops>, vmid: Vmid) {
    if let Some(_lock) = ops.guest_locks.try_lock(vmid)
        && ops.guests.state(vmid).await.is_none()
    {
        ops.after_exit(vmid).await;
    }
    ops.flush.now().await;
}

async fn device_gone(ops: Arc<Ops>, vmid: Vmid) {
    if let Err(e) = ops.device_gone(vmid).await {
        tracing::debug!("guest {vmid} has let go of a device, which is not recorded yet: {e}");
    }
}

/// Which guests the node has tried to start in this boot, and whether it has come to the end: a daemon that is only
/// started anew goes on where the earlier one ended, and starts nothing twice, since what does not run by then was stopped
/// by someone.
struct Autostarted {
    /// The boot, then a guest a line, then `all`.
    file: PathBuf,
    boot: String,
    done: Vec<String>,
}

impl Autostarted {
    const ALL: &str = "all";

    fn read(file: PathBuf, boot: &BootId) -> Self {
        let boot = boot.to_string();
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let of_this_boot = text.strip_prefix(&boot).unwrap_or_default();
        let done = of_this_boot.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
        Self { file, boot, done }
    }

    fn has(&self, what: &str) -> bool {
        self.done.iter().any(|l| l == what)
    }

    fn note(&mut self, what: &str) {
        self.done.push(what.to_owned());
        let text = format!("{}\n{}\n", self.boot, self.done.join("\n"));
        if let Err(e) = std::fs::write(&self.file, text) {
            let file = self.file.display();
            tracing::warn!("could not write {file}: guests may be started again with the daemon: {e}");
        }
    }
}

/// Starts the guests that shall start with their node, in their order; those under HA are HA's.
async fn autostart(ops: Arc<Ops>) {
    let mut done = Autostarted::read(ops.me.dir.join("autostarted"), &ops.me.boot);
    if done.has(Autostarted::ALL) {
        return;
    }
    if ops.conf.view(|t| t.get(paths::RESTORED).is_some()) {
        tracing::warn!(
            "no guest starts with this node: the configuration was restored from a backup, and nobody has armed HA since ('stead ha arm')"
        );
        // Nor when the daemon starts anew after that: somebody has chosen by then.
        return done.note(Autostarted::ALL);
    }
    for (vmid, delay) in ops.starting_with_node().await {
        if done.has(&vmid.to_string()) {
            continue;
        }
        done.note(&vmid.to_string());
        match ops.start(&Actor::system(), vmid, Asked::default()).await {
            Ok(upid) => {
                ops.tasks.wait(&upid).await;
                tokio::time::sleep(delay).await;
            }
            Err(e) => tracing::warn!("guest {vmid} shall start with its node, and does not: {e}"),
        }
    }
    done.note(Autostarted::ALL);
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_conf::Txn;
    use stead_ha::Request;
    use stead_ops_testing::{Node, root, vmid};

    #[tokio::test]
    async fn nothing_starts_with_its_node_after_a_restore_until_ha_is_armed() {
        let node = Node::start().await;
        let options = [("onboot".to_owned(), "1".to_owned())].into();
        let upid = node.ops.create_vm(&root(), vmid(100), &options, false).unwrap();
        assert_eq!(node.ended(&upid).await.0, "OK");
        node.commit(Txn::new("x").put(paths::RESTORED, "{}")).await;
        autostart(node.ops.clone()).await;
        assert!(node.ops.guests.state(vmid(100)).await.is_none());
        node.ops.ha_request("root@pam", &Request::Arm).await.unwrap();
        assert!(node.ops.conf.view(|t| t.get(paths::RESTORED).is_none()));
        autostart(node.ops.clone()).await;
        assert!(node.ops.guests.state(vmid(100)).await.is_none(), "with the next boot");
        std::fs::remove_file(node.ops.me.dir.join("autostarted")).unwrap();
        autostart(node.ops.clone()).await;
        assert!(node.ops.guests.state(vmid(100)).await.is_some());
    }

    #[test]
    fn a_new_daemon_goes_on_with_the_starts_of_its_boot() {
        let dir = tempfile::tempdir().unwrap();
        let boots: [BootId; 2] = ["1", "2"].map(|n| {
            format!("{0}-{1}-4{2}-8{2}-{3}", n.repeat(8), n.repeat(4), n.repeat(3), n.repeat(12))
                .parse()
                .unwrap()
        });
        let read = |boot| Autostarted::read(dir.path().join("autostarted"), boot);
        let mut first = read(&boots[0]);
        first.note("100");
        let again = read(&boots[0]);
        assert!(again.has("100") && !again.has("101") && !again.has(Autostarted::ALL));
        first.note(Autostarted::ALL);
        assert!(read(&boots[0]).has(Autostarted::ALL));
        let next = read(&boots[1]);
        assert!(!next.has("100") && !next.has(Autostarted::ALL), "another boot");
    }
}
