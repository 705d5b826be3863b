//! `stead api`, as `pvesh`, and `stead history`.

use super::Cx;
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::params::{Params, divide, put};
use clap::Args;
use http::{Method, Request};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    stead api get /cluster/resources --type vm\n  \
    stead api create /nodes/pve1/qemu --vmid 100 --memory 512\n  \
    stead api set /nodes/pve1/qemu/100/config --name web\n  \
    stead api ls /nodes/pve1\n  \
    stead api usage /nodes/pve1/qemu/100/migrate")]
pub struct ApiArgs {
    /// get, create (post), set (put), delete, ls, or usage
    pub method: String,
    /// The path, as /nodes/pve1/qemu
    pub path: String,
    /// Parameters: --NAME VALUE
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "--NAME VALUE")]
    pub params: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stead history nodes/pve1/qemu-server/100.conf")]
pub struct HistoryArgs {
    /// Only this path of the configuration, or what lies below it
    pub path: Option<String>,
    /// At most so many changes
    #[arg(long, default_value_t = 50)]
    pub limit: u32,
}

/// `stead api`. Options of `stead` itself that stand behind the path are understood, too.
pub async fn api(cx: &Cx, args: ApiArgs) -> Result<(), Failure> {
    let (alone, params) = divide(args.params)?;
    if let Some(word) = alone.first() {
        return Err(Failure::usage(format!("'{word}' is no parameter: they are given as --NAME VALUE")));
    }
    call(cx, &args.method, &args.path, &params).await
}

/// Calls a path as it is.
pub async fn call(cx: &Cx, method: &str, path: &str, params: &Params) -> Result<(), Failure> {
    let path = format!("/{}", path.trim_matches('/'));
    let path = if path == "/" { String::new() } else { path };
    let method = match method {
        "get" | "GET" => Method::GET,
        "create" | "post" | "POST" => Method::POST,
        "set" | "put" | "PUT" => Method::PUT,
        "delete" | "DELETE" => Method::DELETE,
        "ls" => return output::print(&children(&document(cx).await?, &path)?),
        "usage" => return output::print(&usage(&document(cx).await?, &path)?),
        other => {
            return Err(Failure::usage(format!("'{other}' is none of get, create, set, delete, ls, usage")));
        }
    };
    let answer = cx.api.call(method, &path, params).await?;
    match answer.as_str() {
        Some(upid) if upid.starts_with("UPID:") && cx.format() == Format::Table => {
            cx.follow.task(&cx.api, upid).await
        }
        _ => cx.format().any(&answer),
    }
}

/// `stead history`.
pub async fn history(cx: &Cx, args: HistoryArgs) -> Result<(), Failure> {
    let mut p = Params::new();
    put(&mut p, "path", args.path);
    put(&mut p, "limit", Some(args.limit));
    let columns: [Column; 5] = [
        ("REVISION", "revision", Kind::Number),
        ("WHEN (UTC)", "time", Kind::Time),
        ("WHO", "author", Kind::Text),
        ("PATH", "path", Kind::Text),
        ("WHAT", "note", Kind::Text),
    ];
    cx.format().list(&cx.api.call(Method::GET, "/cluster/history", &p).await?, &columns)
}

/// The API's own description.
async fn document(cx: &Cx) -> Result<Value, Failure> {
    let request = Request::builder().uri("/api2/openapi.json").body(stead_transport::empty());
    let request = request.map_err(|e| Failure::failed(e.to_string()))?;
    Ok(cx.api.send(request).await?.json()?)
}

/// The paths of the document as segments, without its prefix.
fn paths(document: &Value) -> impl Iterator<Item = (Vec<&str>, &Value)> {
    let all = document["paths"].as_object().into_iter().flatten();
    all.map(|(path, methods)| {
        let path = path.strip_prefix("/api2/json").unwrap_or(path);
        (path.split('/').filter(|s| !s.is_empty()).collect(), methods)
    })
}

/// Whether a concrete path's segments fit a template's; a `{name}` fits anything.
fn fits(template: &[&str], path: &[&str]) -> bool {
    template.len() == path.len() && template.iter().zip(path).all(|(t, p)| t.starts_with('{') || t == p)
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').filter(|s| !s.is_empty()).collect()
}

/// What lies below a path, with what can be done there: `Drwcd` as `pvesh ls` shows it.
fn children(document: &Value, path: &str) -> Result<String, Failure> {
    let here = segments(path);
    let mut below: BTreeMap<&str, String> = BTreeMap::new();
    for (template, methods) in paths(document) {
        if template.len() <= here.len() || !fits(&template[..here.len()], &here) {
            continue;
        }
        let marks = below.entry(template[here.len()]).or_insert_with(|| "-----".into());
        let mark = |marks: &mut String, at: usize, c: &str| marks.replace_range(at..=at, c);
        if template.len() > here.len() + 1 {
            mark(marks, 0, "D");
            continue;
        }
        for (at, name, c) in [(1, "get", "r"), (2, "put", "w"), (3, "post", "c"), (4, "delete", "d")] {
            if methods.get(name).is_some() {
                mark(marks, at, c);
            }
        }
    }
    if below.is_empty() {
        return Err(Failure::failed(format!("there is nothing below '{path}'")));
    }
    Ok(below.iter().map(|(name, marks)| format!("{marks}  {name}")).collect::<Vec<_>>().join("\n"))
}

/// What a path's methods take.
fn usage(document: &Value, path: &str) -> Result<String, Failure> {
    let here = segments(path);
    // A literal segment describes a path better than a placeholder that fits, too.
    let mut found: Vec<_> = paths(document).filter(|(template, _)| fits(template, &here)).collect();
    found.sort_by_key(|(template, _)| template.iter().filter(|t| t.starts_with('{')).count());
    let Some((template, methods)) = found.first() else {
        return Err(Failure::failed(format!("there is no path '{path}'")));
    };
    let mut out = vec![];
    for (verb, name) in [("get", "get"), ("create", "post"), ("set", "put"), ("delete", "delete")] {
        let Some(method) = methods.get(name) else { continue };
        out.push(format!("USAGE: stead api {verb} /{} [OPTIONS]", template.join("/")));
        for (what, about) in [("summary", ""), ("description", "  ")] {
            if let Some(text) = method[what].as_str().filter(|t| !t.is_empty()) {
                out.push(format!("  {about}{text}"));
            }
        }
        out.extend(parameters(method));
        out.push(String::new());
    }
    Ok(out.join("\n").trim_end().to_owned())
}

/// A line for each parameter, those of the path left out.
fn parameters(method: &Value) -> Vec<String> {
    let listed = method["parameters"].as_array().into_iter().flatten();
    let in_query = listed.filter(|p| p["in"] != "path").map(|p| {
        let (name, schema) = (p["name"].as_str().unwrap_or_default(), &p["schema"]);
        (name, schema, p["required"] == true, p["description"].as_str().or(schema["description"].as_str()))
    });
    let empty = Map::new();
    let contents = method["requestBody"]["content"].as_object().unwrap_or(&empty);
    let schema = contents.values().next().map(|c| &c["schema"]);
    let required = schema.and_then(|s| s["required"].as_array());
    let in_body = schema.and_then(|s| s["properties"].as_object()).into_iter().flatten().map(|(name, p)| {
        let needed = required.is_some_and(|r| r.contains(&json!(name)));
        (name.as_str(), p, needed, p["description"].as_str())
    });
    let line = |(name, schema, needed, about): (&str, &Value, bool, Option<&str>)| {
        let kind = schema["type"].as_str().unwrap_or("string");
        let kind = match schema["enum"].as_array() {
            Some(values) => values.iter().map(crate::api::text).collect::<Vec<_>>().join("|"),
            None => kind.to_owned(),
        };
        let about = about.map(|a| format!("  {a}")).unwrap_or_default();
        format!("    --{name} <{kind}>{}{about}", if needed { " (required)" } else { "" })
    };
    in_query.chain(in_body).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        json!({"paths": {
            "/api2/json/version": {"get": {}},
            "/api2/json/nodes/{node}/qemu": {"get": {"summary": "List VMs"}, "post": {
                "requestBody": {"content": {"application/json": {"schema": {"required": ["vmid"], "properties": {
                    "vmid": {"type": "integer", "description": "Its number"},
                    "bios": {"enum": ["seabios", "ovmf"]},
                }}}}}}},
            "/api2/json/nodes/{node}/qemu/{vmid}": {"delete": {"parameters": [
                {"name": "vmid", "in": "path", "required": true, "schema": {"type": "integer"}},
                {"name": "purge", "in": "query", "schema": {"type": "boolean"}}]}},
        }})
    }

    #[test]
    fn ls_shows_what_lies_below_and_what_can_be_done() {
        assert_eq!(children(&document(), "").unwrap(), "D----  nodes\n-r---  version");
        assert_eq!(children(&document(), "/nodes/pve1").unwrap(), "Dr-c-  qemu");
        assert_eq!(children(&document(), "/nodes/pve1/qemu").unwrap(), "----d  {vmid}");
        assert!(children(&document(), "/version").is_err());
    }

    #[test]
    fn usage_names_parameters() {
        assert_eq!(
            usage(&document(), "/nodes/pve1/qemu").unwrap(),
            "USAGE: stead api get /nodes/{node}/qemu [OPTIONS]\n  List VMs\n\n\
             USAGE: stead api create /nodes/{node}/qemu [OPTIONS]\n    \
             --vmid <integer> (required)  Its number\n    --bios <seabios|ovmf>"
        );
        let delete = usage(&document(), "/nodes/pve1/qemu/100").unwrap();
        assert!(delete.ends_with("    --purge <boolean>"), "{delete}");
    }
}
