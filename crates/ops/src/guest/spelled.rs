//! A configuration as a driver knows it: names that mean something to the cluster alone are spelled out.
//!
//! What is stored keeps the names. What they mean is found on the node where the VM starts, each time that it does.

use crate::{Ops, OpsError};
use stead_driver::guest::GuestProcess;
use stead_model::vmconfig::host::{HostPci, as_hostpci, as_usb};
use stead_model::vmconfig::shares::as_virtiofs;
use stead_model::vmconfig::{PciSource, Settings, UsbSource, Virtiofs};
use stead_model::{MappingEntry, MappingKind, NodeName, VmConfig, Vmid};

/// A device or directory of the host that a VM has under a name of the cluster's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// The option.
    pub key: String,
    /// What is mapped.
    pub kind: MappingKind,
    /// The name.
    pub id: String,
}

/// Options whose devices have names of the cluster's.
pub(crate) fn mapped(settings: &Settings) -> Result<Vec<Mapped>, OpsError> {
    let usb = settings.usbs()?.into_iter().filter_map(|usb| match usb.source {
        UsbSource::Mapping(id) => Some(Mapped { key: usb.key, kind: MappingKind::Usb, id }),
        _ => None,
    });
    let pci = settings.hostpcis()?.into_iter().filter_map(|pci| match pci.source {
        PciSource::Mapping(id) => Some(Mapped { key: pci.key, kind: MappingKind::Pci, id }),
        PciSource::Host(_) => None,
    });
    let share = |share: Virtiofs| Mapped { key: share.key, kind: MappingKind::Dir, id: share.dirid };
    Ok(usb.chain(pci).chain(settings.virtiofs()?.into_iter().map(share)).collect())
}

/// Whether an option's value may name what the cluster calls so.
pub(crate) fn takes_names(key: &str) -> bool {
    as_usb(key).is_some() || as_hostpci(key).is_some() || as_virtiofs(key).is_some()
}

/// Options whose devices are named as this host knows them, and memory that its programs see: none of it is anywhere else.
pub(crate) fn of_this_host(settings: &Settings) -> Result<Vec<String>, OpsError> {
    let usb = settings.usbs()?.into_iter().filter_map(|usb| match usb.source {
        UsbSource::Id(..) | UsbSource::Port(..) => Some(usb.key),
        UsbSource::Mapping(_) | UsbSource::Spice => None,
    });
    let pci = settings.hostpcis()?.into_iter().filter_map(|pci| match pci.source {
        PciSource::Host(_) => Some(pci.key),
        PciSource::Mapping(_) => None,
    });
    Ok(usb.chain(pci).collect())
}

/// How a configuration names an entry of a mapping.
fn place(entry: MappingEntry) -> String {
    entry.path.or(entry.id).unwrap_or_default()
}

impl Ops {
    /// Spells out every name in a configuration. Options whose names mean nothing here are left out, and named with the reason.
    /// `keeps_cpu`: of a VM that runs, whose CPU stays what it is.
    pub(super) async fn spell_out(&self, settings: &mut Settings, keeps_cpu: bool) -> Vec<OpsError> {
        let mut failed = vec![];
        if !keeps_cpu && let Err(e) = self.spell_out_cpu(settings) {
            settings.remove("cpu");
            failed.push(e);
        }
        let mapped = match mapped(settings) {
            Ok(mapped) => mapped,
            Err(e) => {
                failed.push(e);
                return failed;
            }
        };
        for one in mapped {
            if let Err(e) = self.spell_out_one(settings, &one).await {
                settings.remove(&one.key);
                failed.push(match e {
                    e @ OpsError::Invalid { .. } => e,
                    other => OpsError::invalid(one.key, other.to_string()),
                });
            }
        }
        failed
    }

    async fn spell_out_one(&self, settings: &mut Settings, one: &Mapped) -> Result<(), OpsError> {
        if one.kind == MappingKind::Pci && self.mapping(one.kind, &one.id)?.mdev {
            let whole = |pci: &HostPci| pci.key == one.key && pci.mdev.is_none();
            if settings.hostpcis()?.iter().any(whole) {
                let why = format!("'{}' is given away in parts: say which (mdev=TYPE)", one.id);
                return Err(OpsError::invalid(one.key.clone(), why));
            }
        }
        let found = self.mapped_here(one.kind, &one.id).await?;
        let places: Vec<String> = found.into_iter().map(place).collect();
        match (one.kind, places.first()) {
            (MappingKind::Dir, Some(path)) => settings.spell_out_path(&one.key, path)?,
            _ => settings.spell_out(&one.key, &places)?,
        }
        Ok(())
    }

    /// The text of a configuration for a driver.
    ///
    /// # Errors
    /// The first name that means nothing here.
    pub(super) async fn spelled_out(
        &self,
        mut config: VmConfig,
        keeps_cpu: bool,
    ) -> Result<String, OpsError> {
        match self.spell_out(&mut config.current, keeps_cpu).await.into_iter().next() {
            Some(e) => Err(e),
            None => Ok(config.to_string()),
        }
    }

    /// Whether a mapping's devices can be given back and taken elsewhere while a VM runs.
    fn moves_live(&self, one: &Mapped) -> bool {
        one.kind == MappingKind::Pci && self.mapping(one.kind, &one.id).is_ok_and(|m| m.live_migration)
    }

    /// Refuses to keep the memory of a VM in which more is meant than it holds. `what`: to be done with it.
    pub(super) fn check_memory_is_whole(vmid: Vmid, settings: &Settings, what: &str) -> Result<(), OpsError> {
        match settings.bound_by() {
            None => Ok(()),
            Some(key) => Err(OpsError::failed(format!(
                "can't {what} VM {vmid}: what it has open of the directory '{key}' is known to a program beside it alone, and would be \
                 lost; take it out, or shut the VM down first"
            ))),
        }
    }

    /// What a VM's devices of its host say against a move from it.
    pub(super) fn host_obstacles(
        &self,
        settings: &Settings,
        process: Option<&GuestProcess>,
    ) -> Result<Vec<String>, OpsError> {
        let me: &NodeName = &self.me.name;
        let mut why: Vec<String> = of_this_host(settings)?
            .into_iter()
            .map(|key| format!("{key} is a device of node '{me}'"))
            .collect();
        if process.is_none() {
            return Ok(why);
        }
        for one in mapped(settings)?.into_iter().filter(|one| !self.moves_live(one)) {
            let Mapped { key, kind, id } = one;
            if kind == MappingKind::Dir {
                why.push(format!(
                    "{key}: a running VM can't move with the directory '{id}', of which a program on node '{me}' knows what is open: \
                     stop the VM first"
                ));
                continue;
            }
            let how = match kind {
                MappingKind::Pci => ", and its mapping does not say 'live-migration-capable'",
                _ => "",
            };
            why.push(format!(
                "{key} ({kind} mapping '{id}') is a device of node '{me}', without which a running VM can't be{how}: stop the VM first"
            ));
        }
        if settings.ivshmem()?.is_some() {
            why.push(format!("ivshmem is memory that programs of node '{me}' see: stop the VM first"));
        }
        Ok(why)
    }
}
