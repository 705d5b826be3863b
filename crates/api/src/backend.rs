//! What the handlers stand on: the use cases, and who may call them.

use crate::framework::{Authority, Call, Error, Services};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use stead_access::UsedTickets;
use stead_ops::access::IdentityVersions;
use stead_ops::admin::Admin;
use stead_ops::{Actor, Ops, OpsError};

/// The services of one node.
pub struct Backend {
    /// The use cases.
    pub ops: Arc<Ops>,
    /// What the daemon around them does.
    pub admin: Arc<dyn Admin>,
    /// Read again only when one of its files has changed.
    cache: Mutex<Option<(IdentityVersions, Authority)>>,
    used_tickets: Mutex<UsedTickets>,
}

/// A call of a handler.
pub type Cx = Call<Backend>;

impl Backend {
    /// The services over `ops`.
    pub fn new(ops: Arc<Ops>, admin: Arc<dyn Admin>) -> Self {
        Self { ops, admin, cache: Mutex::new(None), used_tickets: Mutex::default() }
    }

    /// Whether a console's ticket, which has been found good, is used for the first time at this node, where its guest
    /// is. From now on it is used.
    pub fn first_use(&self, ticket: &str) -> bool {
        self.used_tickets.lock().unwrap_or_else(PoisonError::into_inner).first_use(ticket, self.now())
    }
}

impl Services for Backend {
    fn authority(&self) -> Result<Authority, Error> {
        let versions = self.ops.identity_versions();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, authority)) = cache.as_ref()
            && *of == versions
        {
            return Ok(authority.clone());
        }
        let read = self.ops.identities()?;
        let authority = Authority {
            directory: read.directory,
            keyring: read.keyring,
            tokens: read.tokens,
            stamps: read.stamps,
        };
        *cache = Some((versions, authority.clone()));
        Ok(authority)
    }

    fn now(&self) -> u64 {
        let own = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.ops.status.cluster_ms(u64::try_from(own).unwrap_or(u64::MAX)) / 1000
    }
}

impl Cx {
    /// The use cases.
    pub fn ops(&self) -> &Arc<Ops> {
        &self.services.ops
    }

    /// The caller, as use cases know one.
    pub fn actor(&self) -> Actor {
        let caller = self.caller.clone();
        let allows = Arc::new(move |path: &str, privilege: &str| caller.may(path, privilege));
        Actor::new(self.caller.id.to_string(), self.caller.id.is_root(), allows)
    }
}

impl From<OpsError> for Error {
    fn from(e: OpsError) -> Self {
        match e {
            OpsError::Invalid { parameter, why } => Self::parameter(&parameter, why),
            OpsError::Forbidden { .. } => Self::forbidden(e.to_string()),
            OpsError::Failed(text) | OpsError::Undecided(text) => Self::failed(text),
            OpsError::NoQuorum(_) => Self::new(503, e.to_string()),
            OpsError::Unreachable { .. } => Self::new(595, e.to_string()),
        }
    }
}
