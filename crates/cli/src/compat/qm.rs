//! `qm`.

use super::{Tool, Words, no_more, unknown};
use crate::api::{text, truth};
use crate::cmd::{Cx, vm};
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::params::{Params, put, take};
use crate::terminal;
use serde_json::Value;

pub const HELP: &str = "\
qm: virtual machines

  qm list                                  those on this node
  qm status VMID [--verbose]
  qm config VMID [--current] [--snapshot NAME]
  qm pending VMID
  qm create VMID [--NAME VALUE …]          as --memory 512 --scsi0 local:8 --net0 virtio,bridge=vmbr0
  qm set VMID [--NAME VALUE …]             also --delete NAMES, --revert NAMES
  qm start|stop|reset|suspend|resume VMID
  qm shutdown VMID [--timeout S] [--forceStop]
  qm reboot VMID [--timeout S]
  qm migrate VMID NODE [--online] [--with-local-disks]
  qm destroy VMID [--purge]
  qm disk resize VMID DISK SIZE            as +8G; also qm resize
  qm disk unlink VMID --idlist DISKS [--force]
  qm unlock VMID
  qm monitor VMID
  qm terminal VMID [--iface serialN]
";

/// Those that concern one VM.
const VERBS: [&str; 19] = [
    "unlock", "status", "config", "pending", "create", "set", "start", "stop", "reset", "shutdown", "reboot",
    "suspend", "resume", "migrate", "destroy", "resize", "unlink", "monitor", "terminal",
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
    let below;
    let verb = match verb {
        "disk" => {
            below = words.next("what to do: resize or unlink")?;
            match below.as_str() {
                verb @ ("resize" | "unlink") => verb,
                other => return Err(Failure::failed(format!("qm disk {other}: that is not supported yet"))),
            }
        }
        verb => verb,
    };
    if !VERBS.contains(&verb) {
        return Err(unknown(Tool::Qm, verb));
    }
    let vmid = words.next("the VMID")?;
    match verb {
        "monitor" => {
            words.nothing()?;
            return vm::monitor(cx, &vmid, "").await;
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
        "migrate" => {
            let target = words.next("the target node")?;
            put(&mut words.params, "target", Some(target));
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
        "unlock" => {
            put(&mut p, "delete", Some("lock"));
            put(&mut p, "skiplock", Some(1));
            vm::set(cx, vmid, &p).await
        }
        "start" | "stop" | "reset" | "shutdown" | "reboot" | "suspend" | "resume" => {
            vm::status(cx, vmid, verb, &p).await
        }
        "migrate" => vm::migrate(cx, vmid, &p).await,
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
