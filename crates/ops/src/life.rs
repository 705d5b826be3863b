//! Whether a node that somebody says is off shows that it is not: before an operator's word counts.
//!
//! A daemon that answers is no proof of more than itself, nor its silence of anything: guests run where a kernel does. So the
//! kernel is asked too, by a connection that it takes or refuses: at the daemon's port, and at one where nobody listens, since the
//! queue of a daemon that hangs is full some day, and its kernel silent there.

use crate::Ops;
use crate::epochs::EPOCH_CALL;
use crate::peers::PeerError;
use futures_util::future::join_all;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use stead_model::NodeRecord;

/// A port where nobody listens.
const NOBODY: u16 = 1;
/// How long a node may take to show that it is on.
const KNOCK: Duration = Duration::from_secs(2);

impl Ops {
    /// What shows that a node is on, for people; none: it is silent.
    pub(crate) async fn sign_of_life(&self, node: &NodeRecord) -> Option<String> {
        let answer = self.peers.call(node, EPOCH_CALL, serde_json::Value::Null, KNOCK);
        match tokio::join!(answer, kernel_of(node)) {
            (Err(PeerError::Unreachable { .. }), None) => None,
            (Err(PeerError::Unreachable { .. }), Some(addr)) => {
                Some(format!("{} (a kernel at {})", node.name, addr.ip()))
            }
            _ => Some(format!("{} (its daemon)", node.name)),
        }
    }
}

/// At which of a node's addresses a machine answers, if at any: its daemon, or a kernel that refuses a connection.
pub async fn kernel_of(node: &NodeRecord) -> Option<SocketAddr> {
    kernel_at(node.addrs()).await
}

/// At which of these addresses a machine answers, if at any.
pub async fn kernel_at(addrs: Vec<SocketAddr>) -> Option<SocketAddr> {
    let knocks = join_all(addrs.iter().map(|addr| async move {
        let (there, beside) = tokio::join!(is_on(*addr), is_on(SocketAddr::new(addr.ip(), NOBODY)));
        there || beside
    }));
    let knocks = knocks.await;
    addrs.into_iter().zip(knocks).find(|(_, on)| *on).map(|(addr, _)| addr)
}

/// Whether a machine answers at an address.
async fn is_on(addr: SocketAddr) -> bool {
    let knock = tokio::time::timeout(KNOCK, tokio::net::TcpStream::connect(addr)).await;
    knock.is_ok_and(|answer| shows_a_kernel(addr.ip(), answer.map(drop).map_err(|e| e.kind())))
}

/// Whether what came of a connection shows that a machine is on: it has taken it, or its kernel has refused it. On loopback that
/// kernel is this node's own.
fn shows_a_kernel(at: IpAddr, answer: Result<(), ErrorKind>) -> bool {
    match answer {
        Ok(()) => true,
        Err(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => !at.is_loopback(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_a_kernel_and_a_network_that_is_away_does_not() {
        let (afar, here) = ([192, 0, 2, 1].into(), [127, 0, 0, 2].into());
        for (answer, expected) in [
            (Ok(()), [true, true]),
            (Err(ErrorKind::ConnectionRefused), [true, false]),
            (Err(ErrorKind::ConnectionReset), [true, false]),
            (Err(ErrorKind::HostUnreachable), [false, false]),
            (Err(ErrorKind::NetworkUnreachable), [false, false]),
        ] {
            assert_eq!([afar, here].map(|at| shows_a_kernel(at, answer)), expected, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn who_takes_a_connection_is_on_though_nobody_answers() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = silent.local_addr().unwrap();
        assert!(is_on(addr).await);
        drop(silent);
        assert!(!is_on(addr).await, "on loopback who refuses is this node's own kernel");
    }
}
