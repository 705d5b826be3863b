//! `stead conf`: the configuration's files and their past.

use super::vm::confirm;
use super::{Cx, raw, witness};
use crate::api::text;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::params::{Params, put};
use clap::{Args, Subcommand};
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use similar::TextDiff;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_transport::{client, empty};

/// How long a daemon may take to gather a backup.
const PATIENCE: Duration = Duration::from_secs(60);

const MOMENTS: &str = "\
A moment is a revision, as 'stead conf history' shows them, or a time in UTC:
  1043    2026-11-22T14:03:05Z    '2026-11-22 14:03'    2026-11-22

Examples:
  stead conf show storage.cfg
  stead conf show nodes/pve1/qemu-server/100.conf --at '2026-11-22 14:00'
  stead conf diff user.cfg                      what its last change was
  stead conf diff user.cfg --from 1043          what has changed since
  stead conf rollback storage.cfg --to 1043     shows what that changes, and asks";

const BACKUP: &str = "\
All three are for root on the node itself. A backup is made of a running daemon's configuration, or of a stopped
one's store; whoever has the file has the cluster.

Examples:
  stead conf backup stead-$(date +%F).backup
  stead conf check stead-2026-11-22.backup
  systemctl stop steadd && stead conf check            the store itself
  stead conf restore FILE --off pve2 --off pve3 --force
                                                       pve2 and pve3 are off; the old store is kept aside";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show who changed what, when and why
    History(raw::HistoryArgs),
    /// Print a file as it is, or as it was
    #[command(after_help = MOMENTS)]
    Show(Show),
    /// Show what has changed in a file
    #[command(after_help = MOMENTS)]
    Diff(Diff),
    /// Write a file as it was, as a new change
    #[command(after_help = MOMENTS)]
    Rollback(Rollback),
    /// Show how large the configuration is, and how much of its past is kept
    Status,
    /// Say how much of the past is kept
    #[command(after_help = "Example:\n  stead conf limit --max-size 32 --max-age 365")]
    Limit(Limit),
    /// Write all of it to a new file, secrets and the cluster's key too
    #[command(after_help = BACKUP)]
    Backup {
        /// The file; readable by its owner alone
        file: PathBuf,
    },
    /// Read and check a backup, or the store of a stopped daemon; changes nothing
    #[command(after_help = BACKUP)]
    Check {
        /// The backup; this node's store unless it is said
        file: Option<PathBuf>,
    },
    /// Make a backup the store of this node, whose daemon is stopped: a cluster epoch of this node alone
    #[command(after_help = BACKUP)]
    Restore(Restore),
}

#[derive(Debug, Args)]
pub struct Show {
    /// The file, as storage.cfg or nodes/pve1/qemu-server/100.conf
    pub path: String,
    /// The moment; now unless it is said
    #[arg(long, value_name = "MOMENT")]
    pub at: Option<String>,
}

#[derive(Debug, Args)]
pub struct Diff {
    /// The file, as storage.cfg or nodes/pve1/qemu-server/100.conf
    pub path: String,
    /// From which moment on; right before the last change until --to unless it is said
    #[arg(long, value_name = "MOMENT")]
    pub from: Option<String>,
    /// Up to which moment; now unless it is said
    #[arg(long, value_name = "MOMENT")]
    pub to: Option<String>,
}

#[derive(Debug, Args)]
pub struct Rollback {
    /// The file, as storage.cfg or nodes/pve1/qemu-server/100.conf
    pub path: String,
    /// The moment
    #[arg(long, value_name = "MOMENT")]
    pub to: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Limit {
    /// At most so many MiB, from 1 to 64
    #[arg(long, value_name = "MIB")]
    pub max_size: Option<u32>,
    /// Changes of so many days, and the latest 256; 0: however old
    #[arg(long, value_name = "DAYS")]
    pub max_age: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The backup
    pub file: PathBuf,
    /// Which node of the backup's this machine is; the one that it has been unless it is said
    #[arg(long = "as", id = "as-node", value_name = "NODE")]
    pub name: Option<String>,
    /// Another node, of which you know that it is off; once for each of the backup's, of those that joined since, and, where
    /// this machine was another one, for the machine that had its name
    #[arg(long, value_name = "NODE")]
    pub off: Vec<String>,
    /// Where this machine's store does not tell who has joined since the backup: you know that whoever did is off
    #[arg(long)]
    pub unknown_off: bool,
    /// Where there is a store: keep it aside, and go on
    #[arg(long)]
    pub force: bool,
}

/// What needs no daemon, or must have none: the daemon's own program does it, which this one becomes. None: the API does it.
///
/// # Errors
/// If that can't be run, or another machine is meant.
pub fn by_store(command: &Command, connection: &Connection) -> Option<Result<(), Failure>> {
    let mut words: Vec<OsString> = vec!["store".into()];
    match command {
        Command::Backup { file } if !connection.is_on() => words.extend(["backup".into(), file.into()]),
        Command::Check { file } => {
            words.push("check".into());
            words.extend(file.iter().map(Into::into));
        }
        Command::Restore(Restore { file, name, off, unknown_off, force }) => {
            words.extend(["restore".into(), file.into()]);
            words.extend(name.iter().flat_map(|name| ["--as".into(), name.into()]));
            words.extend(off.iter().flat_map(|node| ["--off".into(), node.into()]));
            words.extend(unknown_off.then(|| "--unknown-off".into()));
            words.extend(force.then(|| "--force".into()));
        }
        _ => return None,
    }
    if connection.server.is_some() {
        return Some(Err(Failure::usage("this is done on the node itself, and not by --server")));
    }
    Some(witness::become_daemon(connection.dir.as_deref(), words))
}

/// Streams the backup to a new file.
async fn backup(cx: &Cx, file: &Path) -> Result<(), Failure> {
    let named = |e: std::io::Error| Failure::failed(format!("can't write {}: {e}", file.display()));
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let device = std::fs::metadata(folder).map_err(named)?.dev();
    if is_own(&std::fs::read_to_string("/proc/self/mountinfo").map_err(named)?, device) {
        return Err(Failure::usage(format!(
            "{} lies in the configuration itself, which every node holds: choose a place outside of it",
            file.display()
        )));
    }
    let mut request = Request::builder().uri("/api2/json/cluster/history/backup").body(empty());
    if let Ok(request) = &mut request {
        cx.api.sign(request);
    }
    let request = request.map_err(|e| Failure::failed(e.to_string()))?;
    let answer = cx.api.http().request_within(PATIENCE, request).await?;
    if !answer.status().is_success() {
        return Err(Failure::refused(&client::collect(&cx.api.http().to(), answer).await?));
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let mut out = out.map_err(|e| {
        let left = "if it is there: left by a backup that was cut off? remove it";
        Failure::failed(format!("can't make {} ({left}): {e}", part.display()))
    })?;
    let name = answer.headers().get(http::header::CONTENT_DISPOSITION);
    let newest = !name.is_some_and(|name| name.to_str().is_ok_and(|name| name.contains("unconfirmed")));
    let mut body = answer.into_body();
    let written = async {
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(|e| Failure::failed(format!("the backup broke off: {e}")))?.into_data();
            out.write_all(&data.unwrap_or_default()).map_err(named)?;
        }
        out.sync_all().map_err(named)?;
        place(&part, file).map_err(named)
    };
    if let Err(e) = written.await {
        let _left = std::fs::remove_file(&part);
        return Err(e);
    }
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(named)?;
    let what = match newest {
        true => "the configuration",
        false => {
            "what this node has of the configuration, which is not known to be the newest (there is no majority)"
        }
    };
    let said = format!("{} holds {what}, with its secrets: 'stead conf check' reads it", file.display());
    cx.format().done(&Value::Null, &said)
}

/// Whether a device is a mount of the configuration's files.
fn is_own(mounts: &str, device: u64) -> bool {
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    mounts.lines().any(|line| {
        let Some((of, kind)) = line.split_once(" - ") else { return false };
        of.split(' ').nth(2) == Some(&device) && kind.split(' ').next() == Some("fuse.stead")
    })
}

/// Gives a file its name, and takes no other file's place.
fn place(part: &Path, file: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags};
    match rustix::fs::renameat_with(CWD, part, CWD, file, RenameFlags::NOREPLACE) {
        // A file system without it may have links; those that have none, as FAT, have it.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            std::fs::hard_link(part, file)?;
            std::fs::remove_file(part)
        }
        done => Ok(done?),
    }
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::History(args) => raw::history(cx, args).await,
        Command::Show(args) => show(cx, args).await,
        Command::Diff(args) => diff(cx, args).await,
        Command::Rollback(args) => rollback(cx, args).await,
        Command::Status => cx.format().object(&cx.api.get("/cluster/history/status").await?),
        Command::Limit(args) => {
            let mut p = Params::new();
            put(&mut p, "max-size", args.max_size);
            put(&mut p, "max-age", args.max_age);
            let done = cx.api.put("/cluster/history/status", &p).await?;
            cx.format().done(&done, "the history is kept so from the next change on")
        }
        Command::Backup { file } => backup(cx, &file).await,
        // Done before there is a connection.
        Command::Check { .. } | Command::Restore(_) => Ok(()),
    }
}

/// A file at a moment.
async fn then(cx: &Cx, path: &str, at: Option<&str>) -> Result<Value, Failure> {
    let mut p = Params::new();
    put(&mut p, "path", Some(path));
    if let Some(at) = at {
        let (name, value) = moment(at)?;
        put(&mut p, name, Some(value));
    }
    cx.api.call(Method::GET, "/cluster/history/file", &p).await
}

async fn show(cx: &Cx, args: Show) -> Result<(), Failure> {
    let file = then(cx, &args.path, args.at.as_deref()).await?;
    if cx.format() == Format::Json {
        return output::json(&file);
    }
    match file["content"].as_str() {
        Some(content) => output::print(content.strip_suffix('\n').unwrap_or(content)),
        None => Err(Failure::failed(format!("there was no '{}' then", args.path))),
    }
}

async fn diff(cx: &Cx, args: Diff) -> Result<(), Failure> {
    let after = then(cx, &args.path, args.to.as_deref()).await?;
    let before = match (&args.from, after["change"]["revision"].as_u64()) {
        (Some(from), _) => then(cx, &args.path, Some(from)).await?,
        (None, Some(last)) => then(cx, &args.path, Some(&last.saturating_sub(1).to_string())).await?,
        (None, None) => {
            return Err(Failure::failed(format!("no change of '{}' is kept until then", args.path)));
        }
    };
    if cx.format() == Format::Json {
        return output::json(&json!({ "before": before, "after": after }));
    }
    let [old, new] = [&before, &after].map(|file| file["content"].as_str().unwrap_or_default());
    if old == new {
        return output::print(&format!("'{}' is the same at both moments", args.path));
    }
    output::print(&difference(&args.path, &before, &after))
}

/// What lies between two states of a file.
fn difference(path: &str, before: &Value, after: &Value) -> String {
    let [old, new] = [before, after].map(|file| file["content"].as_str().unwrap_or_default());
    let [from, to] = [heading(before, path), heading(after, path)];
    let lines = TextDiff::from_lines(old, new).unified_diff().header(&from, &to).to_string();
    match lines.is_empty() {
        // An empty file comes or goes.
        true => format!("--- {from}\n+++ {to}"),
        false => lines.trim_end_matches('\n').to_owned(),
    }
}

async fn rollback(cx: &Cx, args: Rollback) -> Result<(), Failure> {
    let (name, value) = moment(&args.to)?;
    let now = then(cx, &args.path, None).await?;
    let was = then(cx, &args.path, Some(&args.to)).await?;
    if now["content"] == was["content"] {
        return cx.format().done(&Value::Null, &format!("'{}' is as it was then", args.path));
    }
    if cx.format() != Format::Json {
        output::print(&difference(&args.path, &now, &was))?;
    }
    if !args.yes {
        let what = if was["content"].is_null() { "Remove" } else { "Roll back" };
        confirm(&format!("{what} '{}'", args.path))?;
    }
    let mut p = Params::new();
    put(&mut p, "path", Some(&args.path));
    put(&mut p, name, Some(value));
    // What was shown is what is changed.
    put(&mut p, "over", Some(now["now"].as_u64().unwrap_or(0)));
    let done = cx.api.call(Method::POST, "/cluster/history/rollback", &p).await?;
    cx.format().done(&done, &format!("'{}' is as it was", args.path))
}

/// `storage.cfg (revision 7, 2026-11-22 14:03:05, root@pam: storage 'nfs' added)`.
fn heading(file: &Value, path: &str) -> String {
    let change = &file["change"];
    if file["content"].is_null() {
        return "/dev/null".to_owned();
    }
    let (Some(revision), Some(at)) = (change["revision"].as_u64(), change["time"].as_f64()) else {
        return format!("{path} (its change is not kept any more)");
    };
    let (who, why) = (text(&change["author"]), text(&change["note"]));
    format!("{path} (revision {revision}, {} UTC, {who}: {why})", output::time(at))
}

/// A moment as the API takes it: by which parameter, and its value.
fn moment(word: &str) -> Result<(&'static str, String), Failure> {
    if word.parse::<u64>().is_ok() {
        return Ok(("revision", word.to_owned()));
    }
    match output::unix(word) {
        Some(seconds) => Ok(("time", seconds.to_string())),
        None => Err(Failure::usage(format!(
            "'{word}' is no moment: expected a revision, or a time in UTC as 2026-11-22T14:03:05Z"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_revisions_or_times() {
        assert_eq!(moment("1043").unwrap(), ("revision", "1043".to_owned()));
        for (word, seconds) in [
            ("1970-01-01", 0),
            ("1970-01-01 00:01", 60),
            ("2024-02-29T12:00:01Z", 1_709_208_001),
            ("2026-11-22 14:03:05", 1_795_356_185),
        ] {
            assert_eq!(moment(word).unwrap(), ("time", seconds.to_string()), "{word}");
            // As it is shown.
            assert!(output::time(seconds as f64).starts_with(&word[..10]));
        }
        for word in [
            "",
            "yesterday",
            "2026-13-01",
            "2026-02-30",
            "2026-11-22 25:00",
            "2026-11-22 14:03:05+01:00",
            "-5",
        ] {
            assert!(moment(word).is_err(), "{word}");
        }
    }

    #[test]
    fn the_configuration_s_own_mount_is_no_place_for_a_backup() {
        let mounts = "40 1 0:55 / /etc/pve rw,nosuid - fuse.stead stead rw\n\
            41 1 0:56 / /mnt rw - fuse.sshfs x rw\n42 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n";
        let device = |minor| rustix::fs::makedev(0, minor);
        assert!(is_own(mounts, device(55)));
        assert!(!is_own(mounts, device(56)) && !is_own(mounts, rustix::fs::makedev(259, 2)));
    }

    #[test]
    fn a_file_gets_a_name_that_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let [part, file] = ["part", "file"].map(|name| dir.path().join(name));
        std::fs::write(&part, "new").unwrap();
        place(&part, &file).unwrap();
        std::fs::write(&part, "newer").unwrap();
        assert!(place(&part, &file).unwrap_err().to_string().contains("File exists"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
    }

    #[test]
    fn headings_say_whose_change_it_was() {
        let change = json!({"revision": 7, "time": 60, "author": "root@pam", "note": "why"});
        let file = json!({"path": "a", "content": "x", "change": change});
        assert_eq!(heading(&file, "a"), "a (revision 7, 1970-01-01 00:01:00 UTC, root@pam: why)");
        assert_eq!(heading(&json!({"path": "a"}), "a"), "/dev/null");
    }
}
