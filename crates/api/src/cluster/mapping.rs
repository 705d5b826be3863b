//! `/cluster/mapping` and below: names for what each node has of its own.

use crate::framework::{Access, Json, Null};
use stead_api_derive::Params;
use stead_model::{MappingKind, NodeName};
use stead_ops::mapping::{MappingOptions, MappingView};

#[derive(Params)]
pub struct ListMappings {
    /// Say what is wrong with each on this node.
    #[param(name = "check-node")]
    check_node: Option<NodeName>,
}

#[derive(Params)]
pub struct OneMapping {
    /// The mapping's name.
    id: String,
}

#[derive(Params)]
pub struct AddMapping {
    /// The mapping's name.
    #[param(max_length = 128)]
    id: String,
    /// For people.
    #[param(max_length = 4096)]
    description: Option<String>,
    /// What a node has: of USB `node=n1,id=046d:c52b`, with `path=1-2.3` where it is plugged in there; of a directory `node=n1,path=/srv`.
    #[param(required, whole)]
    map: Vec<String>,
}

#[derive(Params)]
pub struct AddPci {
    /// The mapping's name.
    #[param(max_length = 128)]
    id: String,
    /// For people.
    #[param(max_length = 4096)]
    description: Option<String>,
    /// What a node has: `node=n1,path=0000:01:00.0,id=10de:2204`; without the function, all of them. Several of one node are to choose from.
    #[param(required, whole)]
    map: Vec<String>,
    /// What is given away are mediated devices that the device makes.
    mdev: Option<bool>,
    /// A running VM can move with it: its driver can tell its state.
    #[param(name = "live-migration-capable")]
    live_migration: Option<bool>,
}

/// What every change may say.
#[derive(Params)]
pub struct Given {
    /// The mapping's name.
    #[param(max_length = 128)]
    id: String,
    /// Options to take out.
    delete: Vec<String>,
    /// Change only if the file is still this version.
    #[param(max_length = 64)]
    digest: Option<String>,
    /// For people.
    #[param(max_length = 4096)]
    description: Option<String>,
}

#[derive(Params)]
pub struct ChangePci {
    /// Which, and what for.
    #[param(flatten)]
    given: Given,
    /// What the nodes have, in place of all that there is.
    #[param(whole)]
    map: Vec<String>,
    /// What is given away are mediated devices that the device makes.
    mdev: Option<bool>,
    /// A running VM can move with it: its driver can tell its state.
    #[param(name = "live-migration-capable")]
    live_migration: Option<bool>,
}

#[derive(Params)]
pub struct ChangeUsb {
    /// Which, and what for.
    #[param(flatten)]
    given: Given,
    /// What the nodes have, in place of all that there is.
    #[param(required, whole)]
    map: Vec<String>,
}

#[derive(Params)]
pub struct ChangeDir {
    /// Which, and what for.
    #[param(flatten)]
    given: Given,
    /// What the nodes have, in place of all that there is.
    #[param(whole)]
    map: Vec<String>,
}

/// What is given of a mapping, whichever its kind: who it is about, which options go, the version seen, and the rest.
struct Wish(Given, MappingOptions);

impl Wish {
    fn of(mut given: Given, map: Vec<String>, mdev: Option<bool>, live_migration: Option<bool>) -> Self {
        let description = given.description.take();
        Self(given, MappingOptions { description, map, mdev, live_migration })
    }
}

impl From<AddMapping> for (String, MappingOptions) {
    fn from(p: AddMapping) -> Self {
        (p.id, MappingOptions { description: p.description, map: p.map, ..MappingOptions::default() })
    }
}

impl From<AddPci> for (String, MappingOptions) {
    fn from(p: AddPci) -> Self {
        let AddPci { id, description, map, mdev, live_migration } = p;
        (id, MappingOptions { description, map, mdev, live_migration })
    }
}

impl From<ChangePci> for Wish {
    fn from(p: ChangePci) -> Self {
        Self::of(p.given, p.map, p.mdev, p.live_migration)
    }
}

impl From<ChangeUsb> for Wish {
    fn from(p: ChangeUsb) -> Self {
        Self::of(p.given, p.map, None, None)
    }
}

impl From<ChangeDir> for Wish {
    fn from(p: ChangeDir) -> Self {
        Self::of(p.given, p.map, None, None)
    }
}

/// Declares the endpoints of one kind: its paths, the paths of its permissions, and what is given of it.
macro_rules! mappings {
    ($module:ident, $kind:ident, $all:literal, $one:literal, $on_all:literal, $on_one:literal, $add:ty, $change:ty) => {
        pub mod $module {
            //! One kind of mappings.
            use super::{
                Access, Json, ListMappings, MappingKind, MappingOptions, MappingView, Null, OneMapping, Wish,
            };

            const LOOK: Access = Access::Any($on_one, &["Mapping.Audit", "Mapping.Use", "Mapping.Modify"]);
            const MODIFY: &[&str] = &["Mapping.Modify"];

            endpoint! {
                /// The mappings that the caller may see.
                List = get($all), Anywhere, Access::Authenticated;
                fn call(cx, p: ListMappings) -> Json<Vec<MappingView>> {
                    let check = p.check_node.as_ref();
                    Ok(Json(cx.ops().mappings(&cx.actor(), MappingKind::$kind, check).await?))
                }
            }

            endpoint! {
                /// Makes a mapping.
                Add = post($all), Anywhere, Access::All($on_all, MODIFY);
                fn call(cx, p: $add) -> Null {
                    let (id, given): (String, MappingOptions) = p.into();
                    cx.ops().mapping_add(&cx.actor(), MappingKind::$kind, &id, given).await?;
                    Ok(Null)
                }
            }

            endpoint! {
                /// One mapping.
                Read = get($one), Anywhere, LOOK;
                fn call(cx, p: OneMapping) -> Json<MappingView> {
                    Ok(Json(cx.ops().mapping_view(MappingKind::$kind, &p.id)?))
                }
            }

            endpoint! {
                /// Changes a mapping.
                Change = put($one), Anywhere, Access::All($on_one, MODIFY);
                fn call(cx, p: $change) -> Null {
                    let Wish(given, options) = p.into();
                    let (actor, seen) = (cx.actor(), given.digest.as_deref());
                    let ops = cx.ops();
                    ops.mapping_change(&actor, MappingKind::$kind, &given.id, options, &given.delete, seen).await?;
                    Ok(Null)
                }
            }

            endpoint! {
                /// Takes a mapping out. A VM that uses it does not start any more; one that runs goes on.
                Remove = delete($one), Anywhere, Access::All($on_all, MODIFY);
                fn call(cx, p: OneMapping) -> Null {
                    cx.ops().mapping_remove(&cx.actor(), MappingKind::$kind, &p.id).await?;
                    Ok(Null)
                }
            }
        }
    };
}

mappings!(
    pci,
    Pci,
    "/cluster/mapping/pci",
    "/cluster/mapping/pci/{id}",
    "/mapping/pci",
    "/mapping/pci/{id}",
    super::AddPci,
    super::ChangePci
);
mappings!(
    usb,
    Usb,
    "/cluster/mapping/usb",
    "/cluster/mapping/usb/{id}",
    "/mapping/usb",
    "/mapping/usb/{id}",
    super::AddMapping,
    super::ChangeUsb
);
mappings!(
    dir,
    Dir,
    "/cluster/mapping/dir",
    "/cluster/mapping/dir/{id}",
    "/mapping/dir",
    "/mapping/dir/{id}",
    super::AddMapping,
    super::ChangeDir
);
