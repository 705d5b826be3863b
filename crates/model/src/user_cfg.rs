//! `user.cfg`: users, tokens, groups, pools, roles and access control lists.
//!
//! ```text
//! user:zoe@pve:1:0:Zoe:Zuse:zoe@example.org:a comment:keys:
//! token:zoe@pve!ci:0:1:a comment:
//! group:ops:zoe@pve,root@pam:a comment:
//! pool:prod:a comment:100,101:local:
//! role:Viewer:VM.Audit,Sys.Audit:
//! acl:1:/vms/100:zoe@pve,@ops:Viewer:
//! ```
//!
//! One record a line, fields ended by colons, free text percent-encoded. Printing sorts; lines of a kind that
//! this version does not know are kept at the end. Secrets lie elsewhere.

use crate::text::{FormatError, decode, encode, parse_bool, split_list};
use crate::{StorageId, TokenId, UserId, Vmid};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Whether they may sign in.
    pub enable: bool,
    /// Seconds since 1970 after which they may not; 0: never.
    pub expire: u64,
    /// First name.
    pub firstname: String,
    /// Last name.
    pub lastname: String,
    /// Address.
    pub email: String,
    /// Free text.
    pub comment: String,
    /// Marks of second factors.
    pub keys: String,
}

impl Default for User {
    /// Enabled, without end.
    fn default() -> Self {
        let none = String::new;
        Self {
            enable: true,
            expire: 0,
            firstname: none(),
            lastname: none(),
            email: none(),
            comment: none(),
            keys: none(),
        }
    }
}

/// An API token. Its secret lies elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Seconds since 1970 after which it is void; 0: never.
    pub expire: u64,
    /// Whether it has only what it was given itself, within what its user has.
    pub privsep: bool,
    /// Free text.
    pub comment: String,
}

/// A group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Its members.
    pub users: BTreeSet<UserId>,
    /// Free text.
    pub comment: String,
}

/// A pool of guests and storages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    /// Free text.
    pub comment: String,
    /// Its guests.
    pub vms: BTreeSet<Vmid>,
    /// Its storages.
    pub storages: BTreeSet<StorageId>,
}

/// Who has a role somewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The members of a group; written `@name`.
    Group(String),
    /// A user.
    User(UserId),
    /// A token; written `user@realm!name`.
    Token(TokenId),
}

impl FromStr for Subject {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(group) = s.strip_prefix('@') {
            return if is_name(group) {
                Ok(Self::Group(group.to_owned()))
            } else {
                Err(not_a_name("group", group))
            };
        }
        if s.contains('!') {
            return s.parse().map(Self::Token).map_err(|e: crate::IdError| e.to_string());
        }
        s.parse().map(Self::User).map_err(|e: crate::IdError| e.to_string())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(name) => write!(f, "@{name}"),
            Self::User(user) => user.fmt(f),
            Self::Token(token) => token.fmt(f),
        }
    }
}

/// Whether a group, a role or one part of a pool's name may be called so: letters, digits, `.`, `-` and `_`.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// Whether a pool may be called so: up to three names with `/` between.
pub fn is_pool_name(name: &str) -> bool {
    name.split('/').count() <= 3 && name.split('/').all(is_name)
}

/// Brings a path of an ACL into its one form: `/vms/100`, without doubled or ending slashes.
///
/// # Errors
/// If it does not begin with `/` or holds what no path has.
pub fn normal_path(path: &str) -> Result<String, String> {
    if !path.starts_with('/') || !path.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c)) {
        return Err(format!("'{}' is not a path such as /vms/100", path.escape_debug()));
    }
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if parts.iter().any(|p| matches!(*p, "." | "..")) {
        return Err(format!("'{path}' must not contain '.' or '..'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn not_a_name(what: &str, name: &str) -> String {
    format!(
        "'{}' is not a valid {what} name: letters, digits, '.', '-' and '_' are allowed",
        name.escape_debug()
    )
}

/// Roles of one subject at one path: by name, whether they reach below the path.
pub type Roles = BTreeMap<String, bool>;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserCfg {
    /// Users by name.
    pub users: BTreeMap<UserId, User>,
    /// API tokens.
    pub tokens: BTreeMap<TokenId, Token>,
    /// Groups by name.
    pub groups: BTreeMap<String, Group>,
    /// Pools by name.
    pub pools: BTreeMap<String, Pool>,
    /// Roles that users made: their privileges.
    pub roles: BTreeMap<String, BTreeSet<String>>,
    /// Who has what where, by path.
    pub acl: BTreeMap<String, BTreeMap<Subject, Roles>>,
    /// Lines of unknown kinds.
    pub other: Vec<String>,
}

impl UserCfg {
    /// Reads the file's text; `Display` prints it.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        text.parse()
    }

    /// The groups of a user.
    pub fn groups_of(&self, user: &UserId) -> impl Iterator<Item = &str> {
        self.groups.iter().filter(|(_, g)| g.users.contains(user)).map(|(name, _)| name.as_str())
    }

    /// The pool of a guest.
    pub fn pool_of(&self, vmid: Vmid) -> Option<&str> {
        self.pools.iter().find(|(_, p)| p.vms.contains(&vmid)).map(|(name, _)| name.as_str())
    }

    /// Gives a role; `path` as [`normal_path`] has it.
    pub fn grant(&mut self, path: String, subject: Subject, role: String, propagate: bool) {
        self.acl.entry(path).or_default().entry(subject).or_default().insert(role, propagate);
    }

    /// Takes a role away; whether it was there. Nothing empty stays behind.
    pub fn revoke(&mut self, path: &str, subject: &Subject, role: &str) -> bool {
        let Some(subjects) = self.acl.get_mut(path) else { return false };
        let Some(roles) = subjects.get_mut(subject) else { return false };
        let was = roles.remove(role).is_some();
        subjects.retain(|_, roles| !roles.is_empty());
        self.acl.retain(|_, subjects| !subjects.is_empty());
        was
    }

    /// Takes a user out, with their tokens, memberships and access.
    pub fn remove_user(&mut self, user: &UserId) -> bool {
        let was = self.users.remove(user).is_some();
        self.tokens.retain(|token, _| token.user != *user);
        for group in self.groups.values_mut() {
            group.users.remove(user);
        }
        self.drop_subjects(|s| match s {
            Subject::User(u) => u == user,
            Subject::Token(t) => t.user == *user,
            Subject::Group(_) => false,
        });
        was
    }

    /// Takes a token out, with its access.
    pub fn remove_token(&mut self, token: &TokenId) -> bool {
        self.drop_subjects(|s| matches!(s, Subject::Token(t) if t == token));
        self.tokens.remove(token).is_some()
    }

    /// Takes a guest out of all pools and access lists, when it is destroyed.
    pub fn remove_guest(&mut self, vmid: Vmid) {
        for pool in self.pools.values_mut() {
            pool.vms.remove(&vmid);
        }
        self.acl.remove(&format!("/vms/{vmid}"));
    }

    fn drop_subjects(&mut self, gone: impl Fn(&Subject) -> bool) {
        for subjects in self.acl.values_mut() {
            subjects.retain(|subject, _| !gone(subject));
        }
        self.acl.retain(|_, subjects| !subjects.is_empty());
    }

    fn read_line(&mut self, line: &str) -> Result<(), String> {
        let (kind, rest) = line.split_once(':').ok_or("it has no ':'")?;
        let mut fields = Fields::new(rest);
        match kind {
            "user" => {
                let id = fields.parsed::<UserId>()?;
                let user = User {
                    enable: fields.flag("enable")?,
                    expire: fields.number("expire")?,
                    firstname: fields.text(),
                    lastname: fields.text(),
                    email: fields.text(),
                    comment: fields.text(),
                    keys: fields.text(),
                };
                once("user", &mut self.users, id, user)?;
            }
            "token" => {
                let id = fields.parsed::<TokenId>()?;
                let token = Token {
                    expire: fields.number("expire")?,
                    privsep: fields.flag("privsep")?,
                    comment: fields.text(),
                };
                once("token", &mut self.tokens, id, token)?;
            }
            "group" => {
                let name = fields.named("group", is_name)?;
                let group = Group { users: fields.list()?, comment: fields.text() };
                once("group", &mut self.groups, name, group)?;
            }
            "pool" => {
                let name = fields.named("pool", is_pool_name)?;
                let pool = Pool { comment: fields.text(), vms: fields.list()?, storages: fields.list()? };
                once("pool", &mut self.pools, name, pool)?;
            }
            "role" => {
                let name = fields.named("role", is_name)?;
                let privs = split_list(fields.next()).map(str::to_owned).collect();
                once("role", &mut self.roles, name, privs)?;
            }
            "acl" => {
                let propagate = fields.flag("propagate")?;
                let path = normal_path(fields.next())?;
                let subjects: BTreeSet<Subject> = fields.list()?;
                let roles: Vec<&str> = split_list(fields.next()).collect();
                for role in roles {
                    if !is_name(role) {
                        return Err(not_a_name("role", role));
                    }
                    for subject in &subjects {
                        self.grant(path.clone(), subject.clone(), role.to_owned(), propagate);
                    }
                }
            }
            _ => {
                self.other.push(line.to_owned());
                return Ok(());
            }
        }
        fields.end()
    }
}

fn once<K: Ord + fmt::Display, V>(
    what: &str,
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
) -> Result<(), String> {
    if map.contains_key(&key) {
        return Err(format!("{what} '{key}' is there twice"));
    }
    map.insert(key, value);
    Ok(())
}

/// The fields of a line.
struct Fields<'a> {
    rest: std::str::Split<'a, char>,
}

impl<'a> Fields<'a> {
    fn new(line: &'a str) -> Self {
        Self { rest: line.split(':') }
    }

    /// The next one; what is missing at the end is empty.
    fn next(&mut self) -> &'a str {
        self.rest.next().unwrap_or_default()
    }

    fn text(&mut self) -> String {
        decode(self.next())
    }

    fn parsed<T: FromStr>(&mut self) -> Result<T, String>
    where
        T::Err: fmt::Display,
    {
        self.next().parse().map_err(|e: T::Err| e.to_string())
    }

    fn named(&mut self, what: &str, ok: fn(&str) -> bool) -> Result<String, String> {
        let name = self.next();
        if ok(name) { Ok(name.to_owned()) } else { Err(not_a_name(what, name)) }
    }

    fn list<T: FromStr + Ord>(&mut self) -> Result<BTreeSet<T>, String>
    where
        T::Err: fmt::Display,
    {
        split_list(self.next()).map(|s| s.parse().map_err(|e: T::Err| e.to_string())).collect()
    }

    fn flag(&mut self, what: &str) -> Result<bool, String> {
        let text = self.next();
        parse_bool(text).ok_or_else(|| format!("{what}: '{text}' is not a boolean (1 or 0)"))
    }

    fn number(&mut self, what: &str) -> Result<u64, String> {
        match self.next() {
            "" => Ok(0),
            text => text.parse().map_err(|_| format!("{what}: '{text}' is not a number of seconds")),
        }
    }

    fn end(self) -> Result<(), String> {
        match self.rest.filter(|f| !f.is_empty()).count() {
            0 => Ok(()),
            n => Err(format!("it has {n} more fields than this version knows")),
        }
    }
}

impl FromStr for UserCfg {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let mut read = Self::default();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() {
                read.read_line(line).or_else(|reason| FormatError::at(i + 1, reason))?;
            }
        }
        Ok(read)
    }
}

fn joined<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

impl fmt::Display for UserCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, u) in &self.users {
            let texts =
                [&u.firstname, &u.lastname, &u.email, &u.comment, &u.keys].map(|t| encode(t)).join(":");
            writeln!(f, "user:{id}:{}:{}:{texts}:", u8::from(u.enable), u.expire)?;
        }
        for (id, t) in &self.tokens {
            writeln!(f, "token:{id}:{}:{}:{}:", t.expire, u8::from(t.privsep), encode(&t.comment))?;
        }
        for (name, g) in &self.groups {
            writeln!(f, "group:{name}:{}:{}:", joined(&g.users), encode(&g.comment))?;
        }
        for (name, p) in &self.pools {
            writeln!(f, "pool:{name}:{}:{}:{}:", encode(&p.comment), joined(&p.vms), joined(&p.storages))?;
        }
        for (name, privs) in &self.roles {
            writeln!(f, "role:{name}:{}:", joined(privs))?;
        }
        for (path, subjects) in &self.acl {
            // Subjects with the same roles share a line, as administrators know it.
            let mut lines: BTreeMap<(bool, String), Vec<&Subject>> = BTreeMap::new();
            for (subject, roles) in subjects {
                for propagate in [false, true] {
                    let named = joined(roles.iter().filter(|(_, p)| **p == propagate).map(|(role, _)| role));
                    if !named.is_empty() {
                        lines.entry((propagate, named)).or_default().push(subject);
                    }
                }
            }
            for ((propagate, roles), subjects) in lines {
                writeln!(f, "acl:{}:{path}:{}:{roles}:", u8::from(propagate), joined(subjects))?;
            }
        }
        self.other.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &str = "\
user:root@pam:1:0:::root@example.org:::
user:zoe@pve:0:1790000000:Zo%C3%AB:Zuse::on call%3A 24/7::
token:zoe@pve!ci:0:1:for the build:
group:ops:root@pam,zoe@pve:all of us:
pool:prod/web::100,101:local,shared:
role:Viewer:Sys.Audit,VM.Audit:
acl:0:/:zoe@pve:Viewer:
acl:1:/:@ops,zoe@pve!ci:PVEVMAdmin,Viewer:
acl:1:/vms/100:zoe@pve:PVEVMUser:
realm-thing:kept:as it is:
";

    #[test]
    fn a_file_prints_as_it_was_read() {
        let cfg = UserCfg::parse(GOLDEN).unwrap();
        assert_eq!(cfg.to_string(), GOLDEN);
        let zoe: UserId = "zoe@pve".parse().unwrap();
        assert_eq!((cfg.users[&zoe].firstname.as_str(), cfg.users[&zoe].enable), ("Zoë", false));
        assert_eq!(cfg.groups_of(&zoe).collect::<Vec<_>>(), ["ops"]);
        assert_eq!(cfg.pool_of(Vmid::new(101).unwrap()), Some("prod/web"));
        assert!(!cfg.acl["/"][&Subject::User(zoe)]["Viewer"]);
    }

    #[test]
    fn who_goes_leaves_nothing_behind() {
        let mut cfg = UserCfg::parse(GOLDEN).unwrap();
        let zoe: UserId = "zoe@pve".parse().unwrap();
        assert!(cfg.remove_user(&zoe) && !cfg.remove_user(&zoe));
        cfg.remove_guest(Vmid::new(100).unwrap());
        let ops = Subject::Group("ops".to_owned());
        assert!(cfg.revoke("/", &ops, "Viewer") && !cfg.revoke("/", &ops, "Viewer"));
        assert!(cfg.revoke("/", &ops, "PVEVMAdmin"));
        let text = "\
user:root@pam:1:0:::root@example.org:::
group:ops:root@pam:all of us:
pool:prod/web::101:local,shared:
role:Viewer:Sys.Audit,VM.Audit:
realm-thing:kept:as it is:
";
        assert_eq!(cfg.to_string(), text);
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_line() {
        for (text, error) in [
            ("\nnonsense\n", "line 2: it has no ':'"),
            ("user:zoe:1:0:\n", "line 1: 'zoe' is not a valid user ID: it must be of the form user@realm"),
            ("user:a@pam:x:0::::::\n", "line 1: enable: 'x' is not a boolean (1 or 0)"),
            ("user:a@pam:1:0:\nuser:a@pam:1:0:\n", "line 2: user 'a@pam' is there twice"),
            ("role:A:VM.Audit:more:\n", "line 1: it has 1 more fields than this version knows"),
            ("acl:1:vms:a@pam:A:\n", "line 1: 'vms' is not a path such as /vms/100"),
            (
                "group:a/b::\n",
                "line 1: 'a/b' is not a valid group name: letters, digits, '.', '-' and '_' are allowed",
            ),
        ] {
            assert_eq!(UserCfg::parse(text).unwrap_err().to_string(), error);
        }
        assert_eq!(normal_path("//vms/100/").unwrap(), "/vms/100");
        assert_eq!(normal_path("/").unwrap(), "/");
        assert!(normal_path("/vms/../x").is_err());
    }

    fn user_id() -> impl Strategy<Value = UserId> {
        "[a-z]{1,6}@[a-z]{2,4}".prop_map(|s| s.parse().unwrap())
    }

    fn token_id() -> impl Strategy<Value = TokenId> {
        (user_id(), "[a-z]{2,4}").prop_map(|(user, name)| TokenId { user, name })
    }

    fn subject() -> impl Strategy<Value = Subject> {
        prop_oneof![
            user_id().prop_map(Subject::User),
            token_id().prop_map(Subject::Token),
            "[a-z]{1,4}".prop_map(Subject::Group),
        ]
    }

    prop_compose! {
        fn user()(
            enable in any::<bool>(), expire in any::<u64>(), texts in any::<[String; 5]>(),
        ) -> User {
            let [firstname, lastname, email, comment, keys] = texts;
            User { enable, expire, firstname, lastname, email, comment, keys }
        }
    }

    prop_compose! {
        fn cfg()(
            users in proptest::collection::btree_map(user_id(), user(), 0..4),
            tokens in proptest::collection::btree_map(token_id(), any::<(u64, bool, String)>(), 0..4),
            groups in proptest::collection::btree_map(
                "[a-z]{1,4}", (proptest::collection::btree_set(user_id(), 0..3), any::<String>()), 0..3),
            pools in proptest::collection::btree_map(
                "[a-z]{1,3}(/[a-z]{1,3})?",
                (any::<String>(), proptest::collection::btree_set(100..999u32, 0..3)),
                0..3,
            ),
            acl in proptest::collection::vec(
                ("(/[a-z]{1,2}){1,2}|/", subject(), "[A-Z]{1,2}", any::<bool>()), 0..10),
        ) -> UserCfg {
            let mut cfg = UserCfg { users, ..UserCfg::default() };
            for (id, (expire, privsep, comment)) in tokens {
                cfg.tokens.insert(id, Token { expire, privsep, comment });
            }
            for (name, (users, comment)) in groups {
                cfg.groups.insert(name, Group { users, comment });
            }
            for (name, (comment, vms)) in pools {
                let vms = vms.into_iter().map(|n| Vmid::new(n).unwrap()).collect();
                cfg.pools.insert(name, Pool { comment, vms, storages: BTreeSet::new() });
            }
            for (path, subject, role, propagate) in acl {
                cfg.grant(path, subject, role, propagate);
            }
            cfg
        }
    }

    proptest! {
        #[test]
        fn a_file_reads_as_it_prints(cfg in cfg()) {
            let text = cfg.to_string();
            let read = UserCfg::parse(&text).unwrap();
            prop_assert_eq!(&read, &cfg);
            prop_assert_eq!(read.to_string(), text);
        }
    }
}
