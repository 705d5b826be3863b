//! What is shown of storages, and files that users bring.

use crate::{Actor, Ops, OpsError, store};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use stead_driver::storage::Space;
use stead_driver::storage::is_plain_name;
pub use stead_driver::storage::{Content, NewVolume, VolumeInfo};
use stead_model::storage_cfg::Storage;
use stead_model::{NodeName, StorageId, Upid, VolumeId};

/// How long a storage may take to say how full it is, before it is shown as not usable.
const PATIENCE: Duration = Duration::from_secs(3);

/// Options that are never shown.
const SECRET: [&str; 3] = ["password", "encryption-key", "keyring"];

/// Which storages of a node are asked about.
#[derive(Debug, Clone, Default)]
pub struct StorageFilter {
    /// This one alone.
    pub storage: Option<StorageId>,
    /// Those that may hold one of these.
    pub content: Vec<String>,
    /// Those switched on.
    pub enabled: bool,
    /// Those that this node has too, and sees the same in: with another node the shared ones.
    pub target: Option<NodeName>,
    /// Say which formats there are.
    pub format: bool,
}

/// A checksum that an upload must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// `sha224`, `sha256`, `sha384` or `sha512`.
    pub algorithm: String,
    /// In hexadecimal.
    pub value: String,
}

fn config(s: &Storage) -> Map<String, Value> {
    let mut o = Map::new();
    o.insert("storage".into(), json!(s.id));
    o.insert("type".into(), json!(s.kind));
    for (key, value) in s.options.iter().filter(|(k, _)| !SECRET.contains(&k.as_str())) {
        o.insert(key.clone(), json!(value));
    }
    let content: Vec<&str> = s.content.iter().map(String::as_str).collect();
    o.insert("content".into(), json!(content.join(",")));
    o.insert("shared".into(), json!(s.shared));
    o.insert("disable".into(), json!(s.disable));
    o
}

/// Whether a guest that goes from one node to the other finds there what it has here.
fn reaches(s: &Storage, here: &NodeName, there: &NodeName) -> bool {
    s.is_enabled_on(there) && (s.shared || here == there)
}

/// Whether the actor may see a storage at all.
fn visible(actor: &Actor, id: &StorageId) -> bool {
    let path = format!("/storage/{id}");
    ["Datastore.Audit", "Datastore.AllocateSpace", "Datastore.Allocate"].iter().any(|p| actor.may(&path, p))
}

impl Ops {
    /// `/storage`: the configured storages that the actor may see.
    pub fn storage_list(&self, actor: &Actor, kind: Option<&str>) -> Result<Vec<Value>, OpsError> {
        let digest = self.storage_digest()?;
        let seen = self
            .storages()?
            .into_iter()
            .filter(|s| visible(actor, &s.id) && kind.is_none_or(|k| s.kind == k));
        let with_digest = |s: Storage| {
            let mut o = config(&s);
            o.insert("digest".into(), json!(digest));
            Value::Object(o)
        };
        Ok(seen.map(with_digest).collect())
    }

    /// `/storage/{storage}`.
    pub fn storage_config(&self, id: &StorageId) -> Result<Value, OpsError> {
        let mut o = config(&self.storage(id)?);
        o.insert("digest".into(), json!(self.storage_digest()?));
        Ok(Value::Object(o))
    }

    async fn space_of(&self, id: &StorageId) -> Option<Space> {
        let ask = async { self.active(id).await.ok()?.space().await.ok() };
        tokio::time::timeout(PATIENCE, ask).await.ok().flatten()
    }

    async fn storage_state(&self, s: &Storage, format: bool) -> Value {
        let enabled = self.uses(s);
        let space = if enabled { self.space_of(&s.id).await } else { None };
        let mut o = Map::new();
        let content: Vec<&str> = s.content.iter().map(String::as_str).collect();
        let known = space.unwrap_or_default();
        let fields = json!({
            "storage": s.id, "type": s.kind, "content": content.join(","), "shared": s.shared,
            "enabled": enabled, "active": space.is_some(),
            "total": known.total, "used": known.used, "avail": known.avail,
        });
        if let Value::Object(fields) = fields {
            o.extend(fields);
        }
        if known.total > 0 {
            o.insert("used_fraction".into(), json!(known.used as f64 / known.total as f64));
        }
        if format {
            o.insert("formats".into(), json!({"default": "raw", "supported": ["raw", "qcow2"]}));
        }
        Value::Object(o)
    }

    /// `/nodes/{node}/storage` of this node. One that does not answer holds the others up for no more than 3 s.
    pub async fn node_storages(&self, actor: &Actor, filter: &StorageFilter) -> Result<Vec<Value>, OpsError> {
        let wanted = |s: &Storage| {
            visible(actor, &s.id)
                && s.nodes.as_ref().is_none_or(|n| n.contains(&self.me.name))
                && filter.storage.as_ref().is_none_or(|id| *id == s.id)
                && (filter.content.is_empty() || filter.content.iter().any(|c| s.holds(c)))
                && (!filter.enabled || self.uses(s))
                && filter.target.as_ref().is_none_or(|t| reaches(s, &self.me.name, t))
        };
        let all: Vec<Storage> = self.storages()?.into_iter().filter(wanted).collect();
        let states = all.iter().map(|s| self.storage_state(s, filter.format));
        Ok(futures_util::future::join_all(states).await)
    }

    /// `/nodes/{node}/storage/{storage}/status` of this node.
    pub async fn node_storage(&self, id: &StorageId) -> Result<Value, OpsError> {
        let s = self.storage(id)?;
        if s.nodes.as_ref().is_some_and(|n| !n.contains(&self.me.name)) {
            return Err(OpsError::failed(format!(
                "storage '{id}' is not available on node '{}'",
                self.me.name
            )));
        }
        Ok(self.storage_state(&s, false).await)
    }

    /// A volume's place and size.
    pub async fn volume_details(&self, volume: &VolumeId) -> Result<Value, OpsError> {
        let info = self.volume_info(volume).await?;
        let resolved = self.resolve_volume(volume).await?;
        Ok(json!({"path": resolved.path, "size": info.size, "used": info.used, "format": info.format}))
    }

    /// A place to spool an upload in, on the storage's own file system.
    pub async fn spool(&self, storage: &StorageId) -> Result<PathBuf, OpsError> {
        Ok(self.active(storage).await?.spool().await?)
    }

    /// Makes a file that has arrived a volume, as a task; checks it first if asked to.
    pub fn adopt_upload(
        self: &Arc<Self>,
        actor: &Actor,
        storage: &StorageId,
        content: Content,
        name: &str,
        spooled: PathBuf,
        checksum: Option<Checksum>,
    ) -> Result<Upid, OpsError> {
        if let Err(e) = self.check_content(storage, content) {
            // Nobody else knows of the file. What is left over is removed at the storage's next start, too.
            let _ = std::fs::remove_file(&spooled);
            return Err(e);
        }
        let (ops, storage, name) = (self.clone(), storage.clone(), name.to_owned());
        self.task("imgcopy", "", &actor.who, move |cx| async move {
            let done = ops.adopt_now(&storage, content, &name, &spooled, checksum).await;
            if done.is_err() {
                // What is left over is removed at the storage's next start, too.
                let _ = tokio::fs::remove_file(&spooled).await;
            }
            cx.log(format!("new volume '{}'", done?.volid));
            Ok(())
        })
    }

    /// Refuses a file that a user brings, by what is known before it has arrived; `content` may not be known yet.
    pub fn check_upload(
        &self,
        storage: &StorageId,
        content: Option<Content>,
        name: &str,
    ) -> Result<(), OpsError> {
        const ALL: [Content; 3] = [Content::Iso, Content::Vztmpl, Content::Import];
        if !is_plain_name(name) {
            return Err(OpsError::invalid(
                "filename",
                "the name must be a plain file name: without '/', '\\' and ':', and no dot at its beginning",
            ));
        }
        let (asked, one);
        match content {
            Some(c) if ALL.contains(&c) => {
                self.check_content(storage, c)?;
                one = [c];
                asked = one.as_slice();
            }
            Some(_) => {
                return Err(OpsError::invalid("content", "only iso, vztmpl and import can be uploaded"));
            }
            None => asked = &ALL,
        }
        if asked.iter().any(|c| c.suffix_of(name).is_some()) {
            return Ok(());
        }
        let fit: Vec<_> = asked.iter().flat_map(|c| c.brought()).map(|s| format!(".{s}")).collect();
        Err(OpsError::invalid("filename", format!("the name must end in one of {}", fit.join(", "))))
    }

    fn check_content(&self, storage: &StorageId, content: Content) -> Result<(), OpsError> {
        let word = serde_json::to_value(content)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        if self.storage(storage)?.holds(&word) {
            return Ok(());
        }
        Err(OpsError::failed(format!("storage '{storage}' does not support content-type '{word}'")))
    }

    async fn adopt_now(
        &self,
        storage: &StorageId,
        content: Content,
        name: &str,
        spooled: &Path,
        checksum: Option<Checksum>,
    ) -> Result<VolumeInfo, OpsError> {
        if let Some(wanted) = checksum {
            let path = spooled.to_owned();
            let sum = tokio::task::spawn_blocking(move || sum_of(&path, &wanted)).await;
            sum.map_err(|e| OpsError::failed(format!("the checksum was not calculated: {e}")))??;
        }
        Ok(self.active(storage).await?.adopt_file(spooled.to_owned(), content, name).await?)
    }

    /// Refuses a change of a VM that is built on another version of its configuration.
    pub fn check_vm_digest(&self, vmid: stead_model::Vmid, seen: Option<&str>) -> Result<(), OpsError> {
        let guest = self.conf.view(|t| store::guest(t, vmid))?;
        crate::guest::config::check_digest(seen, &crate::guest::config::parse(&guest.config.value)?)
    }
}

fn sum_of(path: &Path, wanted: &Checksum) -> Result<(), OpsError> {
    fn hash<D: Digest + std::io::Write>(path: &Path) -> std::io::Result<String> {
        let mut hasher = D::new();
        std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
        Ok(hasher.finalize().iter().fold(String::new(), |mut t, b| {
            // Writing to a string cannot fail.
            let _ = write!(t, "{b:02x}");
            t
        }))
    }
    let sum = match wanted.algorithm.as_str() {
        "sha224" => hash::<Sha224>(path),
        "sha256" => hash::<Sha256>(path),
        "sha384" => hash::<Sha384>(path),
        "sha512" => hash::<Sha512>(path),
        other => return Err(OpsError::invalid("checksum-algorithm", format!("'{other}' is not supported"))),
    };
    let sum = sum.map_err(|e| OpsError::failed(format!("the upload could not be read: {e}")))?;
    if sum == wanted.value.to_ascii_lowercase() {
        Ok(())
    } else {
        Err(OpsError::failed(format!("checksum mismatch: got '{sum}' != expect '{}'", wanted.value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::storage_cfg::StorageCfg;

    #[test]
    fn to_another_node_shared_storages_alone_reach() {
        let text = "dir: local\n\tpath local\n\ndir: shared\n\tpath /s\n\tshared 1\n\tnodes n1,n2\n";
        let all = StorageCfg::parse(text).unwrap().list().0;
        let node = |name: &str| name.parse::<NodeName>().unwrap();
        let seen = |to: &str| {
            let found = all.iter().filter(|s| reaches(s, &node("n1"), &node(to)));
            found.map(|s| s.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(seen("n1"), ["local", "shared"]);
        assert_eq!(seen("n2"), ["shared"]);
        assert!(seen("n3").is_empty());
    }
}
