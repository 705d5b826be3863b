//! Streams and joining, over real sockets.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::*;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use stead_transport::join::{
    ClusterFacts, JOIN_PATH, JOIN_PROTOCOL, JoinAnswer, JoinAuth, JoinClient, JoinError, JoinRequest,
    JoinToken, Member, refusal_response, vet_join,
};
use stead_transport::stream::{Carried, accept_upgrade, frames, splice};
use stead_transport::{
    ClientError, Fingerprint, Handler, JoinInfo, JoinRefusal, NodeKey, PeerClient, Purpose, Stream, full,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Grants upgrades and hands the stream to `f`.
fn streams<F, R>(f: F) -> Handler
where
    F: Fn(Stream) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    handler(move |mut request, _| {
        let f = f.clone();
        async move {
            let Some((answer, stream)) = accept_upgrade(&mut request) else {
                return Response::new(full("no"));
            };
            tokio::spawn(async move { f(stream.await.unwrap()).await });
            answer
        }
    })
}

#[tokio::test]
async fn an_upgraded_stream_carries_100_mb_each_way() {
    const SIZE: usize = 100 << 20;
    let (ca, both) = (ca(), members(&[1, 2]));
    let echo = streams(|stream| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
    let one = node(tls(&ca, 1, &both), echo).await;
    let peers = PeerClient::new(tls(&ca, 2, &both));
    let stream = peers.open(&one.peer, Purpose::Bulk, "echo").await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let begun = Instant::now();
    let writer = tokio::spawn(async move {
        let chunk: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
        for _ in 0..SIZE >> 20 {
            write.write_all(&chunk).await.unwrap();
        }
        write.shutdown().await.unwrap();
    });
    let (mut seen, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let n = soon("bytes", read.read(&mut buffer)).await.unwrap();
        if n == 0 {
            break;
        }
        assert!(buffer[..n].iter().enumerate().all(|(i, b)| *b == (((seen + i) % (1 << 20)) % 251) as u8));
        seen += n;
    }
    writer.await.unwrap();
    assert_eq!(seen, SIZE);
    println!("echo of {} MB over TLS: {:.2?}", SIZE >> 20, begun.elapsed());
    // Without an upgrade on the other side, the caller is told.
    let plain = node(tls(&ca, 1, &both), tell_who()).await;
    let refused = peers.open(&plain.peer, Purpose::Bulk, "echo").await;
    assert!(matches!(refused, Err(ClientError::Refused(_))));
}

#[tokio::test]
async fn frames_cross_a_peer_stream_and_a_removed_peers_stream_is_cut() {
    let (ca, both) = (ca(), members(&[1, 2]));
    let upper = streams(|stream| async move {
        let (mut incoming, mut out) = frames(stream, 1 << 20);
        while let Ok(Some(frame)) = incoming.next().await {
            out.send(&frame.to_ascii_uppercase()).await.unwrap();
        }
    });
    let one = node(tls(&ca, 1, &both), upper).await;
    let peers = PeerClient::new(tls(&ca, 2, &both));
    let stream = peers.open(&one.peer, Purpose::Control, "raft").await.unwrap();
    let (mut incoming, mut out) = frames(stream, 1 << 20);
    for size in [1, 100, 1 << 20] {
        out.send(&vec![b'a'; size]).await.unwrap();
        assert!(incoming.next().await.unwrap().unwrap() == vec![b'A'; size]);
    }
    assert_eq!(one.server.drop_peer(&uuid(2)), 1);
    assert!(!matches!(soon("cut", incoming.next()).await, Ok(Some(_))));
}

#[tokio::test]
async fn splice_throughput() {
    const SIZE: u64 = 512 << 20;
    let (ca, all) = (ca(), members(&[1, 2]));
    // sender ─TLS─► node ─splice─► TCP sink: as a migration arrives at a node and goes to QEMU's socket.
    let sink = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sink_addr = sink.local_addr().unwrap();
    let drained = tokio::spawn(async move {
        let (mut tcp, _) = sink.accept().await.unwrap();
        let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            match tcp.read(&mut buffer).await.unwrap() {
                0 => return total,
                n => total += n as u64,
            }
        }
    });
    let carried = Arc::new(Carried::default());
    let counts = carried.clone();
    let into_sink = streams(move |stream| {
        let counts = counts.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(sink_addr).await.unwrap();
            splice(stream, tcp, &counts).await.unwrap();
        }
    });
    let one = node(tls(&ca, 1, &all), into_sink).await;
    let peers = PeerClient::new(tls(&ca, 2, &all));
    let mut stream = peers.open(&one.peer, Purpose::Bulk, "migrate").await.unwrap();
    let begun = Instant::now();
    let chunk = vec![5; 1 << 20];
    for _ in 0..SIZE >> 20 {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(soon("all of it", drained).await.unwrap(), SIZE);
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(carried.a_to_b(), SIZE);
    println!("splice over TLS on loopback: {:.0} MB/s", SIZE as f64 / 1e6 / seconds);
}

async fn member(ca: stead_transport::ClusterCa, record: stead_transport::join::TokenRecord) -> Node {
    let one = tls(&ca, 1, &members(&[1]));
    let ca = Arc::new(ca);
    let addr = "192.0.2.1:8006".parse().unwrap();
    let letting_in = handler(move |request, _| {
        let (ca, record) = (ca.clone(), record.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let header = |name: &str| head.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
            if head.uri.path() == "/api2/json/access/ticket" {
                let mut response =
                    Response::new(full(r#"{"data":{"ticket":"PVE:t","CSRFPreventionToken":"c"}}"#));
                if body != "username=root%40pam&password=right%26" {
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                }
                return response;
            }
            assert_eq!(head.uri.path(), JOIN_PATH);
            let by_token =
                header("authorization").and_then(|a| a.strip_prefix("SteadJoin ").map(str::to_owned));
            let by_ticket = header("cookie").as_deref() == Some("PVEAuthCookie=PVE:t")
                && header("csrfpreventiontoken").as_deref() == Some("c");
            if !by_ticket && !by_token.is_some_and(|t| record.accepts(&t, 1)) {
                return refusal_response(&JoinRefusal::Token);
            }
            let request: JoinRequest = serde_json::from_slice(&body).unwrap();
            let vmids = [stead_model::Vmid::new(100).unwrap()].into();
            let facts = ClusterFacts {
                wall_clock_ms: 1000,
                version: "0.1.0",
                feature_level: 1,
                quorate: true,
                members: &[("n1".parse().unwrap(), uuid(1), vec![addr])],
                vmids: &vmids,
            };
            if let Err(refusal) = vet_join(&request, &facts) {
                return refusal_response(&refusal);
            }
            let node =
                stead_transport::PeerIdentity { name: request.name.clone(), uuid: request.uuid.clone() };
            let raft_id = stead_model::RaftId(7);
            let answer = JoinAnswer {
                cert: ca.sign(&request.csr, &node, &[], SystemTime::now()).unwrap(),
                ca: ca.cert_pem().to_owned(),
                cluster_name: "test".into(),
                cluster_uuid: CLUSTER_UUID.into(),
                seal_key: "c2VjcmV0".into(),
                raft_id,
                era: stead_model::Era::FIRST,
                members: vec![Member {
                    name: node.name,
                    uuid: node.uuid,
                    raft_id,
                    addr: request.addr,
                    links: request.links,
                }],
            };
            Response::new(full(serde_json::to_vec(&answer).unwrap()))
        }
    });
    node(one, letting_in).await
}

fn join_request(key: &NodeKey) -> JoinRequest {
    let name = "n2".parse().unwrap();
    JoinRequest {
        protocol: JOIN_PROTOCOL,
        csr: key.signing_request(&name).unwrap(),
        name,
        uuid: uuid(2),
        addr: "192.0.2.2:8006".parse().unwrap(),
        links: stead_model::link::Links::new(),
        ips: vec![],
        version: "0.1.5".into(),
        feature_level: 1,
        vmids: vec![],
        storages: vec![],
        witness: false,
        wall_clock_ms: 1000,
    }
}

#[tokio::test]
async fn a_node_joins_with_password_or_token_and_each_refusal_is_typed() {
    let (token, record) = JoinToken::generate(100).unwrap();
    let one = member(ca(), record).await;
    let info = JoinInfo {
        v: 1,
        // The first address does not answer: the second is tried.
        addrs: vec!["127.0.0.1:1".parse().unwrap(), one.peer.addrs[&0]],
        fingerprint: one.tls.fingerprint(),
        cluster: "test".into(),
        uuid: CLUSTER_UUID.into(),
        token: None,
    };
    let info: JoinInfo = info.to_string().parse().unwrap();
    let key = NodeKey::generate().unwrap();
    let request = join_request(&key);
    let password = |p: &str| JoinAuth::Password { user: "root@pam".parse().unwrap(), password: p.into() };
    let client = JoinClient::reach(info.clone()).await.unwrap();
    for auth in [password("right&"), JoinAuth::Token(token.as_str().to_owned())] {
        let answer = client.join(&auth, &request, &key).await.unwrap();
        assert_eq!(answer.raft_id.0, 7);
        // What came back can be used at once.
        let credentials =
            stead_transport::Credentials { ca_pem: answer.ca, cert_pem: answer.cert, key_pem: key.to_pem() };
        let tls = stead_transport::Tls::new(&credentials, None, Arc::new(|_: &stead_model::NodeUuid| true))
            .unwrap();
        assert_eq!(tls.identity(), identity(2));
    }
    let wrong = client.join(&password("wrong"), &request, &key).await.unwrap_err();
    assert!(matches!(wrong, JoinError::WrongPassword { .. }), "{wrong}");
    let wrong = client.join(&JoinAuth::Token("1.2".into()), &request, &key).await.unwrap_err();
    assert!(matches!(wrong, JoinError::Refused(JoinRefusal::Token)), "{wrong}");
    let clash = JoinRequest { vmids: vec![stead_model::Vmid::new(100).unwrap()], ..request.clone() };
    let refused = client.join(&password("right&"), &clash, &key).await.unwrap_err();
    assert!(matches!(refused, JoinError::Refused(JoinRefusal::Vmids { .. })), "{refused}");
    // A certificate for another key than the node's own is not taken.
    let other = NodeKey::generate().unwrap();
    let foreign = client.join(&password("right&"), &request, &other).await.unwrap_err();
    assert!(matches!(foreign, JoinError::BadAnswer(_)), "{foreign}");
    // Nor an answer of another cluster than the one in the join information.
    let elsewhere = JoinInfo { uuid: "other".into(), ..info.clone() };
    let elsewhere =
        JoinClient::reach(elsewhere).await.unwrap().join(&password("right&"), &request, &key).await;
    assert!(matches!(elsewhere, Err(JoinError::BadAnswer(_))));

    // Who names member and fingerprint by hand does not know the cluster's identity.
    let by_hand = JoinClient::reach(JoinInfo::by_hand(one.peer.addrs[&0], info.fingerprint)).await.unwrap();
    assert_eq!(by_hand.join(&password("right&"), &request, &key).await.unwrap().cluster_uuid, CLUSTER_UUID);

    let impostor = JoinInfo { fingerprint: Fingerprint([1; 32]), ..info.clone() };
    let refused = JoinClient::reach(impostor).await.unwrap_err();
    assert!(matches!(refused, JoinError::Client(ClientError::WrongFingerprint { .. })), "{refused}");
    let nobody = JoinInfo { addrs: vec!["127.0.0.1:1".parse().unwrap()], ..info };
    let refused = tokio::time::timeout(Duration::from_secs(10), JoinClient::reach(nobody)).await.unwrap();
    assert!(matches!(refused, Err(JoinError::NoMember { .. })));
}
