//! Asks the members which cluster epoch they are in, before this node stands for any election, while it has no majority, and of
//! who is silent while it leads; and gives way, lets go or raises the alarm as [`stead_membership::epochs`] decides.
//!
//! A store is opened *held*: it follows a leader and votes, and stands for no election until this has looked once. A node that is alive in
//! another epoch is told to the grantor ([`Ops::elsewhere`]), which gives none of those up.

use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use stead_membership::epochs::{Own, Reply, Said, Stand, WAIT, blocks, may_stand, stand};
use stead_model::{NodeName, NodeRecord};
use stead_ops::Ops;
use stead_ops::epochs::{EPOCH_CALL, EpochAnswer};
use stead_ops::peers::{PeerError, call};
use tokio::time::Instant;

/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked again.
const PERIOD: Duration = Duration::from_secs(1);
/// The same while this node waits to stand for elections.
const SOON: Duration = Duration::from_millis(200);
/// How often an alarm is repeated in the log, in looks.
const REPEAT: u32 = 60;

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut look =
        Look { ops, began: Instant::now(), was_quorate: false, waits: true, blocked_by: BTreeSet::new() };
    for looks in 1_u32.. {
        if look.ops.conf.status().borrow().lost {
            return come_back(&look.ops).await;
        }
        if look.again().await {
            return;
        }
        if looks.is_multiple_of(REPEAT) && look.ops.epochs.is_contested() {
            look.ops.epoch_warnings().iter().for_each(|w| tracing::error!("{w}"));
        }
        tokio::time::sleep(if look.waits { SOON } else { PERIOD }).await;
    }
}

struct Look {
    ops: Arc<Ops>,
    /// When the daemon has started.
    began: Instant,
    /// This daemon has been in contact with a majority.
    was_quorate: bool,
    /// It has not stood for elections yet.
    waits: bool,
    /// Who was heard to go on in another epoch, however silent now.
    blocked_by: BTreeSet<NodeName>,
}

impl Look {
    /// Whom to ask. With a majority nobody but those who came with another epoch and, where this node leads, those who are silent.
    fn asked(&self) -> Vec<NodeRecord> {
        let ops = &self.ops;
        let mut others = ops.others();
        let (quorate, leads) = {
            let status = ops.conf.status();
            let status = status.borrow();
            (status.quorate, status.is_leader)
        };
        if quorate && !self.waits {
            let elsewhere = ops.elsewhere();
            others.retain(|n| elsewhere.contains(&n.name) || (leads && !ops.online(n)));
        }
        others
    }

    /// True: this node gives way, and starts anew.
    async fn again(&mut self) -> bool {
        let ops = self.ops.clone();
        let asked = self.asked();
        // While this node waits, no look lasts much longer than that.
        let left = WAIT.saturating_sub(self.began.elapsed()).max(PERIOD);
        let limit = if self.waits { LIMIT.min(left) } else { LIMIT };
        let replies = join_all(asked.iter().map(|node| ask(&ops, node, limit))).await;
        // As it is now: a majority may have come together while they were asked.
        self.was_quorate |= ops.quorate();
        if ops.quorate()
            && let Err(e) = ops.tell_aside().await
        {
            tracing::warn!("what this node had alone could not be told yet: {e}");
        }
        let own = ops.epoch_answer();
        let runs = !ops.guests.list().await.is_empty();
        let own = Own { era: own.era, lineage: &own.lineage, was_quorate: self.was_quorate, runs };
        let said: Vec<Said> = replies.iter().filter_map(said).collect();
        let stand = stand(own, &said);
        let outcasts =
            replies.iter().filter_map(|r| if let Reply::Outcast(n) = r { Some(n.clone()) } else { None });
        if ops.epochs.cast_out(outcasts.collect(), &asked) {
            ops.epoch_warnings().iter().for_each(|w| tracing::error!("{w}"));
        }
        for s in &said {
            if blocks(own, s) {
                self.blocked_by.insert(s.node.clone());
            } else {
                self.blocked_by.remove(&s.node);
            }
        }
        let may = self.blocked_by.is_empty() && may_stand(own.era, self.began.elapsed(), &replies);
        let going = self.act(stand, &said, &asked).await;
        if self.waits && !going && !ops.epochs.lets_go() && (ops.quorate() || may) {
            self.waits = false;
            ops.conf.hold(false);
        }
        going
    }

    async fn act(&self, stand: Stand, said: &[Said], asked: &[NodeRecord]) -> bool {
        let ops = &self.ops;
        match stand {
            Stand::Stay => {
                ops.epochs.contest(still_there(ops, said));
                false
            }
            Stand::Yield(to) => {
                let Some(node) = asked.iter().find(|n| n.name == to) else { return false };
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
            Stand::Contested { mut others, let_go } => {
                let known: BTreeSet<NodeName> = others.iter().map(|(node, _)| node.clone()).collect();
                others.extend(still_there(ops, said).into_iter().filter(|(node, _)| !known.contains(node)));
                let news = ops.epochs.contest(others);
                if let_go {
                    ops.epochs.let_go();
                    ops.conf.hold(true);
                }
                if news {
                    ops.epoch_warnings().iter().for_each(|w| tracing::error!("{w}"));
                }
                false
            }
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

async fn ask(ops: &Ops, node: &NodeRecord, limit: Duration) -> Reply {
    let answer: Result<EpochAnswer, _> = call(&*ops.peers, node, EPOCH_CALL, &(), limit).await;
    match answer {
        // One that has just gone over has nothing of its new epoch yet, and does not know where that comes from.
        Ok(a) if a.lineage.era() != a.era => Reply::Silent,
        Ok(a) => {
            let EpochAnswer { era, lineage, quorate, lets_go } = a;
            Reply::Said(Said { node: node.name.clone(), era, lineage, quorate, lets_go })
        }
        Err(PeerError::Outcast { .. }) => Reply::Outcast(node.name.clone()),
        Err(e) => {
            tracing::debug!("node '{}' has not said its cluster epoch: {e}", node.name);
            Reply::Silent
        }
    }
}

fn said(reply: &Reply) -> Option<Said> {
    if let Reply::Said(said) = reply { Some(said.clone()) } else { None }
}

/// Who was seen to go on in another epoch does so until it is heard in this one.
fn still_there(ops: &Ops, said: &[Said]) -> Vec<(NodeName, stead_model::Era)> {
    let mut contested = ops.epochs.contested();
    contested.retain(|(node, _)| said.iter().all(|s| s.node != *node || s.era != ops.me.era));
    contested
}
