//! `/cluster/qemu` and below: CPUs.

use crate::framework::{Access, Json, Null};
use crate::version::Nothing;
use stead_api_derive::Params;
use stead_model::cpu_models::ModelOptions;
use stead_ops::cpu::{CommonView, FlagView};
use stead_ops::cpu_models::CpuModelView;

choice! {
    /// What runs guests' instructions.
    pub enum Accel { Kvm = "kvm", Tcg = "tcg" }
}

choice! {
    /// A family of CPUs.
    pub enum Arch { X86 = "x86_64", Arm = "aarch64" }
}

/// Which features of CPUs.
#[derive(Params)]
pub struct ListFlags {
    /// Nodes with this accelerator.
    #[param(default = "kvm")]
    pub accel: Accel,
    /// Of this family: only x86_64 has any here.
    pub arch: Option<Arch>,
}

#[derive(Params)]
pub struct OneModel {
    /// The model's name, with or without `custom-`.
    cputype: String,
}

/// What may be said of a model.
#[derive(Params)]
pub struct Given {
    /// Features switched on and off: `+aes;-pcid`.
    #[param(max_length = 4096)]
    flags: Option<String>,
    /// Bits of physical addresses that the guest can use.
    #[param(name = "guest-phys-bits", min = 32, max = 64)]
    guest_phys_bits: Option<u64>,
    /// The guest is not to know that it runs under KVM.
    hidden: Option<bool>,
    /// What a Windows is told that its hypervisor is called.
    #[param(name = "hv-vendor-id", max_length = 12)]
    hv_vendor_id: Option<String>,
    /// The highest number of CPUID's leaves.
    #[param(min = 0, max = 4_294_967_295_u32)]
    level: Option<u64>,
    /// Bits of physical addresses: a number, or `host`.
    #[param(name = "phys-bits", max_length = 8)]
    phys_bits: Option<String>,
}

#[derive(Params)]
pub struct AddModel {
    /// The model's name, with or without `custom-`.
    #[param(max_length = 47)]
    cputype: String,
    /// QEMU's model that it is made of.
    #[param(name = "reported-model", max_length = 64)]
    reported_model: String,
    /// What else is said of it.
    #[param(flatten)]
    given: Given,
}

#[derive(Params)]
pub struct ChangeModel {
    /// The model's name, with or without `custom-`.
    #[param(max_length = 47)]
    cputype: String,
    /// Options to take out.
    delete: Vec<String>,
    /// Change only if the file is still this version.
    #[param(max_length = 64)]
    digest: Option<String>,
    /// QEMU's model that it is made of.
    #[param(name = "reported-model", max_length = 64)]
    reported_model: Option<String>,
    /// What else is said of it.
    #[param(flatten)]
    given: Given,
}

impl Given {
    fn with(self, reported_model: Option<String>) -> ModelOptions {
        let all = [
            ("flags", self.flags),
            ("guest-phys-bits", self.guest_phys_bits.map(|n| n.to_string())),
            ("hidden", self.hidden.map(|on| u8::from(on).to_string())),
            ("hv-vendor-id", self.hv_vendor_id),
            ("level", self.level.map(|n| n.to_string())),
            ("phys-bits", self.phys_bits),
            ("reported-model", reported_model),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

const USE: &[&str] = &["Mapping.Audit", "Mapping.Use", "Mapping.Modify"];
const MODIFY: &[&str] = &["Mapping.Modify"];

endpoint! {
    /// The CPU that every node with the answering node's accelerator can run, which a VM with `cpu: cluster` has, and why it is no more.
    Common = get("/cluster/qemu/common"), Anywhere, Access::Authenticated;
    fn call(cx, _p: Nothing) -> Json<CommonView> {
        Ok(Json(cx.ops().common_cpu_view()?))
    }
}

endpoint! {
    /// Features of CPUs, with the nodes whose guests can have them.
    Flags = get("/cluster/qemu/cpu-flags"), Anywhere,
        Access::Or(&[Access::All("/nodes", &["Sys.Audit"]), Access::Any("/mapping/cpu", USE)]);
    fn call(cx, p: ListFlags) -> Json<Vec<FlagView>> {
        if p.arch == Some(Arch::Arm) {
            return Ok(Json(vec![]));
        }
        Ok(Json(cx.ops().cpu_flags(p.accel.word(), None)))
    }
}

endpoint! {
    /// The CPU models of administrators that the caller may see.
    List = get("/cluster/qemu/custom-cpu-models"), Anywhere, Access::Authenticated;
    fn call(cx, _p: Nothing) -> Json<Vec<CpuModelView>> {
        Ok(Json(cx.ops().cpu_models(&cx.actor())?))
    }
}

endpoint! {
    /// Makes a CPU model.
    Add = post("/cluster/qemu/custom-cpu-models"), Anywhere, Access::All("/mapping/cpu", MODIFY);
    fn call(cx, p: AddModel) -> Null {
        cx.ops().cpu_model_add(&cx.actor(), &p.cputype, p.given.with(Some(p.reported_model))).await?;
        Ok(Null)
    }
}

endpoint! {
    /// One CPU model of administrators.
    Read = get("/cluster/qemu/custom-cpu-models/{cputype}"), Anywhere, Access::Any("/mapping/cpu/{cputype}", USE);
    fn call(cx, p: OneModel) -> Json<CpuModelView> {
        Ok(Json(cx.ops().cpu_model_view(&p.cputype)?))
    }
}

endpoint! {
    /// Changes a CPU model; VMs that run keep theirs.
    Change = put("/cluster/qemu/custom-cpu-models/{cputype}"), Anywhere, Access::All("/mapping/cpu/{cputype}", MODIFY);
    fn call(cx, p: ChangeModel) -> Null {
        let (given, seen) = (p.given.with(p.reported_model), p.digest.as_deref());
        cx.ops().cpu_model_change(&cx.actor(), &p.cputype, given, &p.delete, seen).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Takes a CPU model out. A VM that has it does not start any more; one that runs goes on.
    Remove = delete("/cluster/qemu/custom-cpu-models/{cputype}"), Anywhere, Access::All("/mapping/cpu/{cputype}", MODIFY);
    fn call(cx, p: OneModel) -> Null {
        cx.ops().cpu_model_remove(&cx.actor(), &p.cputype).await?;
        Ok(Null)
    }
}
