//! The OpenAPI document, made from the registry.

use super::Services;
use super::endpoint::{Access, Meta};
use super::router::Registry;
use serde_json::{Map, Value, json};

/// The whole document, OpenAPI 3.1.
pub fn document<S: Services>(registry: &Registry<S>) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    let mut metas: Vec<&Meta> = registry.iter().map(|h| h.meta()).collect();
    metas.sort_by_key(|m| (m.route.path, m.route.method));
    for meta in metas {
        let item = paths.entry(meta.route.path).or_insert_with(|| json!({}));
        item[meta.route.method.to_ascii_lowercase()] = operation(meta);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Stead",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The API of a Stead cluster: a subset of that of Proxmox VE 9, and what is beyond it. \
                Booleans go out as 0 and 1. Every node serves all of it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/api2/json"}],
        "security": [{"ticket": [], "csrf": []}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "ticket": {"type": "apiKey", "in": "cookie", "name": "PVEAuthCookie"},
                "csrf": {"type": "apiKey", "in": "header", "name": "CSRFPreventionToken",
                    "description": "With the cookie, for all methods but GET."},
                "token": {"type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "PVEAPIToken=user@realm!name=secret"},
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["data", "message"],
                    "properties": {
                        "data": {"type": "null"},
                        "message": {"type": "string"},
                        "errors": {"type": "object", "additionalProperties": {"type": "string"}},
                    },
                },
            },
        },
    })
}

fn operation(meta: &Meta) -> Value {
    let captures: Vec<&str> = meta.route.captures().collect();
    let in_body = matches!(meta.route.method, "POST" | "PUT");
    let (mut parameters, mut properties, mut required) = (vec![], Map::new(), vec![]);
    for p in &meta.params {
        let in_path = captures.contains(&p.name.as_str());
        if in_path || !in_body {
            let place = if in_path { "path" } else { "query" };
            parameters.push(json!({
                "name": p.name, "in": place, "required": in_path || !p.optional,
                "description": p.description, "schema": p.to_json(),
            }));
            continue;
        }
        let mut schema = p.to_json();
        schema["description"] = json!(p.description);
        if !p.optional {
            required.push(json!(p.name));
        }
        properties.insert(p.name.clone(), schema);
    }
    let mut op = json!({
        "operationId": operation_id(meta),
        "summary": meta.about,
        "description": format!("Allowed for: {}.", meta.access.describe()),
        "parameters": parameters,
        "responses": {
            "200": {"description": "Success", "content": {"application/json": {"schema": {
                "type": "object", "required": ["data"], "properties": {"data": meta.returns},
            }}}},
            "default": {"description": "Failure; the text stands in the reason phrase too",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}},
        },
    });
    if !properties.is_empty() {
        let schema = json!({"type": "object", "properties": properties, "required": required});
        let media = if meta.upload {
            json!({"multipart/form-data": {"schema": schema}})
        } else {
            json!({"application/x-www-form-urlencoded": {"schema": schema}, "application/json": {"schema": schema}})
        };
        op["requestBody"] = json!({"required": !required.is_empty(), "content": media});
    }
    if !meta.missing.is_empty() {
        op["x-not-supported"] = json!(meta.missing);
    }
    if meta.access == Access::Everyone {
        op["security"] = json!([]);
    }
    op
}

/// `getNodesNodeQemuVmidConfig`.
fn operation_id(meta: &Meta) -> String {
    let mut id = meta.route.method.to_ascii_lowercase();
    for part in meta.route.path.split(['/', '-', '_']).filter(|p| !p.is_empty()) {
        let part = part.trim_matches(['{', '}']);
        let mut chars = part.chars();
        if let Some(c) = chars.next() {
            id.push(c.to_ascii_uppercase());
            id.extend(chars);
        }
    }
    id
}
