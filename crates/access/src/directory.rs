//! Users, groups, tokens, pools and ACLs, and what follows from them.
//!
//! On a path, deeper levels replace what is inherited; on one level a user's own entries replace those of
//! its groups; [`roles::NO_ACCESS`] replaces all. A pool's entries hold for its guests and storages beside their own.
//! A token with separated privileges has what both it and its user have.

use crate::roles::{self, NO_ACCESS};
use crate::{AuthId, Privilege, PrivilegeSet};
use std::collections::{BTreeMap, BTreeSet};
use stead_model::user_cfg::Subject;
use stead_model::{UserCfg, UserId};

/// A user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// May sign in.
    pub enabled: bool,
    /// Seconds since 1970; zero: never.
    pub expire: u64,
}

/// A token, without its secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token {
    /// Seconds since 1970; zero: never.
    pub expire: u64,
    /// It has entries of its own, and never more than its user.
    pub privsep: bool,
    /// For people.
    pub comment: Option<String>,
}

/// What belongs together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    /// For people.
    pub comment: Option<String>,
    /// Its guests.
    pub guests: BTreeSet<u32>,
    /// Its storages.
    pub storages: BTreeSet<String>,
}

/// For whom an entry is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// `user@realm`.
    User(String),
    /// A group's name.
    Group(String),
    /// `user@realm!token`.
    Token(String),
}

/// An entry of the access control list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// On what: `/`, `/vms/100`, ...
    pub path: String,
    /// It holds below too.
    pub propagate: bool,
    /// For whom.
    pub who: Who,
    /// What it gives.
    pub role: String,
}

/// All that permissions follow from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// By `user@realm`. root@pam need not be among them.
    pub users: BTreeMap<String, User>,
    /// Members by group.
    pub groups: BTreeMap<String, BTreeSet<String>>,
    /// By `user@realm!token`.
    pub tokens: BTreeMap<String, Token>,
    /// Entries by path.
    pub acl: Vec<Acl>,
    /// Roles made by administrators.
    pub roles: BTreeMap<String, PrivilegeSet>,
    /// By name.
    pub pools: BTreeMap<String, Pool>,
}

/// What somebody may do on a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Here.
    pub here: PrivilegeSet,
    /// Here and below.
    pub below: PrivilegeSet,
}

impl Privileges {
    fn and(self, other: Self) -> Self {
        Self { here: self.here.and(other.here), below: self.below.and(other.below) }
    }

    fn or(self, other: Self) -> Self {
        Self { here: self.here.or(other.here), below: self.below.or(other.below) }
    }

    fn all() -> Self {
        Self { here: PrivilegeSet::full(), below: PrivilegeSet::full() }
    }
}

/// Roles in effect on a path, with whether they hold below too.
type Roles<'a> = BTreeMap<&'a str, bool>;

fn expired(expire: u64, now: u64) -> bool {
    expire != 0 && expire <= now
}

/// A path in its one form: `/a/b`, no slash at the end.
pub fn normal(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

/// `/`, `/a`, `/a/b` of `/a/b`.
fn levels(path: &str) -> Vec<&str> {
    let ends = path.char_indices().skip(1).filter(|(_, c)| *c == '/').map(|(i, _)| i);
    let mut all = vec!["/"];
    if path != "/" {
        all.extend(ends.map(|i| &path[..i]));
        all.push(path);
    }
    all
}

impl Directory {
    /// Whether a user exists, is enabled and has not expired. root@pam always is.
    pub fn user_active(&self, user: &UserId, now: u64) -> bool {
        user.is_root() || self.users.get(user.as_str()).is_some_and(|u| u.enabled && !expired(u.expire, now))
    }

    /// Whether the one behind a request may still make any.
    pub fn active(&self, id: &AuthId, now: u64) -> bool {
        let token = match id {
            AuthId::User(_) => true,
            AuthId::Token(t) => self.tokens.get(&t.to_string()).is_some_and(|t| !expired(t.expire, now)),
        };
        token && self.user_active(id.user(), now)
    }

    /// What a role gives.
    pub fn role(&self, name: &str) -> Option<PrivilegeSet> {
        roles::built_in(name).or_else(|| self.roles.get(name).copied())
    }

    /// What `id` may do on `path`.
    pub fn privileges(&self, id: &AuthId, path: &str, now: u64) -> Privileges {
        if !self.active(id, now) {
            return Privileges::default();
        }
        let path = normal(path);
        let user = self.privileges_of_user(id.user(), &path);
        match id {
            AuthId::User(_) => user,
            AuthId::Token(t) => {
                let name = t.to_string();
                match self.tokens.get(&name) {
                    Some(token) if !token.privsep => user,
                    Some(_) => user.and(self.with_pools(&path, &|p| self.roles_of_token(&name, p))),
                    None => Privileges::default(),
                }
            }
        }
    }

    /// Whether `id` holds `privilege` on `path`. A privilege that does not exist is held by none.
    pub fn check(&self, id: &AuthId, path: &str, privilege: &str, now: u64) -> bool {
        Privilege::named(privilege).is_some_and(|p| self.privileges(id, path, now).here.has(p))
    }

    fn privileges_of_user(&self, user: &UserId, path: &str) -> Privileges {
        if user.is_root() {
            Privileges::all()
        } else {
            self.with_pools(path, &|p| self.roles_of_user(user, p))
        }
    }

    fn with_pools<'a>(&'a self, path: &str, roles: &dyn Fn(&str) -> Roles<'a>) -> Privileges {
        let own = roles(path);
        let mut sum = self.sum(&own);
        if own.contains_key(NO_ACCESS) {
            return sum;
        }
        for pool in self.pools_of(path) {
            sum = sum.or(self.sum(&roles(&format!("/pool/{pool}"))));
        }
        sum
    }

    fn sum(&self, roles: &Roles<'_>) -> Privileges {
        let mut sum = Privileges::default();
        for (role, propagate) in roles {
            let here = self.role(role).unwrap_or_default();
            sum = sum.or(Privileges { here, below: if *propagate { here } else { PrivilegeSet::EMPTY } });
        }
        sum
    }

    /// The pools that an object's path belongs to.
    fn pools_of(&self, path: &str) -> Vec<&str> {
        let part = |prefix| path.strip_prefix(prefix).and_then(|rest: &str| rest.split('/').next());
        let holds = |pool: &Pool| {
            part("/vms/").and_then(|id| id.parse().ok()).is_some_and(|id| pool.guests.contains(&id))
                || part("/storage/").is_some_and(|id| pool.storages.contains(id))
        };
        self.pools.iter().filter(|(_, p)| holds(p)).map(|(name, _)| name.as_str()).collect()
    }

    fn roles_of_user(&self, user: &UserId, path: &str) -> Roles<'_> {
        self.walk(path, |who| match who {
            Who::User(name) => (name == user.as_str()).then_some(0),
            Who::Group(group) => {
                self.groups.get(group).is_some_and(|members| members.contains(user.as_str())).then_some(1)
            }
            Who::Token(_) => None,
        })
    }

    fn roles_of_token(&self, token: &str, path: &str) -> Roles<'_> {
        self.walk(path, |who| matches!(who, Who::Token(name) if name == token).then_some(0))
    }

    /// Goes down a path. `rank` says whose entry it is: of one level, those of the lowest rank count.
    fn walk(&self, path: &str, rank: impl Fn(&Who) -> Option<u8>) -> Roles<'_> {
        let mut roles = Roles::new();
        for level in levels(path) {
            let last = level == path;
            let hits: Vec<(u8, &Acl)> = self
                .acl
                .iter()
                .filter(|a| normal(&a.path) == level && (last || a.propagate))
                .filter_map(|a| Some((rank(&a.who)?, a)))
                .collect();
            let Some(first) = hits.iter().map(|(r, _)| *r).min() else { continue };
            roles.clear();
            for (_, acl) in hits.iter().filter(|(r, _)| *r == first) {
                let propagate = roles.entry(acl.role.as_str()).or_default();
                *propagate |= acl.propagate;
            }
            if let Some(propagate) = roles.get(NO_ACCESS).copied() {
                roles = Roles::from([(NO_ACCESS, propagate)]);
            }
        }
        roles
    }

    /// Each path that says something, with what `id` may do there: privilege → whether it holds below.
    pub fn overview(&self, id: &AuthId, now: u64) -> BTreeMap<String, BTreeMap<&'static str, bool>> {
        const ALWAYS: [&str; 8] =
            ["/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms"];
        let mut paths: BTreeSet<String> = ALWAYS.iter().map(|p| (*p).to_owned()).collect();
        paths.extend(self.acl.iter().map(|a| normal(&a.path)));
        for pool in self.pools.values() {
            paths.extend(pool.guests.iter().map(|g| format!("/vms/{g}")));
            paths.extend(pool.storages.iter().map(|s| format!("/storage/{s}")));
        }
        let of = |path: String| {
            let map = self.map(id, &path, now);
            (!map.is_empty()).then_some((path, map))
        };
        paths.into_iter().filter_map(of).collect()
    }

    /// What `id` may do on one path: privilege → whether it holds below.
    pub fn map(&self, id: &AuthId, path: &str, now: u64) -> BTreeMap<&'static str, bool> {
        let p = self.privileges(id, path, now);
        p.here.iter().map(|x| (x.name(), p.below.has(x))).collect()
    }
}

impl From<&UserCfg> for Directory {
    fn from(cfg: &UserCfg) -> Self {
        let mut d = Self::default();
        for (id, u) in &cfg.users {
            d.users.insert(id.to_string(), User { enabled: u.enable, expire: u.expire });
        }
        for (name, g) in &cfg.groups {
            d.groups.insert(name.clone(), g.users.iter().map(ToString::to_string).collect());
        }
        for (id, t) in &cfg.tokens {
            let comment = (!t.comment.is_empty()).then(|| t.comment.clone());
            d.tokens.insert(id.to_string(), Token { expire: t.expire, privsep: t.privsep, comment });
        }
        for (name, p) in &cfg.pools {
            let comment = (!p.comment.is_empty()).then(|| p.comment.clone());
            let guests = p.vms.iter().map(|v| v.get()).collect();
            let storages = p.storages.iter().map(ToString::to_string).collect();
            d.pools.insert(name.clone(), Pool { comment, guests, storages });
        }
        for (name, privileges) in &cfg.roles {
            let set = privileges.iter().filter_map(|p| Privilege::named(p)).collect();
            d.roles.insert(name.clone(), set);
        }
        for (path, subjects) in &cfg.acl {
            for (subject, roles) in subjects {
                let who = match subject {
                    Subject::User(u) => Who::User(u.to_string()),
                    Subject::Group(g) => Who::Group(g.clone()),
                    Subject::Token(t) => Who::Token(t.to_string()),
                };
                d.acl.extend(roles.iter().map(|(role, propagate)| Acl {
                    path: path.clone(),
                    propagate: *propagate,
                    who: who.clone(),
                    role: role.clone(),
                }));
            }
        }
        d
    }
}
