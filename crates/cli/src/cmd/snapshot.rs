//! Snapshots of VMs: `stead vm snapshot`, `listsnapshot`, `rollback`, `delsnapshot`.

use super::Cx;
use crate::api::{rows, text};
use crate::failure::Failure;
use crate::output::{Column, Format, Kind};
use crate::params::{Params, escape, put};
use serde_json::Value;

const COLUMNS: [Column; 5] = [
    ("NAME", "name", Kind::Text),
    ("TIME", "snaptime", Kind::Time),
    ("STATE", "snapstate", Kind::Text),
    ("MEMORY", "vmstate", Kind::Truth),
    ("DESCRIPTION", "description", Kind::Text),
];

async fn path(cx: &Cx, vmid: &str, name: &str) -> Result<String, Failure> {
    Ok(format!("{}/snapshot/{}", cx.api.vm(vmid).await?, escape(name)))
}

/// Takes one.
pub async fn take(cx: &Cx, vmid: &str, name: &str, mut p: Params) -> Result<(), Failure> {
    put(&mut p, "snapname", Some(name));
    let answer = cx.api.post(&format!("{}/snapshot", cx.api.vm(vmid).await?), &p).await?;
    cx.answer(&answer, &format!("snapshot {name} taken")).await
}

/// Goes back to one.
pub async fn roll_back(cx: &Cx, vmid: &str, name: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.post(&format!("{}/rollback", path(cx, vmid, name).await?), p).await?;
    cx.answer(&answer, &format!("VM {vmid} is as in snapshot {name}")).await
}

/// Removes one.
pub async fn remove(cx: &Cx, vmid: &str, name: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.delete(&path(cx, vmid, name).await?, p).await?;
    cx.answer(&answer, &format!("snapshot {name} removed")).await
}

/// Shows them, each below the one that it follows.
pub async fn list(cx: &Cx, vmid: &str) -> Result<(), Failure> {
    let answer = cx.api.get(&format!("{}/snapshot", cx.api.vm(vmid).await?)).await?;
    if cx.format() == Format::Json {
        return crate::output::json(&answer);
    }
    cx.format().list(&Value::Array(tree(rows(&answer))), &COLUMNS)
}

/// The rows, each after the one that it follows and further to the right; those that follow none, or one that is not there, begin
/// a tree.
fn tree(rows: &[Value]) -> Vec<Value> {
    let is_there = |name: &Value| !name.is_null() && rows.iter().any(|r| r["name"] == *name);
    let mut left: Vec<&Value> = rows.iter().collect();
    left.sort_by_key(|r| (r["name"] == "current", r["snaptime"].as_u64()));
    let mut out = vec![];
    let mut begun: Vec<(usize, &Value)> =
        left.iter().rev().filter(|r| !is_there(&r["parent"])).map(|r| (0, *r)).collect();
    while let Some((depth, row)) = begun.pop() {
        left.retain(|r| r["name"] != row["name"]);
        begun.extend(left.iter().rev().filter(|r| r["parent"] == row["name"]).map(|r| (depth + 1, *r)));
        let mut shown = row.clone();
        shown["name"] = format!("{}`-> {}", " ".repeat(depth), text(&row["name"])).into();
        out.push(shown);
    }
    // What follows only each other, in a configuration that was written by hand.
    out.extend(left.into_iter().cloned());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn snapshots_stand_below_those_that_they_follow() {
        let rows = [
            json!({"name": "b", "parent": "a", "snaptime": 2}),
            json!({"name": "x", "parent": "gone", "snaptime": 9}),
            json!({"name": "a", "snaptime": 1}),
            json!({"name": "c", "parent": "a", "snaptime": 3}),
            json!({"name": "current", "parent": "b"}),
            json!({"name": "p", "parent": "q", "snaptime": 1}),
            json!({"name": "q", "parent": "p", "snaptime": 1}),
        ];
        let names: Vec<String> = tree(&rows).iter().map(|r| text(&r["name"])).collect();
        assert_eq!(names, ["`-> a", " `-> b", "  `-> current", " `-> c", "`-> x", "p", "q"]);
    }
}
