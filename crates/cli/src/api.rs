//! Calls of the API.

use crate::failure::Failure;
use crate::params::{Params, escape, form};
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use http::{HeaderValue, Method, Request};
use serde_json::Value;
use stead_transport::{Answer, Body, HttpClient, empty, full};

/// How the caller shows who it is.
#[derive(Debug, Clone)]
pub enum Auth {
    /// The local socket: the kernel says it.
    Local,
    /// An API token's header.
    Token(HeaderValue),
    /// A ticket: cookie and CSRF token.
    Ticket {
        /// The cookie.
        cookie: HeaderValue,
        /// The token that shows that the call was meant.
        csrf: HeaderValue,
    },
}

/// A server's API, signed in.
#[derive(Debug, Clone)]
pub struct Api {
    http: HttpClient,
    auth: Auth,
}

impl Api {
    /// Speaks through `http` as `auth` says.
    pub fn new(http: HttpClient, auth: Auth) -> Self {
        Self { http, auth }
    }

    /// The connection.
    pub fn http(&self) -> &HttpClient {
        &self.http
    }

    /// Shows who calls.
    pub fn sign<T>(&self, request: &mut Request<T>) {
        let changes = *request.method() != Method::GET;
        let headers = request.headers_mut();
        match &self.auth {
            Auth::Local => {}
            Auth::Token(token) => {
                headers.insert(AUTHORIZATION, token.clone());
            }
            Auth::Ticket { cookie, csrf } => {
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
    pub async fn send(&self, mut request: Request<Body>) -> Result<Answer, Failure> {
        self.sign(&mut request);
        let answer = self.http.whole(request).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(Failure::refused(&answer)) }
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
