//! `stead storage`.

use super::Cx;
use super::vm::confirm;
use crate::failure::Failure;
use crate::output::{Column, Kind};
use crate::params::{Params, escape, put, settings};
use crate::upload;
use clap::Subcommand;
use http::Method;
use std::path::PathBuf;

pub const STATUS: [Column; 8] = [
    ("STORAGE", "storage", Kind::Text),
    ("TYPE", "type", Kind::Text),
    ("ACTIVE", "active", Kind::Truth),
    ("SHARED", "shared", Kind::Truth),
    ("TOTAL", "total", Kind::Bytes),
    ("USED", "used", Kind::Bytes),
    ("FREE", "avail", Kind::Bytes),
    ("CONTENT", "content", Kind::Text),
];

pub const CONTENT: [Column; 6] = [
    ("VOLUME", "volid", Kind::Text),
    ("FORMAT", "format", Kind::Text),
    ("CONTENT", "content", Kind::Text),
    ("SIZE", "size", Kind::Bytes),
    ("VMID", "vmid", Kind::Number),
    ("MADE (UTC)", "ctime", Kind::Time),
];

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List storages with their free space
    List {
        /// As seen from this node (default: the node that is spoken to)
        #[arg(long)]
        node: Option<String>,
    },
    /// Show a storage's configuration
    Show {
        /// The storage
        storage: String,
    },
    /// Add a storage to the cluster
    #[command(
        after_help = "Example:\n  stead storage add dir shared path=/mnt/shared shared=1 content=images,iso"
    )]
    Add {
        /// Its type
        r#type: String,
        /// Its name
        storage: String,
        /// Its settings
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Change a storage's configuration
    #[command(after_help = "Examples:\n  stead storage set local content=iso,images\n  \
        stead storage set local --delete nodes")]
    Set {
        /// The storage
        storage: String,
        /// Its settings
        #[arg(value_name = "KEY=VALUE", required_unless_present = "delete")]
        settings: Vec<String>,
        /// Settings to remove, separated by commas
        #[arg(long, value_name = "KEYS")]
        delete: Option<String>,
    },
    /// Remove a storage from the cluster; what lies on it stays
    Remove {
        /// The storage
        storage: String,
    },
    /// List what lies on a storage
    Content {
        /// The storage
        storage: String,
        /// As seen from this node
        #[arg(long)]
        node: Option<String>,
        /// Only this kind: images, iso, snippets, import
        #[arg(long)]
        content: Option<String>,
        /// Only what belongs to this guest
        #[arg(long)]
        vmid: Option<String>,
    },
    /// Make a disk image
    #[command(after_help = "Example:\n  stead storage alloc local 100 vm-100-disk-1.qcow2 8G --format qcow2")]
    Alloc {
        /// The storage
        storage: String,
        /// The guest that it is for
        vmid: String,
        /// Its file name
        filename: String,
        /// Its size: KiB, or with M or G
        size: String,
        /// Its format: raw or qcow2
        #[arg(long)]
        format: Option<String>,
        /// On this node
        #[arg(long)]
        node: Option<String>,
    },
    /// Delete a volume
    Free {
        /// The volume: STORAGE:NAME
        volume: String,
        /// On this node
        #[arg(long)]
        node: Option<String>,
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Upload an image
    #[command(after_help = "Example:\n  stead storage upload local debian-12.iso")]
    Upload {
        /// The storage
        storage: String,
        /// The file
        file: PathBuf,
        /// What it is: iso, import, vztmpl or snippets
        #[arg(long, default_value = "iso")]
        content: String,
        /// To this node
        #[arg(long)]
        node: Option<String>,
    },
}

/// The node named, or the one that is spoken to.
async fn at(cx: &Cx, node: Option<String>) -> Result<String, Failure> {
    match node {
        Some(node) => Ok(escape(&node)),
        None => Ok(escape(&cx.api.local_node().await?)),
    }
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    let mut p = Params::new();
    match command {
        Command::List { node } => status(cx, node, &p).await,
        Command::Show { storage } => {
            cx.format().object(&cx.api.get(&format!("/storage/{}", escape(&storage))).await?)
        }
        Command::Add { r#type, storage, settings: words } => {
            put(&mut p, "type", Some(r#type));
            put(&mut p, "storage", Some(storage));
            p.extend(settings(&words)?);
            add(cx, &p).await
        }
        Command::Set { storage, settings: words, delete } => {
            p.extend(settings(&words)?);
            put(&mut p, "delete", delete);
            set(cx, &storage, &p).await
        }
        Command::Remove { storage } => remove(cx, &storage).await,
        Command::Content { storage, node, content, vmid } => {
            put(&mut p, "content", content);
            put(&mut p, "vmid", vmid);
            self::content(cx, &storage, node, &p).await
        }
        Command::Alloc { storage, vmid, filename, size, format, node } => {
            put(&mut p, "vmid", Some(vmid));
            put(&mut p, "filename", Some(filename));
            put(&mut p, "size", Some(size));
            put(&mut p, "format", format);
            alloc(cx, &storage, node, &p).await
        }
        Command::Free { volume, node, yes } => {
            if !yes {
                confirm(&format!("Delete the volume {volume}"))?;
            }
            free(cx, &volume, node).await
        }
        Command::Upload { storage, file, content, node } => {
            let path = format!("/nodes/{}/storage/{}/upload", at(cx, node).await?, escape(&storage));
            let answer = upload::upload(&cx.api, &path, &content, &file, cx.format()).await?;
            cx.answer(&answer, "uploaded").await
        }
    }
}

/// Storages as a node sees them.
pub async fn status(cx: &Cx, node: Option<String>, p: &Params) -> Result<(), Failure> {
    let path = format!("/nodes/{}/storage", at(cx, node).await?);
    cx.format().list(&cx.api.call(Method::GET, &path, p).await?, &STATUS)
}

/// Adds a storage.
pub async fn add(cx: &Cx, p: &Params) -> Result<(), Failure> {
    cx.format().done(&cx.api.post("/storage", p).await?, "storage added")
}

/// Changes a storage.
pub async fn set(cx: &Cx, storage: &str, p: &Params) -> Result<(), Failure> {
    let answer = cx.api.put(&format!("/storage/{}", escape(storage)), p).await?;
    cx.format().done(&answer, &format!("storage '{storage}' changed"))
}

/// Removes a storage.
pub async fn remove(cx: &Cx, storage: &str) -> Result<(), Failure> {
    let answer = cx.api.delete(&format!("/storage/{}", escape(storage)), &vec![]).await?;
    cx.format().done(&answer, &format!("storage '{storage}' removed"))
}

/// What lies on a storage.
pub async fn content(cx: &Cx, storage: &str, node: Option<String>, p: &Params) -> Result<(), Failure> {
    let path = format!("/nodes/{}/storage/{}/content", at(cx, node).await?, escape(storage));
    cx.format().list(&cx.api.call(Method::GET, &path, p).await?, &CONTENT)
}

/// Makes a disk image.
pub async fn alloc(cx: &Cx, storage: &str, node: Option<String>, p: &Params) -> Result<(), Failure> {
    let path = format!("/nodes/{}/storage/{}/content", at(cx, node).await?, escape(storage));
    let answer = cx.api.post(&path, p).await?;
    cx.format().done(&answer, &format!("made {}", crate::api::text(&answer)))
}

/// Deletes a volume.
pub async fn free(cx: &Cx, volume: &str, node: Option<String>) -> Result<(), Failure> {
    let Some((storage, _)) = volume.split_once(':') else {
        return Err(Failure::usage(format!("'{volume}' is not a volume: it must be STORAGE:NAME")));
    };
    let (node, storage) = (at(cx, node).await?, escape(storage));
    let path = format!("/nodes/{node}/storage/{storage}/content/{}", escape(volume));
    let answer = cx.api.delete(&path, &vec![]).await?;
    cx.answer(&answer, &format!("deleted {volume}")).await
}
