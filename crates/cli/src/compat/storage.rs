//! `pvesm`.

use super::{Tool, Words, unknown};
use crate::api::rows;
use crate::cmd::{Cx, storage};
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::params::{escape, put, take};
use serde_json::json;

pub const HELP: &str = "\
pvesm: storages

  pvesm status [--storage NAME] [--content KIND]
  pvesm list STORAGE [--content KIND] [--vmid VMID]
  pvesm add TYPE STORAGE [--NAME VALUE …]
  pvesm set STORAGE [--NAME VALUE …]
  pvesm remove STORAGE
  pvesm alloc STORAGE VMID FILENAME SIZE [--format FORMAT]
  pvesm free VOLUME
  pvesm path VOLUME
";

const STATUS: [Column; 7] = [
    ("Name", "storage", Kind::Text),
    ("Type", "type", Kind::Text),
    ("Status", "state", Kind::Text),
    ("Total (KiB)", "total_kib", Kind::Number),
    ("Used (KiB)", "used_kib", Kind::Number),
    ("Available (KiB)", "avail_kib", Kind::Number),
    ("%", "share", Kind::Share),
];

pub async fn run(cx: &Cx, verb: &str, mut words: Words) -> Result<(), Failure> {
    match verb {
        "status" => {
            words.end()?;
            status(cx, words).await
        }
        "list" => {
            let name = words.next("the storage")?;
            words.end()?;
            storage::content(cx, &name, None, &words.params).await
        }
        "add" => {
            let (kind, name) = (words.next("the type")?, words.next("the storage's name")?);
            words.end()?;
            put(&mut words.params, "type", Some(kind));
            put(&mut words.params, "storage", Some(name));
            storage::add(cx, &words.params).await
        }
        "set" => {
            let name = words.next("the storage")?;
            words.end()?;
            storage::set(cx, &name, &words.params).await
        }
        "remove" => {
            let name = words.next("the storage")?;
            words.nothing()?;
            storage::remove(cx, &name).await
        }
        "alloc" => {
            let name = words.next("the storage")?;
            for (key, what) in [("vmid", "the VMID"), ("filename", "the file name"), ("size", "the size")] {
                let value = words.next(what)?;
                put(&mut words.params, key, Some(value));
            }
            words.end()?;
            storage::alloc(cx, &name, None, &words.params).await
        }
        "free" => {
            let mut volume = words.next("the volume")?;
            // The original takes a name together with --storage, too.
            if let (Some(storage), false) = (take(&mut words.params, "storage"), volume.contains(':')) {
                volume = format!("{storage}:{volume}");
            }
            words.nothing()?;
            storage::free(cx, &volume, None).await
        }
        "path" => {
            let volume = words.next("the volume")?;
            words.nothing()?;
            path(cx, &volume).await
        }
        other => Err(unknown(Tool::Pvesm, other)),
    }
}

/// Where a volume lies on the node that is spoken to.
async fn path(cx: &Cx, volume: &str) -> Result<(), Failure> {
    let Some((storage, _)) = volume.split_once(':') else {
        return Err(Failure::usage(format!("'{volume}' is not a volume: it must be STORAGE:NAME")));
    };
    let (node, storage) = (escape(&cx.api.local_node().await?), escape(storage));
    let details = cx.api.get(&format!("/nodes/{node}/storage/{storage}/content/{}", escape(volume))).await?;
    cx.format().any(&details["path"])
}

async fn status(cx: &Cx, words: Words) -> Result<(), Failure> {
    if cx.format() == Format::Json {
        return storage::status(cx, None, &words.params).await;
    }
    let path = format!("/nodes/{}/storage", escape(&cx.api.local_node().await?));
    let list = cx.api.call(http::Method::GET, &path, &words.params).await?;
    let mut list = rows(&list).to_vec();
    for row in &mut list {
        let kib = |key: &str| row[key].as_u64().unwrap_or(0) >> 10;
        let (total, used, avail) = (kib("total"), kib("used"), kib("avail"));
        let state =
            match (crate::api::truth(&row["active"]), row.get("enabled").is_none_or(crate::api::truth)) {
                (true, _) => "active",
                (false, true) => "inactive",
                (false, false) => "disabled",
            };
        row["state"] = json!(state);
        row["total_kib"] = json!(total);
        row["used_kib"] = json!(used);
        row["avail_kib"] = json!(avail);
        row["share"] = json!(if total == 0 { 0.0 } else { used as f64 / total as f64 });
    }
    output::print(&output::table(&list, &STATUS))
}
