//! Signing in, and tokens.
//!
//! Users, tokens and ACLs lie in `user.cfg`; hashes of passwords and of tokens' secrets lie sealed below
//! `priv/`, as does the key that signs tickets.

use crate::cluster::{Resource, ResourceType};
use crate::{Actor, Ops, OpsError, store};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_access::ticket::KEY_LEN;
use stead_access::{
    AuthError, Brake, Builtin, Directory, Keyring, Realm, ShadowStore, Stamps, TokenStore, Verdict,
};
use stead_api_derive::Schema;
use stead_conf::Revision;
use stead_model::user_cfg::Token;
use stead_model::{TokenId, UserCfg, UserId, paths};
use tokio::sync::Semaphore;

/// How many passwords are checked at once: each check takes memory and time by intention.
static CHECKS: Semaphore = Semaphore::const_new(2);

/// The realms that there are, with what they say of themselves.
pub const REALMS: [(&str, &str, &str); 2] =
    [("pam", "pam", "Built-in administrators"), ("pve", "pve", "Built-in users")];

/// All that permissions and the checks of tickets and tokens follow from.
#[derive(Debug, Clone)]
pub struct Identities {
    /// Users, roles, ACLs.
    pub directory: Arc<Directory>,
    /// Signs tickets.
    pub keyring: Option<Keyring>,
    /// Tokens' secrets, hashed.
    pub tokens: Arc<TokenStore>,
    /// Which password each user has now: tickets end with it.
    pub stamps: Arc<Stamps>,
}

/// Which versions of their files [`Identities`] were read from.
pub type IdentityVersions = [Option<Revision>; 4];

/// The secrets of a new cluster, to be sealed at their paths: the tickets' key, and root@pam's password if
/// one is given. Slow: it hashes.
pub fn initial_secrets(password: Option<&str>) -> Result<Vec<(&'static str, Vec<u8>)>, AuthError> {
    let key: [u8; KEY_LEN] = rand::random();
    let mut secrets = vec![(paths::AUTH_KEY, key.to_vec())];
    if let (Some(password), Ok(root)) = (password, UserId::new(UserId::ROOT)) {
        let mut shadow = ShadowStore::default();
        shadow.set(&root, password, &rand::random())?;
        secrets.push((paths::SHADOW_CFG, shadow.to_text().into_bytes()));
    }
    Ok(secrets)
}

/// Where and when passwords were wrong of late, on this node; in memory alone.
#[derive(Debug)]
pub struct SignIns {
    brake: Mutex<Brake>,
    since: Instant,
}

impl Default for SignIns {
    fn default() -> Self {
        Self { brake: Mutex::default(), since: Instant::now() }
    }
}

impl SignIns {
    fn brake(&self) -> MutexGuard<'_, Brake> {
        self.brake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits for the turn of an attempt, or refuses it.
    async fn turn(&self, user: &UserId, from: IpAddr) -> Result<(), AuthError> {
        let verdict = self.brake().attempt(user.as_str(), from, self.now());
        match verdict {
            Verdict::After(0) => Ok(()),
            Verdict::After(ms) => {
                // Nothing is awaited but time: the wait is the brake.
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(())
            }
            Verdict::Refused(ms) => {
                tracing::debug!("sign-in of {user} from {from} refused unchecked");
                Err(AuthError::TooMany { seconds: ms.div_ceil(1000) })
            }
        }
    }

    fn ended(&self, user: &UserId, from: IpAddr, result: &Result<(), AuthError>) {
        let now = self.now();
        match result {
            Ok(()) => self.brake().right(user.as_str(), from, now),
            Err(AuthError::Failure) => {
                let wrong = self.brake().wrong(user.as_str(), from, now);
                tracing::warn!("authentication failure; rhost={from} user={user}: {wrong} of late");
            }
            Err(e) => tracing::warn!("could not check the password of {user}: {e}"),
        }
    }
}

/// What a token's owner may set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenChange {
    /// For people.
    pub comment: Option<String>,
    /// Seconds since 1970; 0: never.
    pub expire: Option<u64>,
    /// It has entries of its own, and never more than its user.
    pub privsep: Option<bool>,
    /// Make a new secret.
    pub regenerate: bool,
}

impl TokenChange {
    fn apply(&self, token: &mut Token) {
        if let Some(comment) = &self.comment {
            token.comment.clone_from(comment);
        }
        token.expire = self.expire.unwrap_or(token.expire);
        token.privsep = self.privsep.unwrap_or(token.privsep);
    }
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct TokenInfo {
    /// When it ends, in seconds since 1970; 0: never.
    pub expire: u64,
    /// It has entries of its own in access control lists, and never more than its user.
    pub privsep: bool,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl From<&Token> for TokenInfo {
    fn from(token: &Token) -> Self {
        let comment = (!token.comment.is_empty()).then(|| token.comment.clone());
        Self { expire: token.expire, privsep: token.privsep, comment }
    }
}

/// One of a user's tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Schema)]
pub struct NamedToken {
    /// Its name among the user's.
    pub tokenid: String,
    /// More of it.
    #[serde(flatten)]
    pub info: TokenInfo,
}

/// A token that was made. Contains its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Schema)]
pub struct NewToken {
    /// `user@realm!name`.
    #[serde(rename = "full-tokenid")]
    pub full_tokenid: String,
    /// More of it.
    pub info: TokenInfo,
    /// The secret, shown this once.
    pub value: String,
}

/// A token that was changed; with its new secret, if one was asked for.
#[derive(Clone, PartialEq, Eq, Serialize, Schema)]
pub struct ChangedToken {
    /// More of it.
    #[serde(flatten)]
    pub info: TokenInfo,
    /// `user@realm!name`, beside a new secret.
    #[serde(rename = "full-tokenid", skip_serializing_if = "Option::is_none")]
    pub full_tokenid: Option<String>,
    /// The new secret, shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize, Schema)]
pub struct PoolInfo {
    /// Its name.
    pub poolid: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// What is in it, of a pool that is asked for by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<Resource>>,
}

fn missing(id: &TokenId) -> OpsError {
    OpsError::failed(format!("no such token '{}' for user '{}'", id.name, id.user))
}

impl Ops {
    /// The versions that [`Self::identities`] would be read from now.
    pub fn identity_versions(&self) -> IdentityVersions {
        let files = [paths::USER_CFG, paths::TOKEN_CFG, paths::AUTH_KEY, paths::SHADOW_CFG];
        self.conf.view(|t| files.map(|p| t.get(p).map(|e| e.revision)))
    }

    /// Who there is, and how they prove it.
    pub fn identities(&self) -> Result<Identities, OpsError> {
        let (cfg, _) = self.user_cfg()?;
        let (tokens, _) = self.token_store()?;
        let keyring = match self.secret(paths::AUTH_KEY)? {
            None => None,
            Some(key) => {
                let wrong = |_| OpsError::failed(format!("the key '{}' is damaged", paths::AUTH_KEY));
                Some(Keyring::new(key.as_slice().try_into().map_err(wrong)?))
            }
        };
        Ok(Identities {
            directory: Arc::new(Directory::from(&cfg)),
            keyring,
            tokens: Arc::new(tokens),
            stamps: Arc::new(self.stamps()),
        })
    }

    /// Which password each user has now. If that can't be read no ticket is good, and who needs none can mend it.
    fn stamps(&self) -> Stamps {
        let read = self.secret_text(paths::SHADOW_CFG).map_err(|e| e.to_string());
        match read.and_then(|text| ShadowStore::parse(&text).map_err(|e| e.to_string())) {
            Ok(shadow) => Stamps::from(&shadow),
            Err(e) => {
                tracing::error!("no ticket is good now, since the passwords can't be read: {e}");
                Stamps::default()
            }
        }
    }

    fn secret(&self, path: &str) -> Result<Option<Vec<u8>>, OpsError> {
        self.conf
            .secret(path)
            .map_err(|e| OpsError::failed(format!("the secret '{path}' can't be opened: {e}")))
    }

    pub(crate) fn secret_text(&self, path: &str) -> Result<String, OpsError> {
        let bytes = self.secret(path)?.unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| OpsError::failed(format!("the secret '{path}' is not text")))
    }

    /// Users, groups, tokens, pools and ACLs.
    pub fn user_cfg(&self) -> Result<(UserCfg, Option<Revision>), OpsError> {
        let (text, revision) = self.file(paths::USER_CFG)?;
        let cfg =
            UserCfg::parse(&text).map_err(|e| OpsError::failed(format!("user.cfg cannot be read: {e}")))?;
        Ok((cfg, revision))
    }

    fn token_store(&self) -> Result<(TokenStore, Option<Revision>), OpsError> {
        let revision = self.conf.view(|t| t.get(paths::TOKEN_CFG).map(|e| e.revision));
        let text = self.secret_text(paths::TOKEN_CFG)?;
        let store = TokenStore::parse(&text).map_err(|e| OpsError::failed(e.to_string()))?;
        Ok((store, revision))
    }

    /// Checks a password that was given at `from`. Whoever is unknown, disabled or wrong gets the same answer, after wrong
    /// ones later and later; see [`stead_access::brake`].
    pub async fn check_password(
        &self,
        user: &UserId,
        password: String,
        from: IpAddr,
        now: u64,
    ) -> Result<(), AuthError> {
        self.sign_ins.turn(user, from).await?;
        let result = self.compare_password(user, password, now).await;
        self.sign_ins.ended(user, from, &result);
        result
    }

    async fn compare_password(&self, user: &UserId, password: String, now: u64) -> Result<(), AuthError> {
        let unavailable = |e: &dyn std::fmt::Display| AuthError::Unavailable(e.to_string());
        let identities = self.identities().map_err(|e| unavailable(&e))?;
        let text = self.secret_text(paths::SHADOW_CFG).map_err(|e| unavailable(&e))?;
        let realm = Builtin(ShadowStore::parse(&text)?);
        let known =
            identities.directory.user_active(user, now) && REALMS.iter().any(|(r, ..)| *r == user.realm());
        let _turn = CHECKS.acquire().await.map_err(|e| unavailable(&e))?;
        let asked = user.clone();
        let checked = tokio::task::spawn_blocking(move || realm.authenticate(&asked, &password)).await;
        checked.map_err(|e| unavailable(&e))??;
        if known { Ok(()) } else { Err(AuthError::Failure) }
    }

    /// Sets a user's password; their tickets end. Who may was checked before.
    pub async fn set_password(&self, actor: &Actor, user: &UserId, password: String) -> Result<(), OpsError> {
        Self::known_user(&self.user_cfg()?.0, user)?;
        if !REALMS.iter().any(|(realm, ..)| *realm == user.realm()) {
            return Err(OpsError::failed(format!("realm '{}' keeps its passwords itself", user.realm())));
        }
        let revision = self.conf.view(|t| t.get(paths::SHADOW_CFG).map(|e| e.revision));
        let wrong = |e: AuthError| OpsError::invalid("password", e.to_string());
        let mut shadow = ShadowStore::parse(&self.secret_text(paths::SHADOW_CFG)?).map_err(wrong)?;
        let asked = user.clone();
        let _turn = CHECKS.acquire().await.map_err(|e| OpsError::failed(e.to_string()))?;
        let set = tokio::task::spawn_blocking(move || {
            shadow.set(&asked, &password, &rand::random())?;
            Ok::<_, AuthError>(shadow.to_text())
        });
        let text = set
            .await
            .map_err(|e| OpsError::failed(format!("the password was not set: {e}")))?
            .map_err(wrong)?;
        let mut txn = store::txn(&actor.who, format!("password of {user} set"));
        store::put_over(&mut txn, paths::SHADOW_CFG, revision, self.sealed(paths::SHADOW_CFG, &text)?);
        self.conf.transact(txn).await?;
        // Secrets have no history: this line is all that tells of it.
        tracing::info!("the password of {user} was changed by {}", actor.who);
        Ok(())
    }

    pub(crate) fn sealed(&self, path: &str, text: &str) -> Result<Vec<u8>, OpsError> {
        let sealed = self.conf.seal(path, text.as_bytes());
        Ok(sealed
            .map_err(|e| OpsError::failed(format!("the secret '{path}' can't be sealed: {e}")))?
            .to_vec())
    }

    fn known_user(cfg: &UserCfg, user: &UserId) -> Result<(), OpsError> {
        if user.is_root() || cfg.users.contains_key(user) {
            Ok(())
        } else {
            Err(OpsError::failed(format!("no such user ('{user}')")))
        }
    }

    /// A user's tokens.
    pub fn token_list(&self, user: &UserId) -> Result<Vec<NamedToken>, OpsError> {
        let (cfg, _) = self.user_cfg()?;
        Self::known_user(&cfg, user)?;
        let own = cfg.tokens.iter().filter(|(id, _)| id.user == *user);
        Ok(own.map(|(id, token)| NamedToken { tokenid: id.name.clone(), info: token.into() }).collect())
    }

    /// One token.
    pub fn token(&self, id: &TokenId) -> Result<TokenInfo, OpsError> {
        let (cfg, _) = self.user_cfg()?;
        cfg.tokens.get(id).map(TokenInfo::from).ok_or_else(|| missing(id))
    }

    /// Makes a token; its secret is in the answer and nowhere else.
    pub async fn create_token(
        &self,
        actor: &Actor,
        id: &TokenId,
        change: TokenChange,
    ) -> Result<NewToken, OpsError> {
        let (mut cfg, revision) = self.user_cfg()?;
        Self::known_user(&cfg, &id.user)?;
        if cfg.tokens.contains_key(id) {
            return Err(OpsError::invalid("tokenid", "Token already exists."));
        }
        let mut token = Token { expire: 0, privsep: true, comment: String::new() };
        change.apply(&mut token);
        let info = TokenInfo::from(&token);
        cfg.tokens.insert(id.clone(), token);
        let (mut secrets, old) = self.token_store()?;
        let secret = secrets.generate(id, rand::random());
        self.commit_tokens(actor, format!("token {id} made"), &cfg, revision, Some((&secrets, old))).await?;
        Ok(NewToken { full_tokenid: id.to_string(), info, value: secret })
    }

    /// Changes a token; with `regenerate` its new secret is in the answer.
    pub async fn change_token(
        &self,
        actor: &Actor,
        id: &TokenId,
        change: TokenChange,
    ) -> Result<ChangedToken, OpsError> {
        let (mut cfg, revision) = self.user_cfg()?;
        let token = cfg.tokens.get_mut(id).ok_or_else(|| missing(id))?;
        change.apply(token);
        let mut answer = ChangedToken { info: TokenInfo::from(&*token), full_tokenid: None, value: None };
        let note = format!("token {id} changed");
        if !change.regenerate {
            self.commit_tokens(actor, note, &cfg, revision, None).await?;
            return Ok(answer);
        }
        let (mut secrets, old) = self.token_store()?;
        answer.value = Some(secrets.generate(id, rand::random()));
        answer.full_tokenid = Some(id.to_string());
        self.commit_tokens(actor, note, &cfg, revision, Some((&secrets, old))).await?;
        Ok(answer)
    }

    /// Removes a token.
    pub async fn remove_token(&self, actor: &Actor, id: &TokenId) -> Result<(), OpsError> {
        let (mut cfg, revision) = self.user_cfg()?;
        if !cfg.remove_token(id) {
            return Err(missing(id));
        }
        let (mut secrets, old) = self.token_store()?;
        secrets.remove(id);
        self.commit_tokens(actor, format!("token {id} removed"), &cfg, revision, Some((&secrets, old))).await
    }

    async fn commit_tokens(
        &self,
        actor: &Actor,
        note: String,
        cfg: &UserCfg,
        revision: Option<Revision>,
        secrets: Option<(&TokenStore, Option<Revision>)>,
    ) -> Result<(), OpsError> {
        let mut txn = store::txn(&actor.who, note);
        store::put_over(&mut txn, paths::USER_CFG, revision, cfg.to_string());
        if let Some((secrets, old)) = secrets {
            store::put_over(
                &mut txn,
                paths::TOKEN_CFG,
                old,
                self.sealed(paths::TOKEN_CFG, &secrets.to_text())?,
            );
        }
        self.conf.transact(txn).await?;
        Ok(())
    }

    /// Pools that the actor may see; of one that is asked for, its members too.
    pub fn pools(
        &self,
        actor: &Actor,
        only: Option<&str>,
        kind: Option<&str>,
    ) -> Result<Vec<PoolInfo>, OpsError> {
        let (cfg, _) = self.user_cfg()?;
        let head = |name: &str, comment: &str| PoolInfo {
            poolid: name.to_owned(),
            comment: (!comment.is_empty()).then(|| comment.to_owned()),
            members: None,
        };
        if let Some(name) = only {
            actor.require(&format!("/pool/{name}"), &["Pool.Audit"])?;
            let pool = cfg
                .pools
                .get(name)
                .ok_or_else(|| OpsError::failed(format!("pool '{name}' does not exist")))?;
            let members = Some(self.pool_members(actor, pool, kind)?);
            return Ok(vec![PoolInfo { members, ..head(name, &pool.comment) }]);
        }
        let seen = cfg.pools.iter().filter(|(name, _)| actor.may(&format!("/pool/{name}"), "Pool.Audit"));
        Ok(seen.map(|(name, pool)| head(name, &pool.comment)).collect())
    }

    fn pool_members(
        &self,
        actor: &Actor,
        pool: &stead_model::user_cfg::Pool,
        kind: Option<&str>,
    ) -> Result<Vec<Resource>, OpsError> {
        let is_member = |r: &Resource| match (&r.storage, r.vmid) {
            (Some(storage), _) => pool.storages.contains(storage),
            (None, Some(vmid)) => pool.vms.contains(&vmid),
            (None, None) => false,
        };
        let wanted = |r: &Resource| match r.kind {
            ResourceType::Qemu => kind.is_none_or(|k| k == "qemu"),
            ResourceType::Storage => kind.is_none_or(|k| k == "storage"),
            ResourceType::Node => false,
        };
        Ok(self.resources(actor, None)?.into_iter().filter(|r| is_member(r) && wanted(r)).collect())
    }
}
