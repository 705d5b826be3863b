//! CPU models that administrators make: made, changed, seen.

use crate::{Actor, Ops, OpsError, store};
use serde::Serialize;
use stead_api_derive::Schema;
use stead_conf::Revision;
use stead_model::cpu::CUSTOM;
use stead_model::cpu_models::{CpuModels, ModelOptions, OPTIONS, check, is_model_name};
use stead_model::paths;
use stead_model::sectionconfig::SectionError;
use stead_model::text::parse_bool;
use stead_model::vmconfig::digest;

/// A model as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct CpuModelView {
    /// Its name, as a VM's `cpu` has it: `custom-fast`.
    pub cputype: String,
    /// QEMU's model that it is made of.
    #[serde(rename = "reported-model", skip_serializing_if = "Option::is_none")]
    pub reported_model: Option<String>,
    /// Features switched on and off: `+aes;-pcid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Bits of physical addresses that the guest can use.
    #[serde(rename = "guest-phys-bits", skip_serializing_if = "Option::is_none")]
    pub guest_phys_bits: Option<u64>,
    /// 1: the guest is not to know that it runs under KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<bool>,
    /// What a Windows is told that its hypervisor is called.
    #[serde(rename = "hv-vendor-id", skip_serializing_if = "Option::is_none")]
    pub hv_vendor_id: Option<String>,
    /// The highest number of CPUID's leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u64>,
    /// Bits of physical addresses: a number, or `host`.
    #[serde(rename = "phys-bits", skip_serializing_if = "Option::is_none")]
    pub phys_bits: Option<String>,
    /// The file's version.
    pub digest: String,
}

fn shown(name: &str, options: &ModelOptions, digest: &str) -> CpuModelView {
    let text = |key: &str| options.get(key).cloned();
    let number = |key: &str| options.get(key)?.parse().ok();
    CpuModelView {
        cputype: format!("{CUSTOM}{name}"),
        reported_model: text("reported-model"),
        flags: text("flags"),
        guest_phys_bits: number("guest-phys-bits"),
        hidden: options.get("hidden").and_then(|on| parse_bool(on)),
        hv_vendor_id: text("hv-vendor-id"),
        level: number("level"),
        phys_bits: text("phys-bits"),
        digest: digest.to_owned(),
    }
}

fn missing(name: &str) -> OpsError {
    OpsError::failed(format!("CPU model '{CUSTOM}{name}' does not exist"))
}

fn unwritable(e: &SectionError) -> OpsError {
    OpsError::invalid("cputype", e.to_string())
}

/// A model's name in the file: clients say it with the prefix and without.
fn plain(name: &str) -> &str {
    name.strip_prefix(CUSTOM).unwrap_or(name)
}

impl Ops {
    pub(crate) fn cpu_model_file(&self) -> Result<(CpuModels, Option<Revision>), OpsError> {
        let (text, revision) = self.file(paths::CPU_MODELS)?;
        let read = CpuModels::parse(&text)
            .map_err(|e| OpsError::failed(format!("{} cannot be read: {e}", paths::CPU_MODELS)))?;
        Ok((read, revision))
    }

    /// What a model says.
    pub(crate) fn cpu_model(&self, name: &str) -> Result<ModelOptions, OpsError> {
        self.cpu_model_file()?.0.get(name).ok_or_else(|| missing(name))
    }

    /// The models that the actor may see.
    pub fn cpu_models(&self, actor: &Actor) -> Result<Vec<CpuModelView>, OpsError> {
        let (file, _) = self.cpu_model_file()?;
        let digest = digest(&file.to_string());
        let may = |name: &&str| {
            let path = format!("/mapping/cpu/{name}");
            ["Mapping.Audit", "Mapping.Use", "Mapping.Modify"].iter().any(|p| actor.may(&path, p))
        };
        let one = |name: &str| Some(shown(name, &file.get(name)?, &digest));
        Ok(file.names().filter(may).filter_map(one).collect())
    }

    /// One model.
    pub fn cpu_model_view(&self, name: &str) -> Result<CpuModelView, OpsError> {
        let (file, _) = self.cpu_model_file()?;
        let options = file.get(plain(name)).ok_or_else(|| missing(plain(name)))?;
        Ok(shown(plain(name), &options, &digest(&file.to_string())))
    }

    /// Makes a model.
    pub async fn cpu_model_add(
        &self,
        actor: &Actor,
        name: &str,
        options: ModelOptions,
    ) -> Result<(), OpsError> {
        let name = plain(name);
        let (mut file, revision) = self.cpu_model_file()?;
        if !is_model_name(name) {
            let why = "a name begins with a letter, and has 2 to 40 letters, digits, '-' and '_'";
            return Err(OpsError::invalid("cputype", why));
        }
        if file.get(name).is_some() {
            return Err(OpsError::invalid("cputype", format!("CPU model '{CUSTOM}{name}' already exists")));
        }
        self.check_cpu_model(&options).await?;
        file.set(name, &options).map_err(|e| unwritable(&e))?;
        self.commit_cpu_models(actor, format!("CPU model '{name}' added"), &file, revision).await
    }

    /// Changes a model; VMs that run keep theirs. `delete`: options to take out.
    pub async fn cpu_model_change(
        &self,
        actor: &Actor,
        name: &str,
        given: ModelOptions,
        delete: &[String],
        seen: Option<&str>,
    ) -> Result<(), OpsError> {
        let name = plain(name);
        let (mut file, revision) = self.cpu_model_file()?;
        if seen.is_some_and(|d| d != digest(&file.to_string())) {
            return Err(OpsError::failed(
                "detected modified configuration - file changed by other user? Try again.",
            ));
        }
        let mut options = file.get(name).ok_or_else(|| missing(name))?;
        for key in delete {
            if key == "reported-model" || !OPTIONS.contains(&key.as_str()) {
                return Err(OpsError::invalid(
                    "delete",
                    format!("'{key}' can't be taken out of a CPU model"),
                ));
            }
            options.remove(key);
        }
        options.extend(given);
        self.check_cpu_model(&options).await?;
        file.set(name, &options).map_err(|e| unwritable(&e))?;
        self.commit_cpu_models(actor, format!("CPU model '{name}' changed"), &file, revision).await
    }

    /// Takes a model out. A VM that has it does not start any more; one that runs goes on.
    pub async fn cpu_model_remove(&self, actor: &Actor, name: &str) -> Result<(), OpsError> {
        let name = plain(name);
        let (mut file, revision) = self.cpu_model_file()?;
        file.get(name).ok_or_else(|| missing(name))?;
        file.remove(name).map_err(|e| unwritable(&e))?;
        self.commit_cpu_models(actor, format!("CPU model '{name}' removed"), &file, revision).await
    }

    /// Refuses what is no model, and features and models that this node's program does not know.
    async fn check_cpu_model(&self, options: &ModelOptions) -> Result<(), OpsError> {
        check(options)?;
        let text = format!("cpu: {}\n", stead_model::cpu_models::as_cpu(options));
        let named = |e: stead_driver::guest::GuestError| {
            let why = e.to_string();
            let key = if why.contains("flags:") { "flags" } else { "reported-model" };
            OpsError::invalid(key, why)
        };
        self.guests.check(&text).await.map_err(named)
    }

    async fn commit_cpu_models(
        &self,
        actor: &Actor,
        note: String,
        file: &CpuModels,
        revision: Option<Revision>,
    ) -> Result<(), OpsError> {
        let mut txn = store::txn(&actor.who, note);
        store::put_over(&mut txn, paths::CPU_MODELS, revision, file.to_string());
        self.conf.transact(txn).await?;
        Ok(())
    }
}
