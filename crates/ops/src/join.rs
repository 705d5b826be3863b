//! The cluster grows and shrinks: creating, joining, removing.
//!
//! A node that joins keeps its old configuration aside, takes what it was given, and starts its daemon anew as a
//! member; the task goes on across that start.

use crate::store::{self, At};
use crate::{Actor, Ops, OpsError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use stead_conf::{Check, Op};
use stead_driver::guest::GuestError;
use stead_model::{
    ClusterRecord, Epoch, GuestKind, NodeName, NodeRecord, NodeState, Ownership, RaftId, Upid, Vmid, paths,
};
use stead_tasks::{TaskContext, TaskError};
use stead_transport::join::{
    Admits, ClusterFacts, JOIN_PROTOCOL, JoinAnswer, JoinAuth, JoinClient, JoinRequest, JoinToken, Member,
    TokenRecord, vet_join,
};
use stead_transport::{ClusterCa, Fingerprint, JoinInfo, JoinRefusal, NodeKey, PeerIdentity};

/// The task that joins; it is resumed after the daemon's new start.
pub const JOIN_WORKER: &str = "clusterjoin";
/// The next number in Raft; numbers are never used again.
const NEXT_RAFT: &str = "stead/next_raft";
/// Below it: one-time tokens for joining, hashed.
const JOIN_TOKENS: &str = "priv/join/";
/// The boot of a node that has not entered yet.
const NO_BOOT: &str = "00000000-0000-4000-8000-000000000000";
/// How long a one-time token is good.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// How long a new member may take until it has the configuration.
const CATCH_UP: Duration = Duration::from_secs(60);

/// What a node needs to start as a member of the cluster that it has joined.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinMaterial {
    /// Its number in Raft.
    pub raft_id: RaftId,
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
}

/// How to find and convince the cluster that is to be joined.
#[derive(Debug, Clone)]
pub struct JoinWish {
    /// The copied string.
    pub information: String,
    /// By password or token.
    pub auth: JoinAuth,
}

impl Ops {
    /// Names the cluster that this node founded.
    pub async fn create_cluster(&self, actor: &Actor, name: &str) -> Result<(), OpsError> {
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
        let mut txn = store::txn(&actor.who, format!("cluster '{name}' created"));
        store::put_over(&mut txn, paths::CLUSTER, Some(revision), store::bytes(&record)?);
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// `GET /cluster/config/join`: what an administrator copies to a node that shall join.
    pub async fn join_information(&self, actor: &Actor, with_token: bool) -> Result<Value, OpsError> {
        let cluster = self.cluster_record()?.value;
        let nodes = self.node_records();
        let token = if with_token { Some(self.make_join_token(actor, None).await?) } else { None };
        let info = JoinInfo {
            v: 1,
            // The certificate pinned is this node's, so its address alone is named.
            addrs: vec![self.me.addr],
            fingerprint: self.host.fingerprint(),
            cluster: cluster.name.clone(),
            uuid: cluster.uuid.clone(),
            token: token.clone(),
        };
        let listed = |n: &NodeRecord| {
            json!({
                "name": n.name, "nodeid": n.raft_id.0, "pve_addr": n.addr.ip().to_string(), "port": n.addr.port(),
                "pve_fp": if n.name == self.me.name { self.host.fingerprint().to_string() } else { String::new() },
                "quorum_votes": 1, "ring0_addr": n.addr.ip().to_string(),
            })
        };
        let mut out = json!({
            "config_digest": stead_model::vmconfig::digest(&format!("{nodes:?}")),
            "preferred_node": self.me.name,
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
        let (token, record) = JoinToken::generate(unix_ms() / 1000 + TOKEN_LIFE.as_secs())
            .map_err(|_| failed(&"no random bytes"))?;
        let record = TokenRecord { admits, ..record };
        let path = format!("{JOIN_TOKENS}{}", record.id);
        let kept = self.conf.put_secret(&actor.who, "join token made", &path, &store::bytes(&record)?).await;
        kept.map_err(|e| failed(&e))?;
        Ok(token.as_str().to_owned())
    }

    /// The record of a one-time token, if it is good. The transaction that lets the node in removes it.
    fn join_token(&self, token: &str, request: &JoinRequest) -> Result<String, JoinRefusal> {
        let id = TokenRecord::id_of(token).ok_or(JoinRefusal::Token)?;
        let path = format!("{JOIN_TOKENS}{id}");
        let kept = self.conf.secret(&path).ok().flatten().ok_or(JoinRefusal::Token)?;
        let record: TokenRecord = serde_json::from_slice(&kept).map_err(|_| JoinRefusal::Token)?;
        if !record.accepts(token, unix_ms() / 1000) {
            return Err(JoinRefusal::Token);
        }
        if !record.is_for(&request.name, request.addr) {
            return Err(JoinRefusal::TokenForOther { name: request.name.clone(), addr: request.addr });
        }
        Ok(path)
    }

    /// Lets a node in: the member's half. Name, address and VMIDs are checked here and, by the transaction, again. Who asks
    /// was checked before, or shows a one-time `token`, which is used up by the same transaction.
    pub async fn let_in(
        &self,
        request: &JoinRequest,
        token: Option<&str>,
    ) -> Result<JoinAnswer, JoinRefusal> {
        let failed = |why: String| JoinRefusal::Request { why };
        self.conf.barrier().await.map_err(|_| JoinRefusal::NoQuorum)?;
        let token = token.map(|t| self.join_token(t, request)).transpose()?;
        // A node that was let in and never entered may ask again: its first join was cut off.
        let nodes = self.node_records();
        let others = nodes.iter().filter(|n| n.uuid != request.uuid || !never_entered(n));
        let members: Vec<_> = others.map(|n| (n.name.clone(), n.uuid.clone(), n.addr)).collect();
        let vmids: BTreeSet<Vmid> = self.conf.view(store::guests).into_iter().map(|(v, _)| v).collect();
        let facts = ClusterFacts {
            wall_clock_ms: unix_ms(),
            version: self.me.version,
            feature_level: self.conf.view(stead_conf::Tree::level),
            quorate: self.quorate(),
            members: &members,
            vmids: &vmids,
        };
        vet_join(request, &facts)?;
        let cluster = self.cluster_record().map_err(|e| failed(e.to_string()))?.value;
        let ca = self.cluster_ca().map_err(|e| failed(e.to_string()))?;
        let identity = PeerIdentity { name: request.name.clone(), uuid: request.uuid.clone() };
        let mut ips = request.ips.clone();
        ips.push(request.addr.ip());
        let cert =
            ca.sign(&request.csr, &identity, &ips, SystemTime::now()).map_err(|e| failed(e.to_string()))?;
        let raft_id = self.commit_node(request, token).await.map_err(|e| failed(e.to_string()))?;
        let member = |n: NodeRecord| Member { name: n.name, uuid: n.uuid, raft_id: n.raft_id, addr: n.addr };
        tracing::info!("node '{}' ({}) was let into the cluster", request.name, request.addr);
        Ok(JoinAnswer {
            cert,
            ca: ca.cert_pem().to_owned(),
            cluster_name: cluster.name,
            cluster_uuid: cluster.uuid,
            seal_key: STANDARD.encode(self.host.seal_key()),
            raft_id,
            members: self.node_records().into_iter().map(member).collect(),
        })
    }

    fn cluster_ca(&self) -> Result<ClusterCa, OpsError> {
        let (cert, _) = self.file(paths::CA_CERT)?;
        let key = self.conf.secret(paths::CA_KEY).map_err(|e| OpsError::failed(e.to_string()))?;
        let key = key.ok_or_else(|| OpsError::failed("the cluster CA's key is missing"))?;
        let key = String::from_utf8(key).map_err(|_| OpsError::failed("the cluster CA's key is damaged"))?;
        ClusterCa::load(&cert, &key).map_err(|e| OpsError::failed(e.to_string()))
    }

    /// Records a node that was let in. It is *lost* until it enters by a commit of its own.
    async fn commit_node(&self, request: &JoinRequest, token: Option<String>) -> Result<RaftId, OpsError> {
        let next = self.conf.view(|t| store::record::<u64>(t, NEXT_RAFT))?;
        let again = self.node_record(&request.name).ok().filter(|n| never_entered(&n.value));
        let highest = self.node_records().iter().map(|n| n.raft_id.0).max().unwrap_or(0);
        let raft_id = RaftId(next.as_ref().map_or(0, |n| n.value).max(highest + 1));
        let boot = NO_BOOT.parse().map_err(|_| OpsError::failed("no boot id"))?;
        let record = NodeRecord {
            name: request.name.clone(),
            uuid: request.uuid.clone(),
            raft_id,
            addr: request.addr,
            state: NodeState::Lost { boot },
            version: request.version.clone(),
        };
        let mut txn = store::txn("root@pam", format!("node '{}' joins", request.name));
        store::put_over(
            &mut txn,
            &paths::node(&request.name),
            again.map(|n| n.revision),
            store::bytes(&record)?,
        );
        store::put_over(&mut txn, NEXT_RAFT, next.map(|n| n.revision), store::bytes(&(raft_id.0 + 1))?);
        if let Some(path) = token {
            txn.checks.push(Check::Exists(path.clone()));
            txn.ops.push(Op::Delete(path));
        }
        for vmid in &request.vmids {
            txn.checks.push(Check::Absent(paths::ownership(*vmid)));
        }
        self.conf.transact(txn).await?;
        Ok(raft_id)
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
        let guests = self.guests_to_bring().await?;
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
            ips: vec![],
            version: self.me.version.to_owned(),
            feature_level: stead_conf::SUPPORTED_LEVEL,
            vmids: guests.iter().map(|(v, _)| *v).collect(),
            wall_clock_ms: unix_ms(),
        };
        let answer = client.join(&wish.auth, &request, &key).await.map_err(|e| failed(e.to_string()))?;
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
            state: NodeState::Member { boot: boot.clone() },
            version: String::new(),
        };
        let material = JoinMaterial {
            raft_id: answer.raft_id,
            ca: answer.ca,
            cert: answer.cert,
            key: key.to_pem(),
            seal_key: answer.seal_key,
            members: answer.members.into_iter().map(node).collect(),
            guests,
        };
        cx.save_step("agreed", &answer.cluster_uuid).await.map_err(|e| failed(e.to_string()))?;
        self.host.keep_join(&material).map_err(failed)
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
        if cx.step("agreed").is_none() {
            return Err(TaskError::failed(
                "the daemon was restarted before the cluster had answered; try again",
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
        Ok(())
    }

    /// Writes the guests that a join brought along into the configuration.
    pub async fn bring_guests(&self) -> Result<(), OpsError> {
        for (vmid, config) in self.host.bringing() {
            if self.guest_at(vmid).is_ok() {
                continue;
            }
            let epoch = Epoch(self.conf.view(stead_conf::Tree::revision).0 + 1);
            let kind = GuestKind::Qemu;
            let own = Ownership {
                kind,
                owner: self.me.name.clone(),
                epoch,
                armed: false,
                running: false,
                recovered: false,
            };
            let mut txn = store::txn("root@pam", format!("guest {vmid} came with node '{}'", self.me.name));
            store::put_over(&mut txn, &paths::ownership(vmid), None, store::bytes(&own)?);
            store::put_over(&mut txn, &paths::guest(&self.me.name, kind, vmid), None, config);
            self.conf.transact(txn).await?;
        }
        self.host.brought();
        Ok(())
    }

    /// Removes a node for good: its certificate is refused and its number in Raft never used again. It must be off,
    /// unless it is this one, which leaves by [`Self::leave_cluster`].
    pub async fn remove_node(&self, actor: &Actor, name: &NodeName) -> Result<(), OpsError> {
        if *name == self.me.name {
            return self.leave_cluster(actor).await;
        }
        self.conf.barrier().await?;
        let At { value: node, revision } = self.node_record(name)?;
        if !node.state.is_lost() {
            return Err(OpsError::failed(format!(
                "node '{name}' is not off: run 'stead cluster leave' on it, or shut it down and wait until it is \
                 shown as lost"
            )));
        }
        self.owns_nothing(name)?;
        let mut txn = store::txn(&actor.who, format!("node '{name}' removed"));
        txn.checks.push(Check::Revision(paths::node(name), revision));
        txn.ops.push(Op::Delete(paths::node(name)));
        self.conf.transact(txn).await?;
        self.status.forget(name);
        Ok(())
    }
}

/// Whether a node was let in and has not come yet.
fn never_entered(node: &NodeRecord) -> bool {
    node.state.is_lost() && node.state.boot().as_str() == NO_BOOT
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
