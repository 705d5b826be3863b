//! Forwarding a request to the node that must carry it out.
//!
//! The first node has found out who asks and what is asked; the other one carries it out in that name. The
//! request keeps its method, headers and body, streamed; its path travels in a header, since the request itself
//! goes to [`FORWARD_PATH`], which only peers reach. Credentials stay behind. The answer comes back as it is, its
//! reason phrase included, and an upgrade (a websocket) is joined to the client's.

use crate::stream::{Carried, splice};
use crate::{Body, BoxError, ClientError, ConnInfo, ConnKind, Peer, PeerClient, Purpose, streaming};
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;

/// Where forwarded requests go, on a peer's side.
pub const FORWARD_PATH: &str = "/peer/v1/forward";
/// The original path and query.
const TARGET: HeaderName = HeaderName::from_static("stead-forward-target");
/// Who asks, in the words of the API.
const IDENTITY: HeaderName = HeaderName::from_static("stead-forward-identity");
/// What belongs to one connection and not to the request.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];
/// What shows who the client is: the identity speaks for it.
const CREDENTIALS: [HeaderName; 3] = [AUTHORIZATION, COOKIE, HeaderName::from_static("csrfpreventiontoken")];

/// A request that could not be forwarded or taken over.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The other node can't be reached or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The identity has characters that no header can have.
    #[error("the identity cannot be forwarded: {0}")]
    Identity(#[from] http::header::InvalidHeaderValue),
    /// A forwarded request came from elsewhere than from a peer, or lacks what it must have.
    #[error("this is not a forwarded request: {0}")]
    NotForwarded(&'static str),
}

/// Forwards a request in the name of `identity` (a text that the API on the other side understands: visible
/// ASCII, say JSON with escapes).
///
/// The answer streams. For an upgrade the streams are joined in the background until either ends.
pub async fn forward<B>(
    client: &PeerClient,
    peer: &Peer,
    mut request: Request<B>,
    identity: &str,
) -> Result<Response<Body>, ForwardError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let target = HeaderValue::from_str(target)?;
    let identity = HeaderValue::from_str(identity)?;
    let upgrade = request.headers().get(UPGRADE).cloned();
    let near = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    head.uri = Uri::from_static(FORWARD_PATH);
    head.version = http::Version::HTTP_11;
    head.extensions.clear();
    strip(&mut head.headers);
    for name in CREDENTIALS {
        head.headers.remove(name);
    }
    // The peer client names the peer; whom the client has called is of no use there.
    head.headers.remove(HOST);
    head.headers.insert(TARGET, target);
    head.headers.insert(IDENTITY, identity);
    if let Some(protocol) = &upgrade {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol.clone());
    }
    let request = Request::from_parts(head, streaming(body));
    let mut response = client.request(peer, Purpose::Bulk, request).await?;
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let granted = response.headers().get(UPGRADE).cloned();
    if let (true, Some(near)) = (upgraded, near) {
        let far = hyper::upgrade::on(&mut response);
        let name = peer.name.clone();
        tokio::spawn(async move {
            let joined = async {
                let (near, far) = tokio::try_join!(near, far)?;
                splice(TokioIo::new(near), TokioIo::new(far), &Carried::default()).await?;
                Ok::<_, BoxError>(())
            };
            if let Err(e) = joined.await {
                tracing::debug!("forwarded stream with node '{name}' ended: {e}");
            }
        });
    }
    let (mut head, body) = response.into_parts();
    strip(&mut head.headers);
    if let (true, Some(protocol)) = (upgraded, granted) {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol);
    }
    let reason = head.extensions.remove::<ReasonPhrase>();
    head.extensions.clear();
    if let Some(reason) = reason {
        head.extensions.insert(reason);
    }
    Ok(Response::from_parts(head, streaming(body)))
}

/// Takes over a forwarded request: gives back what the client has sent, and the identity.
///
/// Only a peer's word counts; the caller has seen that the path is [`FORWARD_PATH`].
pub fn take_over<B>(mut request: Request<B>, from: &ConnInfo) -> Result<(Request<B>, String), ForwardError> {
    if !matches!(from.kind, ConnKind::Peer(_)) {
        return Err(ForwardError::NotForwarded("it does not come from a node of the cluster"));
    }
    let header = |value: Option<HeaderValue>| value.and_then(|v| v.to_str().map(str::to_owned).ok());
    let target = header(request.headers_mut().remove(TARGET));
    let identity = header(request.headers_mut().remove(IDENTITY));
    let target = target.and_then(|t| t.parse::<Uri>().ok()).filter(|uri| uri.path().starts_with('/'));
    *request.uri_mut() = target.ok_or(ForwardError::NotForwarded("it has no target"))?;
    Ok((request, identity.ok_or(ForwardError::NotForwarded("it names nobody who asks"))?))
}

/// Removes what belongs to the connection, and what only forwarding may say.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // A length beside chunks would be an attempt to smuggle: hyper has read the body by the chunks.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in named.iter().chain(&HOP_BY_HOP).chain([&TARGET, &IDENTITY]) {
        headers.remove(name);
    }
}
