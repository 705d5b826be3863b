//! Where nodes stand: who says it, and what it means for the votes.

use crate::store::{self, At};
use crate::{Actor, Ops, OpsError};
use serde::Serialize;
use std::collections::BTreeMap;
use stead_api_derive::Schema;
use stead_conf::{Check, Op, Tree, Txn};
use stead_membership::voters::spread::Domains;
use stead_model::{DomainName, NodeName, Place, paths};

/// Where a node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Schema)]
pub struct PlaceView {
    /// The site; not there if nothing is said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<DomainName>,
    /// The rack, in that site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rack: Option<DomainName>,
}

/// Where each node stands of which that is said. A record that can't be read is one of a later version, and says nothing.
fn places(tree: &Tree) -> BTreeMap<NodeName, Place> {
    let read = |(path, entry): (&str, &stead_conf::Entry)| {
        Some((path.strip_prefix(paths::PLACES)?.parse().ok()?, serde_json::from_slice(&entry.data).ok()?))
    };
    tree.list(paths::PLACES).filter_map(read).collect()
}

impl Ops {
    /// Where each node stands of which that is said.
    pub fn node_places(&self) -> BTreeMap<NodeName, Place> {
        self.conf.view(places)
    }

    /// Where a node stands.
    pub fn place(&self, node: &NodeName) -> Result<PlaceView, OpsError> {
        self.member(node)?;
        let Place { site, rack } = self.node_places().remove(node).unwrap_or_default();
        Ok(PlaceView { site, rack })
    }

    /// Says where a node stands: what `wish` has is set, what `delete` names is taken out. Votes move by it, one after another.
    pub async fn set_place(
        &self,
        actor: &Actor,
        node: &NodeName,
        wish: Place,
        delete: &[String],
    ) -> Result<(), OpsError> {
        self.member(node)?;
        if wish.is_empty() && delete.is_empty() {
            return Err(OpsError::invalid("site", "name a site or a rack to set, or one to delete"));
        }
        let path = paths::place(node);
        let known: Option<At<Place>> = self.conf.view(|t| store::record(t, &path))?;
        let (mut place, revision) = known.map_or_else(Default::default, |at| (at.value, Some(at.revision)));
        for name in delete {
            match name.as_str() {
                "site" => place.site = None,
                "rack" => place.rack = None,
                _ => return Err(OpsError::invalid("delete", format!("'{name}' is neither site nor rack"))),
            }
        }
        place.site = wish.site.or(place.site);
        place.rack = wish.rack.or(place.rack);
        let mut txn = store::txn(&actor.who, format!("where node '{node}' stands"));
        // It is still a member then.
        txn.checks.push(Check::Exists(paths::node(node)));
        match revision {
            Some(revision) if place.is_empty() => {
                txn.checks.push(Check::Revision(path.clone(), revision));
                txn.ops.push(Op::Delete(path));
            }
            None if place.is_empty() => return Ok(()),
            _ => store::put_over(&mut txn, &path, revision, store::bytes(&place)?),
        }
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Adds to the transaction that removes a node that nothing is said of where it stands.
    pub(crate) fn forget_place(&self, txn: &mut Txn, node: &NodeName) {
        let path = paths::place(node);
        if self.conf.view(|t| t.get(&path).is_some()) {
            txn.ops.push(Op::Delete(path));
        }
    }

    /// How the votes lie over sites, or racks, in one line; none where nodes are not said to stand apart.
    pub fn spread(&self) -> Option<String> {
        let domains = Domains::new(&self.node_records(), &self.node_places());
        domains.outlook(&self.conf_voters()).map(|o| o.to_string())
    }
}
