//! A backup becomes a stopped node's store: the first state of a new cluster epoch, of that node alone, as after
//! `stead cluster expected 1`. What other nodes have is of an older epoch, and refused.
//!
//! ```text
//!   conf.restored   the new store, made whole beside the old one
//!   restore.json    from here on the new one counts: carried out at once, or by whoever comes next - a restore, or the daemon's start
//!     conf          -> conf.replaced-…, if there was one; node.json and tls/keys.json are copied there
//!     conf.restored -> conf
//!     tls/keys.json, members.json, node.json
//!   restore.json    goes
//! ```
//!
//! Each step can be repeated, so that whoever is killed in the middle leaves the old store, or the new one. Who goes on later, knocks
//! again at all who were said to be off.
//!
//! In the new state HA is disarmed, and nothing starts with its node, until an administrator has looked and arms HA.

use crate::identity::{Home, Identity, Keys, key_text};
use crate::offline::{Processes, ago, read_backup, sound};
use crate::others::{self, Other};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use stead_conf::{Backup, succession};
use stead_model::{NodeName, NodeRecord, paths};
use stead_ops::epochs::{EpochPlan, faults, named_exactly, next_numbers};
use stead_transport::{ClusterCa, NodeKey, PeerIdentity};

const PLAN: &str = "restore.json";
const NEXT: &str = "conf.restored";

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// The backup
    pub file: PathBuf,
    /// Which node of the backup's this machine is; the one that it has been before unless it is said
    #[arg(long = "as", value_name = "NODE")]
    pub name: Option<NodeName>,
    /// Another node, that is off; once for each of the backup's, of those that joined since, and, where this machine was
    /// another one, for the machine that had its name
    #[arg(long, value_name = "NODE")]
    pub off: Vec<NodeName>,
    /// Where this machine's store does not tell who has joined since the backup: whoever did is off
    #[arg(long)]
    pub unknown_off: bool,
    /// Where there is a store: keep it aside, and go on
    #[arg(long)]
    pub force: bool,
}

/// `restore.json`.
#[derive(Clone, Serialize, Deserialize)]
struct Pending {
    identity: Identity,
    keys: Keys,
    /// Where the old store is kept.
    aside: String,
    /// Who is off.
    #[serde(default)]
    off: Vec<Other>,
}

/// Makes a backup this node's store.
///
/// # Errors
/// Why not. The old store counts then, unless it is said that the new one does.
pub async fn run(dir: &Path, asked: &Restore, processes: Processes) -> Result<()> {
    let backup = read_backup(&asked.file)?;
    let home = Home::open(dir)?;
    let _only = home.lock()?;
    // One that was cut off goes first: its store then lies in the way of this one.
    knock(&home).await?;
    carry_out(&home)?;
    free(&home, asked.force, processes)?;
    let of = home.identity()?;
    let nodes = stead_ops::store::nodes(backup.tree());
    let me = who(&nodes, asked.name.as_ref().or(of.as_ref().map(|of| &of.name)))?.clone();
    if let Some(of) = &of
        && asked.name.is_none()
        && !others::is_it(&home, &backup, Some(of), &me)
    {
        bail!(
            "this machine is node '{}' of another cluster, or another '{}' than the backup's: that it is to become this one must be said \
             (--as {})",
            of.name,
            of.name,
            me.name
        );
    }
    let others = others::others(&home, &backup, of.as_ref(), &me, asked.unknown_off)?;
    named_exactly(&others, &asked.off).with_context(|| match others.iter().any(|n| n.name == me.name) {
        true => format!(
            "guests run twice if another node is on (--off NODE), the machine that had the name '{}' before too",
            me.name
        ),
        false => "guests run twice if another node is on (--off NODE)".to_owned(),
    })?;
    let off = others::doors(&others, of.as_ref(), &me);
    others::silent(&off).await?;
    let strange: Vec<&NodeName> =
        others.iter().map(|n| &n.name).filter(|name| nodes.iter().all(|n| n.name != **name)).collect();
    let (revision, made) = (backup.head().revision, ago(backup.head().at_ms));
    let aside = prepare(&home, backup, of.as_ref(), &me, off)?;
    carry_out(&home).context("the new store counts; the daemon does the rest when it starts")?;
    println!(
        "node '{}' has the configuration of revision {revision}, made {made}, and begins a cluster epoch of its own when its \
         daemon starts",
        me.name
    );
    if home.at(&aside).exists() {
        println!("what was there is kept in {}", home.at(&aside).display());
    }
    for name in strange {
        println!("the backup does not know node '{name}': leave it off until it is wiped, and join it anew");
    }
    println!(
        "no guest starts by itself, on any node: HA is disarmed. Look at what the backup does not know, then: stead ha arm"
    );
    Ok(())
}

/// Refuses where there is something that would be lost, or that goes on.
fn free(home: &Home, force: bool, processes: Processes) -> Result<()> {
    for pending in ["epoch.json", "rejoin.json", "join.json", "leave.json", "carried.json"] {
        if home.at(pending).exists() {
            bail!("{pending} says what the daemon does when it starts: start it, and stop it again, first");
        }
    }
    let guests = processes(&home.at("run"));
    if !guests.is_empty() {
        let pids: Vec<String> = guests.iter().map(|(pid, _)| pid.to_string()).collect();
        bail!(
            "guests run on this node (processes {}): the configuration of the backup may not know them. Stop them first",
            pids.join(", ")
        );
    }
    if !is_empty(&home.at("conf"))? && !force {
        bail!("this node has a store: --force keeps it aside, in this folder, and goes on");
    }
    Ok(())
}

fn is_empty(folder: &Path) -> Result<bool> {
    match std::fs::read_dir(folder) {
        Ok(mut all) => Ok(all.next().is_none()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e).with_context(|| format!("can't read {}", folder.display())),
    }
}

/// The node of the backup's that this machine is.
fn who<'a>(nodes: &'a [NodeRecord], name: Option<&NodeName>) -> Result<&'a NodeRecord> {
    let all = nodes.iter().map(|n| n.name.to_string()).collect::<Vec<_>>().join(", ");
    let Some(name) = name else { bail!("say which node of the backup's this machine is: --as one of {all}") };
    let me = nodes.iter().find(|n| n.name == *name);
    let me = me.with_context(|| format!("the backup has no node '{name}': --as one of {all}"))?;
    if me.witness {
        bail!("'{name}' is a witness, which runs no guests: restore on a node");
    }
    Ok(me)
}

/// Makes the new store, and says that it counts. Gives where the old one will be.
fn prepare(
    home: &Home,
    backup: Backup,
    of: Option<&Identity>,
    me: &NodeRecord,
    off: Vec<Other>,
) -> Result<String> {
    sound(&faults(backup.machine(), backup.key(), &me.name))?;
    let keys = keys(home, &backup, of, me)?;
    let plan = EpochPlan {
        survivor: me.name.clone(),
        era: backup.head().era.next(uuid::Uuid::new_v4().as_u64_pair().0),
        raft_id: next_numbers(backup.tree())?,
        spared: vec![],
        off: off.iter().map(|o| o.name.clone()).filter(|name| *name != me.name).collect(),
        by: "root@pam".to_owned(),
        at_ms: stead_ops::clock::unix_ms(),
    };
    let identity = Identity {
        version: 1,
        name: me.name.clone(),
        uuid: me.uuid.clone(),
        raft_id: plan.raft_id,
        era: plan.era,
    };
    let made =
        succession::restore(backup, (&home.at(NEXT), plan.raft_id), plan.era, plan.at_ms, |tree, base| {
            stead_ops::epochs::restored(tree, base, &plan)
        });
    made.context("the new store can't be made")?;
    let aside = place(home, plan.era.number());
    let pending = Pending { identity, keys, aside: aside.clone(), off };
    home.write_json(PLAN, &pending).or_else(|e| {
        home.forget(PLAN).context("and what was written of it can't be removed")?;
        Err(e)
    })?;
    Ok(aside)
}

/// A free place for the old store.
fn place(home: &Home, epoch: u64) -> String {
    let names = (1_u32..).map(|n| format!("conf.replaced-{epoch}.{n}"));
    let first = format!("conf.replaced-{epoch}");
    // An endless row has a free one.
    std::iter::once(first.clone()).chain(names).find(|name| !home.at(name).exists()).unwrap_or(first)
}

/// This node's keys: its own, or, where it has none of this cluster's, new ones that the backup's CA signs.
fn keys(home: &Home, backup: &Backup, of: Option<&Identity>, me: &NodeRecord) -> Result<Keys> {
    if others::is_it(home, backup, of, me) {
        return home.keys();
    }
    let cluster_key = key_text(backup.key().expose());
    let ca =
        backup.tree().text(paths::CA_CERT).context("the backup has no certificate of the cluster's CA")?;
    let sealed = backup.tree().get(paths::CA_KEY).context("the backup has no key of the cluster's CA")?;
    let ca_key = String::from_utf8(backup.key().unseal(paths::CA_KEY, &sealed.data)?)?;
    let now = SystemTime::now();
    let mut ca = ClusterCa::load(ca, &ca_key)?;
    // A backup may be as old as that; the daemon does the same to the one in the configuration.
    if ca.due(now)?.is_some() {
        ca = ca.renewed(now)?;
    }
    let key = NodeKey::generate()?;
    let peer = PeerIdentity { name: me.name.clone(), uuid: me.uuid.clone() };
    let cert = ca.sign(&key.signing_request(&me.name)?, &peer, &[me.addr.ip()], now)?;
    Ok(Keys { ca: ca.cert_pem().to_owned(), cert, key: key.to_pem(), cluster_key })
}

/// In their order.
const STEPS: [fn(&Home, &Pending) -> Result<()>; 6] = [
    |home, pending| {
        let (conf, aside) = (home.at("conf"), home.at(&pending.aside));
        match home.at(NEXT).exists() && !aside.exists() && !is_empty(&conf)? {
            true => rename(&conf, &aside),
            false => Ok(()),
        }
    },
    // Who this machine was: nothing else has its key.
    |home, pending| {
        let aside = home.at(&pending.aside);
        for (from, to) in [("node.json", "node.json"), ("tls/keys.json", "keys.json")] {
            let Some(kept) = home.read_json::<serde_json::Value>(from)? else { continue };
            if !aside.join(to).exists() {
                std::fs::create_dir_all(&aside)
                    .with_context(|| format!("can't make the folder {}", aside.display()))?;
                home.write_json(&format!("{}/{to}", pending.aside), &kept)?;
            }
        }
        Ok(())
    },
    |home, _| {
        let (next, conf) = (home.at(NEXT), home.at("conf"));
        if !next.exists() {
            return Ok(());
        }
        match std::fs::remove_dir(&conf) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("can't clear {}", conf.display()));
            }
            _ => {}
        }
        rename(&next, &conf)
    },
    |home, pending| home.save_keys(&pending.keys),
    // Of another time; those of the backup's are in it.
    |home, _| home.forget("members.json"),
    |home, pending| home.save_identity(&pending.identity),
];

/// Before a restore whose store counts is ended, if there is one: whoever was said to be off still is.
///
/// # Errors
/// If one of them answers.
pub async fn knock(home: &Home) -> Result<()> {
    let Some(pending) = home.read_json::<Pending>(PLAN)? else { return Ok(()) };
    others::silent(&pending.off).await.context("a restore is to be ended that was cut off (restore.json)")
}

/// Ends a restore whose store counts, if there is one.
///
/// # Errors
/// If a step fails; the next try goes on from it.
pub fn carry_out(home: &Home) -> Result<()> {
    let Some(pending) = home.read_json::<Pending>(PLAN)? else { return Ok(()) };
    for step in STEPS {
        step(home, &pending)?;
    }
    tracing::warn!(
        "this node's configuration is that of a backup, in cluster epoch {}; {} is what it was",
        pending.identity.era,
        pending.aside
    );
    home.forget(PLAN)
}

/// What is written in the folder next makes it durable.
fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("can't move {} to {}", from.display(), to.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::identity::cluster_key;
    use stead_conf::store::Store;
    use stead_conf::{ClusterKey, Machine, Txn};
    use stead_model::link::Links;
    use stead_model::{
        ClusterRecord, Epoch, Era, FenceProfile, GuestKind, Lineage, NodeState, Ownership, RaftId,
    };

    async fn done(dir: &Path, asked: &Restore) -> Result<()> {
        run(dir, asked, |_| vec![]).await
    }

    const UUID: &str = "11111111-1111-4111-8111-11111111111";

    fn record(name: &str, n: u64) -> NodeRecord {
        NodeRecord {
            name: name.parse().unwrap(),
            uuid: format!("{UUID}{n}").parse().unwrap(),
            raft_id: RaftId(n),
            // Nobody listens there; that this machine's kernel refuses says nothing of another's.
            addr: format!("127.0.7.{n}:9").parse().unwrap(),
            links: Links::new(),
            state: NodeState::Member { boot: format!("{UUID}{n}").parse().unwrap() },
            version: String::new(),
            witness: false,
            off: None,
            restart: None,
        }
    }

    fn owner(node: &str) -> Vec<u8> {
        let kind = GuestKind::Qemu;
        let own =
            serde_json::json!({"owner": node, "kind": kind, "epoch": 7, "armed": true, "running": true});
        own.to_string().into_bytes()
    }

    /// A stopped node 'n1' of a cluster of these.
    pub(crate) fn node(names: &[&str]) -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("n1")).unwrap();
        let cluster = ClusterRecord {
            name: "test".into(),
            uuid: format!("{UUID}0"),
            epoch: Epoch(1),
            profile: FenceProfile::default(),
            previous_profile: None,
            lineage: Lineage::default(),
        };
        let ca = ClusterCa::create("test", &cluster.uuid, SystemTime::now()).unwrap();
        let key = ClusterKey::from([9; 32]);
        let mut txn = Txn::new("root@pam")
            .put(paths::CLUSTER, serde_json::to_vec(&cluster).unwrap())
            .put("storage.cfg", "dir: local\n\tpath /x\n")
            .put(paths::CA_CERT, ca.cert_pem().to_owned())
            .put(paths::CA_KEY, key.seal(paths::CA_KEY, ca.key_pem().as_bytes()).unwrap());
        for (n, name) in (1..).zip(names) {
            txn = txn
                .put(format!("stead/nodes/{name}"), serde_json::to_vec(&record(name, n)).unwrap())
                .put(format!("nodes/{name}/qemu-server/10{n}.conf"), "cores: 1\n")
                .put(format!("stead/owner/10{n}"), owner(name));
        }
        let machine = Machine::found(1, &txn, 0).unwrap();
        std::fs::remove_dir(home.at("conf")).unwrap();
        drop(Store::create(&home.at("conf"), 1, &machine).unwrap());
        let keys = Keys {
            ca: ca.cert_pem().to_owned(),
            cert: "cert".into(),
            key: "key".into(),
            cluster_key: key_text(key.expose()),
        };
        home.save_keys(&keys).unwrap();
        let me = record("n1", 1);
        let identity =
            Identity { version: 1, name: me.name, uuid: me.uuid, raft_id: RaftId(1), era: Era::FIRST };
        home.save_identity(&identity).unwrap();
        (dir, home)
    }

    fn backup(home: &Home) -> Backup {
        let machine = succession::look(&home.at("conf")).unwrap().machine;
        let key = cluster_key(&home.keys().unwrap().cluster_key).unwrap();
        Backup::of(machine, key, "n1", Era::FIRST, 5)
    }

    fn file(dir: &Path, backup: &Backup) -> PathBuf {
        let file = dir.join("backup");
        std::fs::write(&file, backup.encode().unwrap()).unwrap();
        file
    }

    fn asked(file: PathBuf) -> Restore {
        Restore { file, name: None, off: vec![], unknown_off: false, force: false }
    }

    /// It is the only one of a new epoch, and what it was is kept.
    fn has_begun(home: &Home, kept: Option<&[u8]>) -> Machine {
        assert!(!home.at(PLAN).exists() && !home.at(NEXT).exists());
        let identity = home.identity().unwrap().unwrap();
        assert_eq!((identity.raft_id, identity.era.number()), (RaftId(1001), 2));
        let seen = succession::look(&home.at("conf")).unwrap();
        assert_eq!((seen.id, seen.machine.members().all()), (1001, [1001].into()));
        let key = cluster_key(&home.keys().unwrap().cluster_key).unwrap();
        assert_eq!(faults(&seen.machine, &key, &identity.name), Vec::<String>::new());
        let aside = home.at("conf.replaced-2/conf.redb");
        assert_eq!(std::fs::read(aside).ok().as_deref(), kept);
        seen.machine
    }

    #[tokio::test]
    async fn a_backup_replaces_a_store_that_is_kept_and_bumps_all_ownerships() {
        let (dir, home) = node(&["n1", "n2"]);
        let before = std::fs::read(home.at("conf/conf.redb")).unwrap();
        let mut asked = asked(file(dir.path(), &backup(&home)));
        let refused = done(&home.0, &asked).await.unwrap_err();
        assert!(format!("{refused:#}").contains("--force"), "{refused:#}");
        asked.force = true;
        let refused = done(&home.0, &asked).await.unwrap_err();
        assert!(format!("{refused:#}").contains("n2"), "nobody has said that it is off: {refused:#}");
        asked.off = vec!["n2".parse().unwrap()];
        let only = home.lock().unwrap();
        assert!(format!("{:#}", done(&home.0, &asked).await.unwrap_err()).contains("another daemon"));
        drop(only);
        asked.name = Some("n9".parse().unwrap());
        assert!(format!("{:#}", done(&home.0, &asked).await.unwrap_err()).contains("no node 'n9'"));
        asked.name = None;
        let beside = run(&home.0, &asked, |_| vec![(77, PathBuf::from("pid"))]).await.unwrap_err();
        assert!(format!("{beside:#}").contains("guests run on this node (processes 77)"), "{beside:#}");
        assert_eq!(std::fs::read(home.at("conf/conf.redb")).unwrap(), before, "nothing was done");
        let keys = home.keys().unwrap();
        done(&home.0, &asked).await.unwrap();
        assert!(home.keys().unwrap() == keys, "its own are good");
        let machine = has_begun(&home, Some(&before));
        let tree = machine.tree();
        for n in [1, 2] {
            let own: Ownership =
                serde_json::from_slice(&tree.get(&format!("stead/owner/10{n}")).unwrap().data).unwrap();
            assert!(own.epoch.0 > succession::LEAP && !own.armed, "{own:?}");
        }
        let other: NodeRecord = serde_json::from_slice(&tree.get("stead/nodes/n2").unwrap().data).unwrap();
        assert!(other.state.is_lost());
        assert!(
            tree.get(paths::RESTORED).is_some() && tree.text(paths::HA_STATUS).unwrap().contains("freeze")
        );
    }

    #[tokio::test]
    async fn an_empty_machine_becomes_a_node_of_the_backup_s() {
        let (dir, home) = node(&["n1"]);
        let file = file(dir.path(), &backup(&home));
        let empty = dir.path().join("new");
        let refused = done(&empty, &asked(file.clone())).await.unwrap_err();
        assert!(format!("{refused:#}").contains("--as one of n1"), "{refused:#}");
        let mut as_n1 = Restore { name: Some("n1".parse().unwrap()), ..asked(file.clone()) };
        let unknown = done(&empty, &as_n1).await.unwrap_err();
        assert!(format!("{unknown:#}").contains("--unknown-off"), "who has joined since? {unknown:#}");
        as_n1.unknown_off = true;
        let unsaid = done(&empty, &as_n1).await.unwrap_err();
        assert!(format!("{unsaid:#}").contains("the machine that had the name 'n1' before"), "{unsaid:#}");
        as_n1.off = vec!["n1".parse().unwrap()];
        done(&empty, &as_n1).await.unwrap();
        let new = Home::open(&empty).unwrap();
        has_begun(&new, None);
        let (old, keys) = (home.keys().unwrap(), new.keys().unwrap());
        assert!(keys.ca == old.ca && keys.cluster_key == old.cluster_key);
        assert!(keys.cert.contains("BEGIN CERTIFICATE") && keys.cert != old.cert);
        // Again, over what it now has.
        assert!(done(&empty, &as_n1).await.is_err());
    }

    /// Makes a change in a stopped node's store.
    fn since(home: &Home, txn: &Txn) {
        let of = home.identity().unwrap().unwrap();
        let machine = succession::look(&home.at("conf")).unwrap().machine;
        let mut all = Txn::new("root@pam");
        for (path, entry) in machine.tree().list("") {
            all = all.put(path, entry.data.clone());
        }
        all.ops.extend(txn.ops.clone());
        let machine = Machine::found(of.raft_id.0, &all, 0).unwrap();
        std::fs::remove_dir_all(home.at("conf")).unwrap();
        drop(Store::create(&home.at("conf"), of.raft_id.0, &machine).unwrap());
    }

    #[tokio::test]
    async fn who_has_joined_since_the_backup_is_off_too() {
        let (dir, home) = node(&["n1", "n2"]);
        let file = file(dir.path(), &backup(&home));
        // One is new, another came again as another machine, at an address where somebody is.
        let there = tokio::net::TcpListener::bind("127.0.7.8:0").await.unwrap();
        let (new, mut again) = (record("n3", 3), record("n2", 7));
        again.addr = there.local_addr().unwrap();
        let mut txn = Txn::new("x");
        for (n, node) in [("n3", &new), ("n2", &again)] {
            txn = txn.put(format!("stead/nodes/{n}"), serde_json::to_vec(node).unwrap());
        }
        since(&home, &txn);
        let off = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect::<Vec<NodeName>>();
        let mut asked = Restore { off: off(&["n2"]), force: true, ..asked(file) };
        let unsaid = done(&home.0, &asked).await.unwrap_err();
        assert!(format!("{unsaid:#}").contains("nobody has said so of n3"), "{unsaid:#}");
        asked.off = off(&["n2", "n3"]);
        let on = done(&home.0, &asked).await.unwrap_err();
        assert!(format!("{on:#}").contains("node 'n2' is not off: a machine answers at 127.0.7.8"), "{on:#}");
        drop(there);
        done(&home.0, &asked).await.unwrap();
        // A store that can't be read tells nothing.
        std::fs::write(home.at("conf/conf.redb"), b"damaged").unwrap();
        let unknown = done(&home.0, &asked).await.unwrap_err();
        assert!(format!("{unknown:#}").contains("--unknown-off"), "{unknown:#}");
        asked.off = off(&["n2"]);
        asked.unknown_off = true;
        done(&home.0, &asked).await.unwrap();
    }

    #[tokio::test]
    async fn a_node_of_another_cluster_is_taken_by_word_alone_and_its_keys_are_kept() {
        let (dir, home) = node(&["n1"]);
        let file = file(dir.path(), &backup(&home));
        let mut keys = home.keys().unwrap();
        keys.cluster_key = key_text(&[8; 32]);
        home.save_keys(&keys).unwrap();
        let of = home.identity().unwrap().unwrap();
        let mut asked = Restore { force: true, off: vec![of.name.clone()], ..asked(file) };
        let refused = done(&home.0, &asked).await.unwrap_err();
        assert!(format!("{refused:#}").contains("--as n1"), "{refused:#}");
        assert!(home.keys().unwrap() == keys && home.identity().unwrap().unwrap() == of);
        asked.name = Some(of.name.clone());
        done(&home.0, &asked).await.unwrap();
        let kept: Keys = home.read_json("conf.replaced-2/keys.json").unwrap().unwrap();
        assert!(kept == keys, "the only copy of the node's key is gone");
        assert_eq!(home.read_json("conf.replaced-2/node.json").unwrap(), Some(of));
    }

    #[tokio::test]
    async fn who_ends_a_restore_that_was_cut_off_knocks_again() {
        let (_dir, home) = node(&["n1", "n2"]);
        let of = home.identity().unwrap();
        let there = tokio::net::TcpListener::bind("127.0.7.9:0").await.unwrap();
        let (me, mut other) = (record("n1", 1), record("n2", 2));
        other.addr = there.local_addr().unwrap();
        let off = others::doors(&[other], of.as_ref(), &me);
        prepare(&home, backup(&home), of.as_ref(), &me, off).unwrap();
        let on = knock(&home).await.unwrap_err();
        assert!(format!("{on:#}").contains("node 'n2' is not off"), "{on:#}");
        drop(there);
        knock(&home).await.unwrap();
    }

    #[tokio::test]
    async fn a_damaged_backup_changes_nothing() {
        let (dir, home) = node(&["n1"]);
        let before = std::fs::read(home.at("conf/conf.redb")).unwrap();
        let mut data = backup(&home).encode().unwrap();
        let middle = data.len() / 2;
        data[middle] ^= 1;
        let file = dir.path().join("backup");
        std::fs::write(&file, data).unwrap();
        let refused = done(&home.0, &Restore { force: true, ..asked(file) }).await.unwrap_err();
        assert!(format!("{refused:#}").contains("checksum"), "{refused:#}");
        assert_eq!(std::fs::read(home.at("conf/conf.redb")).unwrap(), before);
        // One whose records make no sense is whole, and no store.
        let key = ClusterKey::from([9; 32]);
        let txn = Txn::new("x").put(paths::CLUSTER, "no record");
        let odd = Backup::of(Machine::found(1, &txn, 0).unwrap(), key, "n1", Era::FIRST, 5);
        assert!(prepare(&home, odd, None, &record("n1", 1), vec![]).is_err());
        assert!(!home.at(PLAN).exists() && !home.at("conf.replaced-2").exists());
        assert_eq!(std::fs::read(home.at("conf/conf.redb")).unwrap(), before);
    }

    #[test]
    fn whoever_is_killed_leaves_the_old_store_or_the_new_one() {
        // Before it counts.
        let (_dir, home) = node(&["n1"]);
        let before = std::fs::read(home.at("conf/conf.redb")).unwrap();
        let old = home.identity().unwrap();
        std::fs::create_dir(home.at(NEXT)).unwrap();
        std::fs::write(home.at(NEXT).join("conf.redb.new"), b"half").unwrap();
        carry_out(&home).unwrap();
        assert_eq!(
            (home.identity().unwrap(), std::fs::read(home.at("conf/conf.redb")).unwrap()),
            (old, before)
        );
        // And after it does, with what was left before in the way.
        for steps in 0..=STEPS.len() {
            for again in 0..=steps {
                let (_dir, home) = node(&["n1"]);
                let before = std::fs::read(home.at("conf/conf.redb")).unwrap();
                std::fs::create_dir(home.at(NEXT)).unwrap();
                std::fs::write(home.at(NEXT).join("conf.redb.new"), b"half").unwrap();
                let of = home.identity().unwrap();
                prepare(&home, backup(&home), of.as_ref(), &record("n1", 1), vec![]).unwrap();
                let pending = home.read_json::<Pending>(PLAN).unwrap().unwrap();
                // Killed, begun again, and killed again.
                for n in [steps, again] {
                    for step in STEPS.iter().take(n) {
                        step(&home, &pending).unwrap();
                    }
                    // As every start makes the folders.
                    Home::open(&home.0).unwrap();
                }
                carry_out(&home).unwrap();
                has_begun(&home, Some(&before));
                assert_eq!(home.read_json("conf.replaced-2/node.json").unwrap(), of, "who it was");
                carry_out(&home).unwrap();
                has_begun(&home, Some(&before));
            }
        }
    }
}
