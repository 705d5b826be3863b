//! A client of a node's API for tests and the demo: signs in once, sends forms, waits for tasks.
//!
//! It takes whatever certificate the node shows: what TLS promises is tested where TLS is made.

use anyhow::{Context, Result, anyhow, bail, ensure};
use http::{HeaderValue, Method, Request, header};
use serde_json::Value;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use stead_transport::{Body, HttpClient, Target, Trust, empty, full, streaming};

/// Every answer of the API comes within 5 s; some more for a loaded machine.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a file that has arrived may take to become a volume.
const UPLOADED: Duration = Duration::from_secs(60);

/// An answer that is a refusal: the status, and the text that the server gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{method} {path}: {status} {message}")]
pub struct Refused {
    /// What was asked.
    pub method: String,
    /// Of what.
    pub path: String,
    /// The HTTP status.
    pub status: u16,
    /// The reason phrase.
    pub message: String,
}

/// The ticket and its CSRF token.
#[derive(Debug, Clone)]
struct Session {
    cookie: HeaderValue,
    csrf: HeaderValue,
}

/// A client of one node. Clones share the session.
#[derive(Debug, Clone)]
pub struct ApiClient {
    http: HttpClient,
    addr: SocketAddr,
    session: Arc<Mutex<Option<Session>>>,
}

impl ApiClient {
    /// A client that has not signed in.
    pub fn new(addr: SocketAddr) -> Result<Self> {
        let target = Target::Tls { host: addr.ip().to_string(), port: addr.port(), trust: Trust::Insecure };
        Ok(Self { http: HttpClient::new(target)?, addr, session: Arc::default() })
    }

    /// The node's address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A client of another node, with this one's ticket.
    pub fn at(&self, addr: SocketAddr) -> Result<Self> {
        Ok(Self { session: self.session.clone(), ..Self::new(addr)? })
    }

    /// Signs in; later calls carry the ticket.
    pub async fn login(&self, user: &str, password: &str) -> Result<()> {
        let data = self.post("/access/ticket", &[("username", user), ("password", password)]).await?;
        let text = |key: &str| {
            data[key].as_str().with_context(|| format!("the ticket's answer has no {key}: {data}"))
        };
        let session = Session {
            cookie: HeaderValue::from_str(&format!("PVEAuthCookie={}", text("ticket")?))?,
            csrf: HeaderValue::from_str(text("CSRFPreventionToken")?)?,
        };
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        Ok(())
    }

    /// `GET`, with parameters in the query.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, &[]).await
    }

    /// `POST`, with parameters as a form.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Result<Value> {
        self.call(Method::POST, path, form).await
    }

    /// `PUT`, with parameters as a form.
    pub async fn put(&self, path: &str, form: &[(&str, &str)]) -> Result<Value> {
        self.call(Method::PUT, path, form).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, &[]).await
    }

    /// One call below `/api2/json`: the answer's `data`, or [`Refused`].
    pub async fn call(&self, method: Method, path: &str, form: &[(&str, &str)]) -> Result<Value> {
        let request = self.request(&method, path);
        let request = if form.is_empty() {
            request.body(empty())?
        } else {
            request
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(full(encode(form)))?
        };
        let answer = tokio::time::timeout(ANSWER, self.http.whole(request))
            .await
            .map_err(|_| anyhow!("{method} {path} at {}: no answer within {ANSWER:?}", self.addr))?
            .with_context(|| format!("{method} {path} at {}", self.addr))?;
        if !answer.status.is_success() {
            let (status, message) = (answer.status.as_u16(), answer.message());
            return Err(Refused { method: method.to_string(), path: path.to_owned(), status, message }.into());
        }
        let body: Value = answer.json().with_context(|| format!("the answer to {method} {path}"))?;
        body.get("data").cloned().with_context(|| format!("{method} {path}: the answer has no data: {body}"))
    }

    /// A request below `/api2/json` with the session's marks.
    fn request(&self, method: &Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("/api2/json{path}"));
        let Some(session) = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            return request;
        };
        let request = request.header(header::COOKIE, session.cookie);
        if *method == Method::GET { request } else { request.header("CSRFPreventionToken", session.csrf) }
    }

    /// `GET` of an answer that goes on, as the event stream does.
    pub async fn stream(&self, path: &str) -> Result<Body> {
        let request = self.request(&Method::GET, path).body(empty())?;
        let answer = tokio::time::timeout(ANSWER, self.http.request(request))
            .await
            .map_err(|_| anyhow!("GET {path} at {}: no answer within {ANSWER:?}", self.addr))?
            .with_context(|| format!("GET {path} at {}", self.addr))?;
        ensure!(answer.status().is_success(), "GET {path}: {}", answer.status());
        Ok(streaming(answer.into_body()))
    }

    /// Uploads an ISO image of this content to a storage of a node, and waits until it is a volume.
    pub async fn upload_iso(&self, node: &str, storage: &str, name: &str, content: &[u8]) -> Result<()> {
        const BOUNDARY: &str = "stead-testbed-6f1d2c";
        let mut body = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\niso\r\n--{BOUNDARY}\r\n\
             Content-Disposition: form-data; name=\"filename\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(content);
        body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let path = format!("/nodes/{node}/storage/{storage}/upload");
        let request = self
            .request(&Method::POST, &path)
            .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(full(body))?;
        let answer = self.http.whole(request).await.with_context(|| format!("POST {path}"))?;
        ensure!(answer.status.is_success(), "POST {path}: {} {}", answer.status, answer.message());
        let answer: Value = answer.json()?;
        self.wait_task(&answer["data"], UPLOADED).await
    }

    /// Waits until a task has ended; its log goes into the error if it did not end well.
    pub async fn wait_task(&self, upid: &Value, within: Duration) -> Result<()> {
        let upid = upid.as_str().with_context(|| format!("not a task: {upid}"))?;
        let node = upid.split(':').nth(1).with_context(|| format!("not a task: {upid}"))?;
        let path = format!("/nodes/{node}/tasks/{}", escape(upid));
        let begin = Instant::now();
        loop {
            let status = self.get(&format!("{path}/status")).await?;
            if status["status"] == "stopped" {
                let how = status["exitstatus"].as_str().unwrap_or("(no exit status)");
                if how == "OK" || how.starts_with("WARNINGS") {
                    return Ok(());
                }
                bail!("task {upid} failed: {how}\n{}", self.task_log(&path).await);
            }
            ensure!(
                begin.elapsed() < within,
                "task {upid} has not ended within {within:?}\n{}",
                self.task_log(&path).await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts a task by a `POST` and waits for its end.
    pub async fn post_and_wait(&self, path: &str, form: &[(&str, &str)], within: Duration) -> Result<()> {
        let upid = self.post(path, form).await?;
        self.wait_task(&upid, within).await
    }

    async fn task_log(&self, path: &str) -> String {
        let Ok(lines) = self.get(&format!("{path}/log?limit=200")).await else {
            return "(no log)".to_owned();
        };
        let lines = lines.as_array().cloned().unwrap_or_default();
        let texts: Vec<&str> = lines.iter().filter_map(|l| l["t"].as_str()).collect();
        texts.join("\n")
    }
}

/// A form's body.
fn encode(form: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = form.iter().map(|(k, v)| format!("{}={}", escape(k), escape(v))).collect();
    pairs.join("&")
}

/// Percent-encodes what is not plain.
pub fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

/// Asks `check` over and over until it gives something; `what` stands in the error when it does not in time. For what
/// has no event to wait for: another process's state, seen from outside.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut check: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        let last = match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(e) => Some(e),
        };
        if begin.elapsed() >= within {
            let last = last.map_or(String::new(), |e| format!("; last: {e:#}"));
            bail!("{what}: not within {within:?}{last}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            encode(&[("scsi0", "a:1,format=raw"), ("n", "ä b")]),
            "scsi0=a%3A1%2Cformat%3Draw&n=%C3%A4%20b"
        );
    }
}
