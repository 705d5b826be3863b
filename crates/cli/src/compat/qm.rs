//! `qm`.

use super::{Tool, Words, no_more, unknown};
use crate::api::{text, truth};
use crate::cmd::{Cx, agent, clone, cloudinit, snapshot, vm};
use crate::connect::ask_password;
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::params::{Params, put, take};
use crate::terminal;
use serde_json::{Value, json};

pub const HELP: &str = "\
qm: virtual machines

  qm list                                  those on this node
  qm status VMID [--verbose]
  qm config VMID [--current] [--snapshot NAME]
  qm pending VMID
  qm create VMID [--NAME VALUE …]          as --memory 512 --scsi0 local:8 --net0 virtio,bridge=vmbr0
  qm set VMID [--NAME VALUE …]             also --delete NAMES, --revert NAMES
  qm start|stop|reset|resume VMID
  qm suspend VMID [--todisk] [--statestorage STORAGE]
  qm shutdown VMID [--timeout S] [--forceStop]
  qm reboot VMID [--timeout S]
  qm migrate VMID NODE [--online] [--targetstorage STORAGES]
  qm remote-migrate VMID [TARGET-VMID] ENDPOINT --target-bridge BRIDGES --target-storage STORAGES [--delete] [--online]
                                           to another cluster; --online: while it runs
  qm clone VMID NEWID [--name N] [--full] [--storage S] [--format F] [--snapname S] [--target NODE]
  qm template VMID [--disk DISK]
  qm destroy VMID [--purge]
  qm disk resize VMID DISK SIZE            as +8G; also qm resize
  qm disk move VMID DISK [STORAGE] [--format F] [--delete] [--target-vmid VMID --target-disk DISK]
                                           also qm move-disk, qm disk reassign
  qm disk import VMID IMAGE STORAGE [--format F] [--target-disk DISK]    also qm importdisk
  qm disk unlink VMID --idlist DISKS [--force]
  qm snapshot VMID NAME [--description TEXT] [--vmstate]
  qm listsnapshot VMID
  qm rollback VMID NAME [--start]
  qm delsnapshot VMID NAME [--force]
  qm unlock VMID
  qm guest cmd VMID COMMAND                as network-get-interfaces; also qm agent
  qm guest exec VMID [--timeout S] [--synchronous 0] -- PROGRAM …
  qm guest exec-status VMID PID
  qm guest passwd VMID USER [--crypted]
  qm cloudinit pending|update VMID
  qm cloudinit dump VMID TYPE              user, network or meta
  qm monitor VMID
  qm sendkey VMID KEYS                     as ctrl-alt-delete
  qm terminal VMID [--iface serialN]
";

/// Those that concern one VM.
const VERBS: [&str; 29] = [
    "importdisk",
    "clone",
    "move-disk",
    "template",
    "unlock",
    "status",
    "config",
    "pending",
    "create",
    "set",
    "start",
    "stop",
    "reset",
    "shutdown",
    "reboot",
    "suspend",
    "resume",
    "migrate",
    "remote-migrate",
    "destroy",
    "resize",
    "unlink",
    "monitor",
    "sendkey",
    "terminal",
    "snapshot",
    "listsnapshot",
    "rollback",
    "delsnapshot",
];

const COLUMNS: [Column; 6] = [
    ("VMID", "vmid", Kind::Number),
    ("NAME", "name", Kind::Text),
    ("STATUS", "status", Kind::Text),
    ("MEM(MB)", "mem_mb", Kind::Number),
    ("BOOTDISK(GB)", "disk_gb", Kind::Number),
    ("PID", "pid", Kind::Number),
];

pub async fn run(cx: &Cx, verb: &str, mut words: Words) -> Result<(), Failure> {
    if verb == "list" {
        words.end()?;
        return list(cx, &words.params).await;
    }
    if verb == "agent" {
        return agent_command(cx, words).await;
    }
    if verb == "guest" {
        return guest(cx, words).await;
    }
    if verb == "cloudinit" {
        return cloudinit_command(cx, words).await;
    }
    let below;
    let verb = match verb {
        "disk" => {
            below = words.next("what to do: import, move, reassign, resize or unlink")?;
            match below.as_str() {
                "import" => "importdisk",
                "move" | "reassign" => "move-disk",
                verb @ ("resize" | "unlink") => verb,
                other => return Err(Failure::failed(format!("qm disk {other}: that is not supported yet"))),
            }
        }
        "move_disk" => "move-disk",
        verb => verb,
    };
    if !VERBS.contains(&verb) {
        return Err(unknown(Tool::Qm, verb));
    }
    let vmid = words.next("the VMID")?;
    match verb {
        "listsnapshot" => {
            words.nothing()?;
            return snapshot::list(cx, &vmid).await;
        }
        "snapshot" | "rollback" | "delsnapshot" => {
            let name = words.next("the snapshot's name")?;
            words.end()?;
            return match verb {
                "snapshot" => snapshot::take(cx, &vmid, &name, words.params).await,
                "rollback" => snapshot::roll_back(cx, &vmid, &name, &words.params).await,
                _ => snapshot::remove(cx, &vmid, &name, &words.params).await,
            };
        }
        "monitor" => {
            words.nothing()?;
            return vm::monitor(cx, &vmid, "").await;
        }
        "sendkey" => {
            let keys = words.next("the keys")?;
            words.end()?;
            return vm::send_key(cx, &vmid, &keys, words.params).await;
        }
        "terminal" => {
            let serial = take(&mut words.params, "iface");
            if let Some(key) = take(&mut words.params, "escape").filter(|key| key != "^O") {
                return Err(Failure::usage(format!(
                    "--escape {key}: that is not supported yet; ^O ends a console"
                )));
            }
            words.nothing()?;
            return terminal::open(&cx.api, &cx.api.vm(&vmid).await?, serial.as_deref()).await;
        }
        "clone" => {
            let newid = words.next("the clone's VMID")?;
            words.end()?;
            return clone::make(cx, &vmid, &newid, words.params).await;
        }
        "importdisk" => {
            let (image, storage) = (words.next("the image")?, words.next("the storage")?);
            words.end()?;
            let unused = !words.params.iter().any(|(name, _)| name == "target-disk");
            return clone::import(cx, &vmid, &image, &storage, words.params, unused).await;
        }
        "move-disk" => {
            let disk = words.next("the disk")?;
            if !words.alone.is_empty() {
                let storage = words.next("the storage")?;
                put(&mut words.params, "storage", Some(storage));
            }
            words.end()?;
            return clone::move_disk(cx, &vmid, &disk, words.params).await;
        }
        "migrate" => {
            let target = words.next("the target node")?;
            put(&mut words.params, "target", Some(target));
        }
        "remote-migrate" => {
            let first = words.next("the other cluster's endpoint")?;
            let endpoint = match words.alone.is_empty() {
                true => first,
                false => {
                    put(&mut words.params, "target-vmid", Some(first));
                    words.next("the other cluster's endpoint")?
                }
            };
            put(&mut words.params, "target-endpoint", Some(endpoint));
        }
        "resize" => {
            let (disk, size) = (words.next("the disk")?, words.next("the size")?);
            put(&mut words.params, "disk", Some(disk));
            put(&mut words.params, "size", Some(size));
        }
        _ => {}
    }
    words.end()?;
    act(cx, verb, &vmid, words.params).await
}

async fn agent_command(cx: &Cx, mut words: Words) -> Result<(), Failure> {
    let (vmid, command) = (words.next("the VMID")?, words.next("the agent's command")?);
    words.nothing()?;
    agent::command(cx, &vmid, &command).await
}

async fn cloudinit_command(cx: &Cx, mut words: Words) -> Result<(), Failure> {
    let verb = words.next("what to do: dump, pending or update")?;
    let vmid = words.next("the VMID")?;
    let command = match verb.as_str() {
        "dump" => cloudinit::Command::Dump { vmid, part: words.next("the part: user, network or meta")? },
        "pending" => cloudinit::Command::Pending { vmid },
        "update" => cloudinit::Command::Update { vmid },
        other => {
            return Err(Failure::failed(format!("qm cloudinit {other}: there are dump, pending and update")));
        }
    };
    words.nothing()?;
    cloudinit::run(cx, command).await
}

async fn guest(cx: &Cx, mut words: Words) -> Result<(), Failure> {
    match words.next("what to do: cmd, exec, exec-status or passwd")?.as_str() {
        "cmd" => agent_command(cx, words).await,
        "exec" => {
            let vmid = words.next("the VMID")?;
            let timeout = take(&mut words.params, "timeout").unwrap_or_else(|| "30".to_owned());
            let Ok(timeout) = timeout.parse() else {
                return Err(Failure::usage(format!("--timeout: '{timeout}' is no number of seconds")));
            };
            let waits = take(&mut words.params, "synchronous").is_none_or(|v| truth(&v.as_str().into()));
            no_more(&words.params)?;
            if words.alone.is_empty() {
                return Err(Failure::usage("the program is missing"));
            }
            let path = cx.api.vm(&vmid).await?;
            let pid = agent::begin(cx, &path, &words.alone, None).await?;
            let end = match waits {
                true => agent::ended(cx, &path, &pid, timeout).await?,
                false => None,
            };
            output::json(&end.unwrap_or_else(|| json!({ "pid": pid.parse::<i64>().ok() })))
        }
        "exec-status" => {
            let (vmid, pid) = (words.next("the VMID")?, words.next("the program's PID in the guest")?);
            words.nothing()?;
            output::json(&agent::status(cx, &cx.api.vm(&vmid).await?, &pid).await?)
        }
        "passwd" => {
            let (vmid, user) = (words.next("the VMID")?, words.next("the user in the guest")?);
            let crypted = take(&mut words.params, "crypted");
            words.nothing()?;
            let path = cx.api.vm(&vmid).await?;
            let instead = "use 'pvesh create /nodes/NODE/qemu/VMID/agent/set-user-password'";
            let password = ask_password("Enter new password: ", instead)?;
            if ask_password("Retype new password: ", instead)? != password {
                return Err(Failure::failed("the passwords differ: nothing was changed"));
            }
            let mut p = Params::new();
            put(&mut p, "username", Some(user));
            put(&mut p, "password", Some(password));
            put(&mut p, "crypted", crypted);
            cx.api.post(&format!("{path}/agent/set-user-password"), &p).await.map(drop)
        }
        other => {
            Err(Failure::failed(format!("qm guest {other}: there are cmd, exec, exec-status and passwd")))
        }
    }
}

async fn act(cx: &Cx, verb: &str, vmid: &str, mut p: Params) -> Result<(), Failure> {
    match verb {
        "status" => {
            let verbose = take(&mut p, "verbose").is_some_and(|v| truth(&v.as_str().into()));
            no_more(&p)?;
            let path = cx.api.vm(vmid).await?;
            let status = cx.api.get(&format!("{path}/status/current")).await?;
            match cx.format() {
                Format::Json => output::json(&status),
                Format::Table if verbose => output::print(&output::object(&status)),
                Format::Table => output::print(&format!("status: {}", text(&status["status"]))),
            }
        }
        "config" => vm::config(cx, vmid, &p).await,
        "pending" => {
            no_more(&p)?;
            vm::pending(cx, vmid).await
        }
        "create" => {
            let node = cx.api.local_node().await?;
            put(&mut p, "vmid", Some(vmid));
            vm::make(cx, &node, &p).await
        }
        "set" => vm::set(cx, vmid, &p).await,
        "unlock" => vm::unlock(cx, vmid, p).await,
        "start" | "stop" | "reset" | "shutdown" | "reboot" | "suspend" | "resume" => {
            vm::status(cx, vmid, verb, &p).await
        }
        "migrate" => vm::migrate(cx, vmid, &p).await,
        "remote-migrate" => vm::remote_migrate(cx, vmid, p).await,
        "template" => clone::template(cx, vmid, &p).await,
        "destroy" => vm::delete(cx, vmid, &p).await,
        "resize" | "unlink" => {
            let answer = cx.api.put(&format!("{}/{verb}", cx.api.vm(vmid).await?), &p).await?;
            cx.answer(&answer, &format!("VM {vmid}: {verb} done")).await
        }
        other => Err(unknown(Tool::Qm, other)),
    }
}

async fn list(cx: &Cx, p: &Params) -> Result<(), Failure> {
    let node = cx.api.local_node().await?;
    let mut list = vm::on_node(cx, &node, p).await?;
    for row in &mut list {
        // The column is in MiB, as it always was.
        let mb = row["maxmem"].as_u64().map(|m| m >> 20);
        row["mem_mb"] = mb.into();
        let disk = row["maxdisk"].as_u64().unwrap_or(0);
        row["disk_gb"] = format!("{:.2}", disk as f64 / f64::from(1 << 30)).into();
    }
    cx.format().list(&Value::Array(list), &COLUMNS)
}
