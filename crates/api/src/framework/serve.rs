//! One request from its arrival to its answer.

use super::auth::{self, FORWARDED_AUTH, FORWARDED_HOPS, FORWARDED_REMOTE, INTERNAL};
use super::call::{Call, Caller, Standing};
use super::compress::{accepts, gzip};
use super::endpoint::{Access, Answered, Error, Handler, Runs};
use super::params::Raw;
use super::respond::{self, Format};
use super::router::{Registry, read_form};
use super::{Authority, Body, BoxError, Services, request};
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HOST, ORIGIN, TE, TRAILER, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use stead_access::AuthId;
use stead_model::{NodeName, UserId, Vmid};

/// Where a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// The TLS port, without a node's certificate.
    Public,
    /// The local socket; trusted: its peer is root or the daemon's own user.
    Local {
        /// Acts as root@pam.
        trusted: bool,
    },
    /// Another node, by its certificate.
    Peer {
        /// Which.
        node: NodeName,
    },
}

/// What is known of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// Its other end; none on the local socket.
    pub remote: Option<SocketAddr>,
    /// Where it comes from.
    pub from: From,
}

/// What decides where a request is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// What the endpoint needs.
    pub runs: Runs,
    /// `{node}` of the path.
    pub node: Option<&'a str>,
    /// `{vmid}` of the path.
    pub vmid: Option<Vmid>,
    /// The request changes something: a guest must be on the node that the path names.
    pub changes: bool,
}

/// Where a request is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Here,
    /// On another.
    Node(NodeName),
}

/// The other nodes, as the dispatcher needs them.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// This node, which clients may call `localhost`.
    fn me(&self) -> &NodeName;
    /// Where a request must be carried out. A node or guest that does not exist is an error.
    async fn place(&self, target: &Target<'_>) -> Result<Place, Error>;
    /// Sends a request to another node, as it is. The answer keeps its reason phrase, and after status 101 its
    /// connection can be taken over (`hyper::upgrade::on`): the dispatcher joins it with the client's. A node that
    /// can't be reached is a 595.
    async fn forward(&self, node: &NodeName, request: Request<Body>) -> Result<Response<Body>, Error>;
}

/// How often a request may be handed on: once to a guest's owner, once more if the guest has just moved.
const MAX_HOPS: u32 = 2;

/// The whole API of one node.
pub struct Api<S> {
    registry: Registry<S>,
    services: Arc<S>,
    cluster: Arc<dyn Cluster>,
    document: Bytes,
    /// The same, compressed.
    document_small: Option<Bytes>,
}

impl<S: Services> Api<S> {
    /// The API over `services`.
    pub fn new(registry: Registry<S>, services: Arc<S>, cluster: Arc<dyn Cluster>) -> Self {
        let document: Bytes = super::openapi::document(&registry).to_string().into();
        let document_small = gzip(&document);
        Self { registry, services, cluster, document, document_small }
    }

    /// Whether a path is the API's.
    pub fn is_for(path: &str) -> bool {
        path == "/api2" || path.starts_with("/api2/")
    }

    /// Answers a request. It never fails: whatever is wrong becomes an answer.
    pub async fn handle<B>(&self, request: Request<B>, conn: ConnInfo) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        let body = body.map_err(Into::into).boxed_unsync();
        if !matches!(conn.from, From::Peer { .. }) {
            for name in INTERNAL {
                parts.headers.remove(name);
            }
        }
        if let Err(e) = self.name_this_node(&mut parts) {
            return respond::error(Format::Json, &e);
        }
        let path = parts.uri.path().to_owned();
        if path == "/api2/openapi.json" && parts.method == http::Method::GET {
            let small = self.document_small.clone().filter(|_| accepts(&parts.headers, "gzip"));
            let mut r = respond::text_response(self.document.clone(), small);
            r.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return r;
        }
        let found = [("/api2/json", Format::Json), ("/api2/extjs", Format::Extjs)]
            .into_iter()
            .find_map(|(prefix, format)| Some((path.strip_prefix(prefix)?, format)))
            .filter(|(rest, _)| rest.is_empty() || rest.starts_with('/'));
        let (rest, format) = found.unwrap_or((path.as_str(), Format::Json));
        let handler = if found.is_some() { self.registry.find(parts.method.as_str(), rest) } else { None };
        let answer = match handler {
            None => Err(Error::new(501, format!("Method '{} {rest}' not implemented", parts.method))),
            Some((handler, captures)) => self.dispatch(handler, captures, parts, body, &conn, format).await,
        };
        answer.unwrap_or_else(|e| respond::error(format, &e))
    }

    /// Puts this node's name in the place of `localhost`: whoever carries the request out, and whoever checks permission
    /// on the node, needs to know which one is meant.
    fn name_this_node(&self, parts: &mut Parts) -> Result<(), Error> {
        let Some((prefix, rest)) = parts.uri.path().split_once("/nodes/localhost") else { return Ok(()) };
        if !matches!(prefix, "/api2/json" | "/api2/extjs") || !(rest.is_empty() || rest.starts_with('/')) {
            return Ok(());
        }
        let query = parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        let text = format!("{prefix}/nodes/{}{rest}{query}", self.cluster.me());
        parts.uri = text.parse().map_err(|e| Error::failed(format!("'{text}': {e}")))?;
        Ok(())
    }

    async fn dispatch(
        &self,
        handler: &Arc<dyn Handler<S>>,
        captures: Raw,
        mut parts: Parts,
        body: Body,
        conn: &ConnInfo,
        format: Format,
    ) -> Result<Response<Body>, Error> {
        let meta = handler.meta();
        if !matches!(conn.from, From::Peer { .. }) {
            same_site(&parts.headers)?;
        }
        let authority = self.services.authority()?;
        let id = match auth::identify(&*self.services, &authority, conn, &parts.headers, meta.route.changes())
        {
            // Somebody who shows a stale ticket may still sign in again.
            Err(_) | Ok(None) if meta.access == Access::Everyone => None,
            Err(e) => return Err(e),
            Ok(None) => return Err(Error::unauthorized("No ticket")),
            Ok(Some(id)) => Some(id),
        };
        let vmid = captures.first("vmid").and_then(|v| v.parse().ok());
        let (node, changes) = (captures.first("node"), meta.route.changes());
        let target = Target { runs: meta.runs, node, vmid, changes };
        if target.runs != Runs::Anywhere
            && let Place::Node(node) = self.cluster.place(&target).await?
        {
            return self.forward(&node, id.as_ref(), parts, body, conn).await;
        }
        let zipped = !meta.route.changes() && accepts(&parts.headers, "gzip");
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let limit = if id.is_some() { request::LIMIT } else { request::STRANGER };
        let cx = self.call_of(id, &authority, &parts.headers, conn)?;
        let mut raw = captures;
        if let Some(query) = parts.uri.query() {
            read_form(query, &mut raw);
        }
        if meta.upload {
            request::read_upload(handler.as_ref(), &cx, &parts.headers, body, &mut raw).await?;
        } else {
            request::read_params(&parts.headers, body, &mut raw, limit).await?;
        }
        match handler.call(cx, raw).await? {
            Answered::Socket(socket) => socket.answer(&parts.headers, upgrade),
            other => Ok(respond::success(format, other, zipped)),
        }
    }

    fn call_of(
        &self,
        id: Option<AuthId>,
        authority: &Authority,
        headers: &HeaderMap,
        conn: &ConnInfo,
    ) -> Result<Call<S>, Error> {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let id = match id {
            Some(id) => id,
            // Nobody in particular: a user that cannot exist, so that it has no privilege.
            None => AuthId::User(UserId::new("anonymous@none").map_err(|e| Error::failed(e.to_string()))?),
        };
        let remote = text(FORWARDED_REMOTE).and_then(|r| r.parse().ok()).or(conn.remote);
        let standing = Standing::new(self.services.clone(), conn.clone(), headers, id.clone());
        Ok(Call {
            standing: Arc::new(standing),
            caller: Caller { id, directory: authority.directory.clone(), now: self.services.now() },
            services: self.services.clone(),
            remote,
            upload: tokio::sync::Mutex::new(None),
            last_event: text("last-event-id").map(str::to_owned),
        })
    }

    async fn forward(
        &self,
        node: &NodeName,
        id: Option<&AuthId>,
        mut parts: Parts,
        body: Body,
        conn: &ConnInfo,
    ) -> Result<Response<Body>, Error> {
        let text = |h: &HeaderMap, name: &str| h.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let hops = text(&parts.headers, FORWARDED_HOPS).and_then(|h| h.parse::<u32>().ok()).unwrap_or(0);
        if hops >= MAX_HOPS {
            return Err(Error::failed(format!(
                "the request was handed on too often, last to '{node}': try again"
            )));
        }
        let client = parts.extensions.remove::<OnUpgrade>();
        strip(&mut parts.headers);
        let remote = text(&parts.headers, FORWARDED_REMOTE).or_else(|| conn.remote.map(|r| r.to_string()));
        let headers = [
            (FORWARDED_AUTH, id.map(ToString::to_string)),
            (FORWARDED_REMOTE, remote),
            (FORWARDED_HOPS, Some((hops + 1).to_string())),
        ];
        for (name, value) in headers {
            parts.headers.remove(name);
            let value = value.map(|v| HeaderValue::from_str(&v)).transpose();
            if let Some(value) = value.map_err(|e| Error::failed(format!("{name}: {e}")))? {
                parts.headers.insert(name, value);
            }
        }
        let mut answer = self.cluster.forward(node, Request::from_parts(parts, body)).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let server = answer.extensions_mut().remove::<OnUpgrade>();
            join(client, server)?;
        } else {
            // The other connection's way of ending is not this one's.
            answer.headers_mut().remove(CONNECTION);
        }
        Ok(answer)
    }
}

/// Refuses a WebSocket that a page of another site opens: browsers send cookies with it, and let any page read from it.
fn same_site(headers: &HeaderMap) -> Result<(), Error> {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default();
    if !headers.contains_key(UPGRADE) || !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let (origin, host) = (text(ORIGIN).to_ascii_lowercase(), text(HOST).to_ascii_lowercase());
    let (scheme, site) = origin.split_once("://").unwrap_or_default();
    let port = if scheme == "http" { ":80" } else { ":443" };
    let plain = |name: &str| name.strip_suffix(port).unwrap_or(name).to_owned();
    if site.is_empty() || plain(site) != plain(&host) {
        return Err(Error::forbidden(format!("a page of '{origin}' may not connect to '{host}'")));
    }
    Ok(())
}

/// Removes what belongs to the client's connection and not to the request. An upgrade goes on.
fn strip(headers: &mut HeaderMap) {
    for name in [EXPECT, TE, TRAILER] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    if !headers.contains_key(UPGRADE) {
        headers.remove(CONNECTION);
    }
}

/// Joins two connections once both have been taken over.
fn join(client: Option<OnUpgrade>, server: Option<OnUpgrade>) -> Result<(), Error> {
    let (Some(client), Some(server)) = (client, server) else {
        return Err(Error::failed("a forwarded connection could not be taken over"));
    };
    tokio::spawn(async move {
        let (client, server) = match tokio::try_join!(client, server) {
            Ok(both) => both,
            Err(e) => return tracing::debug!("a forwarded connection broke off: {e}"),
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        // Either end may go away at any time; there is nobody left to tell.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    Ok(())
}
