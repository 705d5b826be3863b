//! etcd's three, and a client of theirs: gRPC as etcd's own clients speak it, with the few messages that are needed written by hand.

use crate::Places;
use crate::children::Member;
use crate::load::Store;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Starts the three, as Debian has them: they sync what they acknowledge, and speak without TLS.
pub fn start(dir: &Path, places: &Places) -> Vec<Member> {
    let url = |n: usize, port| format!("http://{}", places.at(n, port));
    let cluster: Vec<String> = (0..3).map(|n| format!("m{n}={}", url(n, 2))).collect();
    let one = |n: usize| {
        let mut command = Command::new("etcd");
        command.env_clear().arg(format!("--name=m{n}"));
        command.arg(format!("--data-dir={}", dir.join(format!("etcd{n}")).display()));
        for flag in ["listen-peer-urls", "initial-advertise-peer-urls"] {
            command.arg(format!("--{flag}={}", url(n, 2)));
        }
        for flag in ["listen-client-urls", "advertise-client-urls"] {
            command.arg(format!("--{flag}={}", url(n, 3)));
        }
        command.arg(format!("--initial-cluster={}", cluster.join(",")));
        command.args(["--initial-cluster-state=new", "--logger=zap", "--log-level=error"]);
        Member::start(&mut command, &dir.join(format!("etcd{n}.log")))
    };
    (0..3).map(one).collect()
}

/// A connection to one of them; clones share it.
#[derive(Clone)]
pub struct Client(SendRequest<Bytes>);

pub async fn connect(places: &Places, n: usize) -> Client {
    let stream = loop {
        match TcpStream::connect(places.at(n, 3)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    stream.set_nodelay(true).unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20);
    let (requests, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    Client(requests)
}

/// A field of bytes in protobuf.
fn field(out: &mut BytesMut, number: u8, data: &[u8]) {
    out.put_u8(number << 3 | 2);
    let mut len = data.len();
    while len >= 0x80 {
        out.put_u8(len as u8 | 0x80);
        len >>= 7;
    }
    out.put_u8(len as u8);
    out.put_slice(data);
}

fn varint(from: &mut Bytes) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

/// Numbers and contents of a message's fields; a number's content is its eight bytes.
fn fields(mut from: Bytes) -> Vec<(u64, Bytes)> {
    let mut all = Vec::new();
    while from.has_remaining() {
        let tag = varint(&mut from);
        let content = match tag & 7 {
            0 => Bytes::copy_from_slice(&varint(&mut from).to_be_bytes()),
            2 => {
                let len = varint(&mut from) as usize;
                from.split_to(len)
            }
            other => panic!("a field of type {other}"),
        };
        all.push((tag >> 3, content));
    }
    all
}

fn one(from: &Bytes, number: u64) -> Bytes {
    fields(from.clone())
        .into_iter()
        .find(|(is, _)| *is == number)
        .map(|(_, content)| content)
        .unwrap_or_default()
}

impl Client {
    /// Opens a call and sends its first message.
    async fn open(
        &self,
        method: &str,
        message: &[u8],
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let request = Request::post(format!("http://etcd/etcdserverpb.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut frame = BytesMut::with_capacity(5 + message.len());
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.put_slice(message);
        let (answer, mut stream) = self.0.clone().ready().await?.send_request(request, false)?;
        stream.send_data(frame.freeze(), end)?;
        Ok((answer, stream))
    }

    async fn call(&self, method: &str, message: &[u8]) -> Result<Bytes, String> {
        let called = async {
            let (answer, _stream) = self.open(method, message, true).await?;
            let mut body = answer.await?.into_body();
            let mut all = BytesMut::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                all.put_slice(&data);
            }
            let trailers = body.trailers().await?.unwrap_or_default();
            Ok::<_, h2::Error>((all.freeze(), trailers))
        };
        let (mut all, trailers) = called.await.map_err(|e| e.to_string())?;
        if trailers.get("grpc-status").is_some_and(|status| status != "0") || all.len() < 5 {
            return Err(format!("{trailers:?}"));
        }
        all.advance(5);
        Ok(all)
    }
}

impl Store for Client {
    async fn put(&self, key: &str, value: &Bytes) -> Result<(), String> {
        let mut message = BytesMut::with_capacity(16 + key.len() + value.len());
        field(&mut message, 1, key.as_bytes());
        field(&mut message, 2, value);
        self.call("KV/Put", &message).await.map(drop)
    }

    async fn read(&self, key: &str, fresh: bool) -> Result<Bytes, String> {
        let mut message = BytesMut::new();
        field(&mut message, 1, key.as_bytes());
        if !fresh {
            // `serializable`: what this member has.
            message.put_slice(&[7 << 3, 1]);
        }
        let answer = self.call("KV/Range", &message).await?;
        Ok(one(&one(&answer, 2), 5))
    }

    async fn leads(&self) -> bool {
        let Ok(answer) = self.call("Maintenance/Status", &[]).await else { return false };
        let me = one(&one(&answer, 1), 2);
        !me.is_empty() && me == one(&answer, 4)
    }

    async fn watch(&self, prefix: &str) -> mpsc::UnboundedReceiver<Bytes> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let (mut create, mut message) = (BytesMut::new(), BytesMut::new());
        field(&mut create, 1, prefix.as_bytes());
        field(&mut create, 2, &end);
        field(&mut message, 1, &create);
        let (answer, stream) = self.open("Watch/Watch", &message, false).await.unwrap();
        let mut body = answer.await.unwrap().into_body();
        let (to, events) = mpsc::unbounded_channel();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let _open = stream;
            let (mut all, mut ready) = (BytesMut::new(), Some(ready));
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                all.put_slice(&data);
                while all.len() >= 5 && all.len() >= 5 + (&all[1..]).get_u32() as usize {
                    let len = (&all[1..]).get_u32() as usize;
                    all.advance(5);
                    let message = all.split_to(len).freeze();
                    if let Some(ready) = ready.take() {
                        // The first says that the watch was made.
                        let _gone = ready.send(());
                    }
                    for (_, event) in fields(message).into_iter().filter(|(number, _)| *number == 11) {
                        let _gone = to.send(one(&one(&event, 2), 5));
                    }
                }
            }
        });
        is_ready.await.unwrap();
        events
    }
}
