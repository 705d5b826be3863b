//! What is done with a node's store while its daemon does not run: `steadd store backup|check|restore`, which `stead conf` calls.
//!
//! The folder is locked as by a daemon, so that none starts meanwhile.

use crate::identity::{Home, Identity, cluster_key};
use crate::restore::{self, Restore};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use stead_conf::{Backup, ClusterKey, Conf, succession};
use stead_ops::epochs::faults;

/// What is done instead of being a daemon.
#[derive(Debug, Subcommand)]
pub enum Offline {
    /// The configuration's store, while no daemon has it open
    #[command(subcommand)]
    Store(StoreCommand),
}

/// What is done with the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Write all of it to a new file, readable by its owner alone: it holds secrets
    Backup {
        /// The file
        file: PathBuf,
    },
    /// Read and check a backup, or the store, and change nothing
    Check {
        /// The backup; the store in the folder unless it is said
        file: Option<PathBuf>,
    },
    /// Make the store of a backup: a new cluster epoch, of this node alone
    Restore(Restore),
}

/// The processes of guests whose files lie below a folder: their ids, and the files that name them.
pub type Processes = fn(&Path) -> Vec<(u32, PathBuf)>;

/// Does it.
///
/// # Errors
/// Why it was not done; a store is as it was then, unless that is said.
pub async fn run(dir: &Path, command: StoreCommand, processes: Processes) -> Result<()> {
    match command {
        StoreCommand::Backup { file } => backup(dir, &file),
        StoreCommand::Check { file: Some(file) } => check_backup(&file),
        StoreCommand::Check { file: None } => check_store(dir),
        StoreCommand::Restore(asked) => restore::run(dir, &asked, processes).await,
    }
}

/// The folder of a node that was started before, and the lock that keeps daemons out.
fn stopped(dir: &Path) -> Result<(Home, std::fs::File)> {
    if !dir.join("node.json").exists() {
        bail!("no node was ever started on the folder {}", dir.display());
    }
    let home = Home::open(dir)?;
    let only = home.lock()?;
    for pending in ["restore.json", "epoch.json", "rejoin.json", "join.json", "leave.json"] {
        if home.at(pending).exists() {
            bail!("{pending} says what the daemon does with the store when it starts: start it first");
        }
    }
    Ok((home, only))
}

/// Who the node is, and all that its store holds.
fn read(home: &Home) -> Result<(Identity, ClusterKey, succession::Seen)> {
    let of = home.identity()?.context("node.json is missing")?;
    let key = cluster_key(&home.keys()?.cluster_key)?;
    if !Conf::exists(&home.at("conf")) {
        bail!("node '{}' has no store: it waits to be sent the configuration by its cluster", of.name);
    }
    let seen = succession::look(&home.at("conf"))?;
    if seen.id != of.raft_id.0 {
        bail!("the store is of number {} in Raft, and node '{}' is number {}", seen.id, of.name, of.raft_id);
    }
    Ok((of, key, seen))
}

fn backup(dir: &Path, file: &Path) -> Result<()> {
    let (home, _only) = stopped(dir)?;
    let (of, key, seen) = read(&home)?;
    sound(&faults(&seen.machine, &key, &of.name))?;
    let revision = seen.machine.tree().revision();
    let made = Backup::of(seen.machine, key, of.name.as_str(), of.era, stead_ops::clock::unix_ms());
    write_private(file, &made.encode()?)?;
    println!("{} holds the configuration at revision {revision}, with its secrets", file.display());
    if seen.committed < revision {
        println!(
            "what came after revision {} is not known to be committed: other nodes may not have it",
            seen.committed
        );
    }
    Ok(())
}

/// A file that is new, whole, and its owner's alone.
fn write_private(file: &Path, data: &[u8]) -> Result<()> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let mut out = out.with_context(|| {
        format!(
            "can't make {} (if it is there: left by a backup that was cut off? remove it)",
            part.display()
        )
    })?;
    let written = (|| {
        out.write_all(data)?;
        out.sync_all()?;
        place(&part, file)
    })();
    if let Err(e) = written {
        let _left = std::fs::remove_file(&part);
        return Err(e).with_context(|| format!("can't write {}", file.display()));
    }
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("can't write {}", folder.display()))
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

/// How long ago something was, for people.
pub fn ago(at_ms: u64) -> String {
    let minutes = stead_ops::clock::unix_ms().saturating_sub(at_ms) / 60_000;
    match minutes {
        0..120 => format!("{minutes} min ago"),
        120..2880 => format!("{} h ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}

/// Reads a backup.
pub fn read_backup(file: &Path) -> Result<Backup> {
    let data = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    Backup::decode(&data).with_context(|| format!("{} can't be restored", file.display()))
}

/// Refuses what is not sound.
pub fn sound(faults: &[String]) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} things are wrong:\n  {}", faults.len(), faults.join("\n  "))
}

fn check_backup(file: &Path) -> Result<()> {
    let backup = read_backup(file)?;
    let head = backup.head();
    sound(&faults(backup.machine(), backup.key(), &head.node.parse()?))?;
    let nodes: Vec<String> =
        stead_ops::store::nodes(backup.tree()).iter().map(|n| n.name.to_string()).collect();
    println!(
        "{} is sound: revision {} of cluster epoch {}, made by node '{}' {}; {} files, {} changes; nodes: {}",
        file.display(),
        head.revision,
        head.era,
        head.node,
        ago(head.at_ms),
        backup.tree().len(),
        backup.machine().history().len(),
        nodes.join(", ")
    );
    Ok(())
}

fn check_store(dir: &Path) -> Result<()> {
    let (home, _only) = stopped(dir)?;
    let (of, key, seen) = read(&home)?;
    sound(&faults(&seen.machine, &key, &of.name))?;
    let tree = seen.machine.tree();
    println!(
        "the store of node '{}' is sound: revision {} of cluster epoch {}, of which {} is known to be committed; {} files, {} changes; a log \
         of {} entries in term {}, committed up to {}; opened {} times",
        of.name,
        tree.revision(),
        of.era,
        seen.committed,
        tree.len(),
        seen.machine.history().len(),
        seen.entries,
        seen.hard.term,
        seen.hard.commit,
        seen.boots
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::tests::node;
    use std::os::unix::fs::PermissionsExt;

    async fn done(dir: &Path, command: StoreCommand) -> Result<()> {
        run(dir, command, |_| vec![]).await
    }

    #[tokio::test]
    async fn a_stopped_node_s_store_is_backed_up_and_checked_and_stays_as_it_is() {
        let (dir, home) = node(&["n1"]);
        let store = home.at("conf/conf.redb");
        let before = std::fs::read(&store).unwrap();
        let file = dir.path().join("all.backup");
        let backup = || StoreCommand::Backup { file: file.clone() };
        done(&home.0, backup()).await.unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let part = dir.path().join("all.backup.part");
        assert!(!part.exists());
        let kept = std::fs::read(&file).unwrap();
        assert!(done(&home.0, backup()).await.is_err(), "no file is written over");
        assert_eq!(std::fs::read(&file).unwrap(), kept);
        // What another has left, or is at.
        let other = dir.path().join("other.backup");
        std::fs::write(dir.path().join("other.backup.part"), b"half").unwrap();
        let refused = done(&home.0, StoreCommand::Backup { file: other.clone() }).await.unwrap_err();
        assert!(format!("{refused:#}").contains("other.backup.part (if it is there"), "{refused:#}");
        assert!(!other.exists() && std::fs::read(dir.path().join("other.backup.part")).unwrap() == b"half");
        assert!(!part.exists(), "what was not given its name is removed");
        done(&home.0, StoreCommand::Check { file: Some(file.clone()) }).await.unwrap();
        done(&home.0, StoreCommand::Check { file: None }).await.unwrap();
        assert_eq!(std::fs::read(&store).unwrap(), before);
        // What a running daemon has, and what is damaged.
        let only = home.lock().unwrap();
        assert!(done(&home.0, StoreCommand::Check { file: None }).await.is_err());
        drop(only);
        std::fs::write(&store, &before[..before.len() / 2]).unwrap();
        assert!(done(&home.0, StoreCommand::Check { file: None }).await.is_err());
        std::fs::remove_file(&file).unwrap();
        assert!(done(&home.0, backup()).await.is_err() && !file.exists());
        std::fs::write(&file, &kept[..kept.len() - 1]).unwrap();
        assert!(done(&home.0, StoreCommand::Check { file: Some(file) }).await.is_err());
        assert!(done(dir.path(), StoreCommand::Check { file: None }).await.is_err(), "no node's folder");
    }
}
