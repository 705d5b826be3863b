//! Index nodes: GET on them lists their children. Clients and people find their way by them.

use super::endpoint::{Access, Answered, Error, Handler, Meta, Route, Runs};
use super::params::{Errors, ParamSchema, Raw};
use super::{Call, Caller, Services};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use stead_model::{NodeName, StorageId, Upid, Vmid};

/// An endpoint that lists the literal children of its path.
pub struct Index {
    meta: Meta,
    key: &'static str,
    children: Vec<String>,
}

/// What a capture of this name is everywhere.
fn capture(name: &'static str) -> ParamSchema {
    match name {
        "upid" => ParamSchema::of::<Upid>(name, ""),
        "vmid" => ParamSchema::of::<Vmid>(name, ""),
        "node" => ParamSchema::of::<NodeName>(name, ""),
        "storage" => ParamSchema::of::<StorageId>(name, ""),
        _ => ParamSchema::of::<String>(name, ""),
    }
}

/// Notes what is wrong with a capture.
fn take(s: &ParamSchema, raw: &mut Raw, errors: &mut Errors) {
    match s.name.as_str() {
        "upid" => drop(raw.take_required::<Upid>(s, errors)),
        "vmid" => drop(raw.take_required::<Vmid>(s, errors)),
        "node" => drop(raw.take_required::<NodeName>(s, errors)),
        "storage" => drop(raw.take_required::<StorageId>(s, errors)),
        _ => drop(raw.take_required::<String>(s, errors)),
    }
}

impl Index {
    /// An index of `children` at `path`; each is `{key: name}`. Its captures are parameters like any.
    pub fn new(path: &'static str, key: &'static str, access: Access, children: Vec<String>) -> Self {
        let route = Route { method: "GET", path };
        let params = route.captures().map(capture).collect();
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
            take(s, &mut raw, &mut errors);
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

    fn spool<'a>(&'a self, _: &'a Call<S>, _: &'a Raw, _: &'a str) -> BoxFuture<'a, Result<PathBuf, Error>> {
        Box::pin(async { Err(Error::failed("an index takes no file")) })
    }
}
