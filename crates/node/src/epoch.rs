//! What a new cluster epoch means to a node's folder. It is agreed while the daemon runs, kept whole, and carried out at its next
//! start, before anything is opened; every step can be repeated after a crash.
//!
//! ```text
//!  epoch.json, on the survivor                       rejoin.json, on a node that comes back
//!    conf.next   the new epoch's store, made of conf    aside.json  what conf had alone
//!    conf     -> conf.epoch-…      from here on: new    conf     -> conf.epoch-…
//!    conf.next -> conf                                  members.json, an empty conf
//!    node.json   epoch and number in Raft               node.json   epoch and number in Raft
//!    epoch.json  goes                                   rejoin.json goes
//! ```
//!
//! That the old store has its new place says that the new one is whole; before, the old epoch goes on if the new
//! store can't be made.
//!
//! A new epoch begins at once or not at all: the word was about how things were when it was given. After another boot, or a minute, the
//! others may be on and have recovered what ran here; then what was begun is undone, which nobody has seen yet.

use crate::identity::{Home, Identity};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use stead_agents::clock::boottime;
use stead_conf::{Revision, succession};
use stead_model::{BootId, Era};
use stead_ops::epochs::{Aside, EpochPlan, RejoinAnswer};

const PLAN: &str = "epoch.json";
const REJOIN: &str = "rejoin.json";
const ASIDE: &str = "aside.json";
/// So long after the word the new epoch may begin: the daemon ends and starts within it.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// `epoch.json`.
#[derive(Clone, Serialize, Deserialize)]
struct PendingEpoch {
    /// Who the node was.
    of: Identity,
    /// Where the old configuration is kept.
    aside: String,
    /// In which boot the word was given.
    boot: BootId,
    /// When, by the clock that starts with the machine: milliseconds.
    at_boottime_ms: u64,
    plan: EpochPlan,
}

/// `rejoin.json`.
#[derive(Clone, Serialize, Deserialize)]
struct PendingRejoin {
    of: Identity,
    aside: String,
    /// When it was agreed: milliseconds since 1970.
    at_ms: u64,
    answer: RejoinAnswer,
}

/// A free place for the configuration of an epoch.
fn place(home: &Home, era: Era) -> String {
    let first = format!("conf.epoch-{era}");
    let more = (1_u32..).map(|n| format!("{first}.{n}"));
    // An endless row has a free one.
    std::iter::once(first.clone()).chain(more).find(|name| !home.at(name).exists()).unwrap_or(first)
}

/// Keeps that a new epoch is to begin. On an error nothing is left that would let it begin.
pub fn keep_plan(home: &Home, of: &Identity, plan: &EpochPlan) -> Result<()> {
    let (aside, boot) = (place(home, of.era), home.boot()?);
    let at_boottime_ms = u64::try_from(boottime().as_millis())?;
    keep(home, PLAN, &PendingEpoch { of: of.clone(), aside, boot, at_boottime_ms, plan: plan.clone() })
}

/// Writes what the next start carries out. On an error nothing is left of it.
fn keep<T: Serialize>(home: &Home, name: &str, pending: &T) -> Result<()> {
    home.write_json(name, pending).or_else(|e| {
        home.forget(name).context("and what was written of it can't be removed")?;
        Err(e)
    })
}

/// Keeps that this node goes over to another epoch. On an error nothing is left that would let it.
pub fn keep_rejoin(home: &Home, of: &Identity, answer: &RejoinAnswer) -> Result<()> {
    let (aside, at_ms) = (place(home, of.era), stead_agents::clock::unix_ms());
    keep(home, REJOIN, &PendingRejoin { of: of.clone(), aside, at_ms, answer: answer.clone() })
}

/// Begins a new epoch, if that was agreed just now.
pub fn carry_out_plan(home: &Home) -> Result<()> {
    let Some(pending) = home.read_json::<PendingEpoch>(PLAN)? else { return Ok(()) };
    let age = boottime().saturating_sub(Duration::from_millis(pending.at_boottime_ms));
    if pending.boot != home.boot()? || age > GOOD_FOR {
        return undo(home, &pending);
    }
    let PendingEpoch { of, aside, plan, .. } = pending;
    let new = Identity { raft_id: plan.raft_id, era: plan.era, ..of.clone() };
    let (conf, next, aside) = (home.at("conf"), home.at("conf.next"), home.at(&aside));
    if !aside.exists() {
        let made = succession::succeed(
            (&conf, of.raft_id),
            (&next, new.raft_id),
            plan.era,
            plan.at_ms,
            |tree, base| stead_ops::epochs::succession(tree, base, &plan),
        );
        if let Err(e) = made {
            tracing::error!("cluster epoch {} does not begin, epoch {} goes on: {e}", plan.era, of.era);
            remove(&next)?;
            return home.forget(PLAN);
        }
        rename(&conf, &aside)?;
    }
    if next.exists() {
        clear(&conf)?;
        rename(&next, &conf)?;
    }
    home.save_identity(&new)?;
    tracing::warn!(
        "cluster epoch {} begins on this node alone; the configuration of epoch {} is kept in {}",
        plan.era,
        of.era,
        aside.display()
    );
    home.forget(PLAN)
}

/// Leaves the old epoch as it was. Of the new one nothing was ever opened: that comes after its plan is gone.
fn undo(home: &Home, pending: &PendingEpoch) -> Result<()> {
    let (conf, aside) = (home.at("conf"), home.at(&pending.aside));
    remove(&home.at("conf.next"))?;
    if aside.exists() {
        remove(&conf)?;
        rename(&aside, &conf)?;
    }
    home.save_identity(&pending.of)?;
    tracing::error!(
        "cluster epoch {} does not begin: the word for it was given before this machine started, or more than {} s ago, and the \
         others may be on by now. Epoch {} goes on; say 'stead cluster expected 1' again if all others are off",
        pending.plan.era,
        GOOD_FOR.as_secs(),
        pending.of.era
    );
    home.forget(PLAN)
}

/// Goes over to another epoch, if that was agreed.
pub fn carry_out_rejoin(home: &Home) -> Result<()> {
    let Some(pending) = home.read_json::<PendingRejoin>(REJOIN)? else { return Ok(()) };
    let PendingRejoin { of, answer, .. } = &pending;
    let (conf, aside) = (home.at("conf"), home.at(&pending.aside));
    if !aside.exists() {
        let mut untold = asides(home)?;
        let had = had_alone(home, &pending);
        untold.retain(|a| a.place != had.place);
        untold.push(had);
        home.write_json(ASIDE, &untold)?;
        rename(&conf, &aside)?;
    }
    std::fs::create_dir_all(&conf).context("can't make the folder of the configuration")?;
    home.write_json("members.json", &answer.members)?;
    home.save_identity(&Identity { raft_id: answer.raft_id, era: answer.era, ..of.clone() })?;
    tracing::warn!(
        "this node goes over to cluster epoch {}; its own is kept in {}",
        answer.era,
        aside.display()
    );
    home.forget(REJOIN)
}

/// What the store holds that the new epoch may not have. A store that can't be read is put aside all the same.
fn had_alone(home: &Home, pending: &PendingRejoin) -> Aside {
    let aside = Aside {
        node: pending.of.name.clone(),
        era: pending.of.era,
        at_ms: pending.at_ms,
        place: pending.aside.clone(),
        revision: 0,
        base: pending.answer.base,
        changes: vec![],
        more: 0,
        unreadable: None,
    };
    match succession::ahead(&home.at("conf"), pending.of.raft_id, Revision(pending.answer.base)) {
        Ok(ahead) => aside.of(ahead),
        Err(e) => Aside { unreadable: Some(e.to_string()), ..aside },
    }
}

/// What this node had alone, until it is told.
pub fn asides(home: &Home) -> Result<Vec<Aside>> {
    Ok(home.read_json(ASIDE)?.unwrap_or_default())
}

/// It is told.
pub fn told_aside(home: &Home) -> Result<()> {
    home.forget(ASIDE)
}

/// Both are in the folder itself, and what is written there next makes it durable.
fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("can't move {} to {}", from.display(), to.display()))
}

/// Removes a store that nobody has used.
fn remove(store: &Path) -> Result<()> {
    match std::fs::remove_dir_all(store) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("can't remove {}", store.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the empty folder that every start makes; a store would be an error.
fn clear(conf: &Path) -> Result<()> {
    match std::fs::remove_dir(conf) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("can't clear {}", conf.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_conf::store::Store;
    use stead_conf::{Machine, Txn};
    use stead_model::link::Links;
    use stead_model::{ClusterRecord, Epoch, FenceProfile, Lineage, NodeRecord, NodeState, RaftId, paths};

    const UUID: &str = "11111111-1111-4111-8111-111111111111";

    fn record(name: &str, n: u64) -> NodeRecord {
        NodeRecord {
            name: name.parse().unwrap(),
            uuid: UUID.parse().unwrap(),
            raft_id: RaftId(n),
            addr: "127.0.0.1:8006".parse().unwrap(),
            links: Links::new(),
            state: NodeState::Member { boot: UUID.parse().unwrap() },
            version: String::new(),
            witness: false,
            off: None,
            restart: None,
        }
    }

    /// `n1` of a cluster of two, for which a new epoch was agreed.
    fn agreed() -> (tempfile::TempDir, Home, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let identity = Identity {
            version: 1,
            name: "n1".parse().unwrap(),
            uuid: UUID.parse().unwrap(),
            raft_id: RaftId(1),
            era: Era::FIRST,
        };
        let cluster = ClusterRecord {
            name: "test".into(),
            uuid: UUID.into(),
            epoch: Epoch(1),
            profile: FenceProfile::default(),
            previous_profile: None,
            lineage: Lineage::default(),
        };
        let txn = Txn::new("root@pam")
            .put(paths::CLUSTER, serde_json::to_vec(&cluster).unwrap())
            .put("stead/nodes/n1", serde_json::to_vec(&record("n1", 1)).unwrap())
            .put("stead/nodes/n2", serde_json::to_vec(&record("n2", 2)).unwrap());
        let machine = Machine::found(1, &txn, 0).unwrap();
        std::fs::remove_dir(home.at("conf")).unwrap();
        drop(Store::create(&home.at("conf"), 1, &machine).unwrap());
        home.save_identity(&identity).unwrap();
        let plan = EpochPlan {
            survivor: identity.name.clone(),
            era: Era::FIRST.next(7),
            raft_id: RaftId(1001),
            spared: vec![],
            off: vec!["n2".parse().unwrap()],
            by: "root@pam".into(),
            at_ms: 3,
        };
        keep_plan(&home, &identity, &plan).unwrap();
        (dir, home, identity)
    }

    fn has_begun(home: &Home) {
        assert!(!home.at(PLAN).exists());
        let identity = home.identity().unwrap().unwrap();
        assert_eq!((identity.raft_id, identity.era), (RaftId(1001), Era::FIRST.next(7)));
        let (_store, new, _) = Store::open(&home.at("conf"), 1001).unwrap();
        assert_eq!(new.machine.members().all(), [1001].into());
        let (_store, old, _) = Store::open(&home.at("conf.epoch-1"), 1).unwrap();
        assert_eq!(old.machine.members().all(), [1].into(), "kept as it was");
    }

    #[test]
    fn an_epoch_that_was_cut_off_at_any_step_begins_at_the_next_start() {
        type Cut = fn(&Home, &Identity);
        let cuts: [(&str, Cut); 4] = [
            ("nothing was done", |_, _| {}),
            ("the new store was being made", |home, _| {
                std::fs::create_dir(home.at("conf.next")).unwrap();
                std::fs::write(home.at("conf.next/conf.redb.new"), b"half").unwrap();
            }),
            ("the old store has its new place", |home, old| {
                let plan = std::fs::read(home.at(PLAN)).unwrap();
                carry_out_plan(home).unwrap();
                std::fs::rename(home.at("conf"), home.at("conf.next")).unwrap();
                // As every start makes it.
                std::fs::create_dir(home.at("conf")).unwrap();
                home.save_identity(old).unwrap();
                std::fs::write(home.at(PLAN), plan).unwrap();
            }),
            ("the new store has its place", |home, old| {
                let plan = std::fs::read(home.at(PLAN)).unwrap();
                carry_out_plan(home).unwrap();
                home.save_identity(old).unwrap();
                std::fs::write(home.at(PLAN), plan).unwrap();
            }),
        ];
        for (at, cut) in cuts {
            println!("{at}");
            let (_dir, home, old) = agreed();
            cut(&home, &old);
            carry_out_plan(&home).unwrap();
            has_begun(&home);
            carry_out_plan(&home).unwrap();
            has_begun(&home);
        }
    }

    /// As it would be read after a boot, or long after.
    fn grown_old(home: &Home, how: usize) {
        let mut pending: PendingEpoch = home.read_json(PLAN).unwrap().unwrap();
        match how {
            0 => pending.boot = UUID.parse().unwrap(),
            _ => pending.at_boottime_ms = 0,
        }
        home.write_json(PLAN, &pending).unwrap();
    }

    #[test]
    fn a_word_that_is_old_is_undone_wherever_it_was_cut_off() {
        type Cut = fn(&Home);
        let cuts: [Cut; 3] = [
            |_| {},
            |home| {
                let plan = std::fs::read(home.at(PLAN)).unwrap();
                carry_out_plan(home).unwrap();
                std::fs::rename(home.at("conf"), home.at("conf.next")).unwrap();
                std::fs::create_dir(home.at("conf")).unwrap();
                std::fs::write(home.at(PLAN), plan).unwrap();
            },
            |home| {
                let plan = std::fs::read(home.at(PLAN)).unwrap();
                carry_out_plan(home).unwrap();
                std::fs::write(home.at(PLAN), plan).unwrap();
            },
        ];
        for (n, cut) in cuts.into_iter().enumerate() {
            for how in 0..2 {
                let (_dir, home, old) = agreed();
                cut(&home);
                grown_old(&home, how);
                carry_out_plan(&home).unwrap();
                assert!(!home.at(PLAN).exists() && !home.at("conf.epoch-1").exists(), "{n}, {how}");
                assert!(!home.at("conf.next").exists(), "{n}, {how}");
                assert_eq!(home.identity().unwrap(), Some(old));
                let (_store, kept, _) = Store::open(&home.at("conf"), 1).unwrap();
                assert_eq!(kept.machine.members().all(), [1].into(), "{n}, {how}");
            }
        }
    }

    #[test]
    fn where_no_new_store_can_be_made_the_old_epoch_goes_on() {
        let (_dir, home, old) = agreed();
        let good = std::fs::read(home.at("conf/conf.redb")).unwrap();
        std::fs::write(home.at("conf/conf.redb"), b"").unwrap();
        std::fs::create_dir(home.at("conf.next")).unwrap();
        carry_out_plan(&home).unwrap();
        assert!(!home.at(PLAN).exists() && !home.at("conf.epoch-1").exists());
        assert!(!home.at("conf.next").exists(), "half a store must not lie in the way of the next one");
        assert_eq!(home.identity().unwrap(), Some(old));
        std::fs::write(home.at("conf/conf.redb"), good).unwrap();
        assert!(Store::open(&home.at("conf"), 1).is_ok());
    }

    #[test]
    fn a_node_that_goes_over_keeps_its_store_and_tells_what_it_had_alone() {
        let (_dir, home, old) = agreed();
        home.forget(PLAN).unwrap();
        let answer = RejoinAnswer {
            raft_id: RaftId(1003),
            era: Era::FIRST.next(7),
            base: 0,
            members: vec![record("n2", 1001)],
        };
        keep_rejoin(&home, &old, &answer).unwrap();
        let pending = std::fs::read(home.at(REJOIN)).unwrap();
        for again in [false, true] {
            if again {
                // Cut off before the last steps.
                home.save_identity(&old).unwrap();
                std::fs::write(home.at(REJOIN), &pending).unwrap();
            }
            carry_out_rejoin(&home).unwrap();
            let identity = home.identity().unwrap().unwrap();
            assert_eq!((identity.raft_id, identity.era), (RaftId(1003), answer.era));
            assert_eq!(home.members().unwrap(), answer.members);
            assert!(home.at("conf").is_dir() && !home.at("conf/conf.redb").exists());
            assert!(Store::open(&home.at("conf.epoch-1"), 1).is_ok());
            let all = asides(&home).unwrap();
            let [told] = all.as_slice() else { panic!("{all:?}") };
            assert!(told.changes.iter().any(|c| c.path == paths::CLUSTER), "{told:?}");
        }
        told_aside(&home).unwrap();
        assert!(asides(&home).unwrap().is_empty());
    }
}
