//! Who this node is, as kept in its folder: `node.json`, and the secrets in `tls/`.
//!
//! Written once, whole (a temporary file, renamed); a node that lost its folder is another node.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use stead_model::{BootId, NodeName, NodeUuid, RaftId};

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

/// What a node that shall join another cluster has agreed with it; carried out at its next start.
#[derive(Clone, Serialize, Deserialize)]
pub struct PendingJoin {
    /// Who it will be.
    pub identity: Identity,
    /// With which keys.
    pub keys: Keys,
    /// The members' addresses, for the first contact.
    pub members: Vec<stead_model::NodeRecord>,
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
        if self.identity()?.as_ref() != Some(&join.identity) {
            let aside = self.at(&format!("conf.before-{}", join.identity.uuid));
            if !aside.exists() && self.at("conf").exists() {
                std::fs::rename(self.at("conf"), &aside).context("can't keep the old configuration aside")?;
            }
            std::fs::create_dir_all(self.at("conf")).context("can't make the folder of the configuration")?;
            self.save_keys(&join.keys)?;
            self.write_json("members.json", &join.members)?;
            self.save_identity(&join.identity)?;
        }
        std::fs::remove_file(self.at("join.json")).context("can't remove join.json")?;
        Ok(Some(join))
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

    fn read_json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>> {
        let path = self.at(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} can't be read", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("can't read {}", path.display())),
        }
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
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
        };
        let keys = Keys { ca: "a".into(), cert: "b".into(), key: "c".into(), cluster_key: "d".into() };
        PendingJoin { identity, keys, members: vec![] }
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
}
