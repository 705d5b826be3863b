//! One of Stead's three: the configuration, Raft's streams to the others as the daemon has them (mutual TLS), and a port for the load.

use crate::Places;
use crate::wire::{self, FAILED, FRESH, GROW, LEADS, Message, OK, PUT, READ, WATCH};
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::body::Incoming;
use std::path::Path;
use std::sync::Arc;
use stead_agents::raft;
use stead_conf::{ClusterKey, Conf, Options, Txn, WatchEvent};
use stead_model::{NodeUuid, RaftId};
use stead_transport::stream::accept_upgrade;
use stead_transport::{ConnInfo, ConnKind, Credentials, Limits, Peer, PeerClient, Server, Tls};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub fn uuid(n: usize) -> NodeUuid {
    format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
}

/// Runs until it is killed. The first founds the cluster; the others wait to be let in.
pub async fn run(dir: &Path, n: usize, places: &Places) {
    let pem = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let credentials =
        Credentials { ca_pem: pem("ca.pem"), cert_pem: pem("cert.pem"), key_pem: pem("key.pem") };
    let tls = Tls::new(&credentials, None, Arc::new(|_: &NodeUuid| true)).unwrap();
    let options = Options::new(dir.join("conf"), ClusterKey::from([7; 32]), RaftId(n as u64 + 1));
    let conf = if n == 0 {
        Conf::create(options, &Txn::new("root@pam").put("stead/cluster", "bench")).unwrap()
    } else {
        Conf::join(options).unwrap()
    };
    let peer = |n: usize| {
        let name = format!("n{}", n + 1).parse().unwrap();
        (RaftId(n as u64 + 1), Peer { name, uuid: uuid(n), addrs: [(0, places.at(n, 0))].into() })
    };
    let (_tell, directory) = watch::channel((0..3).filter(|other| *other != n).map(peer).collect());
    tokio::spawn(raft::send(conf.clone(), PeerClient::new(tls.clone()), directory, 1));
    let (heard, at_peers) = (raft::Heard::default(), conf.clone());
    let handler = move |mut request: Request<Incoming>, info: ConnInfo| {
        let stream = accept_upgrade(&mut request);
        if let (Some((answer, stream)), ConnKind::Peer(peer)) = (stream, info.kind) {
            let (conf, heard) = (at_peers.clone(), heard.clone());
            tokio::spawn(async move {
                if let Ok(stream) = stream.await {
                    raft::receive(conf, heard, peer.uuid, stream).await;
                }
            });
            return answer;
        }
        Response::new(stead_transport::empty())
    };
    let handler: stead_transport::Handler = Arc::new(move |request, info| {
        let answer = handler(request, info);
        Box::pin(async move { answer })
    });
    let server = Server::new(tls, handler, Limits::default());
    server.listen_tls(TcpListener::bind(places.at(n, 0)).await.unwrap());
    let clients = TcpListener::bind(places.at(n, 1)).await.unwrap();
    while let Ok((client, _)) = clients.accept().await {
        tokio::spawn(serve(conf.clone(), client));
    }
}

async fn serve(conf: Conf, client: TcpStream) {
    client.set_nodelay(true).unwrap();
    let (mut from, to) = client.into_split();
    let (answers, waiting) = mpsc::unbounded_channel();
    tokio::spawn(wire::write(to, waiting));
    let mut buffer = BytesMut::new();
    while let Some((number, kind, rest)) = wire::next(&mut from, &mut buffer).await {
        let (conf, answers) = (conf.clone(), answers.clone());
        match kind {
            // Answered at once.
            READ => drop(answers.send((number, OK, value(&conf, &rest)))),
            WATCH => drop(tokio::spawn(follow(conf, number, rest, answers))),
            _ => drop(tokio::spawn(async move {
                let answer = answer(&conf, kind, rest).await;
                let (kind, rest) = answer.map_or_else(|why| (FAILED, why.into()), |rest| (OK, rest));
                let _gone = answers.send((number, kind, rest));
            })),
        }
    }
}

fn value(conf: &Conf, key: &[u8]) -> Bytes {
    let key = std::str::from_utf8(key).unwrap();
    conf.view(|tree| tree.get(key).map(|entry| entry.data.clone())).unwrap_or_default()
}

async fn answer(conf: &Conf, kind: u8, rest: Bytes) -> Result<Bytes, String> {
    match kind {
        PUT => {
            let (key, value) = wire::split(rest);
            let done = conf.transact(Txn::new("root@pam").put(key, value)).await;
            done.map(|_| Bytes::new()).map_err(|e| e.to_string())
        }
        FRESH => {
            conf.barrier().await.map_err(|e| e.to_string())?;
            Ok(value(conf, &rest))
        }
        LEADS => {
            let status = conf.status().borrow().clone();
            let all = status.quorate && status.voters.len() == 3;
            Ok(Bytes::copy_from_slice(&[u8::from(status.is_leader && all)]))
        }
        GROW => {
            for id in [2, 3].map(RaftId) {
                conf.add_learner(id).await.map_err(|e| e.to_string())?;
                let there = |s: &stead_conf::RaftStatus| {
                    s.peers.iter().any(|p| p.id == id && p.matched > 0 && p.active)
                };
                conf.status().wait_for(there).await.map_err(|e| e.to_string())?;
                conf.promote(id).await.map_err(|e| e.to_string())?;
            }
            Ok(Bytes::new())
        }
        _ => Err(format!("what is '{kind}'?")),
    }
}

/// Sends the value of each key below a prefix that is written.
async fn follow(conf: Conf, number: u64, prefix: Bytes, answers: mpsc::UnboundedSender<Message>) {
    let prefix = String::from_utf8(prefix.to_vec()).unwrap();
    let mut watch = conf.watch();
    let _gone = answers.send((number, OK, Bytes::new()));
    while let Some(event) = watch.next().await {
        let WatchEvent::Commit(commit) = event else { continue };
        for change in commit.changes.iter().filter(|c| c.path.starts_with(&prefix)) {
            if answers.send((number, OK, value(&conf, change.path.as_bytes()))).is_err() {
                return;
            }
        }
    }
}
