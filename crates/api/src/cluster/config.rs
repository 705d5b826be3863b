//! `/cluster/config`: who is in the cluster.

use crate::framework::params::Kind;
use crate::framework::{Access, Error, Json, Null, ParamSchema};
use crate::shapes;
use crate::version::Nothing;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use stead_api_derive::{Params, Schema};
use stead_model::link::{self, Links, MAX_LINK};
use stead_model::schema::Schema as _;
use stead_model::{NodeName, NodeRecord, Upid};
use stead_ops::admin::JoinRequest;
use stead_ops::admit::{Admission, Expected};
use stead_ops::certificates::Renewal;
use stead_ops::links::{LinkStatus, LinkWish};

/// What the API for joining is like; raised when a joining node must know something new.
const API_VERSION: u32 = 1;

#[derive(Params)]
pub struct NewCluster {
    /// The cluster's name.
    #[param(max_length = 15)]
    clustername: NodeName,
    #[param(rest = link_params)]
    links: BTreeMap<String, String>,
}

#[derive(Params)]
pub struct JoinInformation {
    /// The node to join by, whose certificate the answer pins; without it the one that is asked.
    node: Option<NodeName>,
}

#[derive(Params)]
pub struct Join {
    /// A member's address.
    hostname: String,
    /// SHA-256 of its certificate, in hexadecimal with colons.
    #[param(max_length = 95)]
    fingerprint: String,
    /// root@pam's password there, or a one-time token.
    #[param(max_length = 128)]
    password: String,
    /// Join although guests or an earlier cluster are here.
    #[param(default = "0")]
    force: bool,
    #[param(rest = link_params)]
    links: BTreeMap<String, String>,
}

#[derive(Params)]
pub struct NewNode {
    /// The name of the node to be added.
    node: NodeName,
    /// The version of the API for joining that it knows.
    apiversion: Option<u32>,
    /// A node of that name may be in the cluster still: it must be removed before the new one joins.
    #[param(default = "0")]
    force: bool,
    /// Let it join from this address alone.
    new_node_ip: Option<IpAddr>,
    #[param(rest = link_params)]
    links: BTreeMap<String, String>,
}

#[derive(Params)]
pub struct NodeLinks {
    /// The node.
    node: NodeName,
    /// Links to be taken away, e.g. `link1`.
    delete: Vec<String>,
    #[param(rest = link_params)]
    links: BTreeMap<String, String>,
}

/// Of `link0` to `link7`.
fn link_params() -> Vec<ParamSchema> {
    let about = "An address of the node on a network of its own, `[address=]IP`. Link 0 is the address that its daemon listens at; \
        the same port is served at the others, too, and nodes reach each other by whichever link answers, the lowest \
        number first.";
    vec![ParamSchema::plain("link[n]", Kind::String, about).optional()]
}

/// The number in `link1`.
fn link_number(name: &str) -> Result<u8, Error> {
    let number = (0..=MAX_LINK).find(|n| *name == format!("link{n}"));
    number.ok_or_else(|| Error::parameter(name, format!("there are link0 to link{MAX_LINK}")))
}

fn links(given: &BTreeMap<String, String>) -> Result<LinkWish, Error> {
    let read = |(name, text): (&String, &String)| {
        let addr = link::parse(text).map_err(|e| Error::parameter(name, e.to_string()))?;
        Ok((link_number(name)?, addr))
    };
    Ok(LinkWish(given.iter().map(read).collect::<Result<_, Error>>()?))
}

#[derive(Params)]
pub struct Renewals {
    /// This node's alone; all members' without it.
    node: Option<NodeName>,
    /// Also those that are good still, and where the nodes' clocks disagree.
    #[param(default = "0")]
    force: bool,
}

#[derive(Params)]
pub struct OneNode {
    /// The node.
    node: NodeName,
}

/// A member, as clients know it of corosync's configuration: texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct Member {
    /// Its name.
    node: NodeName,
    /// Its name.
    name: NodeName,
    /// Its number.
    nodeid: String,
    /// Its address: that of link 0.
    ring0_addr: String,
    #[serde(flatten)]
    rings: Rings,
    /// `1` if it votes, else `0`.
    quorum_votes: &'static str,
}

/// The addresses of a member's further links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Schema)]
pub struct Rings {
    /// Of link 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring1_addr: Option<IpAddr>,
    /// Of link 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring2_addr: Option<IpAddr>,
    /// Of link 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring3_addr: Option<IpAddr>,
    /// Of link 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring4_addr: Option<IpAddr>,
    /// Of link 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring5_addr: Option<IpAddr>,
    /// Of link 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring6_addr: Option<IpAddr>,
    /// Of link 7.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring7_addr: Option<IpAddr>,
}

impl From<&Links> for Rings {
    fn from(links: &Links) -> Self {
        let [ring1_addr, ring2_addr, ring3_addr, ring4_addr, ring5_addr, ring6_addr, ring7_addr] =
            std::array::from_fn(|i| links.get(&(i as u8 + 1)).copied());
        Self { ring1_addr, ring2_addr, ring3_addr, ring4_addr, ring5_addr, ring6_addr, ring7_addr }
    }
}

/// Whoever makes a node a member gets the keys of the cluster and all its secrets, root@pam's rights with them. So it is
/// root@pam's to do, as in Proxmox VE, and no privilege allows it.
const ROOT: Access = Access::Root;

endpoint! {
    /// Names this node's cluster, so that others can join it.
    Create = post("/cluster/config"), Anywhere, ROOT;
    missing: &[
        "nodeid: the cluster gives numbers itself",
        "token-coefficient: there is no token",
        "votes: who votes is chosen by the cluster",
    ];
    fn call(cx, p: NewCluster) -> Upid {
        Ok(cx.services.admin.create_cluster(&cx.actor(), p.clustername.as_str(), links(&p.links)?).await?)
    }
}

endpoint! {
    /// The version of the API for joining.
    ApiVersion = get("/cluster/config/apiversion"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(_cx, _p: Nothing) -> Json<u32> {
        Ok(Json(API_VERSION))
    }
}

endpoint! {
    /// What another node needs to join.
    ReadJoin = get("/cluster/config/join"), Anywhere, Access::All("/", &["Sys.Audit"]);
    returns: shapes::JoinInformation::schema();
    fn call(cx, p: JoinInformation) -> Json<Value> {
        Ok(Json(cx.services.admin.join_information(&cx.actor(), p.node.as_ref(), false).await?))
    }
}

endpoint! {
    /// Makes a one-time token that lets a node in within an hour, and answers what that node needs to join, with it: no
    /// password is needed. root@pam alone, as for all that makes a node a member: a member holds the cluster's keys and
    /// secrets. Beyond Proxmox VE.
    MakeToken = post("/cluster/config/join-token"), Anywhere, ROOT;
    returns: shapes::JoinInformation::schema();
    fn call(cx, _p: Nothing) -> Json<Value> {
        Ok(Json(cx.services.admin.join_information(&cx.actor(), None, true).await?))
    }
}

endpoint! {
    /// Joins a cluster.
    PostJoin = post("/cluster/config/join"), Anywhere, ROOT;
    missing: &[
        "nodeid: the cluster gives numbers itself",
        "votes: who votes is chosen by the cluster",
    ];
    fn call(cx, p: Join) -> Upid {
        let Join { hostname, fingerprint, password, force, links: given } = p;
        let request = JoinRequest { hostname, fingerprint, password, force, links: links(&given)? };
        Ok(cx.services.admin.join_cluster(&cx.actor(), request).await?)
    }
}

endpoint! {
    /// The members.
    Nodes = get("/cluster/config/nodes"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Vec<Member>> {
        let voters = cx.ops().conf_voters();
        let shown = |n: NodeRecord| Member {
            nodeid: n.raft_id.0.to_string(),
            ring0_addr: n.addr.ip().to_string(),
            rings: Rings::from(&n.links),
            quorum_votes: if voters.contains(&n.raft_id) { "1" } else { "0" },
            node: n.name.clone(),
            name: n.name,
        };
        Ok(Json(cx.ops().guest_nodes().into_iter().map(shown).collect()))
    }
}

endpoint! {
    /// Prepares for a node to join: makes a one-time token that lets in a node of that name alone, within an hour. The
    /// answer has `warnings`, `token`, `information` and the `command` to run on that node; there is no corosync, so
    /// there are no `corosync_conf` and `corosync_authkey`.
    AddNode = post("/cluster/config/nodes/{node}"), Anywhere, ROOT;
    missing: &[
        "nodeid: the cluster gives numbers itself",
        "votes: who votes is chosen by the cluster",
    ];
    fn call(cx, p: NewNode) -> Json<Admission> {
        if let Some(theirs) = p.apiversion.filter(|v| *v != API_VERSION) {
            let why = format!("this node knows version {API_VERSION} of joining, the new one {theirs}: \
                bring both to the same version");
            return Err(Error::parameter("apiversion", why));
        }
        let LinkWish(links) = links(&p.links)?;
        let expected = Expected { node: p.node, ip: p.new_node_ip, force: p.force, links };
        Ok(Json(cx.ops().expect_node(&cx.actor(), expected).await?))
    }
}

endpoint! {
    /// Removes a member that is gone for good, or takes the node that is asked out of its cluster.
    RemoveNode = delete("/cluster/config/nodes/{node}"), Anywhere, ROOT;
    fn call(cx, p: OneNode) -> Null {
        cx.services.admin.remove_node(&cx.actor(), &p.node).await?;
        Ok(Null)
    }
}

endpoint! {
    /// Gives a member further links, or takes them away, at once and while guests run. Beyond Proxmox VE, where corosync's
    /// configuration is edited.
    SetLinks = put("/cluster/config/nodes/{node}"), Anywhere, ROOT;
    fn call(cx, p: NodeLinks) -> Null {
        let delete = p.delete.iter().map(|name| link_number(name).map_err(|_| {
            Error::parameter("delete", format!("'{name}' is no link: there are link1 to link{MAX_LINK}"))
        }));
        let delete = delete.collect::<Result<Vec<u8>, Error>>()?;
        cx.ops().set_links(&cx.actor(), &p.node, &links(&p.links)?, &delete).await?;
        Ok(Null)
    }
}

endpoint! {
    /// The links of the nodes, and whether they answer. Beyond Proxmox VE.
    ReadLinks = get("/cluster/config/links"), Anywhere, Access::All("/", &["Sys.Audit"]);
    fn call(cx, _p: Nothing) -> Json<Vec<LinkStatus>> {
        Ok(Json(cx.ops().links()))
    }
}

endpoint! {
    /// Has the members make their certificates anew where that is due, and the CA's: what they do by themselves, at once. Each node
    /// signs its own, for the key that it has. Beyond Proxmox VE, where it is the command `pvecm updatecerts` on each node.
    Renew = post("/cluster/config/certificates"), Anywhere, ROOT;
    fn call(cx, p: Renewals) -> Json<Vec<Renewal>> {
        Ok(Json(cx.ops().renew_certificates(&cx.actor(), p.node.as_ref(), p.force).await?))
    }
}
