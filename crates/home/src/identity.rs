//! Who this node is, as kept in its folder: `node.json`, and the secrets in `tls/`.
//!
//! Written once, whole (a temporary file, renamed); a node that lost its folder is another node.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use stead_conf::ClusterKey;
use stead_model::{BootId, Era, NodeName, NodeUuid, RaftId, Vmid};

/// Guests that came along with a join and are not in the configuration yet.
const CARRIED: &str = "carried.json";

/// `node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Format.
    pub version: u32,
    /// Its name.
    pub name: NodeName,
    /// Its identity.
    pub uuid: NodeUuid,
    /// Its number in Raft.
    pub raft_id: RaftId,
    /// The cluster epoch.
    #[serde(default)]
    pub era: Era,
}

/// The node's secrets, in PEM, and the cluster's key, in hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// The cluster CA's certificate.
    pub ca: String,
    /// This node's certificate.
    pub cert: String,
    /// Its key; never leaves the node.
    pub key: String,
    /// The key that seals secrets in the configuration.
    pub cluster_key: String,
}

/// The cluster's key from its text.
pub fn cluster_key(text: &str) -> Result<ClusterKey> {
    let bytes =
        (0..text.len() / 2).map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2).unwrap_or("x"), 16));
    let bytes: Vec<u8> =
        bytes.collect::<Result<_, _>>().context("the cluster key in tls/keys.json is damaged")?;
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| anyhow::anyhow!("the cluster key in tls/keys.json has a wrong length"))?;
    Ok(ClusterKey::from(bytes))
}

/// The cluster's key as text.
pub fn key_text(key: &[u8; 32]) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
}

/// What a node that shall join another cluster has agreed with it; carried out at its next start.
#[derive(Clone, Serialize, Deserialize)]
pub struct PendingJoin {
    /// Who it will be.
    pub identity: Identity,
    /// With which keys.
    pub keys: Keys,
    /// The members' addresses, for the first contact.
    pub members: Vec<stead_model::NodeRecord>,
    /// The guests that come along, with their configurations.
    #[serde(default)]
    pub guests: Vec<(Vmid, String)>,
}

/// That this node leaves its cluster; carried out at its next start. Gone when it is a cluster of its own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingLeave {
    /// Who it is in the cluster that it leaves.
    pub of: Identity,
    /// The passwords' hashes that stay with it, as in `shadow.cfg`.
    pub shadow: String,
    /// Where the configuration is kept: chosen when it was agreed, so that a leave that is carried out again after a
    /// crash knows what it has done.
    pub aside: String,
}

/// A node's folder.
#[derive(Debug, Clone)]
pub struct Home(pub PathBuf);

impl Home {
    /// Makes the folder where it is not there; private.
    pub fn open(dir: &Path) -> Result<Self> {
        for sub in ["", "run", "tls", "tasks", "conf"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path)
                .with_context(|| format!("can't make the folder {}", path.display()))?;
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("can't protect the folder {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("can't find the folder {}", dir.display()))?;
        // A unix socket's path has 108 bytes, and the longest below the run folder takes about 40.
        if dir.as_os_str().len() > 60 {
            bail!(
                "the folder's path {} is too long for the sockets below it: choose one of at most 60 bytes",
                dir.display()
            );
        }
        Ok(Self(dir))
    }

    /// A path below it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Keeps other daemons out while it is held: one a folder.
    pub fn lock(&self) -> Result<std::fs::File> {
        let path = self.at("run/lock");
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("can't open {}", path.display()))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("another daemon runs on the folder {}", self.0.display()))?;
        Ok(file)
    }

    /// The identity, if the node has started before.
    pub fn identity(&self) -> Result<Option<Identity>> {
        self.read_json("node.json")
    }

    /// Keeps the identity.
    pub fn save_identity(&self, identity: &Identity) -> Result<()> {
        self.write_json("node.json", identity)
    }

    /// The keys.
    pub fn keys(&self) -> Result<Keys> {
        self.read_json("tls/keys.json")?
            .context("tls/keys.json is missing: this node's keys are lost; join it anew")
    }

    /// Keeps the keys.
    pub fn save_keys(&self, keys: &Keys) -> Result<()> {
        self.write_json("tls/keys.json", keys)
    }

    /// Addresses of members, to be reached before the configuration is here.
    pub fn members(&self) -> Result<Vec<stead_model::NodeRecord>> {
        Ok(self.read_json("members.json")?.unwrap_or_default())
    }

    /// Agrees to a join, carried out at the next start.
    pub fn save_join(&self, join: &PendingJoin) -> Result<()> {
        self.write_json("join.json", join)
    }

    /// Carries out an agreed join: the old configuration is kept aside, never deleted. Every step can be repeated
    /// after a crash, and `join.json` goes last.
    pub fn carry_out_join(&self) -> Result<Option<PendingJoin>> {
        let Some(join) = self.read_json::<PendingJoin>("join.json")? else { return Ok(None) };
        let done =
            self.identity()?.as_ref() == Some(&join.identity) && self.keys().is_ok_and(|k| k == join.keys);
        if !done {
            // A node that joins again has kept an older one aside: every configuration gets a place of its own.
            let asides = (0..).map(|n: u32| match n {
                0 => format!("conf.before-{}", join.identity.uuid),
                n => format!("conf.before-{}.{n}", join.identity.uuid),
            });
            let aside = asides.map(|name| self.at(&name)).find(|path| !path.exists());
            if let Some(aside) = aside.filter(|_| self.at("conf").exists()) {
                std::fs::rename(self.at("conf"), &aside).context("can't keep the old configuration aside")?;
            }
            std::fs::create_dir_all(self.at("conf")).context("can't make the folder of the configuration")?;
            // The old configuration had the guests: from here on they are in this file alone.
            self.write_json(CARRIED, &join.guests)?;
            self.save_keys(&join.keys)?;
            self.write_json("members.json", &join.members)?;
            self.save_identity(&join.identity)?;
        }
        self.forget("join.json")?;
        Ok(Some(join))
    }

    /// The guests that a join brought along and that are not in the configuration yet.
    pub fn carried(&self) -> Result<Vec<(Vmid, String)>> {
        Ok(self.read_json(CARRIED)?.unwrap_or_default())
    }

    /// They are in the configuration.
    pub fn brought(&self) -> Result<()> {
        self.forget(CARRIED)
    }

    /// A place that is free for the configuration of a cluster that this node leaves.
    pub fn aside_for_leaving(&self, of: &NodeUuid) -> String {
        let first = format!("conf.left-{of}");
        let more = (1_u32..).map(|n| format!("{first}.{n}"));
        // An endless row has a free one.
        std::iter::once(first.clone()).chain(more).find(|name| !self.at(name).exists()).unwrap_or(first)
    }

    /// Agrees to leave the cluster, at the next start.
    pub fn save_leave(&self, leave: &PendingLeave) -> Result<()> {
        self.write_json("leave.json", leave)
    }

    /// Forgets the cluster that this node leaves: the configuration is kept aside, never deleted; who the node was,
    /// its keys and the members it knew go. Every step can be repeated after a crash. While this gives something,
    /// a cluster of this one node is to be founded; [`Self::left`] ends it.
    pub fn carry_out_leave(&self) -> Result<Option<PendingLeave>> {
        let Some(leave) = self.read_json::<PendingLeave>("leave.json")? else { return Ok(None) };
        match self.identity()? {
            // Founded already: only the last step was missing.
            Some(now) if now != leave.of => {
                self.left()?;
                return Ok(None);
            }
            Some(_) => {
                let aside = self.at(&leave.aside);
                if !aside.exists() && self.at("conf").exists() {
                    std::fs::rename(self.at("conf"), &aside)
                        .context("can't keep the configuration of the cluster that was left aside")?;
                }
                self.forget("tls/keys.json")?;
                self.forget("members.json")?;
                self.forget(CARRIED)?;
                // Last: it says that the rest is still to be done.
                self.forget("node.json")?;
            }
            None => {}
        }
        Ok(Some(leave))
    }

    /// The cluster was left, and a new one founded.
    pub fn left(&self) -> Result<()> {
        self.forget("leave.json")
    }

    /// Removes a file, on the disk too when it returns. It may be gone already.
    pub fn forget(&self, name: &str) -> Result<()> {
        let path = self.at(name);
        let done = match std::fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| std::fs::File::open(path.parent().unwrap_or(&self.0))?.sync_all()),
        };
        done.with_context(|| format!("can't remove {}", path.display()))
    }

    /// This boot. Kept in the run folder, which does not survive a boot (`/run` on hosts; a test bed empties it),
    /// together with the kernel's boot id, since a run folder on a disk would.
    pub fn boot(&self) -> Result<BootId> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let kernel = kernel.trim();
        let path = self.at("run/boot");
        if let Ok(text) = std::fs::read_to_string(&path)
            && let Some((boot, of)) = text.trim().split_once(' ')
            && of == kernel
        {
            return boot.parse().with_context(|| format!("{} is damaged", path.display()));
        }
        let boot: BootId = uuid::Uuid::new_v4().hyphenated().to_string().parse()?;
        self.write("run/boot", format!("{boot} {kernel}\n").as_bytes())?;
        Ok(boot)
    }

    /// A file of the folder, if it is there; one that can't be read is an error.
    pub fn read_json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>> {
        let path = self.at(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} can't be read", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("can't read {}", path.display())),
        }
    }

    /// Writes a file of the folder: whole or not at all, on the disk when it returns, readable by the owner alone.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.write(name, &serde_json::to_vec_pretty(value)?)
    }

    /// Whole or not at all, on the disk when it returns, readable by the owner alone.
    fn write(&self, name: &str, data: &[u8]) -> Result<()> {
        let (path, temp) = (self.at(name), self.at(&format!("{name}.new")));
        let written = (|| {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temp)?;
            file.write_all(data)?;
            file.sync_all()?;
            std::fs::rename(&temp, &path)?;
            std::fs::File::open(path.parent().unwrap_or(&self.0))?.sync_all()
        })();
        written.with_context(|| format!("can't write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        (dir, home)
    }

    fn join(name: &str) -> PendingJoin {
        let identity = Identity {
            version: 1,
            name: name.parse().unwrap(),
            uuid: "11111111-1111-4111-8111-111111111111".parse().unwrap(),
            raft_id: RaftId(5),
            era: Era::FIRST,
        };
        let keys = Keys { ca: "a".into(), cert: "b".into(), key: "c".into(), cluster_key: "d".into() };
        let guests = vec![(Vmid::new(100).unwrap(), "name: web\n".to_owned())];
        PendingJoin { identity, keys, members: vec![], guests }
    }

    #[test]
    fn a_boot_lasts_until_the_run_folder_is_emptied() {
        let (_dir, home) = home();
        let first = home.boot().unwrap();
        assert_eq!(home.boot().unwrap(), first);
        std::fs::remove_file(home.at("run/boot")).unwrap();
        assert_ne!(home.boot().unwrap(), first);
    }

    #[test]
    fn a_join_that_was_cut_off_is_carried_out_again() {
        let (_dir, home) = home();
        std::fs::write(home.at("conf/store"), b"old").unwrap();
        home.save_join(&join("n2")).unwrap();
        // As after a crash between the rename and the rest.
        std::fs::rename(home.at("conf"), home.at("conf.before-11111111-1111-4111-8111-111111111111"))
            .unwrap();
        assert!(home.carry_out_join().unwrap().is_some());
        assert_eq!(home.identity().unwrap().unwrap().raft_id, RaftId(5));
        assert!(home.at("conf").is_dir() && !home.at("conf/store").exists());
        assert!(home.at("conf.before-11111111-1111-4111-8111-111111111111/store").exists());
        assert!(home.carry_out_join().unwrap().is_none());
    }

    /// Whoever is killed anywhere in between leaves all of the old keys, or all of the new ones.
    #[test]
    fn keys_are_the_old_ones_or_the_new_ones() {
        let (_dir, home) = home();
        let keys = |n: u32| Keys {
            ca: format!("ca {n}"),
            cert: format!("{n}").repeat(2000),
            key: format!("key {n}"),
            cluster_key: String::new(),
        };
        home.save_keys(&keys(1)).unwrap();
        // Cut off before it had its name.
        std::fs::write(home.at("tls/keys.json.new"), b"{\"ca\": \"ca 2\", \"cert\"").unwrap();
        assert!(home.keys().unwrap() == keys(1));
        home.save_keys(&keys(2)).unwrap();
        assert!(home.keys().unwrap() == keys(2));
        // At any moment: what is read is one of the two.
        let writer = std::thread::spawn({
            let home = home.clone();
            move || (0..200).for_each(|n| home.save_keys(&keys(1 + n % 2)).unwrap())
        });
        while !writer.is_finished() {
            let read = home.keys().unwrap();
            assert!(read == keys(1) || read == keys(2));
        }
        writer.join().unwrap();
    }

    #[test]
    fn guests_that_come_along_are_kept_until_they_have_arrived() {
        let (_dir, home) = home();
        let join = join("n2");
        home.save_join(&join).unwrap();
        assert_eq!(home.carried().unwrap(), [], "a join that is not carried out brings nothing");
        home.carry_out_join().unwrap();
        assert_eq!(home.carried().unwrap(), join.guests);
        // A join that is carried out again after a crash has lost nothing.
        home.save_join(&join).unwrap();
        home.carry_out_join().unwrap();
        assert_eq!(home.carried().unwrap(), join.guests);
        home.brought().unwrap();
        home.brought().unwrap();
        assert_eq!(home.carried().unwrap(), []);
        std::fs::write(home.at(CARRIED), "[[100, \"na").unwrap();
        assert!(home.carried().is_err(), "a damaged file is not taken for none");
    }

    const OLD: &str = "11111111-1111-4111-8111-111111111111";

    fn leaving(home: &Home) -> PendingLeave {
        let joined = join("n2");
        std::fs::write(home.at("conf/store"), b"the cluster's").unwrap();
        home.save_keys(&joined.keys).unwrap();
        home.write_json("members.json", &joined.members).unwrap();
        home.save_identity(&joined.identity).unwrap();
        let aside = home.aside_for_leaving(&joined.identity.uuid);
        let leave = PendingLeave { of: joined.identity, shadow: "root@pam:hash:\n".into(), aside };
        home.save_leave(&leave).unwrap();
        leave
    }

    fn is_forgotten(home: &Home) {
        for name in ["node.json", "tls/keys.json", "members.json", "conf/store"] {
            assert!(!home.at(name).exists(), "{name}");
        }
        let aside = std::fs::read(home.at(&format!("conf.left-{OLD}/store"))).unwrap();
        assert_eq!(aside, b"the cluster's");
    }

    #[test]
    fn a_node_that_leaves_forgets_its_cluster_and_keeps_the_configuration_aside() {
        let (_dir, home) = home();
        assert!(home.carry_out_leave().unwrap().is_none());
        let leave = leaving(&home);
        assert!(home.carry_out_leave().unwrap() == Some(leave.clone()));
        is_forgotten(&home);
        // Cut off before the new cluster was founded: the next start is told again.
        assert!(home.carry_out_leave().unwrap() == Some(leave));
        is_forgotten(&home);
    }

    #[test]
    fn a_leave_that_was_cut_off_is_carried_out_again() {
        type Cut = fn(&Home);
        let cuts: [(&str, Cut); 3] = [
            ("moved", |h| std::fs::rename(h.at("conf"), h.at(&format!("conf.left-{OLD}"))).unwrap()),
            ("moved, and the folder made anew by the next start", |h| {
                std::fs::rename(h.at("conf"), h.at(&format!("conf.left-{OLD}"))).unwrap();
                std::fs::create_dir(h.at("conf")).unwrap();
            }),
            ("keys gone", |h| {
                std::fs::rename(h.at("conf"), h.at(&format!("conf.left-{OLD}"))).unwrap();
                h.forget("tls/keys.json").unwrap();
            }),
        ];
        for (at, cut) in cuts {
            let (_dir, home) = home();
            let leave = leaving(&home);
            cut(&home);
            assert!(home.carry_out_leave().unwrap() == Some(leave), "{at}");
            is_forgotten(&home);
        }
    }

    #[test]
    fn a_second_leave_keeps_the_first_one_s_configuration() {
        let (_dir, home) = home();
        leaving(&home);
        home.carry_out_leave().unwrap();
        home.left().unwrap();
        std::fs::create_dir_all(home.at("conf")).unwrap();
        let again = leaving(&home);
        std::fs::write(home.at("conf/store"), b"the second cluster's").unwrap();
        assert!(home.carry_out_leave().unwrap() == Some(again));
        is_forgotten(&home);
        let second = std::fs::read(home.at(&format!("conf.left-{OLD}.1/store"))).unwrap();
        assert_eq!(second, b"the second cluster's");
    }

    #[test]
    fn a_leave_ends_when_the_new_cluster_is_there() {
        let (_dir, home) = home();
        leaving(&home);
        home.carry_out_leave().unwrap();
        let new =
            Identity { uuid: "22222222-2222-4222-8222-222222222222".parse().unwrap(), ..join("n2").identity };
        home.save_identity(&new).unwrap();
        home.save_keys(&join("n2").keys).unwrap();
        assert!(home.carry_out_leave().unwrap().is_none(), "only leave.json was left over");
        assert!(!home.at("leave.json").exists());
        assert_eq!(home.identity().unwrap(), Some(new));
        assert!(home.keys().is_ok(), "the new keys stay");
    }
}
