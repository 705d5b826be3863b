//! Who else may run a backup's guests: each of them must be said to be off, and is knocked at.
//!
//! | who | known by |
//! |---|---|
//! | the other nodes of the backup | the backup |
//! | who joined since, or came again under its name | the node's own store, as far as that goes; where there is none of this cluster: nobody, and that must be said |
//! | the machine that had this one's name before | the backup, where this machine is not known to be that one |

use crate::identity::{Home, Identity, key_text};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use stead_conf::{Backup, Conf, succession};
use stead_model::{ClusterRecord, NodeName, NodeRecord, paths};
use stead_ops::store;

/// Another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// Its name.
    pub name: NodeName,
    /// Where it answers, if it is on.
    addrs: Vec<SocketAddr>,
    /// It had this machine's place: this one may have its addresses by now.
    #[serde(default)]
    succeeded: bool,
}

/// Whether this machine is that node of the backup's, by its own folder.
pub fn is_it(home: &Home, backup: &Backup, of: Option<&Identity>, me: &NodeRecord) -> bool {
    let same_cluster = home.keys().is_ok_and(|keys| keys.cluster_key == key_text(backup.key().expose()));
    same_cluster && of.is_some_and(|of| of.name == me.name && of.uuid == me.uuid)
}

/// All other machines that may run guests. `unknown_off`: an operator says that who joined since the backup is off, too.
///
/// # Errors
/// If nobody can know who joined since, and it was not said.
pub fn others(
    home: &Home,
    backup: &Backup,
    of: Option<&Identity>,
    me: &NodeRecord,
    unknown_off: bool,
) -> Result<Vec<NodeRecord>> {
    let mut all = store::nodes(backup.tree());
    match since(home, backup) {
        Ok(nodes) => all.extend(nodes),
        Err(why) if unknown_off => println!("nobody knows who has joined since the backup: {why:#}"),
        Err(why) => bail!(
            "nobody knows which nodes have joined since the backup, and guests run twice if one of them is on: {why:#}. If all \
             machines that ever were nodes of this cluster are off, say --unknown-off"
        ),
    }
    if is_it(home, backup, of, me) {
        all.retain(|n| (&n.name, &n.uuid) != (&me.name, &me.uuid));
    }
    let mut out: Vec<NodeRecord> = vec![];
    for node in all {
        if !out.contains(&node) {
            out.push(node);
        }
    }
    Ok(out)
}

/// The nodes of the store that is here, if it is of the backup's cluster.
fn since(home: &Home, backup: &Backup) -> Result<Vec<NodeRecord>> {
    let conf = home.at("conf");
    if !Conf::exists(&conf) {
        bail!("this machine has no store that tells");
    }
    let seen = succession::look(&conf).context("this machine's store can't be read")?;
    let (here, there) = (seen.machine.tree(), backup.tree());
    let [here_of, there_of] = [here, there].map(|tree| store::record::<ClusterRecord>(tree, paths::CLUSTER));
    if here_of?.map(|c| c.value.uuid) != there_of?.map(|c| c.value.uuid) {
        bail!("this machine's store is another cluster's");
    }
    let nodes = store::nodes(here);
    match nodes.len() == here.list(paths::NODES).count() {
        true => Ok(nodes),
        false => bail!("this machine's store has nodes that can't be read"),
    }
}

/// Where to knock at them.
pub fn doors(others: &[NodeRecord], of: Option<&Identity>, me: &NodeRecord) -> Vec<Other> {
    let succeeded = |n: &NodeRecord| n.name == me.name || of.is_some_and(|of| of.uuid == n.uuid);
    let door = |n: &NodeRecord| Other { name: n.name.clone(), addrs: n.addrs(), succeeded: succeeded(n) };
    others.iter().map(door).collect()
}

/// Refuses if one of these machines answers.
///
/// # Errors
/// Which, and where.
pub async fn silent(others: &[Other]) -> Result<()> {
    for other in others {
        let addrs = other.addrs.iter().filter(|addr| !(other.succeeded && is_own(addr.ip())));
        if let Some(addr) = stead_ops::life::kernel_at(addrs.copied().collect()).await {
            bail!(
                "node '{}' is not off: a machine answers at {}. Guests may run where a kernel does. If another machine has that address \
                 by now, take that off the network while you say so",
                other.name,
                addr.ip()
            );
        }
    }
    Ok(())
}

/// Whether an address is this machine's.
fn is_own(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    // Where every address can be bound, that it can tells nothing.
    let any = std::fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    any.is_ok_and(|any| any.trim() == "0") && UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_had_this_machine_s_place_is_not_found_in_this_machine() {
        let listener = tokio::net::TcpListener::bind("127.0.7.77:0").await.unwrap();
        let addrs = vec![listener.local_addr().unwrap()];
        let other = |succeeded| Other { name: "n1".parse().unwrap(), addrs: addrs.clone(), succeeded };
        silent(&[other(true)]).await.unwrap();
        let on = silent(&[other(true), other(false)]).await.unwrap_err();
        assert!(on.to_string().contains("node 'n1' is not off: a machine answers at 127.0.7.77"), "{on}");
        assert!(!is_own("192.0.2.1".parse().unwrap()));
    }
}
