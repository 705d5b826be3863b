//! `/storage`: the cluster's storages.

use crate::framework::params::Kind;
use crate::framework::{Access, Json, Null, ParamSchema};
use crate::shapes::StorageConfig;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use stead_api_derive::{Params, Schema};
use stead_model::schema::Schema as _;
use stead_model::{StorageId, storage_cfg};

/// The types that there are; those that this version can't use are refused by name.
fn types() -> Vec<ParamSchema> {
    let schema = ParamSchema::plain("type", Kind::String, "The storage's type.");
    vec![schema.choices(storage_cfg::TYPES)]
}

fn all_options() -> Vec<ParamSchema> {
    let option = |name| ParamSchema::plain(name, Kind::String, "An option of the storage.").optional();
    storage_cfg::option_names().map(option).collect()
}

fn new_options() -> Vec<ParamSchema> {
    types().into_iter().chain(all_options()).collect()
}

fn changeable_options() -> Vec<ParamSchema> {
    all_options().into_iter().filter(|s| !storage_cfg::FIXED.contains(&s.name.as_str())).collect()
}

#[derive(Params)]
pub struct ListStorages {
    /// Storages of this type alone.
    #[param(name = "type")]
    kind: Option<String>,
}

#[derive(Params)]
pub struct OneStorage {
    /// The storage.
    storage: StorageId,
}

#[derive(Params)]
pub struct CreateStorage {
    /// The new storage's name.
    storage: StorageId,
    /// Its options.
    #[param(rest = new_options)]
    options: BTreeMap<String, String>,
}

#[derive(Params)]
pub struct ChangeStorage {
    /// The storage.
    storage: StorageId,
    /// Options to take out.
    delete: Vec<String>,
    /// Change only if `storage.cfg` is still this version.
    #[param(max_length = 64)]
    digest: Option<String>,
    /// Options to set.
    #[param(rest = changeable_options)]
    options: BTreeMap<String, String>,
}

/// A storage that was made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct StorageMade {
    /// Its name.
    storage: StorageId,
    /// Its type.
    #[serde(rename = "type")]
    kind: String,
}

endpoint! {
    /// Storages that the caller may see.
    List = get("/storage"), Anywhere, Access::Authenticated;
    returns: Vec::<StorageConfig>::schema();
    fn call(cx, p: ListStorages) -> Json<Vec<Value>> {
        Ok(Json(cx.ops().storage_list(&cx.actor(), p.kind.as_deref())?))
    }
}

endpoint! {
    /// Adds a storage.
    Create = post("/storage"), Anywhere, Access::All("/storage", &["Datastore.Allocate"]);
    fn call(cx, p: CreateStorage) -> Json<StorageMade> {
        let mut options = p.options;
        let missing = || crate::framework::Error::parameter("type", "property is missing and it is not optional");
        let kind = options.remove("type").ok_or_else(missing)?;
        cx.ops().add_storage(&cx.actor(), &p.storage, &kind, options).await?;
        Ok(Json(StorageMade { storage: p.storage, kind }))
    }
}

endpoint! {
    /// A storage's options.
    Read = get("/storage/{storage}"), Anywhere,
        Access::Any("/storage/{storage}", &["Datastore.Allocate", "Datastore.Audit"]);
    returns: StorageConfig::schema();
    fn call(cx, p: OneStorage) -> Json<Value> {
        Ok(Json(cx.ops().storage_config(&p.storage)?))
    }
}

endpoint! {
    /// Changes a storage's options.
    Change = put("/storage/{storage}"), Anywhere, Access::All("/storage", &["Datastore.Allocate"]);
    fn call(cx, p: ChangeStorage) -> Json<StorageMade> {
        let (actor, digest) = (cx.actor(), p.digest.as_deref());
        cx.ops().change_storage(&actor, &p.storage, p.options, &p.delete, digest).await?;
        let kind = cx.ops().storage(&p.storage)?.kind;
        Ok(Json(StorageMade { storage: p.storage, kind }))
    }
}

endpoint! {
    /// Forgets a storage. What lies on it stays.
    Remove = delete("/storage/{storage}"), Anywhere, Access::All("/storage", &["Datastore.Allocate"]);
    fn call(cx, p: OneStorage) -> Null {
        cx.ops().remove_storage(&cx.actor(), &p.storage).await?;
        Ok(Null)
    }
}
