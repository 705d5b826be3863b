//! `/cluster/config/expected`, `…/rejoin`, `…/aside`: the loss of the majority. Beyond Proxmox VE, where it is a command of
//! corosync.

use crate::framework::{Access, Call, Error, Json, Null};
use crate::version::Nothing;
use serde::Serialize;
use stead_api_derive::{Params, Schema};
use stead_model::{NodeName, Vmid};

#[derive(Params)]
pub struct Votes {
    /// How many votes are expected: 1, this node's.
    votes: u32,
    /// Every other member, of which the caller says that it is off.
    off: Vec<NodeName>,
}

#[derive(Params)]
pub struct Put {
    /// The node that had it.
    node: NodeName,
}

#[derive(Params)]
pub struct To {
    /// A node of the epoch to go over to, where several go on beside this one.
    node: Option<NodeName>,
}

/// What a new cluster epoch would begin from.
#[derive(Debug, Serialize, Schema)]
pub struct Present {
    /// The present epoch.
    epoch: String,
    /// A majority is in contact: then no other can begin.
    quorate: bool,
    /// This node.
    node: NodeName,
    /// The other members, which must all be off.
    others: Vec<NodeName>,
    /// The last change of the configuration that this node knows: milliseconds since 1970. A node that was left earlier lacks what
    /// came after.
    last_change: Option<u64>,
    /// Guests of this node that would end, since HA guards them or they are paused; HA starts its own anew. Missing if that can't be
    /// told: then no other epoch can begin here.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<Vec<Vmid>>,
    /// Why that can't be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_unknown: Option<String>,
    /// The epochs that go on beside this one, by a node of each.
    beside: Vec<Beside>,
}

/// Another epoch that goes on.
#[derive(Debug, Serialize, Schema)]
pub struct Beside {
    /// One of its nodes.
    node: NodeName,
    /// Its name.
    epoch: String,
}

/// On the spot alone: whoever decides this has access to the machine, and knows which one it is.
pub(super) fn here<S>(cx: &Call<S>) -> Result<(), Error> {
    match cx.remote {
        None => Ok(()),
        Some(_) => {
            Err(Error::forbidden("only on the node itself, by its local socket, as root: run 'stead' there"))
        }
    }
}

endpoint! {
    /// The present cluster epoch, and who takes part.
    Read = get("/cluster/config/expected"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Present> {
        let ops = cx.ops();
        let (ends, ends_unknown) = match ops.ends_with_epoch().await {
            Ok(ends) => (Some(ends), None),
            Err(e) => (None, Some(e.to_string())),
        };
        Ok(Json(Present {
            epoch: ops.me.era.to_string(),
            quorate: ops.quorate(),
            node: ops.me.name.clone(),
            others: ops.others().into_iter().map(|n| n.name).collect(),
            last_change: ops.conf.recent(1).first().map(|c| c.at_ms),
            ends,
            ends_unknown,
            beside: ops
                .epochs
                .lookout()
                .contested()
                .iter()
                .map(|(node, era)| Beside { node: node.clone(), epoch: era.to_string() })
                .collect(),
        }))
    }
}

endpoint! {
    /// Gives up a lost majority: this node alone begins a new cluster epoch, by the caller's word that all other members are
    /// off. If one of them runs, guests run twice. By the local socket alone.
    Expect = post("/cluster/config/expected"), Anywhere, Access::Root;
    fn call(cx, p: Votes) -> Null {
        here(cx)?;
        if p.votes != 1 {
            return Err(Error::parameter("votes", "1 alone: another majority is made by nodes that come back"));
        }
        cx.ops().expect_one(&cx.actor(), &p.off).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Gives up this node's cluster epoch for another one that goes on beside it. Its configuration is kept aside, and its
    /// guests are what that other epoch says. By the local socket alone.
    Rejoin = post("/cluster/config/rejoin"), Anywhere, Access::Root;
    fn call(cx, p: To) -> Null {
        here(cx)?;
        cx.ops().give_up_epoch(p.node.as_ref()).await?;
        Ok(Null)
    }
}

/// What a node that came back from an older cluster epoch had alone.
#[derive(Debug, Serialize, Schema)]
pub struct Aside {
    /// The node.
    node: NodeName,
    /// The epoch that it came with.
    epoch: String,
    /// When its configuration was put aside: milliseconds since 1970.
    at: u64,
    /// The folder, in the node's own, where it is kept.
    place: String,
    /// The changes, oldest first; some may have reached both.
    changes: Vec<AsideChange>,
    /// How many more there are, in that folder alone.
    more: u64,
    /// Why its store could not be read, if it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

/// A change that a node had alone.
#[derive(Debug, Serialize, Schema)]
pub struct AsideChange {
    /// The path in the configuration.
    path: String,
    /// Who made it; empty where no history says so.
    user: String,
    /// What for.
    note: String,
    /// When: milliseconds since 1970; 0 where no history says so.
    at: u64,
}

endpoint! {
    /// What nodes had alone that came back from an older cluster epoch, until it is forgotten.
    Asides = get("/cluster/config/aside"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Vec<Aside>> {
        let change = |c: stead_ops::epochs::AsideChange| AsideChange {
            path: c.path,
            user: c.by,
            note: c.note,
            at: c.at_ms,
        };
        let aside = |a: stead_ops::epochs::Aside| Aside {
            node: a.node,
            epoch: a.era.to_string(),
            at: a.at_ms,
            place: a.place,
            changes: a.changes.into_iter().map(change).collect(),
            more: a.more as u64,
            unreadable: a.unreadable,
        };
        Ok(Json(cx.ops().asides().into_iter().map(aside).collect()))
    }
}

endpoint! {
    /// Forgets what a node had alone that came back from an older cluster epoch. Its store stays in its folder.
    Forget = delete("/cluster/config/aside/{node}"), Anywhere, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: Put) -> Null {
        cx.ops().forget_aside(&cx.actor(), &p.node).await?;
        Ok(Null)
    }
}
