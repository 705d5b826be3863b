//! Calls of the API.

use crate::failure::Failure;
use crate::params::{Params, escape, form};
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use http::{HeaderValue, Method, Request};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_transport::{Answer, Body, HttpClient, empty, full};

/// How long an answer may take: a daemon that hangs, or was stopped, keeps its connections.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a file that was sent, which is written to the storage's disk before it is answered for.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(900);
/// A ticket is renewed after this long: it is good for two hours, and a task may take longer.
const RENEWAL: Duration = Duration::from_secs(1800);

/// A ticket that was given.
#[derive(Debug, Clone)]
pub struct Ticket {
    user: String,
    /// The cookie.
    cookie: HeaderValue,
    /// The token that shows that the call was meant.
    csrf: HeaderValue,
    renew: Instant,
}

/// The cookie with a ticket in it.
const COOKIE_NAME: &str = "PVEAuthCookie=";

impl Ticket {
    /// Signs a user in.
    pub async fn get(http: &HttpClient, user: &str, password: &str) -> Result<Self, Failure> {
        let body = form(&vec![("username".into(), user.into()), ("password".into(), password.into())]);
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api2/json/access/ticket")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(full(body))
            .map_err(|e| Failure::failed(e.to_string()))?;
        let answer = http.whole_within(PATIENCE, request).await?;
        if !answer.status.is_success() {
            let (to, why) = (http.to(), answer.message());
            return Err(Failure::failed(format!("{to} has refused user '{user}': {why}")));
        }
        let answer: Value = answer.json()?;
        let header = |value: String| {
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| Failure::failed("the server has answered with an impossible ticket"))?;
            value.set_sensitive(true);
            Ok::<_, Failure>(value)
        };
        let field = |name: &str| match answer["data"][name].as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(Failure::failed("this user needs a second factor: use --api-token")),
        };
        Ok(Self {
            user: user.to_owned(),
            cookie: header(format!("{COOKIE_NAME}{}", field("ticket")?))?,
            csrf: header(field("CSRFPreventionToken")?)?,
            renew: Instant::now() + RENEWAL,
        })
    }

    /// Another one for this one, if it is time.
    async fn renewed(&self, http: &HttpClient) -> Option<Self> {
        let ticket = self.cookie.to_str().ok()?.strip_prefix(COOKIE_NAME)?;
        if Instant::now() < self.renew {
            return None;
        }
        // If it can't be had, the call that needs it says so.
        Self::get(http, &self.user, ticket).await.ok()
    }
}

/// How the caller shows who it is.
#[derive(Debug, Clone)]
pub enum Auth {
    /// The local socket: the kernel says it.
    Local,
    /// An API token's header.
    Token(HeaderValue),
    /// A ticket: cookie and CSRF token.
    Ticket(Ticket),
}

/// A server's API, signed in.
#[derive(Debug, Clone)]
pub struct Api {
    http: HttpClient,
    auth: Arc<Mutex<Auth>>,
}

impl Api {
    /// Speaks through `http` as `auth` says.
    pub fn new(http: HttpClient, auth: Auth) -> Self {
        Self { http, auth: Arc::new(Mutex::new(auth)) }
    }

    fn auth(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection.
    pub fn http(&self) -> &HttpClient {
        &self.http
    }

    /// Shows who calls.
    pub fn sign<T>(&self, request: &mut Request<T>) {
        let changes = *request.method() != Method::GET;
        let headers = request.headers_mut();
        match &*self.auth() {
            Auth::Local => {}
            Auth::Token(token) => {
                headers.insert(AUTHORIZATION, token.clone());
            }
            Auth::Ticket(Ticket { cookie, csrf, .. }) => {
                headers.insert(COOKIE, cookie.clone());
                if changes {
                    headers.insert("csrfpreventiontoken", csrf.clone());
                }
            }
        }
    }

    /// Calls and gives the answer's `data`.
    pub async fn call(&self, method: Method, path: &str, params: &Params) -> Result<Value, Failure> {
        Ok(self.whole(method, path, params).await?.get_mut("data").map(Value::take).unwrap_or_default())
    }

    /// Calls and gives the answer's whole body; a log has its length beside `data`.
    pub async fn whole(&self, method: Method, path: &str, params: &Params) -> Result<Value, Failure> {
        let in_query = method == Method::GET || method == Method::DELETE;
        let mut uri = format!("/api2/json{path}");
        if in_query && !params.is_empty() {
            uri = format!("{uri}?{}", form(params));
        }
        let mut request = Request::builder().method(method).uri(uri);
        let body = if in_query || params.is_empty() {
            empty()
        } else {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            full(form(params))
        };
        let request =
            request.body(body).map_err(|e| Failure::usage(format!("'{path}' is not a path: {e}")))?;
        self.send(request).await?.json().map_err(Into::into)
    }

    /// Sends a request that was made by hand; refusals are failures.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer, Failure> {
        self.send_within(PATIENCE, request).await
    }

    /// The same with a file as its body.
    pub async fn send_file(&self, request: Request<Body>) -> Result<Answer, Failure> {
        self.send_within(UPLOAD_PATIENCE, request).await
    }

    async fn send_within(&self, limit: Duration, mut request: Request<Body>) -> Result<Answer, Failure> {
        self.renew().await;
        self.sign(&mut request);
        let answer = self.http.whole_within(limit, request).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(Failure::refused(&answer)) }
    }

    /// Gets another ticket before this one ends.
    async fn renew(&self) {
        let now = self.auth().clone();
        if let Auth::Ticket(ticket) = now
            && let Some(next) = ticket.renewed(&self.http).await
        {
            *self.auth() = Auth::Ticket(next);
        }
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, &vec![]).await
    }

    /// `POST`.
    pub async fn post(&self, path: &str, params: &Params) -> Result<Value, Failure> {
        self.call(Method::POST, path, params).await
    }

    /// `PUT`.
    pub async fn put(&self, path: &str, params: &Params) -> Result<Value, Failure> {
        self.call(Method::PUT, path, params).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str, params: &Params) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, params).await
    }

    /// The name of the node that is spoken to.
    pub async fn local_node(&self) -> Result<String, Failure> {
        let status = self.get("/cluster/status").await?;
        let local = rows(&status).iter().find(|r| r["type"] == "node" && truth(&r["local"]));
        match local.and_then(|r| r["name"].as_str()) {
            Some(name) => Ok(name.to_owned()),
            None => Err(Failure::failed("the server does not say which node it is")),
        }
    }

    /// The guests of the cluster.
    pub async fn guests(&self) -> Result<Vec<Value>, Failure> {
        let all = self.call(Method::GET, "/cluster/resources", &vec![("type".into(), "vm".into())]).await?;
        Ok(rows(&all).to_vec())
    }

    /// The node that a VM is on.
    pub async fn node_of(&self, vmid: &str) -> Result<String, Failure> {
        let Ok(number) = vmid.parse::<u64>() else {
            return Err(Failure::usage(format!("'{vmid}' is not a VMID: it must be a number from 100")));
        };
        let guests = self.guests().await?;
        let found = guests.iter().find(|g| g["vmid"].as_u64() == Some(number));
        match found.and_then(|g| g["node"].as_str()) {
            Some(node) => Ok(node.to_owned()),
            None => Err(Failure::failed(format!("VM {vmid} does not exist"))),
        }
    }

    /// The path of a VM: `/nodes/NODE/qemu/VMID`.
    pub async fn vm(&self, vmid: &str) -> Result<String, Failure> {
        Ok(format!("/nodes/{}/qemu/{vmid}", escape(&self.node_of(vmid).await?)))
    }

    /// The next free VMID.
    pub async fn next_id(&self) -> Result<String, Failure> {
        Ok(text(&self.get("/cluster/nextid").await?))
    }
}

/// A list's elements; none if it is no list.
pub fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether a value says yes.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64().is_some_and(|n| n != 0.0),
        Value::String(s) => !matches!(s.as_str(), "" | "0" | "no" | "off" | "false"),
        _ => false,
    }
}

/// A value as a text: texts bare, nothing as nothing, the rest as JSON.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use http_body_util::{BodyExt, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;

    /// A server that gives tickets for those it has given, and answers with the cookie it was shown.
    fn gives_tickets(listener: tokio::net::UnixListener) {
        async fn answer(
            request: Request<Incoming>,
        ) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
            let cookie = request.headers().get(COOKIE).map(|c| c.to_str().unwrap().to_owned());
            let signs_in = request.uri().path().ends_with("/access/ticket");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let data = match (signs_in, &body[..]) {
                (true, b"username=a%40pve&password=first") => {
                    serde_json::json!({"ticket": "second", "CSRFPreventionToken": "c"})
                }
                (true, _) => Value::Null,
                _ => cookie.into(),
            };
            Ok(Response::new(serde_json::json!({ "data": data }).to_string().into()))
        }
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        });
    }

    #[tokio::test]
    async fn a_ticket_is_renewed_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        gives_tickets(tokio::net::UnixListener::bind(&path).unwrap());
        let http = HttpClient::new(stead_transport::Target::Unix(path)).unwrap();
        let ticket = |renew| Ticket {
            user: "a@pve".into(),
            cookie: HeaderValue::from_static("PVEAuthCookie=first"),
            csrf: HeaderValue::from_static("c"),
            renew,
        };
        let now = Instant::now();
        let young = Api::new(http.clone(), Auth::Ticket(ticket(now + RENEWAL)));
        assert_eq!(young.get("/x").await.unwrap(), "PVEAuthCookie=first");
        let old = Api::new(http, Auth::Ticket(ticket(now)));
        for _ in 0..2 {
            assert_eq!(old.get("/x").await.unwrap(), "PVEAuthCookie=second");
        }
    }
}
