//! The cluster grows and shrinks: creating, joining, removing.
//!
//! ```text
//! the node that joins                              a member
//!   closes its guests: nothing changes from here on
//!   who it is, its guests' numbers, their storages ──▶ one transaction: the node's record, an ownership record a
//!                                                      guest (its number is taken from now on), their storages
//!   join.json, with the guests' configurations  ◀─── certificate, CA, members
//!   starts anew: the old configuration is kept aside
//!   enters, and puts the configurations to their ownership records
//! ```
//!
//! The task goes on across the daemon's new start, and ends when the guests have arrived. A node that was let in and
//! never came keeps its guests where they were; asking again, or its removal, gives their numbers back.

use crate::certificates::Kept;
use crate::clock::unix_ms;
use crate::epochs::{Aside, EpochPlan, NEXT_RAFT, RejoinAnswer, numbers};
use crate::links::LinkWish;
use crate::store::{self, At};
use crate::{Actor, Ops, OpsError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{Check, Op, Tree, Txn, TxnError};
use stead_driver::guest::GuestError;
use stead_model::storage_cfg::StorageCfg;
use stead_model::{
    ClusterRecord, Epoch, Era, GuestKind, NodeName, NodeRecord, NodeState, Ownership, RaftId, Upid, Vmid,
    paths,
};
use stead_tasks::{TaskContext, TaskError};
use stead_transport::join::{
    Admits, ClusterFacts, JOIN_PROTOCOL, JoinAnswer, JoinAuth, JoinClient, JoinError, JoinRequest, JoinToken,
    Member, TokenRecord, vet_join,
};
use stead_transport::{Fingerprint, JoinInfo, JoinRefusal, NodeKey, PeerIdentity};

/// The task that joins; it is resumed after the daemon's new start.
pub const JOIN_WORKER: &str = "clusterjoin";
/// Below it: one-time tokens for joining, hashed.
pub(crate) const JOIN_TOKENS: &str = "priv/join/";
/// The boot of a node that has not entered yet.
const NO_BOOT: &str = "00000000-0000-4000-8000-000000000000";
/// How long a one-time token is good.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// How long a new member may take until it has the configuration and its guests are in it.
const CATCH_UP: Duration = Duration::from_secs(60);
/// How often a node is vetted again, since what the decision was built on has changed.
const VETTED: usize = 10;
/// Between two attempts to put guests into the configuration that came along.
const BRING_AGAIN: Duration = Duration::from_millis(500);

/// What a node needs to start as a member of the cluster that it has joined.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinMaterial {
    /// Its number in Raft.
    pub raft_id: RaftId,
    /// The cluster epoch.
    pub era: Era,
    /// The cluster CA's certificate.
    pub ca: String,
    /// Its certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// The key that seals secrets, base64.
    pub seal_key: String,
    /// The members, for the first contact.
    pub members: Vec<NodeRecord>,
    /// The guests that it brings along.
    pub guests: Vec<(Vmid, String)>,
}

/// What the daemon's own host does for the use cases.
pub trait Host: Send + Sync {
    /// Keeps what was agreed, whole; it is carried out at the next start.
    fn keep_join(&self, join: &JoinMaterial) -> Result<(), String>;
    /// Keeps, whole, that this node leaves its cluster, and root@pam's line of `shadow.cfg`, which stays with it; it
    /// is carried out at the next start.
    fn keep_leave(&self, shadow: &str) -> Result<(), String>;
    /// Keeps, whole, that this node begins a new cluster epoch; it is carried out at the next start.
    fn keep_epoch(&self, plan: &EpochPlan) -> Result<(), String>;
    /// Keeps, whole, that this node goes over to another cluster epoch; it is carried out at the next start.
    fn keep_rejoin(&self, answer: &RejoinAnswer) -> Result<(), String>;
    /// What this node had alone when it came to its present epoch, until [`Self::told_aside`] is told.
    fn asides(&self) -> Vec<Aside>;
    /// It is in the configuration now.
    fn told_aside(&self);
    /// Starts the daemon anew; guests go on.
    fn restart(&self);
    /// The guests that a join brought along, until [`Self::brought`] is told.
    fn bringing(&self) -> Vec<(Vmid, String)>;
    /// They are in the configuration now.
    fn brought(&self);
    /// The certificate that the TLS port shows.
    fn fingerprint(&self) -> Fingerprint;
    /// The key that seals the cluster's secrets.
    fn seal_key(&self) -> [u8; 32];
    /// The CA's certificate and the node's, as they are kept.
    fn certificates(&self) -> Kept;
    /// A signing request by the node's key, which stays where it is.
    fn signing_request(&self) -> Result<String, String>;
    /// Keeps these certificates, whole, and shows them to new connections. Refused if they are not this node's, for its key, and of its
    /// CA; the old ones stay then.
    fn keep_certificates(&self, kept: &Kept) -> Result<(), String>;
}

/// How to find and convince the cluster that is to be joined.
#[derive(Debug, Clone)]
pub struct JoinWish {
    /// The copied string.
    pub information: String,
    /// By password or token.
    pub auth: JoinAuth,
    /// This node's links.
    pub links: LinkWish,
}

impl Ops {
    /// Names the cluster that this node founded, and gives this node its links.
    pub async fn create_cluster(&self, actor: &Actor, name: &str, links: &LinkWish) -> Result<(), OpsError> {
        let At { value: mut record, revision } = self.cluster_record()?;
        if self.node_records().len() > 1 {
            return Err(OpsError::failed(format!("this node is in cluster '{}' already", record.name)));
        }
        let fits = !name.is_empty()
            && name.len() <= 15
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !fits {
            return Err(OpsError::invalid("clustername", "1 to 15 letters, digits and '-'"));
        }
        name.clone_into(&mut record.name);
        let mut node = self.node_record(&self.me.name)?;
        node.value.links.extend(links.beside(node.value.addr)?);
        crate::links::check(&node.value, &[])?;
        let mut txn = store::txn(&actor.who, format!("cluster '{name}' created"));
        store::put_over(&mut txn, paths::CLUSTER, Some(revision), store::bytes(&record)?);
        store::put_over(
            &mut txn,
            &paths::node(&self.me.name),
            Some(node.revision),
            store::bytes(&node.value)?,
        );
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// The certificate's fingerprint of a node that reports.
    fn fingerprint_of(&self, node: &NodeName) -> Option<Fingerprint> {
        if *node == self.me.name {
            return Some(self.host.fingerprint());
        }
        self.status.node(node).and_then(|report| report.fingerprint)
    }

    /// `GET /cluster/config/join`: what an administrator copies to a node that shall join by `node`, or by this one.
    pub async fn join_information(
        &self,
        actor: &Actor,
        node: Option<&NodeName>,
        with_token: bool,
    ) -> Result<Value, OpsError> {
        let by = node.unwrap_or(&self.me.name);
        let by = self.member(by).map_err(|e| OpsError::invalid("node", e.to_string()))?;
        let fingerprint = self.fingerprint_of(&by.name).ok_or_else(|| {
            OpsError::invalid("node", format!("node '{}' does not answer now: name another one", by.name))
        })?;
        let cluster = self.cluster_record()?.value;
        let nodes = self.node_records();
        let token = if with_token { Some(self.make_join_token(actor, None).await?) } else { None };
        let info = JoinInfo {
            v: 1,
            // The certificate pinned is this one's, so its addresses alone are named.
            addrs: by.addrs(),
            fingerprint,
            cluster: cluster.name.clone(),
            uuid: cluster.uuid.clone(),
            token: token.clone(),
        };
        let listed = |n: &NodeRecord| {
            let mut listed = json!({
                "name": n.name, "nodeid": n.raft_id.0, "pve_addr": n.addr.ip().to_string(), "port": n.addr.port(),
                // Empty of a node that is off: nobody can join by it.
                "pve_fp": self.fingerprint_of(&n.name).map(|f| f.to_string()).unwrap_or_default(),
                "quorum_votes": 1,
            });
            for (link, addr) in n.links() {
                listed[format!("ring{link}_addr")] = json!(addr.ip().to_string());
            }
            listed
        };
        let mut out = json!({
            "config_digest": stead_model::vmconfig::digest(&format!("{nodes:?}")),
            "preferred_node": by.name,
            "nodelist": nodes.iter().map(listed).collect::<Vec<_>>(),
            "totem": {"cluster_name": cluster.name, "version": "2"},
            "information": info.to_string(),
        });
        if let (Some(token), Value::Object(o)) = (token, &mut out) {
            o.insert("token".into(), json!(token));
        }
        Ok(out)
    }

    /// Makes a one-time token, for any node or for one alone.
    pub(crate) async fn make_join_token(
        &self,
        actor: &Actor,
        admits: Option<Admits>,
    ) -> Result<String, OpsError> {
        let failed =
            |e: &dyn std::fmt::Display| OpsError::failed(format!("could not make a join token: {e}"));
        let (token, record) = JoinToken::generate(self.token_time() + TOKEN_LIFE.as_secs())
            .map_err(|_| failed(&"no random bytes"))?;
        let record = TokenRecord { admits, ..record };
        let path = format!("{JOIN_TOKENS}{}", record.id);
        let kept = self.conf.put_secret(&actor.who, "join token made", &path, &store::bytes(&record)?).await;
        kept.map_err(|e| failed(&e))?;
        Ok(token.as_str().to_owned())
    }

    /// By what one-time tokens end, in seconds since 1970: the cluster's time, since one node makes them and another checks.
    fn token_time(&self) -> u64 {
        self.status.cluster_ms(unix_ms()) / 1000
    }

    /// The record of a one-time token, if it is good. The transaction that lets the node in removes it.
    fn join_token(&self, token: &str, request: &JoinRequest) -> Result<String, JoinRefusal> {
        let id = TokenRecord::id_of(token).ok_or(JoinRefusal::Token)?;
        let path = format!("{JOIN_TOKENS}{id}");
        let kept = self.conf.secret(&path).ok().flatten().ok_or(JoinRefusal::Token)?;
        let record: TokenRecord = serde_json::from_slice(&kept).map_err(|_| JoinRefusal::Token)?;
        if !record.accepts(token, self.token_time()) {
            return Err(JoinRefusal::Token);
        }
        if !record.is_for(&request.name, request.addr) {
            return Err(JoinRefusal::TokenForOther { name: request.name.clone(), addr: request.addr });
        }
        Ok(path)
    }

    /// Lets a node in: the member's half. Who asks was checked before, or shows a one-time `token`, which is used up by the
    /// transaction that lets the node in. The same transaction takes name, address and VMIDs; when it is refused, since
    /// something has changed in between, the node is vetted again, which says what the matter is.
    pub async fn let_in(
        &self,
        request: &JoinRequest,
        token: Option<&str>,
    ) -> Result<JoinAnswer, JoinRefusal> {
        let failed = |e: OpsError| JoinRefusal::Request { why: e.to_string() };
        for _ in 0..VETTED {
            let cert = self.vet(request, token).await?;
            let token = token.map(|t| self.join_token(t, request)).transpose()?;
            let Some(raft_id) = self.commit_node(request, token).await? else { continue };
            tracing::info!("node '{}' ({}) was let into the cluster", request.name, request.addr);
            let member = |n: NodeRecord| Member {
                name: n.name,
                uuid: n.uuid,
                raft_id: n.raft_id,
                addr: n.addr,
                links: n.links,
            };
            let cluster = self.cluster_record().map_err(failed)?.value;
            return Ok(JoinAnswer {
                cert,
                ca: self.cluster_ca().map_err(failed)?.cert_pem().to_owned(),
                cluster_name: cluster.name,
                cluster_uuid: cluster.uuid,
                seal_key: STANDARD.encode(self.host.seal_key()),
                raft_id,
                era: self.me.era,
                members: self.node_records().into_iter().map(member).collect(),
            });
        }
        let why = "the cluster's configuration keeps changing; try again".to_owned();
        Err(JoinRefusal::Request { why })
    }

    /// Checks by a fresh read whether a node may join, and signs its certificate.
    async fn vet(&self, request: &JoinRequest, token: Option<&str>) -> Result<String, JoinRefusal> {
        let failed = |why: String| JoinRefusal::Request { why };
        self.conf.barrier().await.map_err(|_| JoinRefusal::NoQuorum)?;
        token.map(|t| self.join_token(t, request)).transpose()?;
        // A node that was let in and never entered may ask again: its first join was cut off.
        let nodes = self.node_records();
        let others = nodes.iter().filter(|n| n.uuid != request.uuid || !never_entered(n));
        let members: Vec<_> = others.map(|n| (n.name.clone(), n.uuid.clone(), n.addrs())).collect();
        let own = self.conf.view(|t| reserved(t, request));
        let all = self.conf.view(store::guests).into_iter().map(|(v, _)| v);
        let vmids: BTreeSet<Vmid> = all.filter(|v| !own.contains(v)).collect();
        let facts = ClusterFacts {
            wall_clock_ms: self.status.cluster_ms(unix_ms()),
            version: self.me.version,
            feature_level: self.conf.view(Tree::level),
            quorate: self.quorate(),
            members: &members,
            vmids: &vmids,
        };
        vet_join(request, &facts)?;
        let ca = self.cluster_ca().map_err(|e| failed(e.to_string()))?;
        let identity = PeerIdentity { name: request.name.clone(), uuid: request.uuid.clone() };
        let mut ips = request.ips.clone();
        ips.push(request.addr.ip());
        ips.extend(request.links.values());
        // By the cluster's clock: others are to find it good, whatever this node's says.
        ca.sign(&request.csr, &identity, &ips, self.cluster_time()).map_err(|e| failed(e.to_string()))
    }

    /// Records a node that was let in, with its number in Raft; none: something has changed since it was vetted.
    async fn commit_node(
        &self,
        request: &JoinRequest,
        token: Option<String>,
    ) -> Result<Option<RaftId>, JoinRefusal> {
        let failed = |e: OpsError| JoinRefusal::Request { why: e.to_string() };
        let built = self.conf.view(|t| admission(t, request, token));
        let (raft_id, txn) = built.map_err(failed)?;
        match self.conf.transact(txn).await {
            Ok(_) => Ok(Some(raft_id)),
            Err(TxnError::Refused(why)) => {
                tracing::info!("node '{}' is vetted again: {why}", request.name);
                Ok(None)
            }
            Err(e) => Err(failed(e.into())),
        }
    }

    /// Joins this node to another cluster, as a task that ends when it is a member.
    pub fn join_cluster(self: &Arc<Self>, actor: &Actor, wish: JoinWish) -> Result<Upid, OpsError> {
        if self.node_records().len() > 1 {
            let name = self.cluster_record()?.value.name;
            return Err(OpsError::failed(format!(
                "this node is in cluster '{name}' with others already: remove it there first"
            )));
        }
        let ops = self.clone();
        self.task(JOIN_WORKER, "", &actor.who, move |cx| async move {
            ops.join_now(&cx, wish).await?;
            cx.log("starting the daemon anew as a member of the cluster");
            ops.host.restart();
            // The new start resumes the task; this one must not end it.
            std::future::pending::<()>().await;
            Ok(())
        })
    }

    async fn join_now(&self, cx: &TaskContext, wish: JoinWish) -> Result<(), OpsError> {
        let failed = |e: String| OpsError::failed(format!("can't join the cluster: {e}"));
        let info: JoinInfo =
            wish.information.parse().map_err(|e| OpsError::invalid("information", format!("{e}")))?;
        // Whatever changed from here on would be lost; on an error the node goes on as before.
        let closed = self.guest_locks.close("this node is joining a cluster")?;
        let guests = self.guests_to_bring().await?;
        let storages = self.storages()?;
        let brought = crate::join_storage::used(&storages, &guests)?;
        self.tell_what_stays(cx, &storages, &brought)?;
        cx.log(format!(
            "joining cluster '{}' through {}",
            info.cluster,
            info.addrs.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
        ));
        let client = JoinClient::reach(info).await.map_err(|e| failed(e.to_string()))?;
        cx.log(format!("{} shows the expected certificate", client.member()));
        let key = NodeKey::generate().map_err(|e| failed(e.to_string()))?;
        let request = JoinRequest {
            protocol: JOIN_PROTOCOL,
            name: self.me.name.clone(),
            uuid: self.me.uuid.clone(),
            csr: key.signing_request(&self.me.name).map_err(|e| failed(e.to_string()))?,
            addr: self.me.addr,
            links: wish.links.beside(self.me.addr)?,
            ips: vec![],
            version: self.me.version.to_owned(),
            feature_level: stead_conf::SUPPORTED_LEVEL,
            vmids: guests.iter().map(|(v, _)| *v).collect(),
            storages: brought,
            witness: self.me.witness,
            wall_clock_ms: self.status.cluster_ms(unix_ms()),
        };
        let answer = client.join(&wish.auth, &request, &key).await.map_err(|e| match e {
            JoinError::WrongPassword { .. } => failed(format!(
                "{e} (what was given was taken for a password: a join token is 16 hexadecimal digits, '.', and 64 more)"
            )),
            e => failed(e.to_string()),
        })?;
        cx.log(format!(
            "the cluster '{}' has let this node in as number {}",
            answer.cluster_name, answer.raft_id
        ));
        let boot = self.me.boot.clone();
        let node = |m: Member| NodeRecord {
            name: m.name,
            uuid: m.uuid,
            raft_id: m.raft_id,
            addr: m.addr,
            links: m.links,
            state: NodeState::Member { boot: boot.clone() },
            version: String::new(),
            // What matters of others until the configuration has come: where they are.
            witness: false,
            off: None,
            restart: None,
        };
        let material = JoinMaterial {
            raft_id: answer.raft_id,
            era: answer.era,
            ca: answer.ca,
            cert: answer.cert,
            key: key.to_pem(),
            seal_key: answer.seal_key,
            members: answer.members.into_iter().map(node).collect(),
            guests,
        };
        cx.save_step("agreed", &answer.cluster_uuid).await.map_err(|e| failed(e.to_string()))?;
        self.host.keep_join(&material).map_err(failed)?;
        closed.keep();
        Ok(())
    }

    /// Says what of this node's configuration does not come along.
    fn tell_what_stays(
        &self,
        cx: &TaskContext,
        storages: &[stead_model::storage_cfg::Storage],
        brought: &[stead_transport::join::JoinStorage],
    ) -> Result<(), OpsError> {
        for s in brought {
            cx.log(format!("storage '{}' comes along", s.id));
        }
        for s in storages.iter().filter(|s| brought.iter().all(|b| b.id != s.id)) {
            cx.log(format!(
                "storage '{}' is used by no guest and does not come along; its content stays in place",
                s.id
            ));
        }
        for resource in self.ha_resources()? {
            let sid = resource.get("sid").and_then(Value::as_str).unwrap_or("a resource").to_owned();
            cx.warn(format!("{sid} leaves HA's care here: add it again in the cluster"));
        }
        Ok(())
    }

    /// Guests of this node, which must not run while their owner changes.
    async fn guests_to_bring(&self) -> Result<Vec<(Vmid, String)>, OpsError> {
        let mut out = vec![];
        for (vmid, _) in self.conf.view(store::guests) {
            if self.guests.state(vmid).await.is_some() {
                return Err(GuestError::Running(vmid).into());
            }
            out.push((vmid, self.guest_at(vmid)?.config.value));
        }
        Ok(out)
    }

    /// Goes on with a join after the daemon's new start.
    pub async fn resume_join(&self, cx: &TaskContext) -> Result<(), TaskError> {
        let Some(agreed) = cx.step("agreed") else {
            return Err(TaskError::failed(
                "the daemon was restarted before the cluster had answered; try again",
            ));
        };
        // What was agreed was not kept: the node is in its own cluster as before.
        if self.cluster_record().is_ok_and(|c| agreed != c.value.uuid) {
            return Err(TaskError::failed(
                "the daemon was restarted in the middle of the join, and nothing has changed here; try again",
            ));
        }
        let arrived = async {
            let mut watch = self.conf.watch();
            while !self.node_record(&self.me.name).is_ok_and(|n| {
                n.value.uuid == self.me.uuid
                    && *n.value.state.boot() == self.me.boot
                    && !n.value.state.is_lost()
            }) {
                if watch.next().await.is_none() {
                    return;
                }
            }
        };
        tokio::time::timeout(CATCH_UP, arrived).await.map_err(|_| {
            TaskError::failed("the cluster has let this node in, but it has not received the configuration yet; see 'stead cluster status'")
        })?;
        cx.log(format!("node '{}' is a member now", self.me.name));
        let bringing = async {
            loop {
                match self.bring_guests().await {
                    Ok(homeless) => return homeless,
                    Err(e) => tracing::debug!("guests that came along are not recorded yet: {e}"),
                }
                tokio::time::sleep(BRING_AGAIN).await;
            }
        };
        let homeless = tokio::time::timeout(CATCH_UP, bringing).await.map_err(|_| {
            TaskError::failed(
                "this node is a member, but its guests could not be recorded yet; it goes on trying",
            )
        })?;
        for why in homeless {
            cx.warn(why);
        }
        Ok(())
    }

    /// Puts the guests that a join brought along to their ownership records, which were made when this node was let in.
    /// Returns why some could not be: their configurations stay where the daemon keeps them.
    pub async fn bring_guests(&self) -> Result<Vec<String>, OpsError> {
        let bringing = self.host.bringing();
        if bringing.is_empty() {
            return Ok(vec![]);
        }
        self.conf.barrier().await?;
        let mut homeless = vec![];
        for (vmid, config) in bringing {
            if let Some(why) = self.bring(vmid, config).await? {
                tracing::error!("{why}");
                homeless.push(why);
            }
        }
        if homeless.is_empty() {
            self.host.brought();
        }
        Ok(homeless)
    }

    /// Records one guest, unless it is recorded; why it can't be.
    async fn bring(&self, vmid: Vmid, config: String) -> Result<Option<String>, OpsError> {
        let own = self.conf.view(|t| store::record::<Ownership>(t, &paths::ownership(vmid)))?;
        let Some(own) = own.filter(|o| o.value.owner == self.me.name) else {
            return Ok(Some(format!(
                "guest {vmid}, which came with this node, has lost its number to another guest: its configuration is in \
                 {}",
                self.me.dir.join("carried.json").display()
            )));
        };
        let path = paths::guest(&self.me.name, own.value.kind, vmid);
        if self.conf.view(|t| t.get(&path).is_some()) {
            return Ok(None);
        }
        let mut txn = store::txn("root@pam", format!("guest {vmid} came with node '{}'", self.me.name));
        txn.checks.push(Check::Revision(paths::ownership(vmid), own.revision));
        store::put_over(&mut txn, &path, None, config);
        self.conf.transact(txn).await?;
        Ok(None)
    }

    /// Removes a node for good: its certificate is refused and its number in Raft never used again. It must be off,
    /// unless it is this one, which leaves by [`Self::leave_cluster`].
    pub async fn remove_node(&self, actor: &Actor, name: &NodeName) -> Result<(), OpsError> {
        if *name == self.me.name {
            return self.leave_cluster(actor).await;
        }
        self.conf.barrier().await?;
        let At { value: node, revision } = self.node_record(name)?;
        // A witness has nothing that could run on: that it is silent is enough.
        let off = node.state.is_lost() || (node.witness && !self.online(&node));
        if !off {
            return Err(OpsError::failed(format!(
                "node '{name}' is not off: run 'stead cluster leave' on it, or shut it down and wait until it is \
                 shown as lost"
            )));
        }
        let mut txn = store::txn(&actor.who, format!("node '{name}' removed"));
        txn.checks.push(Check::Revision(paths::node(name), revision));
        if never_entered(&node) {
            // It has its guests still; here are their numbers alone.
            for (vmid, revision) in self.conf.view(|t| numbers_alone(t, name)) {
                txn.checks.push(Check::Revision(paths::ownership(vmid), revision));
                txn.ops.push(Op::Delete(paths::ownership(vmid)));
            }
        } else {
            self.owns_nothing(name)?;
        }
        txn.ops.push(Op::Delete(paths::node(name)));
        self.disconnect_fence(&mut txn, name);
        self.forget_cpu(&mut txn, name);
        self.forget_place(&mut txn, name);
        let word = crate::confirm_off::path(name);
        if self.conf.view(|t| t.get(&word).is_some()) {
            txn.ops.push(Op::Delete(word));
        }
        self.conf.transact(txn).await?;
        self.status.forget(name);
        Ok(())
    }
}

/// Guests of which there is only an ownership record: a node that was let in has not brought them yet.
fn numbers_alone(tree: &Tree, node: &NodeName) -> Vec<(Vmid, stead_conf::Revision)> {
    let of_node = store::guests(tree).into_iter().filter(|(_, o)| o.owner == *node);
    let alone = of_node.filter(|(v, o)| tree.get(&paths::guest(node, o.kind, *v)).is_none());
    alone.filter_map(|(v, _)| Some((v, tree.get(&paths::ownership(v))?.revision))).collect()
}

/// The numbers that this very node took when it was let in before and did not come.
fn reserved(tree: &Tree, request: &JoinRequest) -> BTreeSet<Vmid> {
    let known = store::nodes(tree).into_iter().find(|n| n.name == request.name);
    match known {
        Some(n) if n.uuid == request.uuid && never_entered(&n) => {
            numbers_alone(tree, &request.name).into_iter().map(|(v, _)| v).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// The transaction that lets a vetted node in. It is *lost* until it enters by a commit of its own.
fn admission(tree: &Tree, request: &JoinRequest, token: Option<String>) -> Result<(RaftId, Txn), OpsError> {
    let name = &request.name;
    let (next, kept) = numbers(tree)?;
    let old = store::record::<NodeRecord>(tree, &paths::node(name))?;
    let raft_id = RaftId(next);
    let boot = NO_BOOT.parse().map_err(|_| OpsError::failed("no boot id"))?;
    let record = NodeRecord {
        name: name.clone(),
        uuid: request.uuid.clone(),
        raft_id,
        addr: request.addr,
        links: request.links.clone(),
        state: NodeState::Lost { boot },
        version: request.version.clone(),
        witness: request.witness,
        off: None,
        restart: None,
    };
    let what = if request.witness { "witness" } else { "node" };
    let mut txn = store::txn("root@pam", format!("{what} '{name}' joins"));
    let again = old.filter(|n| never_entered(&n.value)).map(|n| n.revision);
    store::put_over(&mut txn, &paths::node(name), again, store::bytes(&record)?);
    store::put_over(&mut txn, NEXT_RAFT, kept, store::bytes(&(next + 1))?);
    if let Some(path) = token {
        txn.checks.push(Check::Exists(path.clone()));
        txn.ops.push(Op::Delete(path));
    }
    take_numbers(tree, request, &mut txn)?;
    let cfg = store::text(tree, paths::STORAGE_CFG)?;
    let text = cfg.as_ref().map_or("", |c| c.value.as_str());
    let parsed =
        StorageCfg::parse(text).map_err(|e| OpsError::failed(format!("storage.cfg cannot be read: {e}")))?;
    if let Some(merged) =
        crate::join_storage::merge(&parsed, name, &request.storages).map_err(OpsError::failed)?
    {
        store::put_over(&mut txn, paths::STORAGE_CFG, cfg.map(|c| c.revision), merged.to_string());
    }
    Ok((raft_id, txn))
}

/// Takes the numbers of the guests that a node brings, so that no other guest gets them while it is on its way.
fn take_numbers(tree: &Tree, request: &JoinRequest, txn: &mut Txn) -> Result<(), OpsError> {
    let before = reserved(tree, request);
    let own = Ownership {
        kind: GuestKind::Qemu,
        owner: request.name.clone(),
        // Above every epoch that any guest of this number ever had.
        epoch: Epoch(tree.revision().0 + 1),
        armed: false,
        running: false,
        recovered: false,
    };
    let wanted: BTreeSet<Vmid> = request.vmids.iter().copied().collect();
    for vmid in wanted.difference(&before) {
        store::put_over(txn, &paths::ownership(*vmid), None, store::bytes(&own)?);
    }
    for vmid in before.difference(&wanted) {
        txn.checks.push(Check::Exists(paths::ownership(*vmid)));
        txn.ops.push(Op::Delete(paths::ownership(*vmid)));
    }
    Ok(())
}

/// Whether a node was let in and has not come yet.
fn never_entered(node: &NodeRecord) -> bool {
    node.state.is_lost() && node.state.boot().as_str() == NO_BOOT
}

/// The first transaction of a cluster of one node.
pub fn found(
    cluster: &ClusterRecord,
    node: &NodeRecord,
    ca_cert: &str,
    storage: &str,
) -> Result<stead_conf::Txn, OpsError> {
    let mut txn = store::txn("root@pam", format!("cluster '{}' founded on '{}'", cluster.name, node.name));
    store::put_over(&mut txn, paths::CLUSTER, None, store::bytes(cluster)?);
    store::put_over(&mut txn, &paths::node(&node.name), None, store::bytes(node)?);
    store::put_over(&mut txn, paths::CA_CERT, None, ca_cert);
    store::put_over(&mut txn, paths::STORAGE_CFG, None, storage);
    Ok(txn)
}
