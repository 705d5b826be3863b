//! The load's side of Stead's three.

use crate::Places;
use crate::children::Member;
use crate::load::Store;
use crate::wire::{self, FRESH, GROW, LEADS, Message, OK, PUT, READ, WATCH};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use stead_transport::{ClusterCa, NodeKey, PeerIdentity};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Starts the three and makes them one cluster.
pub async fn start(dir: &Path, places: &Places) -> Vec<Member> {
    let ca = ClusterCa::create("bench", crate::node::uuid(99).as_str(), SystemTime::now()).unwrap();
    let mut members = Vec::new();
    for n in 0..3 {
        let home = dir.join(format!("stead{n}"));
        std::fs::create_dir_all(&home).unwrap();
        let me = PeerIdentity { name: format!("n{}", n + 1).parse().unwrap(), uuid: crate::node::uuid(n) };
        let key = NodeKey::generate().unwrap();
        let request = key.signing_request(&me.name).unwrap();
        let cert = ca.sign(&request, &me, &[places.at(n, 0).ip()], SystemTime::now()).unwrap();
        for (file, text) in [("ca.pem", ca.cert_pem()), ("cert.pem", &cert), ("key.pem", &key.to_pem())] {
            std::fs::write(home.join(file), text).unwrap();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("node").arg(&home).arg(n.to_string());
        command.args(places.ips.iter().map(ToString::to_string)).arg(places.port.to_string());
        members.push(Member::start(&mut command, &dir.join(format!("stead{n}.log"))));
    }
    let first = connect(places, 0).await;
    first.ask(GROW, Bytes::new()).await.expect("three members");
    members
}

/// Where answers to a request go.
type Whose = mpsc::UnboundedSender<Result<Bytes, String>>;

/// A connection to one of them; clones share it.
#[derive(Clone)]
pub struct Client {
    next: Arc<AtomicU64>,
    waiting: Arc<Mutex<HashMap<u64, Whose>>>,
    requests: mpsc::UnboundedSender<Message>,
}

pub async fn connect(places: &Places, n: usize) -> Client {
    let stream = loop {
        match TcpStream::connect(places.at(n, 1)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    stream.set_nodelay(true).unwrap();
    let (mut from, to) = stream.into_split();
    let (requests, outgoing) = mpsc::unbounded_channel();
    tokio::spawn(wire::write(to, outgoing));
    let client = Client { next: Arc::default(), waiting: Arc::default(), requests };
    let waiting = client.waiting.clone();
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        while let Some((number, kind, rest)) = wire::next(&mut from, &mut buffer).await {
            let answer = if kind == OK { Ok(rest) } else { Err(String::from_utf8_lossy(&rest).into_owned()) };
            if let Some(whose) = waiting.lock().unwrap().get(&number) {
                let _gone = whose.send(answer);
            }
        }
        waiting.lock().unwrap().clear();
    });
    client
}

impl Client {
    fn open(&self, kind: u8, rest: Bytes) -> (u64, mpsc::UnboundedReceiver<Result<Bytes, String>>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (whose, answers) = mpsc::unbounded_channel();
        self.waiting.lock().unwrap().insert(number, whose);
        self.requests.send((number, kind, rest)).unwrap();
        (number, answers)
    }

    async fn ask(&self, kind: u8, rest: Bytes) -> Result<Bytes, String> {
        let (number, mut answers) = self.open(kind, rest);
        let answer = answers.recv().await.unwrap_or_else(|| Err("the connection ended".into()));
        self.waiting.lock().unwrap().remove(&number);
        answer
    }
}

impl Store for Client {
    async fn put(&self, key: &str, value: &Bytes) -> Result<(), String> {
        self.ask(PUT, wire::pair(key, value)).await.map(drop)
    }

    async fn read(&self, key: &str, fresh: bool) -> Result<Bytes, String> {
        self.ask(if fresh { FRESH } else { READ }, Bytes::copy_from_slice(key.as_bytes())).await
    }

    async fn leads(&self) -> bool {
        self.ask(LEADS, Bytes::new()).await.is_ok_and(|answer| answer[0] == 1)
    }

    async fn watch(&self, prefix: &str) -> mpsc::UnboundedReceiver<Bytes> {
        let (_, mut answers) = self.open(WATCH, Bytes::copy_from_slice(prefix.as_bytes()));
        answers.recv().await.unwrap().unwrap();
        let (to, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(value)) = answers.recv().await {
                if to.send(value).is_err() {
                    return;
                }
            }
        });
        events
    }
}
