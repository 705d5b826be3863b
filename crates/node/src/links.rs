//! The port at this node's further links, and who the others are: both follow the configuration.

use crate::members::Members;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use stead_agents::raft::Directory;
use stead_model::link::Links;
use stead_model::{NodeUuid, paths};
use stead_ops::{Ops, store};
use stead_transport::{Peer, PeerClient, Server};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A link whose port is taken is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Where the port is served beside link 0.
struct Listening {
    server: Server,
    port: u16,
    at: BTreeMap<IpAddr, CancellationToken>,
    /// Where it could not be; told once.
    failing: BTreeSet<IpAddr>,
}

impl Listening {
    /// Serves these links and no others; false if one could not be had.
    fn follow(&mut self, links: &Links) -> bool {
        self.at.retain(|ip, listening| {
            let stays = links.values().any(|l| l == ip);
            if !stays {
                tracing::info!("no longer serving {ip}, port {}", self.port);
                listening.cancel();
            }
            stays
        });
        let mut all = true;
        for (number, &ip) in links {
            if self.at.contains_key(&ip) {
                continue;
            }
            let addr = SocketAddr::new(ip, self.port);
            match bind(addr) {
                Ok(listener) => {
                    tracing::info!("serving {addr} as link {number}");
                    self.at.insert(ip, self.server.listen_tls(listener));
                    self.failing.remove(&ip);
                }
                Err(e) => {
                    if self.failing.insert(ip) {
                        tracing::error!("cannot serve {addr} as link {number}, trying again: {e}");
                    }
                    all = false;
                }
            }
        }
        all
    }
}

/// Listens at an address that the host may not have yet: its network may come up after the daemon, or be plugged in later.
fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => {
            let socket = TcpSocket::new_v4()?;
            rustix::net::sockopt::set_ip_freebind(&socket, true)?;
            socket
        }
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            rustix::net::sockopt::set_ipv6_freebind(&socket, true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// The nodes by their numbers in Raft, as far as they are known.
pub fn directory(members: &Members) -> Directory {
    members.all().iter().map(|n| (n.raft_id, Peer::from(n))).collect()
}

/// Follows the members: tells who they are, serves this node's links, cuts the connections of nodes that were removed.
pub async fn follow(
    ops: Arc<Ops>,
    members: Members,
    client: PeerClient,
    server: Server,
    tell: watch::Sender<Directory>,
) {
    let mut watch = ops.conf.watch();
    let mut listening = Listening {
        server: server.clone(),
        port: ops.me.addr.port(),
        at: BTreeMap::new(),
        failing: BTreeSet::new(),
    };
    let mut known: Vec<NodeUuid> = vec![];
    loop {
        let all = members.all();
        let now: Vec<NodeUuid> = all.iter().map(|n| n.uuid.clone()).collect();
        for gone in known.iter().filter(|u| !now.contains(u)) {
            let cut = client.drop_peer(gone) + server.drop_peer(gone);
            tracing::info!("node {gone} was removed: {cut} connections cut");
        }
        known = now;
        tell.send_replace(directory(&members));
        let own = all.into_iter().find(|n| n.uuid == ops.me.uuid).map(|n| n.links).unwrap_or_default();
        client.set_own_links(&own);
        let again = if listening.follow(&own) { Duration::MAX } else { AGAIN };
        let changed = async {
            loop {
                match watch.next().await {
                    Some(event) if !store::touches(&event, paths::NODES) => {}
                    other => return other.is_some(),
                }
            }
        };
        if tokio::time::timeout(again, changed).await == Ok(false) {
            return;
        }
    }
}
