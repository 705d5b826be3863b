//! Peers with several links, over real sockets. A dead link is a port that takes connections and never says a word, as
//! a path does on which packets are lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::*;
use http::Response;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use stead_transport::{ClientError, ConnInfo, Peer, PeerClient, Purpose, Server, full};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_millis(1200);

/// A node that two addresses lead to, the first of which is dead.
struct Bed {
    dead: std::net::TcpListener,
    alive: SocketAddr,
    server: Server,
    peer: Peer,
    client: PeerClient,
}

async fn bed() -> Bed {
    let (ca, all) = (ca(), members(&[1, 2]));
    let answer = |request: http::Request<hyper::body::Incoming>, _| async move {
        let refuses = request.uri().path().ends_with("/refuse");
        let mut answer = Response::new(full(r#""yes""#));
        *answer.status_mut() = if refuses { http::StatusCode::CONFLICT } else { http::StatusCode::OK };
        answer
    };
    let one = node(tls(&ca, 1, &all), handler(answer)).await;
    let dead = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
    let alive = one.peer.addrs[&0];
    let peer = Peer { addrs: [(0, dead.local_addr().unwrap()), (1, alive)].into(), ..one.peer };
    Bed { dead, alive, server: one.server, peer, client: PeerClient::new(tls(&ca, 2, &all)) }
}

impl Bed {
    async fn heartbeat(&self, every: bool) -> Result<String, ClientError> {
        soon("heartbeat", self.client.heartbeat(&self.peer, "beat", &(), LIMIT, every)).await
    }

    fn answers(&self, link: u8) -> Option<bool> {
        self.client.link(&self.peer.uuid, self.peer.addrs[&link]).map(|s| s.answers)
    }

    /// Until the dead link is known to be dead: it is tried on after the answer has come by the other.
    async fn known(&self, link: u8, answers: bool) {
        let told = async {
            while self.answers(link) != Some(answers) {
                tokio::task::yield_now().await;
            }
        };
        soon("news of a link", told).await;
    }
}

#[tokio::test]
async fn a_heartbeat_goes_by_whichever_link_answers() {
    let bed = bed().await;
    let began = Instant::now();
    assert_eq!(bed.heartbeat(false).await.unwrap(), "yes");
    assert!(began.elapsed() < LIMIT, "the next link is asked long before the first is given up");
    assert_eq!(bed.answers(1), Some(true));
    bed.known(0, false).await;
    // From now on the dead one is asked last.
    let began = Instant::now();
    bed.heartbeat(false).await.unwrap();
    assert!(began.elapsed() < LIMIT / 6, "{:?}", began.elapsed());

    // The first is mended.
    let listener = TcpListener::from_std({
        bed.dead.set_nonblocking(true).unwrap();
        bed.dead.try_clone().unwrap()
    });
    let mended: CancellationToken = bed.server.listen_tls(listener.unwrap());
    bed.heartbeat(true).await.unwrap();
    bed.known(0, true).await;
    mended.cancel();
}

#[tokio::test]
async fn a_refusal_is_an_answer_and_silence_on_every_link_an_error() {
    let bed = bed().await;
    let refused = bed.client.heartbeat::<_, String>(&bed.peer, "refuse", &(), LIMIT, false).await;
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    assert_eq!(bed.answers(1), Some(true));
    bed.server.shutdown(Duration::ZERO).await;
    let silent = bed.heartbeat(false).await.unwrap_err();
    assert!(!matches!(silent, ClientError::Refused(_)), "{silent}");
}

#[tokio::test]
async fn calls_connect_by_the_link_that_answers() {
    let bed = bed().await;
    let call = || bed.client.json::<_, String>(&bed.peer, Purpose::Control, "any", &(), LIMIT);
    assert_eq!(soon("answer", call()).await.unwrap(), "yes");
    assert_eq!(bed.client.connections(&bed.peer.uuid), 1);
    // By the dead one alone there is no way, and it is known from then on.
    let began = Instant::now();
    let opened = bed.client.open_by(bed.peer.addrs[&0], &bed.peer, Purpose::Raft, "raft", LIMIT).await;
    assert!(matches!(opened, Err(ClientError::Timeout { .. })) && began.elapsed() >= LIMIT);
    assert_eq!(bed.answers(0), Some(false));
    let by_the_other = bed.client.open_by(bed.alive, &bed.peer, Purpose::Raft, "raft", LIMIT).await;
    assert!(matches!(by_the_other, Err(ClientError::Refused(_))), "this server opens no streams");
}

#[tokio::test]
async fn a_node_goes_from_its_own_link_to_the_others_of_that_number() {
    let (ca, all) = (ca(), members(&[1, 2]));
    let tell = handler(|_, info: ConnInfo| async move {
        Response::new(full(serde_json::to_string(&info.remote.map(|r| r.ip())).unwrap()))
    });
    let one = node(tls(&ca, 1, &all), tell).await;
    let peer = Peer { addrs: [(0, one.peer.addrs[&0]), (3, one.peer.addrs[&0])].into(), ..one.peer };
    let client = PeerClient::new(tls(&ca, 2, &all));
    let from = async |number: u8| {
        let peer = Peer { addrs: [(number, peer.addrs[&number])].into(), ..peer.clone() };
        soon("answer", client.json::<_, String>(&peer, Purpose::Control, "any", &(), LIMIT)).await
    };
    client.set_own_links(&[(3, "127.0.0.7".parse().unwrap())].into());
    assert_eq!(from(0).await.unwrap(), "127.0.0.1");
    assert_eq!(from(3).await.unwrap(), "127.0.0.7");
    // A mistake: this address is on no interface.
    client.set_own_links(&[(3, "192.0.2.7".parse().unwrap())].into());
    let alone = Peer { addrs: [(3, peer.addrs[&3])].into(), ..peer };
    assert!(client.open_by(alone.addrs[&3], &alone, Purpose::Raft, "raft", LIMIT).await.is_err());
}

#[tokio::test]
async fn a_server_leaves_one_of_its_addresses() {
    let bed = bed().await;
    let second = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let at = second.local_addr().unwrap();
    let listening = bed.server.listen_tls(second);
    let by = |addr| Peer { addrs: [(0, addr)].into(), ..bed.peer.clone() };
    let call = async |peer: &Peer| {
        soon("answer", bed.client.json::<_, String>(peer, Purpose::Control, "any", &(), LIMIT)).await
    };
    call(&by(at)).await.unwrap();
    listening.cancel();
    let gone = async {
        while tokio::net::TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon("end of listening", gone).await;
    call(&by(bed.alive)).await.unwrap();
}
