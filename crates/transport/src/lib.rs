//! TLS, peer connections, the join handshake.
//!
//! A node has one TLS port. Whoever offers no ALPN id or `http/1.1` gets the public side, which never asks for a
//! certificate. Whoever offers [`PEER_ALPN`] must present a certificate of the cluster's CA that names a member.
//! Both speak HTTP/1.1, since its reason phrase carries error texts and its upgrades carry streams.
//!
//! ```text
//!             ┌ public   http/1.1      → api, console
//!  TLS port ──┤
//!             └ peer     stead-peer/1  → /peer/v1/…: calls, forwarded requests, upgraded streams (Raft, migration)
//!  api.sock ──── local   plain HTTP, the kernel tells the user
//! ```
//!
//! Nothing here decides anything about the cluster: who is a member is asked through [`Membership`], and what a
//! joining node needs is told by `ops`.

mod body;
pub mod ca;
pub mod client;
mod dial;
mod error;
mod facts;
mod io;
pub mod join;
mod links;
mod peer;
mod pool;
mod redirect;
pub mod renewal;
pub mod server;
pub mod stream;
pub mod tls;
mod trust;
mod within;

pub use body::{Body, BoxError, empty, full, streaming};
pub use ca::{CaError, ClusterCa, Fingerprint, NodeKey, PeerIdentity};
pub use client::{HttpClient, Target};
pub use dial::Duplex;
pub use error::{Answer, ClientError};
pub use facts::Facts;
pub use join::{JoinInfo, JoinRefusal};
pub use links::LinkState;
pub use peer::{EPOCH, Peer, PeerClient, Purpose};
pub use server::{ConnInfo, ConnKind, Handler, Limits, Server};
pub use stream::{Stream, UPGRADE_PROTOCOL};
pub use tls::{Credentials, Membership, PEER_ALPN, Prepared, PublicCertificate, Tls, TlsError};
pub use trust::Trust;
