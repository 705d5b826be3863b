//! Asks the members which cluster epoch they are in, before this node takes part and while it has no majority, and
//! gives way or raises the alarm as [`stead_membership::epochs`] decides.

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use stead_membership::epochs::{Said, Stand, stand};
use stead_model::{NodeName, NodeRecord};
use stead_ops::Ops;
use stead_ops::epochs::{EPOCH_CALL, EpochAnswer};
use stead_ops::peers::call;

/// How long the first look takes at most where nobody is of another epoch: the daemon's start waits for it.
const FIRST: Duration = Duration::from_millis(500);
/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked again.
const PERIOD: Duration = Duration::from_secs(1);
/// How often an alarm is repeated in the log, in looks.
const REPEAT: u32 = 60;

/// Looks once before this node takes part in any election. True: it gives way, and is to start anew. As soon as a majority
/// of the members is of this epoch nobody else is waited for; where one is of another epoch, all are waited for, since those
/// of this one may have a majority.
pub async fn before(ops: &Ops, members: &[NodeRecord]) -> bool {
    let others: Vec<NodeRecord> = members.iter().filter(|n| n.name != ops.me.name).cloned().collect();
    if others.is_empty() {
        return false;
    }
    let own = ops.epoch_answer();
    let mut asked: FuturesUnordered<_> = others.iter().map(|node| ask(ops, node, LIMIT)).collect();
    let (mut said, mut same) = (vec![], 1);
    let first = tokio::time::Instant::now() + FIRST;
    loop {
        let strange = said.iter().any(|s: &Said| s.era != own.era);
        let answer = tokio::select! {
            answer = asked.next() => answer,
            () = tokio::time::sleep_until(first), if !strange => break,
        };
        match answer {
            Some(Some(answer)) => {
                same += usize::from(answer.era == own.era);
                said.push(answer);
            }
            Some(None) => {}
            None => break,
        }
        if same > members.len() / 2 {
            break;
        }
    }
    drop(asked);
    act(ops, &said, false, &others).await
}

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let (mut was_quorate, mut looks) = (false, 0_u32);
    loop {
        tokio::time::sleep(PERIOD).await;
        if ops.conf.status().borrow().lost {
            return come_back(&ops).await;
        }
        let quorate = ops.quorate();
        was_quorate |= quorate;
        if quorate && let Err(e) = ops.tell_aside().await {
            tracing::warn!("what this node had alone could not be told yet: {e}");
        }
        // With a majority nobody needs to be asked but those who have come with another epoch.
        let others: Vec<NodeRecord> = if quorate {
            let strangers = ops.epochs.strangers();
            ops.others().into_iter().filter(|n| strangers.contains_key(&n.name)).collect()
        } else {
            ops.others()
        };
        let asked = join_all(others.iter().map(|node| ask(&ops, node, LIMIT))).await;
        let said: Vec<Said> = asked.into_iter().flatten().collect();
        if act(&ops, &said, was_quorate, &others).await {
            return;
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(REPEAT) && !ops.epochs.contested().is_empty() {
            ops.epoch_warnings().iter().for_each(|w| tracing::error!("{w}"));
        }
    }
}

/// This node's store lacks what it has acknowledged: it is let in again under another number, by any of the members, and
/// gets the whole state anew. The daemon starts anew then.
async fn come_back(ops: &Ops) {
    tracing::error!(
        "this node's configuration is older than what it has acknowledged: it is let in again under another number"
    );
    let others = ops.others();
    for node in others.iter().cycle() {
        match ops.rejoin(node, false).await {
            Ok(()) => return,
            Err(e) => tracing::warn!("node '{}' has not let this node in again yet: {e}", node.name),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn ask(ops: &Ops, node: &NodeRecord, limit: Duration) -> Option<Said> {
    let answer: Result<EpochAnswer, _> = call(&*ops.peers, node, EPOCH_CALL, &(), limit).await;
    match answer {
        Ok(a) => Some(Said { node: node.name.clone(), era: a.era, lineage: a.lineage, quorate: a.quorate }),
        Err(e) => {
            tracing::debug!("node '{}' has not said its cluster epoch: {e}", node.name);
            None
        }
    }
}

/// True: this node gives way, and starts anew.
async fn act(ops: &Ops, said: &[Said], was_quorate: bool, asked: &[NodeRecord]) -> bool {
    let own = ops.epoch_answer();
    match stand((own.era, &own.lineage), was_quorate, said) {
        Stand::Stay => {
            ops.epochs.contest(still_silent(ops, said));
            false
        }
        Stand::Yield(to) => {
            let Some(node) = asked.iter().find(|n| n.name == to) else { return false };
            tracing::warn!(
                "node '{to}' is in a newer cluster epoch than this one, {}: this node goes over",
                own.era
            );
            match ops.rejoin(node, false).await {
                Ok(()) => true,
                Err(e) => {
                    tracing::warn!("node '{to}' has not let this node in again yet: {e}");
                    false
                }
            }
        }
        Stand::Contested(others) => {
            if ops.epochs.contest(others) {
                ops.epoch_warnings().iter().for_each(|w| tracing::error!("{w}"));
            }
            false
        }
    }
}

/// An epoch that was seen goes on although its nodes are silent now, until they have been heard in this one.
fn still_silent(ops: &Ops, said: &[Said]) -> Vec<(NodeName, stead_model::Era)> {
    let mut contested = ops.epochs.contested();
    contested.retain(|(node, _)| said.iter().all(|s| s.node != *node));
    contested.retain(|(node, _)| ops.epochs.strangers().contains_key(node));
    contested
}
