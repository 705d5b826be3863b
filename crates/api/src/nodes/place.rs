//! `/nodes/{node}/place`: where a node stands. Beyond Proxmox VE.

use super::OneNode;
use crate::framework::{Access, Json, Null};
use stead_api_derive::Params;
use stead_model::{DomainName, NodeName, Place};
use stead_ops::place::PlaceView;

#[derive(Params)]
pub struct NewPlace {
    /// The node, or a witness.
    node: NodeName,
    /// The site: what is lost at once when a building, its power or its line is.
    site: Option<DomainName>,
    /// The rack, in that site: what is lost at once when a rack's power or switch is.
    rack: Option<DomainName>,
    /// What is not said any more: `site`, `rack`.
    delete: Vec<String>,
}

endpoint! {
    /// The site and the rack that a node stands at, if that is said: its failure domains.
    Read = get("/nodes/{node}/place"), Anywhere, Access::All("/nodes/{node}", &["Sys.Audit"]);
    fn call(cx, p: OneNode) -> Json<PlaceView> {
        Ok(Json(cx.ops().place(&p.node)?))
    }
}

endpoint! {
    /// Says at which site and in which rack a node, or a witness, stands. Who votes follows from it: votes are spread over sites,
    /// and over racks second, and move one after another, ten seconds after the last such change. As it decides whose loss the whole cluster
    /// survives, it takes the right to change all of it.
    Change = put("/nodes/{node}/place"), Anywhere, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: NewPlace) -> Null {
        let place = Place { site: p.site, rack: p.rack };
        cx.ops().set_place(&cx.actor(), &p.node, place, &p.delete).await?;
        Ok(Null)
    }
}
