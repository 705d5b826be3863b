//! Asks the members which cluster epoch they are in, before this node stands for any election, while it has no majority, and of
//! who is silent while it leads; and carries out what [`stead_membership::epochs`] makes of that.
//!
//! A store is opened *held*: it follows a leader and votes, and stands for no election until it is let. A node that is alive in
//! another epoch is told to the grantor ([`Ops::elsewhere`]), which settles none of those.

use crate::clock::boottime;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::RaftStatus;
use stead_membership::epochs::{Command, Own, Reply, Said};
use stead_model::{NodeName, NodeRecord};
use stead_ops::Ops;
use stead_ops::epochs::{EPOCH_CALL, EpochAnswer};
use stead_ops::peers::{PeerError, call};
use tokio::sync::watch;

/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// The same while this node waits to stand for elections: a look is not to last much longer than that.
const SHORT: Duration = Duration::from_secs(1);
/// After so long it is looked again, if nothing has changed before.
const PERIOD: Duration = Duration::from_secs(1);
/// The same while this node waits.
const SOON: Duration = Duration::from_millis(200);
/// How often an alarm is repeated in the log, in looks.
const REPEAT: u32 = 60;

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut status = ops.conf.status();
    let mut told: Vec<String> = vec![];
    for looks in 1_u32.. {
        let seen = shape(&status.borrow_and_update());
        let going = if seen.lost { come_back(&ops).await } else { look(&ops, &mut status).await };
        if going {
            return;
        }
        let (waits, contested) = {
            let lookout = ops.epochs.lookout();
            (lookout.waits(), !lookout.contested().is_empty())
        };
        let warnings = ops.epoch_warnings();
        let repeats = contested && looks.is_multiple_of(REPEAT);
        warnings.iter().filter(|w| repeats || !told.contains(w)).for_each(|w| tracing::warn!("{w}"));
        told = warnings;
        let next = if waits { SOON } else { PERIOD };
        // A majority that comes together or falls apart is looked at at once.
        let _ = tokio::time::timeout(next, status.wait_for(|s| shape(s) != seen)).await;
    }
}

/// What of the consensus a look is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    quorate: bool,
    leads: bool,
    lost: bool,
}

fn shape(status: &RaftStatus) -> Shape {
    Shape { quorate: status.quorate, leads: status.is_leader, lost: status.lost }
}

/// Whom to ask. With a majority nobody but those who came with another epoch and, where this node leads, those who are silent.
fn asked(ops: &Ops, seen: Shape) -> Vec<NodeRecord> {
    let mut others = ops.others();
    if seen.quorate && !ops.epochs.lookout().waits() {
        let elsewhere = ops.elsewhere();
        others.retain(|n| elsewhere.contains(&n.name) || (seen.leads && !ops.online(n)));
    }
    others
}

/// True: this node gives way, and starts anew.
async fn look(ops: &Ops, status: &mut watch::Receiver<RaftStatus>) -> bool {
    let asked = asked(ops, shape(&status.borrow_and_update()));
    let limit = if ops.epochs.lookout().waits() { SHORT } else { LIMIT };
    let mut asking = std::pin::pin!(join_all(asked.iter().map(|node| ask(ops, node, limit))));
    let replies = loop {
        // A majority that is there for a moment alone may have decided something.
        if status.borrow_and_update().quorate {
            ops.epochs.lookout().note_quorate();
        }
        tokio::select! {
            replies = &mut asking => break replies,
            Ok(()) = status.changed() => {}
        }
    };
    let quorate = ops.quorate();
    if quorate && let Err(e) = ops.tell_aside().await {
        tracing::warn!("what this node had alone could not be told yet: {e}");
    }
    let answer = ops.epoch_answer();
    let runs = !ops.guests.list().await.is_empty();
    let own = Own { era: answer.era, lineage: &answer.lineage, quorate, runs };
    let command = ops.epochs.lookout().look(boottime(), own, &replies);
    match command {
        Some(Command::Yield(to)) => go_over(ops, &to, &asked).await,
        Some(Command::Hold(hold)) => {
            ops.conf.hold(hold);
            false
        }
        None => false,
    }
}

async fn go_over(ops: &Ops, to: &NodeName, asked: &[NodeRecord]) -> bool {
    let Some(node) = asked.iter().find(|n| n.name == *to) else { return false };
    tracing::warn!(
        "node '{to}' is in a newer cluster epoch than this one, {}: this node goes over",
        ops.me.era
    );
    match ops.rejoin(node, false).await {
        Ok(()) => true,
        Err(e) => {
            tracing::warn!("this node has not gone over to the epoch of node '{to}' yet: {e}");
            false
        }
    }
}

/// This node's store lacks what it has acknowledged: it is let in again under another number, by any of the members, and
/// gets the whole state anew. The daemon starts anew then.
async fn come_back(ops: &Ops) -> bool {
    for node in ops.others() {
        match ops.rejoin(&node, false).await {
            Ok(()) => return true,
            Err(e) => tracing::error!(
                "this node's configuration is older than what it has acknowledged, and node '{}' has not let it in again yet, \
                 under another number: {e}",
                node.name
            ),
        }
    }
    false
}

async fn ask(ops: &Ops, node: &NodeRecord, limit: Duration) -> Reply {
    let answer: Result<EpochAnswer, _> = call(&*ops.peers, node, EPOCH_CALL, &(), limit).await;
    match answer {
        // One that has just gone over has nothing of its new epoch yet, and does not know where that comes from.
        Ok(a) if a.lineage.era() != a.era => Reply::Silent(node.name.clone()),
        Ok(EpochAnswer { era, lineage, quorate, lets_go }) => {
            Reply::Said(Said { node: node.name.clone(), era, lineage, quorate, lets_go })
        }
        Err(PeerError::Outcast { .. }) => Reply::Outcast(node.name.clone()),
        Err(e) => {
            tracing::debug!("node '{}' has not said its cluster epoch: {e}", node.name);
            Reply::Silent(node.name.clone())
        }
    }
}
