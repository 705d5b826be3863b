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
/// After so many looks it is tried again to go over, doubled with each failure up to the second: each try takes a number of the
/// other side, and keeps this node's operator from deciding meanwhile.
const RETRY: (u32, u32) = (4, 64);
/// How often an alarm is repeated in the log, in looks.
const REPEAT: u32 = 60;

/// What a look has led to.
enum Looked {
    /// This node gives way, and starts anew.
    Goes,
    /// It goes on.
    Stays,
    /// It goes on, for what was to be done has not worked.
    Failed(Vec<String>),
}

/// Runs for as long as the daemon does.
pub async fn run(ops: Arc<Ops>) {
    let mut status = ops.conf.status();
    let mut told: Vec<String> = vec![];
    let mut aside = true;
    let mut retry = Retry::default();
    for looks in 1_u32.. {
        let seen = shape(&status.borrow_and_update());
        let mut warnings = vec![];
        let tries = retry.is_due();
        let looked = match (seen.lost, tries) {
            (true, false) => Looked::Stays,
            (true, true) => come_back(&ops).await,
            (false, _) => look(&ops, &mut status, tries).await,
        };
        match looked {
            Looked::Goes => return,
            Looked::Stays => {}
            Looked::Failed(why) => retry.failed(why),
        }
        warnings.extend(retry.why.iter().cloned());
        if aside && ops.quorate() {
            match ops.tell_aside().await {
                Ok(()) => aside = false,
                Err(e) => warnings.push(format!("what this node had alone could not be told yet: {e}")),
            }
        }
        let (soon, contested) = {
            let lookout = ops.epochs.lookout();
            if !lookout.is_held() && !seen.lost {
                retry = Retry::default();
            }
            let waits = lookout.is_held() && !lookout.lets_go();
            (waits && retry.why.is_empty(), !lookout.contested().is_empty())
        };
        warnings.extend(ops.epoch_warnings());
        let repeats = contested && looks.is_multiple_of(REPEAT);
        warnings.iter().filter(|w| repeats || !told.contains(w)).for_each(|w| tracing::warn!("{w}"));
        told = warnings;
        let next = if soon { SOON } else { PERIOD };
        // A majority that comes together or falls apart is looked at at once, and counts though it is gone by then.
        let changed = tokio::time::timeout(next, status.wait_for(|s| shape(s) != seen)).await;
        if matches!(changed, Ok(Ok(s)) if s.quorate) {
            ops.epochs.lookout().note_quorate();
        }
    }
}

/// When it is tried again to go over, in looks.
#[derive(Default)]
struct Retry {
    wait: u32,
    left: u32,
    /// Why it did not work last.
    why: Vec<String>,
}

impl Retry {
    /// Counts a look down.
    fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    fn failed(&mut self, why: Vec<String>) {
        self.wait = (self.wait * 2).clamp(RETRY.0, RETRY.1);
        (self.left, self.why) = (self.wait, why);
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
    let held = ops.epochs.lookout().is_held();
    if seen.quorate && !held {
        let elsewhere = ops.elsewhere();
        others.retain(|n| elsewhere.contains(&n.name) || (seen.leads && !ops.online(n)));
    }
    others
}

/// Asks, and does what follows; goes over only if it `tries` to.
async fn look(ops: &Ops, status: &mut watch::Receiver<RaftStatus>, tries: bool) -> Looked {
    let asked = asked(ops, shape(&status.borrow_and_update()));
    let limit = if ops.epochs.lookout().is_held() { SHORT } else { LIMIT };
    let asking = join_all(asked.iter().map(|node| ask(ops, node, limit)));
    let replies = noting_majorities(ops, status, asking).await;
    let answer = ops.epoch_answer();
    let foreign = |r: &Reply| matches!(r, Reply::Said(said) if said.era != answer.era);
    // Nothing depends on it where all are of this epoch.
    let runs = replies.iter().any(foreign) && !ops.guests.list().await.is_empty();
    let own = Own { era: answer.era, lineage: &answer.lineage, quorate: ops.quorate(), runs };
    let members = ops.others().into_iter().map(|n| n.name).collect();
    let commands = ops.epochs.lookout().look(boottime(), own, &members, &replies);
    for command in commands {
        match command {
            Command::Hold(hold) => ops.conf.hold(hold),
            Command::Yield(to) if tries => {
                return noting_majorities(ops, status, go_over(ops, &to, &asked)).await;
            }
            Command::Yield(_) => {}
        }
    }
    Looked::Stays
}

/// Does it, and notes majorities meanwhile: one that is there for a moment alone may have decided something.
async fn noting_majorities<T>(
    ops: &Ops,
    status: &mut watch::Receiver<RaftStatus>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        if status.borrow_and_update().quorate {
            ops.epochs.lookout().note_quorate();
        }
        tokio::select! {
            done = &mut work => return done,
            Ok(()) = status.changed() => {}
        }
    }
}

async fn go_over(ops: &Ops, to: &NodeName, asked: &[NodeRecord]) -> Looked {
    let Some(node) = asked.iter().find(|n| n.name == *to) else { return Looked::Stays };
    match ops.rejoin(node, false).await {
        Ok(()) => Looked::Goes,
        Err(e) => Looked::Failed(vec![format!(
            "node '{to}' is in a newer cluster epoch than this one, {}, and this node has not gone over to it yet: {e}",
            ops.me.era
        )]),
    }
}

/// This node's store lacks what it has acknowledged: it is let in again under another number, by any of the members, and
/// gets the whole state anew. The daemon starts anew then.
async fn come_back(ops: &Ops) -> Looked {
    let mut failed = vec![];
    for node in ops.others() {
        match ops.rejoin(&node, false).await {
            Ok(()) => return Looked::Goes,
            Err(e) => failed.push(format!(
                "this node's configuration is older than what it has acknowledged, and node '{}' has not let it in again yet, \
                 under another number: {e}",
                node.name
            )),
        }
    }
    Looked::Failed(failed)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_less_and_less_often() {
        let mut retry = Retry::default();
        let mut tries = vec![];
        for look in 0..200 {
            if retry.is_due() {
                tries.push(look);
                retry.failed(vec!["no".into()]);
            }
        }
        assert_eq!(tries, [0, 4, 12, 28, 60, 124, 188]);
    }
}
