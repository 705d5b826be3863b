//! `/nodes/{node}/storage` and below: storages as one node sees them.

pub mod content;
pub mod upload;

use crate::framework::{Access, Json};
use crate::shapes::StorageState;
use serde_json::Value;
use stead_api_derive::Params;
use stead_model::schema::Schema;
use stead_model::{NodeName, StorageId};
use stead_ops::storage_view::StorageFilter;

/// Who may look at a storage.
pub const LOOK: Access = Access::Any("/storage/{storage}", &["Datastore.Audit", "Datastore.AllocateSpace"]);

#[derive(Params)]
pub struct ListStorages {
    /// The node.
    node: NodeName,
    /// Storages that may hold one of these.
    content: Vec<String>,
    /// Those switched on alone.
    #[param(default = "0")]
    enabled: bool,
    /// Say which formats there are.
    #[param(default = "0")]
    format: bool,
    /// This one alone.
    storage: Option<StorageId>,
    /// Those that this node has too.
    target: Option<NodeName>,
}

#[derive(Params)]
pub struct OneStorage {
    /// The node.
    node: NodeName,
    /// The storage.
    storage: StorageId,
}

endpoint! {
    /// A node's storages, with how full they are.
    List = get("/nodes/{node}/storage"), AtNode, Access::Authenticated;
    returns: Vec::<StorageState>::schema();
    fn call(cx, p: ListStorages) -> Json<Vec<Value>> {
        cx.ops().member(&p.node)?;
        let filter = StorageFilter {
            storage: p.storage,
            content: p.content,
            enabled: p.enabled,
            target: p.target,
            format: p.format,
        };
        Ok(Json(cx.ops().node_storages(&cx.actor(), &filter).await?))
    }
}

endpoint! {
    /// How full a storage is, seen from a node.
    Status = get("/nodes/{node}/storage/{storage}/status"), AtNode, LOOK;
    returns: StorageState::schema();
    fn call(cx, p: OneStorage) -> Json<Value> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().node_storage(&p.storage).await?))
    }
}
