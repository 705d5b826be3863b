//! The registry of endpoints and all that is the same for each: routing, parameters, permission, answers,
//! forwarding, WebSockets. It knows no use case; endpoints are generic over the services they call.
//!
//! ```text
//! request ─▶ router ─▶ who is it (auth) ─▶ which node (Cluster) ─┬─▶ forward ─▶ answer as it came
//!                │                                               └─▶ permission ─▶ parameters ─▶ handler ─▶ answer
//!                └─ 501
//! ```

pub mod auth;
pub mod call;
pub mod compress;
#[macro_use]
mod declare;
pub mod endpoint;
pub mod index;
pub mod openapi;
pub mod params;
pub mod request;
pub mod respond;
pub mod router;
pub mod serve;
pub mod socket;
#[macro_use]
pub mod types;

pub use call::{Call, Caller, Spooled, Standing};
pub use endpoint::{
    Access, Answer, Answered, Bytes, Either, Endpoint, Error, Handler, Json, Meta, Null, Of, Page, Route,
    Runs, delete, get, post, put,
};
pub use index::Index;
pub use params::{Param, ParamSchema, Params, Raw};
pub use router::Registry;
pub use serve::{Api, Cluster, ConnInfo, From, Place, Target};
pub use socket::Socket;

use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use std::sync::Arc;
use stead_access::{Directory, Keyring, Stamps, TokenStore};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Bodies of requests and answers.
pub type Body = UnsyncBoxBody<bytes::Bytes, BoxError>;

/// A body of known bytes.
pub fn full(data: impl Into<bytes::Bytes>) -> Body {
    http_body_util::Full::new(data.into()).map_err(|e| match e {}).boxed_unsync()
}

/// All that says who somebody is and what they may do, at one moment.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Users, roles, ACLs.
    pub directory: Arc<Directory>,
    /// Signs tickets; none before the cluster exists.
    pub keyring: Option<Keyring>,
    /// Tokens' secrets, hashed.
    pub tokens: Arc<TokenStore>,
    /// Which password each user has now: tickets end with it.
    pub stamps: Arc<Stamps>,
}

/// What the framework itself needs of the services that endpoints call.
pub trait Services: Send + Sync + 'static {
    /// Who may what, as committed.
    fn authority(&self) -> Result<Authority, Error>;
    /// Seconds since 1970.
    fn now(&self) -> u64;
}
