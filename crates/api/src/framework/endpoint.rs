//! What an endpoint is: declared once, from which follow the router, the OpenAPI document and the tests.

use super::call::{Call, Caller};
use super::params::{Errors, Kind, ParamSchema, Params, Raw, boolean};
use super::socket::Socket;
use super::{Body, Services};
use futures_util::future::BoxFuture;
use http::Method;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;
use stead_model::Upid;
use stead_model::schema::Schema;

/// Method and path; `{name}` captures a segment, a last `{volume}` the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: &'static str,
    /// Begins with a slash.
    pub path: &'static str,
}

/// A route by GET.
pub const fn get(path: &'static str) -> Route {
    Route { method: "GET", path }
}
/// A route by POST.
pub const fn post(path: &'static str) -> Route {
    Route { method: "POST", path }
}
/// A route by PUT.
pub const fn put(path: &'static str) -> Route {
    Route { method: "PUT", path }
}
/// A route by DELETE.
pub const fn delete(path: &'static str) -> Route {
    Route { method: "DELETE", path }
}

impl Route {
    /// Whether it may change something.
    pub fn changes(&self) -> bool {
        self.method != Method::GET.as_str()
    }

    /// The names of its captures.
    pub fn captures(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'))
    }
}

/// Which node must carry it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// The one asked.
    Anywhere,
    /// The one named by `{node}`.
    AtNode,
    /// The one that owns the guest `{vmid}`.
    AtGuest,
}

/// What must be held to call it. Paths may name parameters: `/vms/{vmid}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody, signed in or not.
    Everyone,
    /// Anybody who is signed in.
    Authenticated,
    /// root@pam itself.
    Root,
    /// All of these privileges.
    All(&'static str, &'static [&'static str]),
    /// One of these privileges.
    Any(&'static str, &'static [&'static str]),
    /// One of these.
    Or(&'static [Access]),
    /// Each of these.
    And(&'static [Access]),
    /// [`Endpoint::authorize`] decides: it depends on the parameters. The text names the privileges.
    Inside(&'static str),
}

impl Access {
    /// Whether `caller` may, given the request's parameters. The error is the text to answer.
    pub fn check(&self, caller: &Caller, raw: &Raw) -> Result<(), Error> {
        match self {
            Self::Everyone | Self::Authenticated | Self::Inside(_) => Ok(()),
            Self::Root if caller.id.is_root() => Ok(()),
            Self::Root => Err(Error::forbidden("user != root@pam")),
            Self::All(path, privileges) => caller.require(&fill(path, raw), privileges),
            Self::Any(path, privileges) => caller.require_any(&fill(path, raw), privileges),
            Self::And(all) => all.iter().try_for_each(|a| a.check(caller, raw)),
            Self::Or(any) => {
                let mut first = None;
                for a in *any {
                    match a.check(caller, raw) {
                        Ok(()) => return Ok(()),
                        Err(e) => first = first.or(Some(e)),
                    }
                }
                Err(first.unwrap_or_else(|| Error::forbidden("Permission check failed")))
            }
        }
    }

    /// For the OpenAPI document.
    pub fn describe(&self) -> String {
        let list = |all: &[Access], word: &str| all.iter().map(Self::describe).collect::<Vec<_>>().join(word);
        match self {
            Self::Everyone => "everyone".to_owned(),
            Self::Authenticated => "anybody signed in".to_owned(),
            Self::Root => "root@pam alone".to_owned(),
            Self::All(path, p) => format!("{} on {path}", p.join(" and ")),
            Self::Any(path, p) => format!("{} on {path}", p.join(" or ")),
            Self::Or(all) => format!("({})", list(all, " or ")),
            Self::And(all) => format!("({})", list(all, " and ")),
            Self::Inside(text) => (*text).to_owned(),
        }
    }
}

fn fill(path: &str, raw: &Raw) -> String {
    path.split('/')
        .map(|part| match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            Some(name) => raw.first(name).unwrap_or_default(),
            None => part,
        })
        .collect::<Vec<_>>()
        .join("/")
}

/// A request that fails. The message goes into the reason phrase: it is all that some clients show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// HTTP's status.
    pub status: u16,
    /// For the user.
    pub message: String,
    /// By parameter.
    pub errors: BTreeMap<String, String>,
}

impl Error {
    /// Any status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), errors: BTreeMap::new() }
    }
    /// It failed (500).
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }
    /// Not allowed (403).
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, message)
    }
    /// Not signed in (401).
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, message)
    }
    /// Wrong parameters (400).
    pub fn parameters(errors: Errors) -> Self {
        Self { status: 400, message: "Parameter verification failed.".to_owned(), errors: errors.0 }
    }
    /// One wrong parameter (400).
    pub fn parameter(name: &str, why: impl Into<String>) -> Self {
        let mut errors = Errors::default();
        errors.add(name, why);
        Self::parameters(errors)
    }
}

/// What a handler's answer becomes.
pub enum Answered {
    /// JSON: `data`, and what stands beside it.
    Data(Value, Map<String, Value>),
    /// A body as it is.
    Bytes {
        /// Its media type.
        content_type: &'static str,
        /// The body.
        body: Body,
        /// A file name for browsers that save it.
        filename: Option<String>,
    },
    /// A WebSocket.
    Socket(Socket),
}

/// What a handler may answer with.
pub trait Answer: Send {
    /// The answer to send.
    fn into_answered(self) -> Result<Answered, Error>;
    /// JSON Schema of `data`.
    fn schema() -> Value {
        json!({})
    }
}

/// `data: null`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Null;

impl Answer for Null {
    fn into_answered(self) -> Result<Answered, Error> {
        Ok(Answered::Data(Value::Null, Map::new()))
    }
    fn schema() -> Value {
        json!({"type": "null"})
    }
}

impl Answer for Upid {
    fn into_answered(self) -> Result<Answered, Error> {
        Ok(Answered::Data(Value::String(self.to_string()), Map::new()))
    }
    fn schema() -> Value {
        json!({"type": "string", "format": "pve-upid", "description": "the task's id"})
    }
}

/// Any value; booleans in it become 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Json<T>(pub T);

impl<T: Serialize + Schema + Send> Answer for Json<T> {
    fn into_answered(self) -> Result<Answered, Error> {
        let value =
            serde_json::to_value(self.0).map_err(|e| Error::failed(format!("unwritable answer: {e}")))?;
        Ok(Answered::Data(numbered(value), Map::new()))
    }
    fn schema() -> Value {
        T::schema()
    }
}

/// A part of a list, with the whole list's length as `total` beside `data`.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The part.
    pub data: T,
    /// The whole.
    pub total: u64,
}

impl<T: Serialize + Schema + Send> Answer for Page<T> {
    fn into_answered(self) -> Result<Answered, Error> {
        match Json(self.data).into_answered()? {
            Answered::Data(data, mut extra) => {
                extra.insert("total".into(), json!(self.total));
                Ok(Answered::Data(data, extra))
            }
            other => Ok(other),
        }
    }
    fn schema() -> Value {
        T::schema()
    }
}

/// A body as it is.
pub struct Bytes {
    /// Its media type.
    pub content_type: &'static str,
    /// The body.
    pub body: Body,
    /// A file name for browsers that save it.
    pub filename: Option<String>,
}

impl Answer for Bytes {
    fn into_answered(self) -> Result<Answered, Error> {
        Ok(Answered::Bytes { content_type: self.content_type, body: self.body, filename: self.filename })
    }
    fn schema() -> Value {
        json!({"type": "string", "description": "a file"})
    }
}

impl Answer for Socket {
    fn into_answered(self) -> Result<Answered, Error> {
        Ok(Answered::Socket(self))
    }
    fn schema() -> Value {
        json!({"type": "null", "description": "a WebSocket"})
    }
}

/// One of two.
pub enum Either<A, B> {
    /// The one.
    Left(A),
    /// The other.
    Right(B),
}

impl<A: Answer, B: Answer> Answer for Either<A, B> {
    fn into_answered(self) -> Result<Answered, Error> {
        match self {
            Self::Left(a) => a.into_answered(),
            Self::Right(b) => b.into_answered(),
        }
    }
    fn schema() -> Value {
        A::schema()
    }
}

/// Booleans go out as 0 and 1: clients compare so.
pub fn numbered(value: Value) -> Value {
    match value {
        Value::Bool(b) => json!(i32::from(b)),
        Value::Array(items) => Value::Array(items.into_iter().map(numbered).collect()),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, numbered(v))).collect()),
        other => other,
    }
}

/// One endpoint, over services `S`.
pub trait Endpoint<S: Services>: Send + Sync + 'static {
    /// Where.
    const ROUTE: Route;
    /// Which node carries it out.
    const RUNS: Runs;
    /// Who may.
    const ACCESS: Access;
    /// What it is for, in a sentence.
    const ABOUT: &'static str;
    /// Parameters of Proxmox VE's that are refused here: `name: reason`. Given as 0 or empty, they ask for nothing
    /// and are taken.
    const MISSING: &'static [&'static str] = &[];
    /// It takes a file: the body is spooled to where [`Self::spool`] says.
    const UPLOAD: bool = false;
    /// What it takes.
    type Params: Params;
    /// What it answers.
    type Answer: Answer;

    /// Checks what [`Access::Inside`] announces. Needs no services: it can be tested for all endpoints.
    fn authorize(_caller: &Caller, _params: &Self::Params) -> Result<(), Error> {
        Ok(())
    }

    /// Where an uploaded file goes while it arrives: on the file system that it will stay on. `before` has the
    /// parameters that came before it. Refuses here what can be refused before a long file has been sent.
    fn spool(
        _cx: &Call<S>,
        _before: &Raw,
        _name: &str,
    ) -> impl Future<Output = Result<PathBuf, Error>> + Send {
        async { Err(Error::failed("this endpoint takes no file")) }
    }

    /// JSON Schema of `data`.
    fn returns() -> Value {
        Self::Answer::schema()
    }

    /// Carries it out: one call of a use case.
    fn call(cx: &Call<S>, params: Self::Params) -> impl Future<Output = Result<Self::Answer, Error>> + Send;
}

/// What is known of an endpoint without its types.
#[derive(Debug, Clone)]
pub struct Meta {
    /// Where.
    pub route: Route,
    /// Which node carries it out.
    pub runs: Runs,
    /// Who may.
    pub access: Access,
    /// What it is for.
    pub about: &'static str,
    /// Refused parameters.
    pub missing: &'static [&'static str],
    /// It takes a file.
    pub upload: bool,
    /// What it takes.
    pub params: Vec<ParamSchema>,
    /// JSON Schema of `data`.
    pub returns: Value,
}

/// An endpoint without its types.
pub trait Handler<S: Services>: Send + Sync {
    /// What is known of it.
    fn meta(&self) -> &Meta;
    /// Checks permission and parameters, and nothing else.
    fn authorize(&self, caller: &Caller, raw: Raw) -> Result<(), Error>;
    /// Checks and carries out.
    fn call(&self, cx: Call<S>, raw: Raw) -> BoxFuture<'_, Result<Answered, Error>>;
    /// See [`Endpoint::spool`]; checks permission first.
    fn spool<'a>(
        &'a self,
        cx: &'a Call<S>,
        before: &'a Raw,
        name: &'a str,
    ) -> BoxFuture<'a, Result<PathBuf, Error>>;
}

/// An [`Endpoint`] as a [`Handler`].
pub struct Of<E> {
    meta: Meta,
    endpoint: PhantomData<fn() -> E>,
}

impl<E> Of<E> {
    /// Wraps an endpoint.
    pub fn new<S: Services>() -> Self
    where
        E: Endpoint<S>,
    {
        let meta = Meta {
            route: E::ROUTE,
            runs: E::RUNS,
            access: E::ACCESS,
            about: E::ABOUT,
            missing: E::MISSING,
            upload: E::UPLOAD,
            params: E::Params::schema(),
            returns: E::returns(),
        };
        Self { meta, endpoint: PhantomData }
    }

    fn refuse_missing(&self, raw: &mut Raw) -> Result<(), Error> {
        let mut errors = Errors::default();
        for entry in self.meta.missing {
            let (name, why) = entry.split_once(": ").unwrap_or((entry, "it is not supported yet"));
            let pattern = ParamSchema::plain(name, Kind::String, "");
            for name in raw.names().filter(|n| pattern.is_for(n)).map(str::to_owned).collect::<Vec<_>>() {
                let asks = raw.first(&name).is_none_or(|v| !v.is_empty() && boolean(v) != Some(false));
                if asks {
                    errors.add(&name, why);
                }
                raw.forget(&name);
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::parameters(errors)) }
    }

    fn admit<S: Services>(&self, caller: &Caller, mut raw: Raw) -> Result<E::Params, Error>
    where
        E: Endpoint<S>,
    {
        // Permission comes before the parameters' shape.
        self.meta.access.check(caller, &raw)?;
        self.refuse_missing(&mut raw)?;
        let params = E::Params::parse(raw, &self.meta.params).map_err(Error::parameters)?;
        E::authorize(caller, &params)?;
        Ok(params)
    }
}

impl<S: Services, E: Endpoint<S>> Handler<S> for Of<E> {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn authorize(&self, caller: &Caller, raw: Raw) -> Result<(), Error> {
        self.admit::<S>(caller, raw).map(|_| ())
    }

    fn call(&self, cx: Call<S>, raw: Raw) -> BoxFuture<'_, Result<Answered, Error>> {
        Box::pin(async move {
            let params = self.admit::<S>(&cx.caller, raw)?;
            E::call(&cx, params).await?.into_answered()
        })
    }

    fn spool<'a>(
        &'a self,
        cx: &'a Call<S>,
        before: &'a Raw,
        name: &'a str,
    ) -> BoxFuture<'a, Result<PathBuf, Error>> {
        Box::pin(async move {
            self.meta.access.check(&cx.caller, before)?;
            E::spool(cx, before, name).await
        })
    }
}
