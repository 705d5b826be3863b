//! The context of one request.

use super::Services;
use super::auth::identify;
use super::endpoint::Error;
use super::serve::ConnInfo;
use http::HeaderMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stead_access::{AuthId, Directory};

/// Who calls, and what they may do.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user or token.
    pub id: AuthId,
    /// From which permissions follow.
    pub directory: Arc<Directory>,
    /// Seconds since 1970.
    pub now: u64,
}

impl Caller {
    /// Whether `privilege` is held on `path`.
    pub fn may(&self, path: &str, privilege: &str) -> bool {
        self.directory.check(&self.id, path, privilege, self.now)
    }

    /// Refuses unless all of `privileges` are held on `path`.
    pub fn require(&self, path: &str, privileges: &[&str]) -> Result<(), Error> {
        if privileges.iter().all(|p| self.may(path, p)) { Ok(()) } else { Err(denied(path, privileges)) }
    }

    /// Refuses unless one of `privileges` is held on `path`.
    pub fn require_any(&self, path: &str, privileges: &[&str]) -> Result<(), Error> {
        if privileges.iter().any(|p| self.may(path, p)) { Ok(()) } else { Err(denied(path, privileges)) }
    }
}

fn denied(path: &str, privileges: &[&str]) -> Error {
    Error::forbidden(format!("Permission check failed ({path}, {})", privileges.join("|")))
}

/// A file that has arrived with the request. Removed when dropped, unless [`Self::keep`] was called.
#[derive(Debug)]
pub struct Spooled {
    path: Option<PathBuf>,
    /// The name that the client gave.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

impl Spooled {
    /// A file being filled at `path`.
    pub fn new(path: PathBuf, name: String) -> Self {
        Self { path: Some(path), name, size: 0 }
    }

    /// Where it is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Hands the file over: it is no longer removed.
    pub fn keep(mut self) -> Option<PathBuf> {
        self.path.take()
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // Best effort: the storage removes left-over spool files at its next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What a request has shown of who makes it, for answers that go on long after: rights end while they do.
pub struct Standing<S> {
    services: Arc<S>,
    conn: ConnInfo,
    headers: HeaderMap,
    id: AuthId,
}

impl<S: Services> Standing<S> {
    /// Remembers what a request has shown; `id` is who it was found to be of.
    pub fn new(services: Arc<S>, conn: ConnInfo, headers: &HeaderMap, id: AuthId) -> Self {
        let shows = [http::header::AUTHORIZATION, http::header::COOKIE]
            .into_iter()
            .chain([http::HeaderName::from_static(super::auth::FORWARDED_AUTH)]);
        let mut kept = HeaderMap::new();
        for name in shows {
            for value in headers.get_all(&name) {
                kept.append(name.clone(), value.clone());
            }
        }
        Self { services, conn, headers: kept, id }
    }

    /// Who it is, with the rights of now; none once it would not be let in any more: its ticket has expired, its token
    /// was changed or removed, its user was disabled or got another password.
    pub fn caller(&self) -> Option<Caller> {
        let authority = self.services.authority().ok()?;
        let shown = identify(&*self.services, &authority, &self.conn, &self.headers, false).ok()??;
        let caller = Caller { id: shown, directory: authority.directory, now: self.services.now() };
        (caller.id == self.id && caller.directory.active(&caller.id, caller.now)).then_some(caller)
    }
}

/// One request being carried out.
pub struct Call<S> {
    /// Who calls.
    pub caller: Caller,
    /// What the use cases stand on.
    pub services: Arc<S>,
    /// From where; none for the local socket.
    pub remote: Option<SocketAddr>,
    /// The file that came with it.
    pub upload: tokio::sync::Mutex<Option<Spooled>>,
    /// Where a follower of events was interrupted (`Last-Event-ID`).
    pub last_event: Option<String>,
    /// To be asked again while the answer goes on.
    pub standing: Arc<Standing<S>>,
}

impl<S> Call<S> {
    /// The client's address; the unspecified one stands for the local socket.
    pub fn from(&self) -> IpAddr {
        self.remote.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |r| r.ip())
    }

    /// Takes the file that came with the request.
    pub async fn take_upload(&self) -> Result<Spooled, Error> {
        let taken = self.upload.lock().await.take();
        taken.ok_or_else(|| Error::parameter("filename", "the request contains no file"))
    }
}
