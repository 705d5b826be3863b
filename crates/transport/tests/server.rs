//! Who gets in, over real sockets.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::*;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use stead_model::NodeUuid;
use stead_transport::{
    ClientError, ClusterCa, Fingerprint, HttpClient, Limits, Membership, Peer, PeerClient, Purpose, Target,
    Tls, Trust, ca, client::reason, full,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

async fn who(client: &PeerClient, peer: &Peer) -> Result<String, ClientError> {
    Ok(text(client.request(peer, Purpose::Control, get("/x")).await?).await)
}

#[tokio::test]
async fn the_public_side_needs_no_certificate_and_peers_are_known_by_theirs() {
    let (ca, both) = (ca(), members(&[1, 2]));
    let one = node(tls(&ca, 1, &both), tell_who()).await;
    let client = public(one.peer.addrs[&0], Trust::Fingerprint(one.tls.fingerprint()));
    let answer = client.whole(get("/a?b=c")).await.unwrap();
    assert_eq!(answer.body, "/a?b=c Public");
    let by_ca = public(one.peer.addrs[&0], Trust::ca_pem(ca.cert_pem()).unwrap());
    assert_eq!(by_ca.whole(get("/x")).await.unwrap().body, "/x Public");

    let peers = PeerClient::new(tls(&ca, 2, &both));
    let seen = who(&peers, &one.peer).await.unwrap();
    assert_eq!(seen, format!("/x Peer({:?})", identity(2)));
}

#[tokio::test]
async fn without_the_clusters_certificate_nobody_is_a_peer() {
    let (ours, theirs, both) = (ca(), ca(), members(&[1, 2]));
    let one = node(tls(&ours, 1, &both), tell_who()).await;

    // The same names and numbers, of another CA: each side refuses the other.
    let stranger = PeerClient::new(tls(&theirs, 2, &both));
    assert!(matches!(who(&stranger, &one.peer).await, Err(ClientError::Tls { .. })));

    // A client that trusts anything and offers the peers' ALPN id, but has no certificate.
    let reached = soon("end", bare_peer_handshake(one.peer.addrs[&0], None)).await;
    assert!(reached.is_err(), "{reached:?}");
    // With a certificate of another CA.
    let reached = soon("end", bare_peer_handshake(one.peer.addrs[&0], Some((&theirs, 2)))).await;
    assert!(reached.is_err(), "{reached:?}");
    // The probe itself works: with the right certificate it is answered.
    let reached = soon("answer", bare_peer_handshake(one.peer.addrs[&0], Some((&ours, 2)))).await;
    assert!(reached.unwrap().starts_with("HTTP/1.1 200"), "the control case is answered");
}

#[tokio::test]
async fn between_nodes_no_clock_counts() {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let now = SystemTime::now();
    let (ca, both) = (ClusterCa::create("test", CLUSTER_UUID, now - 4 * YEAR).unwrap(), members(&[1, 2]));
    let by = |ca: &ClusterCa, n, when| {
        let view = both.clone();
        let is_member = move |node: &NodeUuid| view.lock().unwrap().contains(node);
        Tls::new(&credentials_of(ca, n, when), None, Arc::new(is_member)).unwrap()
    };
    let of = |n, when| by(&ca, n, when);
    // By the clock of this machine one has ended a year ago, and the other begins in a year; by neither do both hold.
    let one = node(of(1, now - 3 * YEAR), tell_who()).await;
    let two = PeerClient::new(of(2, now + YEAR));
    assert_eq!(who(&two, &one.peer).await.unwrap(), format!("/x Peer({:?})", identity(2)));
    let other = node(of(1, now + YEAR), tell_who()).await;
    let two = PeerClient::new(of(2, now - 3 * YEAR));
    assert_eq!(who(&two, &other.peer).await.unwrap(), format!("/x Peer({:?})", identity(2)));
    // The clock of the node that founded the cluster was years ahead, and has been set right.
    let early = ClusterCa::create("test", CLUSTER_UUID, now + 4 * YEAR).unwrap();
    let third = node(by(&early, 1, now), tell_who()).await;
    let two = PeerClient::new(by(&early, 2, now));
    assert_eq!(who(&two, &third.peer).await.unwrap(), format!("/x Peer({:?})", identity(2)));
    // What counts is who is a member.
    both.lock().unwrap().remove(&uuid(2));
    let two = PeerClient::new(of(2, now));
    assert!(who(&two, &other.peer).await.is_err());
}

/// Speaks to the peers' side by hand and gives what comes back.
async fn bare_peer_handshake(
    addr: std::net::SocketAddr,
    cert: Option<(&ClusterCa, u32)>,
) -> std::io::Result<String> {
    use rustls_pki_types::pem::PemObject;
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = rustls::RootCertStore::empty();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match cert {
        None => builder.with_no_client_auth(),
        Some((ca, n)) => {
            let c = credentials(ca, n);
            let chain = vec![ca::certificate(&c.cert_pem).unwrap()];
            let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(c.key_pem.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.dangerous().set_certificate_verifier(std::sync::Arc::new(danger::Anything));
    config.alpn_protocols = vec![stead_transport::PEER_ALPN.to_vec()];
    let tcp = TcpStream::connect(addr).await?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector.connect("127.0.0.1".try_into().unwrap(), tcp).await?;
    tls.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    match tls.read_to_string(&mut answer).await {
        Err(e) if e.kind() != ErrorKind::UnexpectedEof => Err(e),
        _ if answer.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
    }
}

mod danger {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub struct Anything;

    impl ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
}

#[tokio::test]
async fn a_removed_node_is_refused_by_both_sides_and_cut() {
    let ca = ca();
    let (server_view, client_view) = (members(&[1, 2]), members(&[1, 2]));
    let one = node(tls(&ca, 1, &server_view), tell_who()).await;
    let peers = PeerClient::new(tls(&ca, 2, &client_view));
    who(&peers, &one.peer).await.unwrap();
    assert_eq!((one.server.connections(&uuid(2)), peers.connections(&uuid(1))), (1, 1));

    // The server has removed the client: the open connection goes, a new one is refused.
    server_view.lock().unwrap().remove(&uuid(2));
    assert_eq!(one.server.drop_peer(&uuid(2)), 1);
    let refusal = soon("refusal", who(&peers, &one.peer)).await.unwrap_err();
    assert!(refusal.is_outcast(), "{refusal:?}");
    server_view.lock().unwrap().insert(uuid(2));
    who(&peers, &one.peer).await.unwrap();

    // The client has removed the server.
    client_view.lock().unwrap().remove(&uuid(1));
    assert!(peers.drop_peer(&uuid(1)) >= 1);
    assert_eq!(peers.connections(&uuid(1)), 0);
    let unknown = who(&peers, &one.peer).await.unwrap_err();
    assert!(!unknown.is_outcast() && matches!(unknown, ClientError::NotAMember(u) if u == uuid(1)));
}

#[tokio::test]
async fn another_node_at_the_address_is_noticed() {
    let (ca, all) = (ca(), members(&[1, 2, 3]));
    let one = node(tls(&ca, 1, &all), tell_who()).await;
    let peers = PeerClient::new(tls(&ca, 2, &all));
    let mistaken = Peer { name: "n3".parse().unwrap(), uuid: uuid(3), addrs: one.peer.addrs.clone() };
    let error = who(&peers, &mistaken).await.unwrap_err();
    assert!(matches!(&error, ClientError::WrongPeer { seen, .. } if **seen == identity(1)), "{error}");
    assert!(error.never_sent());
}

#[tokio::test]
async fn wrong_fingerprint_and_wrong_ca_are_told_apart() {
    let (ours, all) = (ca(), members(&[1]));
    let one = node(tls(&ours, 1, &all), tell_who()).await;
    let wrong = public(one.peer.addrs[&0], Trust::Fingerprint(Fingerprint([9; 32])));
    let error = wrong.whole(get("/")).await.unwrap_err();
    assert!(
        matches!(error, ClientError::WrongFingerprint { seen, .. } if seen == one.tls.fingerprint()),
        "{error}"
    );
    let other_ca = public(one.peer.addrs[&0], Trust::ca_pem(ca().cert_pem()).unwrap());
    assert!(matches!(other_ca.whole(get("/")).await, Err(ClientError::Tls { .. })));
    assert_eq!(public(one.peer.addrs[&0], Trust::Insecure).whole(get("/")).await.unwrap().body, "/ Public");
}

/// One node after the other has the CA's new certificate: each knows the others at any time, by connections that are open
/// meanwhile as by new ones, and so do clients that have the old file or the new one.
#[tokio::test]
async fn nodes_know_each_other_while_the_ca_s_certificate_is_made_anew() {
    let (old, both) = (ca(), members(&[1, 2]));
    let new = old.renewed(SystemTime::now() + Duration::from_secs(8 * 365 * 86_400)).unwrap();
    let one = node(tls(&old, 1, &both), tell_who()).await;
    let two = tls(&old, 2, &both);
    let (kept_open, anew) = (PeerClient::new(two.clone()), || PeerClient::new(two.clone()));
    let seen = format!("/x Peer({:?})", identity(2));
    assert_eq!(who(&kept_open, &one.peer).await.unwrap(), seen);
    for (first, second) in [(&new, &old), (&new, &new), (&old, &new)] {
        one.tls.replace(&credentials(first, 1), None).unwrap();
        two.replace(&credentials(second, 2), None).unwrap();
        assert_eq!(who(&anew(), &one.peer).await.unwrap(), seen);
        assert_eq!(who(&kept_open, &one.peer).await.unwrap(), seen);
        assert_eq!(kept_open.connections(&one.peer.uuid), 1, "the same connection");
        for file in [&old, &new] {
            let client = public(one.peer.addrs[&0], Trust::ca_pem(file.cert_pem()).unwrap());
            assert_eq!(client.whole(get("/x")).await.unwrap().body, "/x Public");
        }
    }
}

#[tokio::test]
async fn certificates_are_exchanged_while_running() {
    let (ca, all) = (ca(), members(&[1]));
    let one = node(tls(&ca, 1, &all), tell_who()).await;
    let before = one.tls.fingerprint();
    one.tls.replace(&credentials(&ca, 1), None).unwrap();
    assert_ne!(one.tls.fingerprint(), before);
    let old = public(one.peer.addrs[&0], Trust::Fingerprint(before));
    assert!(matches!(old.whole(get("/")).await, Err(ClientError::WrongFingerprint { .. })));
    let new = public(one.peer.addrs[&0], Trust::Fingerprint(one.tls.fingerprint()));
    assert!(new.whole(get("/")).await.is_ok());
    // Credentials that don't fit together are refused, and the old ones stay.
    let mut mixed = credentials(&ca, 1);
    mixed.key_pem = credentials(&ca, 1).key_pem;
    assert!(one.tls.replace(&mixed, None).is_err());
    let mut foreign = credentials(&common::ca(), 1);
    foreign.ca_pem = ca.cert_pem().to_owned();
    assert!(one.tls.replace(&foreign, None).is_err());
    assert!(new.whole(get("/")).await.is_ok());
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_redirected() {
    let one = node(tls(&ca(), 1, &members(&[1])), tell_who()).await;
    let mut tcp = TcpStream::connect(one.peer.addrs[&0]).await.unwrap();
    tcp.write_all(b"GET /ui HTTP/1.1\r\nHost: pve1:8006\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("answer", tcp.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains("\r\nLocation: https://pve1:8006/ui\r\n"), "{answer}");
}

#[tokio::test]
async fn the_kernel_says_who_uses_the_local_socket() {
    let one = node(tls(&ca(), 1, &members(&[1])), tell_who()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    one.server.listen_unix(UnixListener::bind(&path).unwrap());
    let client = HttpClient::new(Target::Unix(path)).unwrap();
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(client.whole(get("/v")).await.unwrap().body, format!("/v Local {{ uid: {uid} }}"));
}

#[tokio::test]
async fn slow_and_idle_clients_are_cut() {
    let (ca, all) = (ca(), members(&[1]));
    // One that never begins its handshake.
    let limits = Limits { handshake: Duration::from_millis(50), ..Limits::default() };
    let one = node_with(tls(&ca, 1, &all), tell_who(), limits).await;
    let mut silent = TcpStream::connect(one.peer.addrs[&0]).await.unwrap();
    assert_eq!(soon("end", silent.read(&mut [0])).await.unwrap(), 0);
    // One that sends no further head after a request that was answered.
    let limits = Limits { head: Duration::from_millis(500), ..Limits::default() };
    let one = node_with(tls(&ca, 1, &all), tell_who(), limits).await;
    let mut idle = public(one.peer.addrs[&0], Trust::Insecure).raw().await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut seen = vec![];
    let ended = soon("end", idle.read_to_end(&mut seen)).await;
    assert!(String::from_utf8_lossy(&seen).starts_with("HTTP/1.1 200"), "{ended:?}");
}

/// Of these strangers, all from one address, two are let in, and a third when one has gone; a peer always is.
async fn two_have_a_place(limits: Limits) {
    let (ca, all) = (ca(), members(&[1, 2]));
    let one = node_with(tls(&ca, 1, &all), tell_who(), limits).await;
    let client = public(one.peer.addrs[&0], Trust::Insecure);
    let (first, _second) = (client.raw().await.unwrap(), client.raw().await.unwrap());
    assert!(client.raw().await.is_err());
    who(&PeerClient::new(tls(&ca, 2, &all)), &one.peer).await.unwrap();
    drop(first);
    soon("room", async { while client.raw().await.is_err() {} }).await;
}

#[tokio::test]
async fn a_crowd_of_clients_keeps_no_peer_out() {
    two_have_a_place(Limits { public: 2, ..Limits::default() }).await;
}

#[tokio::test]
async fn one_address_does_not_take_every_place() {
    two_have_a_place(Limits { public_each: 2, ..Limits::default() }).await;

    let limits = Limits { handshakes_each: 1, ..Limits::default() };
    let one = node_with(tls(&ca(), 1, &members(&[1, 2])), tell_who(), limits).await;
    let silent = TcpStream::connect(one.peer.addrs[&0]).await.unwrap();
    assert!(public(one.peer.addrs[&0], Trust::Insecure).raw().await.is_err());
    drop(silent);
    let client = public(one.peer.addrs[&0], Trust::Insecure);
    soon("room", async { while client.raw().await.is_err() {} }).await;
}

/// Those who are members, all at one address.
struct AtOneAddress(Members, std::net::IpAddr);

impl Membership for AtOneAddress {
    fn is_member(&self, node: &stead_model::NodeUuid) -> bool {
        self.0.lock().unwrap().contains(node)
    }
    fn has_address(&self, address: std::net::IpAddr) -> bool {
        self.1 == address
    }
}

#[tokio::test]
async fn half_open_handshakes_elsewhere_keep_no_member_out() {
    let limits = Limits { handshakes: 1, handshakes_each: 1, ..Limits::default() };
    let (ca, both) = (ca(), members(&[1, 2]));
    let here = "127.0.0.1".parse().unwrap();
    let tls1 = Tls::new(&credentials(&ca, 1), None, Arc::new(AtOneAddress(both.clone(), here))).unwrap();
    let one = node_with(tls1, tell_who(), limits).await;
    let from = async |address: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        socket.connect(one.peer.addrs[&0]).await.unwrap()
    };
    let _half_open = from("127.0.0.2").await;
    // Whoever has no place is cut off, which shows that the first one has taken the only one.
    let mut refused = from("127.0.0.3").await;
    assert_eq!(soon("end", refused.read(&mut [0])).await.unwrap_or(0), 0);
    who(&PeerClient::new(tls(&ca, 2, &both)), &one.peer).await.unwrap();

    // A member's address has not more places than another one either.
    let _silent = from("127.0.0.1").await;
    assert!(public(one.peer.addrs[&0], Trust::Insecure).raw().await.is_err());
}

/// A node whose handler says when it has begun, and answers when it is told to.
async fn slow_node() -> (Node, UnboundedReceiver<()>, Arc<Notify>) {
    let (started, has_started) = unbounded_channel();
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let answering = handler(move |_, _| {
        started.send(()).unwrap();
        let gate = gate.clone();
        async move {
            gate.notified().await;
            http::Response::new(full("done"))
        }
    });
    (node(tls(&ca(), 1, &members(&[1])), answering).await, has_started, go_on)
}

#[tokio::test]
async fn shutdown_lets_requests_end() {
    let (one, mut has_started, go_on) = slow_node().await;
    let client = public(one.peer.addrs[&0], Trust::Insecure);
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.whole(get("/")).await }
    });
    has_started.recv().await.unwrap();
    let server = one.server.clone();
    let stopped = tokio::spawn(async move { server.shutdown(Duration::from_secs(60)).await });
    soon("refusal", async { while client.raw().await.is_ok() {} }).await;
    go_on.notify_one();
    assert_eq!(soon("answer", asked).await.unwrap().unwrap().body, "done");
    soon("stop", stopped).await.unwrap();
    assert!(matches!(client.whole(get("/")).await, Err(ClientError::Connect { .. })));
}

#[tokio::test]
async fn shutdown_cuts_what_does_not_end() {
    let (one, mut has_started, _go_on) = slow_node().await;
    let client = public(one.peer.addrs[&0], Trust::Insecure);
    let asked = tokio::spawn(async move { client.whole(get("/")).await });
    has_started.recv().await.unwrap();
    soon("stop", one.server.shutdown(Duration::from_millis(50))).await;
    assert!(matches!(asked.await.unwrap(), Err(ClientError::Broken { .. })));
}

#[tokio::test]
async fn connections_are_used_again_and_a_dead_one_is_replaced() {
    let (ca, both) = (ca(), members(&[1, 2]));
    let tls1 = tls(&ca, 1, &both);
    let one = node(tls1.clone(), tell_who()).await;
    let peers = PeerClient::new(tls(&ca, 2, &both));
    for _ in 0..20 {
        who(&peers, &one.peer).await.unwrap();
    }
    // The connection is given back by a task of its own, so now and then one more is made.
    assert!(peers.connections(&uuid(1)) <= 4, "{}", peers.connections(&uuid(1)));
    // The node restarts at the same address: the next call finds it.
    one.server.shutdown(Duration::ZERO).await;
    let listener = tokio::net::TcpListener::bind(one.peer.addrs[&0]).await.unwrap();
    let again = stead_transport::Server::new(tls1, tell_who(), Limits::default());
    again.listen_tls(listener);
    who(&peers, &one.peer).await.unwrap();
}

#[tokio::test]
async fn a_call_ends_in_time_and_says_what_the_other_side_said() {
    let (ca, both) = (ca(), members(&[1, 2]));
    let answering = handler(|request, _| async move {
        match request.uri().path() {
            "/peer/v1/never" => std::future::pending().await,
            "/peer/v1/refuse" => {
                let mut r = http::Response::new(full(""));
                *r.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                let phrase = hyper::ext::ReasonPhrase::try_from("VM 100 does not exist".to_owned()).unwrap();
                r.extensions_mut().insert(phrase);
                r
            }
            "/peer/v1/nothing" => http::Response::new(full("")),
            _ => http::Response::new(full("[1,2]")),
        }
    });
    let one = node(tls(&ca, 1, &both), answering).await;
    let peers = PeerClient::new(tls(&ca, 2, &both));
    let limit = Duration::from_secs(10);
    let call = |name: &'static str, limit| {
        let (peers, peer) = (peers.clone(), one.peer.clone());
        async move { peers.json::<_, serde_json::Value>(&peer, Purpose::Heartbeat, name, &[1], limit).await }
    };
    assert_eq!(call("echo", limit).await.unwrap(), serde_json::json!([1, 2]));
    assert_eq!(call("nothing", limit).await.unwrap(), serde_json::Value::Null);
    let refused = call("refuse", limit).await.unwrap_err();
    assert_eq!(refused.to_string(), "VM 100 does not exist");
    assert!(!refused.unreachable());
    let late = call("never", Duration::from_millis(50)).await.unwrap_err();
    assert!(late.unreachable() && !late.never_sent(), "{late}");
    let response = peers.request(&one.peer, Purpose::Control, get("/peer/v1/refuse")).await.unwrap();
    assert_eq!(reason(&response), "VM 100 does not exist");
}

#[tokio::test]
async fn heartbeats_do_not_wait_for_bulk() {
    let (ca, both) = (ca(), members(&[1, 2]));
    let answering = handler(|request, _| async move {
        if request.uri().path() == "/bulk" {
            std::future::pending::<()>().await;
        }
        http::Response::new(full("null"))
    });
    let one = node(tls(&ca, 1, &both), answering).await;
    let peers = PeerClient::new(tls(&ca, 2, &both));
    // More uploads than are allowed at once, none of which ends.
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..150 {
        let (peers, peer) = (peers.clone(), one.peer.clone());
        uploads.spawn(async move { peers.request(&peer, Purpose::Bulk, get("/bulk")).await.is_ok() });
    }
    let beat = peers.json::<_, ()>(&one.peer, Purpose::Heartbeat, "beat", &(), Duration::from_secs(10));
    beat.await.unwrap();
    uploads.shutdown().await;
}
