//! The context of one request.

use super::endpoint::Error;
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
