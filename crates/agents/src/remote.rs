//! Calls and WebSockets of other clusters over TLS, for the use cases. The token goes in a header, and nowhere else.

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request};
use serde_json::Value;
use std::time::Duration;
use stead_model::Remote;
use stead_ops::peers::Duplex;
use stead_ops::remote::{Ask, RemoteError, RemoteLink};
use stead_transport::{Answer, Body, ClientError, HttpClient, Target, Trust, empty, full};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// How long a WebSocket may take to open.
const OPENING: Duration = Duration::from_secs(30);
/// The most that is sent as one message, in bytes.
const CHUNK: usize = 256 << 10;
/// Bytes on their way.
const BUFFER: usize = 1 << 20;

/// [`RemoteLink`] over the transport. A call is a connection: there are few.
#[derive(Debug, Clone, Copy, Default)]
pub struct Remotes;

fn unreachable(to: &Remote, why: &impl ToString) -> RemoteError {
    RemoteError::Unreachable { at: to.to_string(), why: why.to_string() }
}

fn strange(to: &Remote, why: &impl ToString) -> RemoteError {
    RemoteError::Strange { at: to.to_string(), why: why.to_string() }
}

fn client(to: &Remote, ca: &str) -> Result<HttpClient, RemoteError> {
    let trust = match &to.fingerprint {
        Some(print) => Trust::Fingerprint(print.parse().map_err(|e| strange(to, &e))?),
        None => Trust::of_system(ca),
    };
    HttpClient::new(Target::Tls { host: to.host.clone(), port: to.port, trust }).map_err(|e| failed(to, &e))
}

/// A call that has failed, with what to do where that is known.
fn failed(to: &Remote, e: &ClientError) -> RemoteError {
    let unknown = matches!(e, ClientError::Tls { .. }) && to.fingerprint.is_none();
    let hint = match unknown {
        true => {
            "; give the SHA-256 of its certificate as 'fingerprint', unless an authority that this node trusts has issued it"
        }
        false => "",
    };
    unreachable(to, &format!("{e}{hint}"))
}

fn token(to: &Remote) -> Result<HeaderValue, RemoteError> {
    let value = HeaderValue::try_from(to.authorization());
    let mut value = value.map_err(|_| strange(to, &"the token has characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn form(ask: &Ask) -> String {
    let pairs: Vec<String> = ask.params.iter().map(|(k, v)| format!("{}={}", escape(k), escape(v))).collect();
    pairs.join("&")
}

fn request(to: &Remote, ask: &Ask) -> Result<Request<Body>, RemoteError> {
    let form = form(ask);
    let (query, body) = match (form.is_empty(), ask.method) {
        (true, _) => (String::new(), empty()),
        (false, "GET") => (format!("?{form}"), empty()),
        (false, _) => (String::new(), full(form)),
    };
    Request::builder()
        .method(ask.method)
        .uri(format!("/api2/json{}{query}", ask.path))
        .header(AUTHORIZATION, token(to)?)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body)
        .map_err(|e| strange(to, &e))
}

/// Why it refused: its message, and which parameters are wrong.
fn reason(answer: &Answer) -> String {
    let mut why = answer.message();
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    for (name, error) in body["errors"].as_object().into_iter().flatten() {
        why.push_str(&format!(" {name}: {}", error.as_str().unwrap_or_default()));
    }
    why
}

#[async_trait]
impl RemoteLink for Remotes {
    async fn call(&self, to: &Remote, ca: &str, ask: &Ask, limit: Duration) -> Result<Value, RemoteError> {
        let answer = client(to, ca)?.whole_within(limit, request(to, ask)?).await;
        let answer = answer.map_err(|e| failed(to, &e))?;
        if !answer.status.is_success() {
            let why = reason(&answer);
            return Err(RemoteError::Refused { at: to.to_string(), what: ask.what, why });
        }
        let mut body: Value = answer.json().map_err(|e| strange(to, &e))?;
        Ok(body["data"].take())
    }

    async fn open(&self, to: &Remote, ca: &str, ask: &Ask) -> Result<Box<dyn Duplex>, RemoteError> {
        let request = Request::builder()
            .uri(format!("ws://{to}/api2/json{}?{}", ask.path, form(ask)))
            .header("host", to.to_string())
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", generate_key())
            .header("sec-websocket-protocol", "binary")
            .header(AUTHORIZATION, token(to)?)
            .body(())
            .map_err(|e| strange(to, &e))?;
        let opened = async {
            let raw = client(to, ca)?.raw().await.map_err(|e| failed(to, &e))?;
            client_async(request, raw).await.map_err(|e| not_opened(to, ask, e))
        };
        let opened = tokio::time::timeout(OPENING, opened).await;
        let (ws, _) = opened.map_err(|_| {
            unreachable(to, &format!("it did not {} within {} s", ask.what, OPENING.as_secs()))
        })??;
        let (near, far) = tokio::io::duplex(BUFFER);
        tokio::spawn(async move {
            if let Err(e) = join(ws, far).await {
                tracing::debug!("a WebSocket of another cluster ended: {e}");
            }
        });
        Ok(Box::new(near))
    }
}

fn not_opened(to: &Remote, ask: &Ask, e: WsError) -> RemoteError {
    let WsError::Http(answer) = e else { return unreachable(to, &e) };
    let body: Value =
        serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).unwrap_or_default();
    let why = body["message"].as_str().map_or_else(|| answer.status().to_string(), |m| m.trim().to_owned());
    RemoteError::Refused { at: to.to_string(), what: ask.what, why }
}

/// Carries bytes until either side has no more.
async fn join(
    ws: WebSocketStream<Box<dyn stead_transport::Duplex>>,
    io: DuplexStream,
) -> Result<(), WsError> {
    let (mut sink, mut stream) = ws.split();
    let (mut read, mut write) = tokio::io::split(io);
    let there = async {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.reserve(CHUNK);
            if read.read_buf(&mut buffer).await? == 0 {
                return sink.send(Message::Close(None)).await;
            }
            sink.send(Message::Binary(buffer.split().freeze())).await?;
        }
    };
    let back = async {
        while let Some(message) = stream.next().await {
            match message? {
                Message::Binary(bytes) => write.write_all(&bytes).await?,
                Message::Close(_) => break,
                // The library answers pings by itself.
                _ => {}
            }
        }
        write.shutdown().await?;
        Ok(())
    };
    tokio::select! {
        r = there => r,
        r = back => r,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: &str = "apitoken=PVEAPIToken=u@pve!away=5eCret,host=192.0.2.1";

    #[test]
    fn the_token_is_in_a_header_that_no_log_shows() {
        let to: Remote = REMOTE.parse().unwrap();
        let ask = Ask::post("/nodes/localhost/qemu/100/mtunnel", "open a tunnel").with("storages", "a,b");
        let request = request(&to, &ask).unwrap();
        assert_eq!(request.uri(), "/api2/json/nodes/localhost/qemu/100/mtunnel");
        assert_eq!(request.headers()[AUTHORIZATION], "PVEAPIToken=u@pve!away=5eCret");
        assert!(!format!("{:?}", request.headers()).contains("5eCret"));
        assert_eq!(form(&ask), "storages=a%2Cb");
    }

    #[test]
    fn who_is_refused_hears_of_each_parameter() {
        let body = r#"{"data":null,"message":"Parameter verification failed.","errors":{"storages":"no such storage"}}"#;
        let answer = Answer {
            status: http::StatusCode::BAD_REQUEST,
            reason: "Parameter verification failed.".into(),
            headers: http::HeaderMap::new(),
            body: body.into(),
        };
        assert_eq!(reason(&answer), "Parameter verification failed. storages: no such storage");
    }

    #[tokio::test]
    async fn what_does_not_answer_is_named_with_its_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let to: Remote = format!("{REMOTE},port={port}").replace("192.0.2.1", "127.0.0.1").parse().unwrap();
        let ask = Ask::get("/version", "say its version");
        let why = Remotes.call(&to, "", &ask, Duration::from_secs(5)).await.unwrap_err().to_string();
        assert!(why.contains(&format!("127.0.0.1:{port}")) && !why.contains("5eCret"), "{why}");
        let why = Remotes.open(&to, "", &ask).await.err().unwrap().to_string();
        assert!(why.contains("cannot be reached"), "{why}");
    }
}
