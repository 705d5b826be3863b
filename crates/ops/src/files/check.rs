//! Whether a file that Stead reads can be read, by the parser that reads it, and whether what it says may be said.
//!
//! What was wrong in the file before, and is untouched, does not stand in the way of a change of the rest.

use super::{FileFault, Why};
use crate::Ops;
use crate::storage_place::{self, naming};
use std::collections::BTreeSet;
use std::time::Duration;
use stead_access::{AuthError, ShadowStore, TokenStore};
use stead_conf::Revision;
use stead_model::cpu_models::CpuModels;
use stead_model::datacenter::Datacenter;
use stead_model::fence_cfg::{FenceCfg, FenceSecrets};
use stead_model::ha_cfg::{HaResources, HaRules};
use stead_model::mapping::{MappingKind, Mappings};
use stead_model::storage_cfg::{Storage, StorageCfg};
use stead_model::text::FormatError;
use stead_model::user_cfg::UserCfg;
use stead_model::{ServiceId, ha_groups, paths};

/// How long a storage may take to show that it is there.
const STORAGE: Duration = Duration::from_secs(5);

/// The files that Stead reads, guests' configurations aside.
const KNOWN: &[&str] = &[
    paths::STORAGE_CFG,
    paths::USER_CFG,
    paths::DATACENTER_CFG,
    paths::HA_RESOURCES,
    paths::HA_RULES,
    paths::HA_GROUPS,
    paths::FENCE_CFG,
    paths::FENCE_SECRETS,
    paths::MAPPING_PCI,
    paths::MAPPING_USB,
    paths::MAPPING_DIR,
    paths::CPU_MODELS,
    paths::TOKEN_CFG,
    paths::SHADOW_CFG,
];

/// Whether Stead reads a file.
pub fn is_known(path: &str) -> bool {
    KNOWN.contains(&path)
}

/// The line of a text, from 1, that sets an option or opens a section of that name.
pub fn line_of(text: &str, name: &str) -> Option<usize> {
    let says = |line: &str| {
        let line = line.trim();
        let (word, rest) = line.split_at(line.find([':', ' ', '\t']).unwrap_or(line.len()));
        word == name || rest.trim_start_matches([':', ' ', '\t']) == name
    };
    text.lines().position(says).map(|at| at + 1)
}

struct Reader<'a> {
    path: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    #[expect(clippy::needless_pass_by_value, reason = "errors come by value")]
    fn fault(&self, line: Option<usize>, reason: impl ToString) -> FileFault {
        FileFault { why: Why::Invalid, path: self.path.to_owned(), line, reason: reason.to_string() }
    }

    fn read<T>(&self, read: Result<T, FormatError>) -> Result<T, FileFault> {
        read.map_err(|e| self.fault(Some(e.line), e.reason))
    }

    /// Of what is wrong, the first that was not wrong before.
    fn news<E: ToString>(&self, before: &[(String, E)], now: &[(String, E)]) -> Result<(), FileFault> {
        let known: BTreeSet<String> =
            before.iter().map(|(id, e)| format!("{id} {}", e.to_string())).collect();
        match now.iter().find(|(id, e)| !known.contains(&format!("{id} {}", e.to_string()))) {
            None => Ok(()),
            Some((id, e)) => {
                let name = id.rsplit(':').next().unwrap_or(id);
                Err(self.fault(line_of(self.text, name), format!("'{id}': {}", e.to_string())))
            }
        }
    }

    fn secret<T>(&self, read: Result<T, AuthError>) -> Result<T, FileFault> {
        read.map_err(|e| match e {
            AuthError::Store { line, why, .. } => self.fault(Some(line), why),
            other => self.fault(None, other),
        })
    }
}

/// Whether a file can be read. What the cluster has may still speak against what it says.
///
/// # Errors
/// The first line that is wrong, and why.
pub fn check(path: &str, before: &str, data: &[u8]) -> Result<(), FileFault> {
    if !is_known(path) {
        return Ok(());
    }
    let text = std::str::from_utf8(data).map_err(|e| {
        let line = data[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        let reason = "it is not UTF-8 text".to_owned();
        FileFault { why: Why::Invalid, path: path.to_owned(), line: Some(line), reason }
    })?;
    let it = Reader { path, text };
    match path {
        paths::STORAGE_CFG => {
            let now = it.read(StorageCfg::parse(text))?.list().1;
            it.news(&StorageCfg::parse(before).map(|c| c.list().1).unwrap_or_default(), &now)
        }
        paths::USER_CFG => it.read(UserCfg::parse(text)).map(drop),
        paths::DATACENTER_CFG => {
            let now = it.read(Datacenter::parse(text))?;
            let old = Datacenter::parse(before).unwrap_or_default();
            let changed = now.settings.iter().filter(|(k, v)| old.settings.get(k) != Some(*v));
            for (key, value) in changed {
                let checked = Datacenter::default().set(key, value);
                checked.map_err(|e| it.fault(line_of(text, key), e))?;
            }
            Ok(())
        }
        paths::HA_RESOURCES => {
            let now = it.read(HaResources::parse(text))?.list().1;
            it.news(&HaResources::parse(before).map(|c| c.list().1).unwrap_or_default(), &now)
        }
        paths::HA_RULES => {
            let now = it.read(HaRules::parse(text))?.list().1;
            it.news(&HaRules::parse(before).map(|c| c.list().1).unwrap_or_default(), &now)
        }
        paths::HA_GROUPS => {
            let now = it.read(ha_groups::parse(text))?.1;
            it.news(&ha_groups::parse(before).map(|c| c.1).unwrap_or_default(), &now)
        }
        paths::FENCE_CFG => it.read(FenceCfg::parse(text)).map(drop),
        paths::FENCE_SECRETS => it.read(FenceSecrets::parse(text)).map(drop),
        paths::MAPPING_PCI => it.read(Mappings::parse(MappingKind::Pci, text)).map(drop),
        paths::MAPPING_USB => it.read(Mappings::parse(MappingKind::Usb, text)).map(drop),
        paths::MAPPING_DIR => it.read(Mappings::parse(MappingKind::Dir, text)).map(drop),
        paths::CPU_MODELS => it.read(CpuModels::parse(text)).map(drop),
        paths::TOKEN_CFG => it.secret(TokenStore::parse(text)).map(drop),
        paths::SHADOW_CFG => it.secret(ShadowStore::parse(text)).map(drop),
        _ => Ok(()),
    }
}

/// The HA resources that one text has and another has not.
pub(super) fn left_out(before: &str, now: &str) -> Vec<ServiceId> {
    let read = |text: &str| HaResources::parse(text).map(|c| c.list().0).unwrap_or_default();
    let now = read(now);
    read(before).into_keys().filter(|sid| !now.contains_key(sid)).collect()
}

impl Ops {
    /// Refuses a content that cannot be read, or that takes away what is in use.
    pub(super) async fn check_file(
        &self,
        path: &str,
        over: Option<Revision>,
        data: &[u8],
    ) -> Result<(), FileFault> {
        if !is_known(path) {
            return Ok(());
        }
        let before = if over.is_some() { self.file_before(path)? } else { String::new() };
        check(path, &before, data)?;
        let text = String::from_utf8_lossy(data);
        match path {
            paths::STORAGE_CFG => self.check_storages(&before, &text).await,
            paths::HA_RESOURCES => self.check_resources(&before, &text),
            paths::HA_RULES => self.check_rules(&before, &text),
            _ => Ok(()),
        }
    }

    /// Storages that guests use stay; those that are new or changed can be opened, as the API has it.
    async fn check_storages(&self, before: &str, text: &str) -> Result<(), FileFault> {
        let it = Reader { path: paths::STORAGE_CFG, text };
        let read = |text: &str| StorageCfg::parse(text).map(|c| c.list().0).unwrap_or_default();
        self.check_in_use(before, text)?;
        let (old, new): (Vec<Storage>, Vec<Storage>) = (read(before), read(text));
        for storage in new.iter().filter(|n| !old.contains(n)) {
            let line = line_of(text, storage.id.as_str());
            let fault = |e: crate::OpsError| it.fault(line, e);
            let driver = self.open_storage(storage).map_err(fault)?;
            if self.uses(storage) {
                let there = tokio::time::timeout(STORAGE, driver.activate()).await;
                let late = || it.fault(line, format!("storage '{}' does not answer", storage.id));
                there.map_err(|_| late())?.map_err(|e| fault(naming(e.into(), storage)))?;
            }
        }
        Ok(())
    }

    /// A storage that a guest's configuration names stays where it is: volumes of its would be others by the same names, or be lost.
    fn check_in_use(&self, before: &str, text: &str) -> Result<(), FileFault> {
        let read = |text: &str| StorageCfg::parse(text).unwrap_or_default();
        let (old, new) = (read(before), read(text));
        for (id, differs) in old.displaced(&new) {
            // No volume is named by what is no storage's name.
            let Ok(id) = id.parse() else { continue };
            let users = self.conf.view(|t| storage_place::users_of(t, &id));
            let Some(vmid) = users.first() else { continue };
            let reason = match differs {
                None => format!("storage '{id}' is used by VM {vmid}, and can't be left out"),
                Some(key) => format!(
                    "{key}: storage '{id}' is used by VM {vmid}, and can't be another by the same name: move the disks, or take them out, first"
                ),
            };
            let line = differs.and_then(|_| line_of(text, id.as_str()));
            return Err(FileFault { why: Why::Busy, path: paths::STORAGE_CFG.to_owned(), line, reason });
        }
        Ok(())
    }

    /// What comes under HA is there, and every node that may take it has its disks.
    fn check_resources(&self, before: &str, text: &str) -> Result<(), FileFault> {
        let it = Reader { path: paths::HA_RESOURCES, text };
        let read = |text: &str| HaResources::parse(text).map(|c| c.list().0).unwrap_or_default();
        let old = read(before);
        for sid in read(text).into_keys().filter(|sid| !old.contains_key(sid)) {
            let line = line_of(text, &sid.vmid.to_string());
            self.may_be_resource(sid).map_err(|e| it.fault(line, e))?;
        }
        Ok(())
    }

    /// Rules bring no conflict that was not there.
    fn check_rules(&self, before: &str, text: &str) -> Result<(), FileFault> {
        let it = Reader { path: paths::HA_RULES, text };
        let read = |text: &str| HaRules::parse(text).unwrap_or_default();
        self.bring_no_conflict(&read(before), &read(text)).map_err(|e| it.fault(None, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &str, before: &str, text: &str) -> String {
        check(path, before, text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_line() {
        let good = "dir: local\n\tpath /var/lib/vz\n\tcontent images\n";
        assert_eq!(check("storage.cfg", "", good.as_bytes()), Ok(()));
        let broken = refused("storage.cfg", good, &format!("{good}\nwhat is this\n"));
        assert!(broken.starts_with("storage.cfg: line 5: "), "{broken}");
        let wrong = refused("storage.cfg", good, "dir: local\n\tpath /x\n\tshared perhaps\n");
        assert!(wrong.starts_with("storage.cfg: line 1: 'local': "), "{wrong}");
        let key = refused("datacenter.cfg", "", "#words\nmac_prefix: zz\n");
        assert!(key.starts_with("datacenter.cfg: line 2: "), "{key}");
        let bytes = check("user.cfg", "", b"user:a@pam:1:0:\n\xff\n").unwrap_err();
        assert_eq!((bytes.why, bytes.line), (Why::Invalid, Some(2)));
    }

    #[test]
    fn what_was_wrong_before_does_not_stand_in_the_way() {
        let wrong = "dir: old\n\tpath /x\n\tshared perhaps\n";
        let more = format!("{wrong}\ndir: new\n\tpath /y\n");
        assert_eq!(check("storage.cfg", wrong, more.as_bytes()), Ok(()));
        assert!(check("storage.cfg", "", more.as_bytes()).is_err());
    }

    #[test]
    fn a_private_file_s_content_is_in_no_reason() {
        for path in ["priv/shadow.cfg", "priv/token.cfg", "priv/fence.cfg"] {
            let said = refused(path, "", "geheim geheim geheim\n");
            assert!(said.contains("line 1") && !said.contains("geheim"), "{said}");
        }
    }

    #[test]
    fn any_other_file_holds_anything() {
        assert_eq!(check("notes/a", "", &[0, 255, 7]), Ok(()));
    }
}
