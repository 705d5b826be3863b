//! A node's first start, and every other: finds or makes its identity, its keys and its configuration.

use crate::args::Args;
use crate::identity::{Home, Identity, Keys, PendingLeave, cluster_key, key_text};
use anyhow::{Context, Result, bail};
use std::time::SystemTime;
use stead_access::secret::MIN_PASSWORD;
use stead_conf::{ClusterKey, Conf, Options};
use stead_model::link::Links;
use stead_model::{
    BootId, ClusterRecord, Epoch, Era, FenceProfile, Lineage, NodeName, NodeRecord, NodeState, NodeUuid,
    RaftId, paths,
};
use stead_transport::{ClusterCa, NodeKey, PeerIdentity};

/// What the rest of the daemon is built on.
pub struct Started {
    /// Who this node is.
    pub identity: Identity,
    /// With which keys.
    pub keys: Keys,
    /// In which boot.
    pub boot: BootId,
    /// Its configuration.
    pub conf: Conf,
}

/// Opens what is there, or founds a cluster of this one node.
pub fn start(home: &Home, args: &Args) -> Result<Started> {
    let boot = home.boot()?;
    crate::restore::carry_out(home)?;
    if let Some(leave) = home.carry_out_leave()? {
        let started = found(home, args, boot, Some(&leave))?;
        home.left()?;
        return Ok(started);
    }
    home.carry_out_join()?;
    crate::epoch::carry_out_plan(home)?;
    crate::epoch::carry_out_rejoin(home)?;
    let Some(identity) = home.identity()? else { return found(home, args, boot, None) };
    if let Some(name) = &args.name
        && *name != identity.name
    {
        bail!(
            "this node's name is '{}', and cannot be changed to '{name}': start it without --name",
            identity.name
        );
    }
    let keys = home.keys()?;
    let mut options = Options::new(home.at("conf"), cluster_key(&keys.cluster_key)?, identity.raft_id);
    options.patient = args.witness;
    options.era = identity.era;
    // The agent for epochs lets it go when it has looked around.
    options.held = true;
    let conf = if Conf::exists(&home.at("conf")) { Conf::open(options) } else { Conf::join(options) };
    let conf = conf.context("the configuration can't be opened")?;
    Ok(Started { identity, keys, boot, conf })
}

fn host_name() -> Result<NodeName> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").context("can't read the host's name")?;
    let short = text.trim().split('.').next().unwrap_or_default().to_owned();
    short
        .parse()
        .with_context(|| format!("the host's name '{short}' is no name for a node: give one with --name"))
}

/// Founds a cluster of this node: one that has never been in any, or that has left its own, and keeps its name and
/// its root's password then.
fn found(home: &Home, args: &Args, boot: BootId, left: Option<&PendingLeave>) -> Result<Started> {
    let name = match (left, &args.name) {
        (Some(left), _) => left.of.name.clone(),
        (None, Some(n)) => n.clone(),
        (None, None) => host_name()?,
    };
    let uuid: NodeUuid = new_uuid().parse()?;
    let identity =
        Identity { version: 1, name: name.clone(), uuid: uuid.clone(), raft_id: RaftId(1), era: Era::FIRST };
    let cluster = ClusterRecord {
        name: args.cluster_name.clone(),
        uuid: new_uuid(),
        epoch: Epoch(1),
        profile: FenceProfile::default(),
        previous_profile: None,
        lineage: Lineage::default(),
    };
    let now = SystemTime::now();
    let ca = ClusterCa::create(&cluster.name, &cluster.uuid, now)?;
    let key = NodeKey::generate()?;
    let peer = PeerIdentity { name: name.clone(), uuid: uuid.clone() };
    let cert = ca.sign(&key.signing_request(&name)?, &peer, &[args.listen.ip()], now)?;
    let cluster_key = ClusterKey::generate()?;
    let keys = Keys {
        ca: ca.cert_pem().to_owned(),
        cert,
        key: key.to_pem(),
        cluster_key: key_text(cluster_key.expose()),
    };
    let node = NodeRecord {
        name,
        uuid,
        raft_id: identity.raft_id,
        addr: args.listen,
        links: Links::new(),
        state: NodeState::Member { boot: boot.clone() },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        witness: args.witness,
        off: None,
        restart: None,
    };
    let mut txn = stead_ops::join::found(&cluster, &node, ca.cert_pem(), stead_ops::storage_place::LOCAL)?;
    let password = if left.is_some() { None } else { password(args)? };
    let mut secrets = stead_ops::access::initial_secrets(password.as_deref())?;
    if let Some(left) = left {
        secrets.push((paths::SHADOW_CFG, left.shadow.clone().into_bytes()));
    }
    secrets.push((paths::CA_KEY, ca.key_pem().as_bytes().to_vec()));
    for (path, secret) in secrets {
        txn = txn.put(path, cluster_key.seal(path, &secret)?);
    }
    // A first start that was cut off left no identity: what it has begun is made anew.
    if home.at("conf").exists() {
        std::fs::remove_dir_all(home.at("conf")).context("can't clear an unfinished first start")?;
    }
    home.save_keys(&keys)?;
    let mut options = Options::new(home.at("conf"), cluster_key, identity.raft_id);
    options.patient = args.witness;
    let conf = Conf::create(options, &txn).context("can't make the configuration")?;
    home.save_identity(&identity)?;
    tracing::info!("cluster '{}' founded on node '{}'", cluster.name, identity.name);
    Ok(Started { identity, keys, boot, conf })
}

fn password(args: &Args) -> Result<Option<String>> {
    let Some(path) = &args.root_password_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let first = text.lines().next().unwrap_or_default();
    if first.chars().count() < MIN_PASSWORD {
        bail!(
            "the password for root@pam, the first line of {}, must have at least {MIN_PASSWORD} characters",
            path.display()
        );
    }
    Ok(Some(first.to_owned()))
}

fn new_uuid() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string()
}
