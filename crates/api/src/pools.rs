//! `/pools`.

use crate::framework::{Access, Json};
use stead_api_derive::Params;
use stead_ops::access::PoolInfo;

choice! {
    /// What a pool's member is.
    pub enum MemberKind { Qemu = "qemu", Lxc = "lxc", Storage = "storage" }
}

#[derive(Params)]
pub struct ListPools {
    /// This pool alone, with its members.
    #[param(format = "pve-poolid")]
    poolid: Option<String>,
    /// Members of this kind alone.
    #[param(name = "type", requires = "poolid")]
    kind: Option<MemberKind>,
}

endpoint! {
    /// Pools that the caller may see.
    List = get("/pools"), Anywhere, Access::Authenticated;
    fn call(cx, p: ListPools) -> Json<Vec<PoolInfo>> {
        Ok(Json(cx.ops().pools(&cx.actor(), p.poolid.as_deref(), p.kind.map(MemberKind::word))?))
    }
}
