//! What the daemon does for its use cases: joining, starting anew, and telling what API handlers ask of it.

use crate::epoch;
use crate::identity::key_text;
use crate::identity::{Home, Identity, Keys, PendingJoin, PendingLeave};
use anyhow::{Context, Result};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use stead_model::{NodeName, Upid, UserId, Vmid};
use stead_ops::admin::{Admin, HostPower, JoinRequest};
use stead_ops::certificates::Kept;
use stead_ops::epochs::{Aside, EpochPlan, RejoinAnswer};
use stead_ops::join::{Host, JoinMaterial, JoinWish};
use stead_ops::links::LinkWish;
use stead_ops::{Actor, Ops, OpsError};
use stead_transport::join::{JoinAuth, TokenRecord};
use stead_transport::{Credentials, Fingerprint, JoinInfo, NodeKey, Tls, ca};
use tokio::sync::Notify;

/// Written by the Debian package on a machine that was given to Stead.
const HOST_ARMED: &str = "/etc/stead/host-armed";
/// The port that is meant where none is named.
const PORT: u16 = 8006;

/// The daemon as its use cases see it.
pub struct Daemon {
    /// Its folder.
    pub home: Home,
    /// Who it is.
    pub identity: Identity,
    /// Its TLS.
    pub tls: Tls,
    /// The cluster's key.
    pub key: [u8; 32],
    /// What the folder has in `tls/keys.json`.
    pub keys: Mutex<Keys>,
    /// Whoever changes them holds this: the disk takes its time.
    pub keeping: Mutex<()>,
    /// Asks the main task to start anew.
    pub restart: Arc<Notify>,
}

impl Daemon {
    fn keep(&self, join: &JoinMaterial) -> Result<()> {
        let key: [u8; 32] = STANDARD
            .decode(&join.seal_key)
            .context("the cluster's key is damaged")?
            .try_into()
            .map_err(|_| anyhow::anyhow!("the cluster's key has a wrong length"))?;
        let identity = Identity { raft_id: join.raft_id, era: join.era, ..self.identity.clone() };
        let keys = Keys {
            ca: join.ca.clone(),
            cert: join.cert.clone(),
            key: join.key.clone(),
            cluster_key: key_text(&key),
        };
        let (members, guests) = (join.members.clone(), join.guests.clone());
        self.home.save_join(&PendingJoin { identity, keys, members, guests })
    }
}

/// Takes new certificates into use: first on the disk, whole, then for new connections. Refused if they are not this node's, for its
/// key and of its CA; whatever goes wrong, the old ones stay on both.
fn take_certificates(home: &Home, tls: &Tls, keys: &mut Keys, kept: &Kept) -> Result<()> {
    let [old, new] = [&keys.ca, &kept.ca].map(|pem| ca::certificate(pem));
    if !ca::same_subject_and_key(&old?, &new?)? {
        anyhow::bail!("it is of another CA than this node's");
    }
    let credentials =
        Credentials { ca_pem: kept.ca.clone(), cert_pem: kept.cert.clone(), key_pem: keys.key.clone() };
    let prepared = tls.prepare(&credentials, None)?;
    if *prepared.identity() != tls.identity() {
        anyhow::bail!("it is another node's: {:?}", prepared.identity());
    }
    let next = Keys { ca: kept.ca.clone(), cert: kept.cert.clone(), ..keys.clone() };
    home.save_keys(&next)?;
    *keys = next;
    tls.switch(prepared);
    Ok(())
}

impl Host for Daemon {
    fn keep_join(&self, join: &JoinMaterial) -> Result<(), String> {
        self.keep(join).map_err(|e| format!("{e:#}"))
    }

    fn keep_leave(&self, shadow: &str) -> Result<(), String> {
        let keep = || {
            let of = self.home.identity()?.context("node.json is missing")?;
            let aside = self.home.aside_for_leaving(&of.uuid);
            self.home.save_leave(&PendingLeave { of, shadow: shadow.to_owned(), aside })
        };
        keep().map_err(|e| format!("{e:#}"))
    }

    fn keep_epoch(&self, plan: &EpochPlan) -> Result<(), String> {
        epoch::keep_plan(&self.home, &self.identity, plan).map_err(|e| format!("{e:#}"))
    }

    fn keep_rejoin(&self, answer: &RejoinAnswer) -> Result<(), String> {
        epoch::keep_rejoin(&self.home, &self.identity, answer).map_err(|e| format!("{e:#}"))
    }

    fn asides(&self) -> Vec<Aside> {
        epoch::asides(&self.home).unwrap_or_else(|e| {
            tracing::error!("what this node had alone can't be told: {e:#}");
            vec![]
        })
    }

    fn told_aside(&self) {
        // It is recorded; with the file left it is recorded again, at the same place.
        if let Err(e) = epoch::told_aside(&self.home) {
            tracing::warn!("{e:#}");
        }
    }

    fn restart(&self) {
        self.restart.notify_one();
    }

    fn bringing(&self) -> Vec<(Vmid, String)> {
        self.home.carried().unwrap_or_else(|e| {
            tracing::error!("guests that came along with this node are not recorded: {e:#}");
            vec![]
        })
    }

    fn brought(&self) {
        // They are recorded; with the file left, the next start finds so.
        if let Err(e) = self.home.brought() {
            tracing::warn!("{e:#}");
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        self.tls.fingerprint()
    }

    fn seal_key(&self) -> [u8; 32] {
        self.key
    }

    fn certificates(&self) -> Kept {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        Kept { ca: keys.ca.clone(), cert: keys.cert.clone() }
    }

    fn signing_request(&self) -> Result<String, String> {
        let key = self.keys.lock().unwrap_or_else(PoisonError::into_inner).key.clone();
        let made = NodeKey::from_pem(&key).and_then(|key| key.signing_request(&self.identity.name));
        made.map_err(|e| e.to_string())
    }

    fn keep_certificates(&self, kept: &Kept) -> Result<(), String> {
        // One at a time; nobody who reads them waits for the disk.
        let _turn = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        take_certificates(&self.home, &self.tls, &mut keys, kept).map_err(|e| format!("{e:#}"))?;
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }
}

/// What API handlers ask of the daemon.
pub struct NodeAdmin {
    /// The use cases.
    pub ops: Arc<Ops>,
    /// Power over the host, as the fence process has it: `none`, `socket:PATH`, `watchdog:PATH` or `host`.
    pub power: String,
}

impl NodeAdmin {
    /// The last step of going down.
    fn switch(power: &str, what: HostPower) -> Result<(), OpsError> {
        let failed = |why: String| OpsError::failed(format!("the power switch did not take it: {why}"));
        match power.split_once(':') {
            Some(("socket" | "watchdog", path)) => {
                let word = match what {
                    HostPower::Reboot => "reboot\n",
                    HostPower::Shutdown => "off\n",
                };
                let mut switch = UnixStream::connect(path).map_err(|e| failed(format!("{path}: {e}")))?;
                switch.write_all(word.as_bytes()).map_err(|e| failed(format!("{path}: {e}")))
            }
            _ if power == "host" => {
                let verb = match what {
                    HostPower::Reboot => "reboot",
                    HostPower::Shutdown => "poweroff",
                };
                let out = std::process::Command::new("systemctl").arg(verb).output();
                match out.map_err(|e| failed(format!("systemctl: {e}")))? {
                    out if out.status.success() => Ok(()),
                    out => Err(failed(String::from_utf8_lossy(&out.stderr).trim().to_owned())),
                }
            }
            _ => Err(failed("there is none".to_owned())),
        }
    }

    /// Whether the host may be powered off by Stead at all.
    fn check_power(&self) -> Result<(), OpsError> {
        let refuse =
            |why: &str| Err(OpsError::failed(format!("this node has no power over its host: {why}")));
        match &*self.power {
            "none" => refuse("its daemon runs with --power none"),
            "host" if !Path::new(HOST_ARMED).exists() => {
                refuse("the Debian package has not armed it (/etc/stead/host-armed)")
            }
            _ => Ok(()),
        }
    }
}

fn resolve(hostname: &str) -> Result<SocketAddr, OpsError> {
    let refuse = |why: String| OpsError::invalid("hostname", why);
    if let Ok(addr) = hostname.parse() {
        return Ok(addr);
    }
    let with_port = if hostname.contains(':') { hostname.to_owned() } else { format!("{hostname}:{PORT}") };
    let found =
        with_port.to_socket_addrs().map_err(|e| refuse(format!("'{hostname}' can't be found: {e}")))?;
    found.into_iter().next().ok_or_else(|| refuse(format!("'{hostname}' has no address")))
}

#[async_trait]
impl Admin for NodeAdmin {
    async fn create_cluster(&self, actor: &Actor, name: &str, links: LinkWish) -> Result<Upid, OpsError> {
        let (ops, by, name) = (self.ops.clone(), actor.clone(), name.to_owned());
        self.ops.task("clustercreate", &name.clone(), &actor.who, move |cx| async move {
            ops.create_cluster(&by, &name, &links).await?;
            cx.log(format!("cluster '{name}' is ready: other nodes can join it"));
            Ok(())
        })
    }

    async fn join_information(
        &self,
        actor: &Actor,
        node: Option<&NodeName>,
        with_token: bool,
    ) -> Result<Value, OpsError> {
        self.ops.join_information(actor, node, with_token).await
    }

    async fn join_cluster(&self, actor: &Actor, request: JoinRequest) -> Result<Upid, OpsError> {
        let information = match request.hostname.parse::<JoinInfo>() {
            Ok(_) => request.hostname.clone(),
            Err(_) => {
                let fingerprint = request.fingerprint.parse();
                let fingerprint = fingerprint.map_err(|_| {
                    OpsError::invalid("fingerprint", "expected SHA-256 as hexadecimal digits with colons")
                })?;
                let (addrs, cluster, uuid) =
                    (vec![resolve(&request.hostname)?], String::new(), String::new());
                JoinInfo { v: 1, addrs, fingerprint, cluster, uuid, token: None }.to_string()
            }
        };
        let auth = if TokenRecord::id_of(&request.password).is_some() {
            JoinAuth::Token(request.password)
        } else {
            let user = UserId::new(UserId::ROOT).map_err(|e| OpsError::failed(e.to_string()))?;
            JoinAuth::Password { user, password: request.password }
        };
        self.ops.join_cluster(actor, JoinWish { information, auth, links: request.links })
    }

    async fn remove_node(&self, actor: &Actor, node: &NodeName) -> Result<(), OpsError> {
        self.ops.remove_node(actor, node).await
    }

    async fn host_power(&self, actor: &Actor, what: HostPower) -> Result<(), OpsError> {
        self.check_power()?;
        let power = self.power.clone();
        self.ops.depart(actor, what, move || Self::switch(&power, what)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};
    use stead_model::{Era, NodeUuid, RaftId};
    use stead_transport::{ClusterCa, PeerIdentity};

    const UUID: &str = "11111111-1111-4111-8111-111111111111";
    const OTHER: &str = "22222222-2222-4222-8222-222222222222";

    fn kept(ca: &ClusterCa, key: &NodeKey, name: &str, uuid: &str) -> Kept {
        let me = PeerIdentity { name: name.parse().unwrap(), uuid: uuid.parse().unwrap() };
        let request = key.signing_request(&me.name).unwrap();
        let cert = ca.sign(&request, &me, &[], SystemTime::now()).unwrap();
        Kept { ca: ca.cert_pem().to_owned(), cert }
    }

    struct Stage {
        _dir: tempfile::TempDir,
        ca: ClusterCa,
        key: NodeKey,
        daemon: Daemon,
    }

    fn stage() -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let ca = ClusterCa::create("test", UUID, SystemTime::now()).unwrap();
        let key = NodeKey::generate().unwrap();
        let Kept { ca: ca_pem, cert } = kept(&ca, &key, "n1", UUID);
        let keys =
            Keys { ca: ca_pem.clone(), cert: cert.clone(), key: key.to_pem(), cluster_key: "00".into() };
        home.save_keys(&keys).unwrap();
        let credentials = Credentials { ca_pem, cert_pem: cert, key_pem: key.to_pem() };
        let tls = Tls::new(&credentials, None, Arc::new(|_: &NodeUuid| true)).unwrap();
        let identity = Identity {
            version: 1,
            name: "n1".parse().unwrap(),
            uuid: UUID.parse().unwrap(),
            raft_id: RaftId(1),
            era: Era::FIRST,
        };
        let (keys, restart) = (Mutex::new(keys), Arc::default());
        let daemon = Daemon { home, identity, tls, key: [0; 32], keys, keeping: Mutex::default(), restart };
        Stage { _dir: dir, ca, key, daemon }
    }

    #[test]
    fn a_new_certificate_is_on_the_disk_and_shown() {
        let Stage { _dir, ca, key, daemon } = stage();
        let before = daemon.fingerprint();
        let later = SystemTime::now() + Duration::from_secs(7 * 365 * 86_400);
        let new = kept(&ca.renewed(later).unwrap(), &key, "n1", UUID);
        daemon.keep_certificates(&new).unwrap();
        assert_eq!(daemon.certificates(), new);
        let on_disk = daemon.home.keys().unwrap();
        assert_eq!((&on_disk.ca, &on_disk.cert, on_disk.key), (&new.ca, &new.cert, key.to_pem()));
        assert_ne!(daemon.fingerprint(), before);
        assert_eq!(daemon.fingerprint(), Fingerprint::of(&ca::certificate(&new.cert).unwrap()));
        // What a request asks for is for this key.
        assert!(daemon.signing_request().is_ok());
    }

    #[test]
    fn what_is_not_this_node_s_is_refused_and_changes_nothing() {
        let Stage { _dir, ca, key, daemon } = stage();
        let (before, shown) = (daemon.home.keys().unwrap(), daemon.fingerprint());
        let foreign = ClusterCa::create("test", UUID, SystemTime::now()).unwrap();
        let other_key = NodeKey::generate().unwrap();
        let good = kept(&ca, &key, "n1", UUID);
        for bad in [
            kept(&foreign, &key, "n1", UUID),
            Kept { cert: kept(&foreign, &key, "n1", UUID).cert, ..good.clone() },
            Kept { ca: foreign.cert_pem().to_owned(), ..good.clone() },
            kept(&ca, &other_key, "n1", UUID),
            kept(&ca, &key, "n1", OTHER),
            kept(&ca, &key, "n2", UUID),
            Kept { cert: String::new(), ..good.clone() },
            Kept { cert: good.cert.replace("CERTIFICATE", "LETTER"), ..good.clone() },
        ] {
            daemon.keep_certificates(&bad).unwrap_err();
            assert!(daemon.home.keys().unwrap() == before && daemon.fingerprint() == shown);
        }
        // The disk takes nothing: what is shown stays as what is kept.
        std::fs::create_dir(daemon.home.at("tls/keys.json.new")).unwrap();
        daemon.keep_certificates(&good).unwrap_err();
        assert!(daemon.home.keys().unwrap() == before && daemon.fingerprint() == shown);
    }
}
