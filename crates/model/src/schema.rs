//! What answers of the API look like, as JSON Schema: made from the types that are written, so that what is documented
//! is what is sent. `derive(Schema)` (crate `api-derive`) does it for structs and for enums of plain words.
//!
//! Booleans go out as 0 and 1; see the API's framework.

use crate::{
    BootId, DeviceId, DomainName, Epoch, GuestKind, NodeName, NodeUuid, RaftId, ServiceId, StorageId,
    TokenId, Upid, UserId, Vmid, VolumeId,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A type that an answer is made of.
pub trait Schema {
    /// JSON Schema of what it is written as.
    fn schema() -> Value;
}

/// Any JSON.
impl Schema for Value {
    fn schema() -> Value {
        json!({})
    }
}

impl Schema for Map<String, Value> {
    fn schema() -> Value {
        json!({"type": "object", "additionalProperties": true})
    }
}

impl Schema for bool {
    fn schema() -> Value {
        json!({"type": "integer", "enum": [0, 1]})
    }
}

impl Schema for () {
    fn schema() -> Value {
        json!({"type": "null"})
    }
}

macro_rules! written_as {
    ($($t:ty => $schema:tt),* $(,)?) => {$(
        impl Schema for $t {
            fn schema() -> Value {
                json!($schema)
            }
        }
    )*};
}
written_as! {
    String => {"type": "string"},
    &'static str => {"type": "string"},
    f64 => {"type": "number"},
    i64 => {"type": "integer"},
    u8 => {"type": "integer", "minimum": 0},
    u16 => {"type": "integer", "minimum": 0},
    u32 => {"type": "integer", "minimum": 0},
    u64 => {"type": "integer", "minimum": 0},
    usize => {"type": "integer", "minimum": 0},
    Epoch => {"type": "integer", "minimum": 0},
    RaftId => {"type": "integer", "minimum": 0},
    Vmid => {"type": "integer", "minimum": 100, "format": "pve-vmid"},
    GuestKind => {"type": "string", "enum": ["qemu", "lxc"]},
    NodeName => {"type": "string", "format": "pve-node"},
    DeviceId => {"type": "string", "format": "pve-configid"},
    DomainName => {"type": "string", "format": "stead-domain"},
    StorageId => {"type": "string", "format": "pve-storage-id"},
    UserId => {"type": "string", "format": "pve-userid"},
    TokenId => {"type": "string", "format": "pve-authid"},
    VolumeId => {"type": "string", "format": "pve-volume-id"},
    ServiceId => {"type": "string", "format": "pve-ha-resource-or-vm-id"},
    Upid => {"type": "string", "format": "pve-upid"},
    IpAddr => {"type": "string", "format": "ip"},
    NodeUuid => {"type": "string", "format": "uuid"},
    BootId => {"type": "string", "format": "uuid"},
}

impl<T: Schema> Schema for Vec<T> {
    fn schema() -> Value {
        json!({"type": "array", "items": T::schema()})
    }
}

impl<T: Schema, const N: usize> Schema for [T; N] {
    fn schema() -> Value {
        json!({"type": "array", "items": T::schema(), "minItems": N, "maxItems": N})
    }
}

/// Written as null when there is none. A field that is left out then is no part of this: see [`Object::field`].
impl<T: Schema> Schema for Option<T> {
    fn schema() -> Value {
        json!({"anyOf": [T::schema(), {"type": "null"}]})
    }
}

impl<K, T: Schema> Schema for BTreeMap<K, T> {
    fn schema() -> Value {
        json!({"type": "object", "additionalProperties": T::schema()})
    }
}

/// The schema of a struct under construction; what `derive(Schema)` calls.
#[derive(Debug, Default)]
pub struct Object {
    about: &'static str,
    properties: Map<String, Value>,
    required: Vec<Value>,
    more: Option<Value>,
}

impl Object {
    /// A struct with this meaning.
    pub fn new(about: &'static str) -> Self {
        Self { about, ..Self::default() }
    }

    /// A field; one that is not `required` may be left out.
    #[must_use]
    pub fn field<T: Schema>(mut self, name: &str, about: &str, required: bool) -> Self {
        let mut schema = T::schema();
        if let (Value::Object(o), false) = (&mut schema, about.is_empty()) {
            o.insert("description".into(), json!(about));
        }
        self.properties.insert(name.to_owned(), schema);
        if required {
            self.required.push(json!(name));
        }
        self
    }

    /// The fields of another struct, or of a map, among these.
    #[must_use]
    pub fn flatten<T: Schema>(mut self) -> Self {
        let Value::Object(mut other) = T::schema() else { return self };
        if let Some(Value::Object(fields)) = other.remove("properties") {
            self.properties.extend(fields);
        }
        if let Some(Value::Array(names)) = other.remove("required") {
            self.required.extend(names);
        }
        self.more = self.more.or(other.remove("additionalProperties"));
        self
    }

    /// The schema.
    pub fn done(self) -> Value {
        let mut o = Map::new();
        o.insert("type".into(), json!("object"));
        if !self.about.is_empty() {
            o.insert("description".into(), json!(self.about));
        }
        o.insert("properties".into(), Value::Object(self.properties));
        if !self.required.is_empty() {
            o.insert("required".into(), Value::Array(self.required));
        }
        if let Some(more) = self.more {
            o.insert("additionalProperties".into(), more);
        }
        Value::Object(o)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_s_schema_names_what_is_always_there() {
        let inner = || Object::new("").field::<u8>("b", "", true).flatten::<Map<String, Value>>();
        let schema = inner().field::<Vec<Vmid>>("a", "Some.", false).done();
        assert_eq!(
            schema,
            json!({
                "type": "object",
                "properties": {
                    "b": {"type": "integer", "minimum": 0},
                    "a": {"type": "array", "items": {"type": "integer", "minimum": 100, "format": "pve-vmid"},
                        "description": "Some."},
                },
                "required": ["b"],
                "additionalProperties": true,
            })
        );
    }
}
