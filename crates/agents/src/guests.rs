//! Watches this node's guests: adopts them after a restart of the daemon, records what ended, and reconciles
//! processes, fence process and records every few seconds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::GuestEvent;
use stead_model::{GuestKind, Vmid, paths};
use stead_ops::guest::Asked;
use stead_ops::{Actor, Ops, store};
use tokio::sync::broadcast::error::RecvError;

/// How often everything is reconciled without a cause.
const PERIOD: Duration = Duration::from_secs(5);

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
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

/// Whether the node has started its guests in this boot already; from now on it has. A daemon that is only started anew
/// starts nothing: what does not run was stopped by someone.
fn started_before(ops: &Ops) -> bool {
    let file = ops.me.dir.join("autostarted");
    let boot = ops.me.boot.to_string();
    if std::fs::read_to_string(&file).is_ok_and(|text| text == boot) {
        return true;
    }
    if let Err(e) = std::fs::write(&file, boot) {
        tracing::warn!(
            "could not write {}: guests may be started again with the daemon: {e}",
            file.display()
        );
    }
    false
}

/// Starts the guests that shall start with their node, in their order; those under HA are HA's.
async fn autostart(ops: Arc<Ops>) {
    if started_before(&ops) {
        return;
    }
    let mut waiting = BTreeSet::new();
    for (vmid, own) in ops.conf.view(store::guests) {
        if own.owner != ops.me.name || own.kind != GuestKind::Qemu || own.running {
            continue;
        }
        let Ok(guest) = ops.guest_at(vmid) else { continue };
        let Ok(config) = stead_ops::guest::config::parse(&guest.config.value) else { continue };
        if config.current.onboot() && !ops.ha_maintains(vmid).unwrap_or(true) {
            let startup = config.current.startup().unwrap_or_default();
            waiting.insert((startup.order.unwrap_or(u64::MAX), vmid, startup.up.unwrap_or(0)));
        }
    }
    for (_, vmid, delay) in waiting {
        match ops.start(&Actor::system(), vmid, Asked::default()).await {
            Ok(upid) => {
                ops.tasks.wait(&upid).await;
                tokio::time::sleep(Duration::from_secs(delay)).await;
            }
            Err(e) => tracing::warn!("guest {vmid} shall start with its node, and does not: {e}"),
        }
    }
}
