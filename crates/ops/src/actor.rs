//! Who asks, and what they may do.

use crate::OpsError;
use std::fmt;
use std::sync::Arc;

/// Answers whether a privilege is held on a path.
pub type Allows = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// The one on whose behalf a use case is carried out.
#[derive(Clone)]
pub struct Actor {
    /// `user@realm` or `user@realm!token`: written in tasks and in the configuration's history.
    pub who: String,
    /// root@pam itself (no token): may use what no privilege gives, e.g. `skiplock` and `args`.
    pub root: bool,
    allows: Allows,
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor").field("who", &self.who).finish_non_exhaustive()
    }
}

impl Actor {
    /// An actor whose privileges `allows` answers.
    pub fn new(who: impl Into<String>, root: bool, allows: Allows) -> Self {
        Self { who: who.into(), root, allows }
    }

    /// The cluster itself: HA, autostart, reconciliation. May do everything.
    pub fn system() -> Self {
        Self::new("root@pam", true, Arc::new(|_, _| true))
    }

    /// Whether `privilege` is held on `path`.
    pub fn may(&self, path: &str, privilege: &str) -> bool {
        (self.allows)(path, privilege)
    }

    /// Refuses unless every one of `privileges` is held on `path`.
    pub fn require(&self, path: &str, privileges: &[&str]) -> Result<(), OpsError> {
        match privileges.iter().find(|p| !self.may(path, p)) {
            None => Ok(()),
            Some(_) => Err(OpsError::Forbidden { path: path.to_owned(), privilege: privileges.join("|") }),
        }
    }
}
