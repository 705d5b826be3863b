//! Index nodes: GET on them lists their children. Clients and people find their way by them.

use super::endpoint::{Access, Answered, Error, Handler, Meta, Route, Runs};
use super::params::{Errors, ParamSchema, Raw};
use super::{Call, Caller, Services};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// An endpoint that lists the literal children of its path.
pub struct Index {
    meta: Meta,
    key: &'static str,
    children: Vec<String>,
}

impl Index {
    /// An index of `children` at `path`; each is `{key: name}`. Its captures are parameters like any.
    pub fn new(path: &'static str, key: &'static str, access: Access, children: Vec<String>) -> Self {
        let route = Route { method: "GET", path };
        let params = route.captures().map(|name| ParamSchema::of::<String>(name, "")).collect();
        let meta = Meta {
            route,
            runs: Runs::Anywhere,
            access,
            about: "Lists what is below.",
            missing: &[],
            upload: false,
            params,
            returns: json!({"type": "array", "items": {"type": "object", "properties": {key: {"type": "string"}}}}),
        };
        Self { meta, key, children }
    }

    fn admit(&self, caller: &Caller, mut raw: Raw) -> Result<(), Error> {
        self.meta.access.check(caller, &raw)?;
        let mut errors = Errors::default();
        for s in &self.meta.params {
            raw.take_required::<String>(s, &mut errors);
        }
        raw.refuse_rest(&mut errors);
        if errors.is_empty() { Ok(()) } else { Err(Error::parameters(errors)) }
    }
}

impl<S: Services> Handler<S> for Index {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn authorize(&self, caller: &Caller, raw: Raw) -> Result<(), Error> {
        self.admit(caller, raw)
    }

    fn call(&self, cx: Call<S>, raw: Raw) -> BoxFuture<'_, Result<Answered, Error>> {
        Box::pin(async move {
            self.admit(&cx.caller, raw)?;
            let items = self.children.iter().map(|name| json!({self.key: name})).collect();
            Ok(Answered::Data(Value::Array(items), Map::new()))
        })
    }

    fn spool<'a>(&'a self, _: &'a Call<S>, _: &'a Raw) -> BoxFuture<'a, Result<PathBuf, Error>> {
        Box::pin(async { Err(Error::failed("an index takes no file")) })
    }
}
