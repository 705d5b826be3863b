//! WebSockets: consoles' bytes in frames of subprotocol `binary`.
//!
//! A screen's bytes pass as they are. A terminal's are wrapped, as known clients do it:
//!
//! ```text
//! client → "user:ticket\n"         ← "OK"
//! client → "0:LEN:data" typed keys ← data as it is
//! client → "1:COLS:ROWS:" size     (a serial line has no size)
//! client → "2" still there
//! ```

use super::endpoint::Error;
use super::{Body, full};
use bytes::{Buf, BytesMut};
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

/// A two-way byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Whether a user's ticket, as a terminal's client sends them first, is good.
pub type CheckLogin = Box<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// What a WebSocket is to be joined with.
pub struct Socket {
    io: Box<dyn Io>,
    login: Option<CheckLogin>,
}

/// The most that is read at once, in bytes.
const CHUNK: usize = 64 << 10;
/// How long a terminal's client may take to say who it is: until then it holds the guest's console.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// A terminal client's longest message, in bytes.
const MAX_TYPED: usize = 1 << 20;

impl Socket {
    /// A screen: bytes as they are.
    pub fn screen(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), login: None }
    }

    /// A terminal: `login` checks the first line.
    pub fn terminal(io: impl Io + 'static, login: CheckLogin) -> Self {
        Self { io: Box::new(io), login: Some(login) }
    }

    /// Answers the handshake, and joins both ends once the connection has been taken over.
    pub fn answer(self, headers: &HeaderMap, upgrade: Option<OnUpgrade>) -> Result<Response<Body>, Error> {
        let has = |name: http::HeaderName, word: &str| {
            headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .is_some_and(|v| v.to_ascii_lowercase().contains(word))
        };
        let key = headers
            .get(SEC_WEBSOCKET_KEY)
            .filter(|_| has(UPGRADE, "websocket") && has(CONNECTION, "upgrade"));
        let (Some(key), Some(upgrade)) = (key, upgrade) else {
            return Err(Error::new(400, "a WebSocket handshake was expected"));
        };
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
            .map_err(|e| Error::failed(format!("WebSocket handshake: {e}")))?;
        let mut r = Response::new(full(""));
        *r.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let h = r.headers_mut();
        h.insert(UPGRADE, HeaderValue::from_static("websocket"));
        h.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        h.insert(SEC_WEBSOCKET_ACCEPT, accept);
        if has(SEC_WEBSOCKET_PROTOCOL, "binary") {
            h.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("binary"));
        }
        tokio::spawn(async move {
            match upgrade.await {
                Ok(up) => self.run(up).await,
                Err(e) => tracing::debug!("a WebSocket's client went away: {e}"),
            }
        });
        Ok(r)
    }

    async fn run(self, up: Upgraded) {
        let ws = WebSocketStream::from_raw_socket(TokioIo::new(up), Role::Server, None).await;
        let ended = match self.login {
            None => screen(ws, self.io).await,
            Some(login) => terminal(ws, self.io, &login).await,
        };
        if let Err(e) = ended {
            tracing::debug!("a console ended: {e}");
        }
    }
}

type Ws = WebSocketStream<TokioIo<Upgraded>>;
type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The bytes of a message that carries any; none at the end.
fn payload(message: Message) -> Option<bytes::Bytes> {
    match message {
        Message::Binary(b) => Some(b),
        Message::Text(t) => Some(bytes::Bytes::copy_from_slice(t.as_bytes())),
        Message::Close(_) => None,
        // The library answers pings by itself.
        _ => Some(bytes::Bytes::new()),
    }
}

async fn screen(ws: Ws, io: Box<dyn Io>) -> Ended {
    let (sink, mut stream) = ws.split();
    let (mut read, mut write) = tokio::io::split(io);
    let to_guest = async {
        while let Some(message) = stream.next().await {
            let Some(data) = payload(message?) else { break };
            write.write_all(&data).await?;
        }
        write.shutdown().await?;
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    };
    tokio::select! {
        r = to_guest => r,
        r = to_client(sink, &mut read) => r,
    }
}

async fn to_client(mut sink: SplitSink<Ws, Message>, read: &mut (impl AsyncRead + Unpin)) -> Ended {
    let mut buf = BytesMut::with_capacity(CHUNK);
    loop {
        buf.reserve(CHUNK);
        if read.read_buf(&mut buf).await? == 0 {
            sink.send(Message::Close(None)).await?;
            return Ok(());
        }
        sink.send(Message::Binary(buf.split().freeze())).await?;
    }
}

/// The line that a terminal's client sends first; none if it has gone. What is typed behind it stays in `typed`.
async fn login_line<S>(
    ws: &mut WebSocketStream<S>,
    typed: &mut BytesMut,
    limit: Duration,
) -> Result<Option<String>, Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let line = async {
        loop {
            if let Some(end) = typed.iter().position(|b| *b == b'\n') {
                let line = typed.split_to(end + 1);
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            let Some(data) = ws.next().await.transpose()?.and_then(payload) else { return Ok(None) };
            typed.extend_from_slice(&data);
            if typed.len() > 8192 {
                return Err("no login line".into());
            }
        }
    };
    tokio::time::timeout(limit, line).await.unwrap_or_else(|_| Err("no login line in time".into()))
}

async fn terminal(mut ws: Ws, io: Box<dyn Io>, login: &CheckLogin) -> Ended {
    let mut typed = BytesMut::new();
    let Some(line) = login_line(&mut ws, &mut typed, LOGIN_LIMIT).await? else { return Ok(()) };
    let known = line.split_once(':').is_some_and(|(user, ticket)| login(user, ticket));
    if !known {
        ws.close(None).await?;
        return Err("the terminal's ticket is not good".into());
    }
    ws.send(Message::Binary(bytes::Bytes::from_static(b"OK"))).await?;
    let (sink, mut stream) = ws.split();
    let (mut read, mut write) = tokio::io::split(io);
    let to_guest = async {
        loop {
            for keys in take_typed(&mut typed)? {
                write.write_all(&keys).await?;
            }
            let Some(message) = stream.next().await else { break };
            let Some(data) = payload(message?) else { break };
            typed.extend_from_slice(&data);
        }
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    };
    tokio::select! {
        r = to_guest => r,
        r = to_client(sink, &mut read) => r,
    }
}

/// Takes whole messages off the front; gives the typed keys in them.
fn take_typed(buf: &mut BytesMut) -> Result<Vec<bytes::Bytes>, &'static str> {
    let mut all = vec![];
    loop {
        match buf.first() {
            None => return Ok(all),
            Some(b'2') => buf.advance(1),
            Some(b'1') => match nth_colon(buf, 3) {
                Some(end) => buf.advance(end + 1),
                None if buf.len() > 64 => return Err("a size message is too long"),
                None => return Ok(all),
            },
            Some(b'0') => {
                let Some(end) = nth_colon(buf, 2) else {
                    return if buf.len() > 64 { Err("a length is too long") } else { Ok(all) };
                };
                let len = std::str::from_utf8(&buf[2..end]).ok().and_then(|t| t.parse::<usize>().ok());
                let len = len.filter(|n| *n <= MAX_TYPED).ok_or("a length is not valid")?;
                if buf.len() < end + 1 + len {
                    return Ok(all);
                }
                buf.advance(end + 1);
                all.push(buf.split_to(len).freeze());
            }
            Some(_) => return Err("an unknown message"),
        }
    }
}

/// Where the nth colon stands.
fn nth_colon(buf: &[u8], n: usize) -> Option<usize> {
    buf.iter().enumerate().filter(|(_, b)| **b == b':').nth(n - 1).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_does_not_log_in_is_cut() {
        let (client, server) = tokio::io::duplex(1024);
        let mut ws = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let mut typed = BytesMut::new();
        client.send(Message::text("u@pve:tick")).await.unwrap();
        let late = login_line(&mut ws, &mut typed, Duration::from_millis(20)).await;
        assert_eq!(late.unwrap_err().to_string(), "no login line in time");
        client.send(Message::text("et\n2")).await.unwrap();
        let line = login_line(&mut ws, &mut typed, LOGIN_LIMIT).await;
        assert_eq!((line.unwrap().as_deref(), &typed[..]), (Some("u@pve:ticket"), &b"2"[..]));
    }

    #[test]
    fn typed_keys_are_taken_out_of_whole_messages_only() {
        let mut buf = BytesMut::from(&b"0:3:a:b1:80:24:20:5:hel"[..]);
        assert_eq!(take_typed(&mut buf).unwrap(), [&b"a:b"[..]]);
        assert_eq!(&buf[..], b"0:5:hel");
        buf.extend_from_slice(b"lo");
        assert_eq!(take_typed(&mut buf).unwrap(), [&b"hello"[..]]);
        assert!(buf.is_empty());
        assert!(take_typed(&mut BytesMut::from(&b"x"[..])).is_err());
        assert!(take_typed(&mut BytesMut::from(&b"0:99999999999:"[..])).is_err());
    }
}
