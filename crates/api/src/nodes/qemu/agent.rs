//! `/nodes/{node}/qemu/{vmid}/agent` and below: QEMU's agent in a VM.

use super::OneVm;
use crate::framework::{Access, Error, Json, Null};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use stead_api_derive::{Params, Schema};
use stead_model::{NodeName, Vmid};
use stead_ops::guest::agent::MAX_READ;

const AUDIT: Access = Access::Any("/vms/{vmid}", &["VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted"]);
const FILES: Access =
    Access::Any("/vms/{vmid}", &["VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.Unrestricted"]);
const POWER: Access = Access::Any("/vms/{vmid}", &["VM.PowerMgmt", "VM.GuestAgent.Unrestricted"]);
const ALL: Access = Access::All("/vms/{vmid}", &["VM.GuestAgent.Unrestricted"]);

/// What the agent has answered.
#[derive(Serialize, Schema)]
pub struct Outcome {
    /// As the agent gives it; null of what it answers only when it fails.
    result: Value,
}

/// Declares endpoints whose name is that of the agent's command.
macro_rules! commands {
    ($($name:ident = $method:ident($path:literal), $access:expr, $about:literal;)+) => {
        $(endpoint! {
            #[doc = $about]
            $name = $method($path), AtGuest, $access;
            fn call(cx, p: OneVm) -> Json<Outcome> {
                cx.ops().member(&p.node)?;
                let name = $path.rsplit('/').next().unwrap_or_default();
                Ok(Json(Outcome { result: cx.ops().agent(p.vmid, &format!("guest-{name}"), &json!({})).await? }))
            }
        })+
    };
}

commands! {
    Freeze = post("/nodes/{node}/qemu/{vmid}/agent/fsfreeze-freeze"), FILES,
        "Freezes the guest's file systems: nothing is written until they are thawed.";
    Frozen = post("/nodes/{node}/qemu/{vmid}/agent/fsfreeze-status"),
        Access::Any(
            "/vms/{vmid}",
            &["VM.GuestAgent.Audit", "VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.Unrestricted"],
        ), "Whether the guest's file systems are frozen.";
    Thaw = post("/nodes/{node}/qemu/{vmid}/agent/fsfreeze-thaw"), FILES, "Thaws the guest's file systems.";
    Trim = post("/nodes/{node}/qemu/{vmid}/agent/fstrim"), FILES,
        "Has the guest's file systems give back the space that they do not use.";
    FileSystems = get("/nodes/{node}/qemu/{vmid}/agent/get-fsinfo"), AUDIT, "The guest's file systems.";
    HostName = get("/nodes/{node}/qemu/{vmid}/agent/get-host-name"), AUDIT, "The guest's name of itself.";
    MemoryBlockInfo = get("/nodes/{node}/qemu/{vmid}/agent/get-memory-block-info"), AUDIT,
        "The size of the guest's memory blocks.";
    MemoryBlocks = get("/nodes/{node}/qemu/{vmid}/agent/get-memory-blocks"), AUDIT, "The guest's memory blocks.";
    OsInfo = get("/nodes/{node}/qemu/{vmid}/agent/get-osinfo"), AUDIT, "The guest's system.";
    Time = get("/nodes/{node}/qemu/{vmid}/agent/get-time"), AUDIT, "The guest's time, in nanoseconds.";
    TimeZone = get("/nodes/{node}/qemu/{vmid}/agent/get-timezone"), AUDIT, "The guest's time zone.";
    Users = get("/nodes/{node}/qemu/{vmid}/agent/get-users"), AUDIT, "Who is signed in to the guest.";
    Cpus = get("/nodes/{node}/qemu/{vmid}/agent/get-vcpus"), AUDIT, "The guest's CPUs.";
    Info = get("/nodes/{node}/qemu/{vmid}/agent/info"), AUDIT, "The agent's version and commands.";
    Interfaces = get("/nodes/{node}/qemu/{vmid}/agent/network-get-interfaces"), AUDIT,
        "The guest's network devices and their addresses.";
    Ping = post("/nodes/{node}/qemu/{vmid}/agent/ping"), AUDIT, "Whether the agent answers.";
    Shutdown = post("/nodes/{node}/qemu/{vmid}/agent/shutdown"), POWER, "Has the guest shut down.";
    SuspendDisk = post("/nodes/{node}/qemu/{vmid}/agent/suspend-disk"), POWER, "Has the guest sleep on its disk.";
    SuspendHybrid = post("/nodes/{node}/qemu/{vmid}/agent/suspend-hybrid"), POWER,
        "Has the guest sleep in its memory and on its disk.";
    SuspendRam = post("/nodes/{node}/qemu/{vmid}/agent/suspend-ram"), POWER, "Has the guest sleep in its memory.";
}

choice! {
    /// A command that takes nothing.
    pub enum Plain {
        Freeze = "fsfreeze-freeze", Frozen = "fsfreeze-status", Thaw = "fsfreeze-thaw", Trim = "fstrim",
        FileSystems = "get-fsinfo", HostName = "get-host-name", MemoryBlockInfo = "get-memory-block-info",
        MemoryBlocks = "get-memory-blocks", OsInfo = "get-osinfo", Time = "get-time", TimeZone = "get-timezone",
        Users = "get-users", Cpus = "get-vcpus", Info = "info", Interfaces = "network-get-interfaces", Ping = "ping",
        Shutdown = "shutdown", SuspendDisk = "suspend-disk", SuspendHybrid = "suspend-hybrid",
        SuspendRam = "suspend-ram",
    }
}

#[derive(Params)]
pub struct Command {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The command.
    command: Plain,
}

endpoint! {
    /// Gives the agent a command that takes nothing.
    Post = post("/nodes/{node}/qemu/{vmid}/agent"), AtGuest, ALL;
    fn call(cx, p: Command) -> Json<Outcome> {
        cx.ops().member(&p.node)?;
        let command = format!("guest-{}", p.command.word());
        Ok(Json(Outcome { result: cx.ops().agent(p.vmid, &command, &json!({})).await? }))
    }
}

#[derive(Params)]
pub struct Execute {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The program, and its arguments.
    #[param(required, whole)]
    command: Vec<String>,
    /// What the program reads from its standard input.
    #[param(name = "input-data", max_length = 65_536)]
    input: Option<String>,
}

/// A program that runs in the guest.
#[derive(Serialize, Schema)]
pub struct Started {
    /// Its number there.
    pid: i64,
}

endpoint! {
    /// Runs a program in the guest, as the agent's user there: usually its administrator.
    Exec = post("/nodes/{node}/qemu/{vmid}/agent/exec"), AtGuest, ALL;
    fn call(cx, p: Execute) -> Json<Started> {
        cx.ops().member(&p.node)?;
        Ok(Json(Started { pid: cx.ops().agent_exec(p.vmid, &p.command, p.input.as_deref()).await? }))
    }
}

#[derive(Params)]
pub struct OneProgram {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The program's number in the guest.
    pid: i64,
}

/// How a program stands.
#[derive(Serialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub struct Ended {
    /// 1: it has ended.
    exited: u8,
    /// Its exit code, if it has ended by itself.
    #[serde(rename = "exitcode", skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    /// The signal or exception that has ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i64>,
    /// What it printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    out_data: Option<String>,
    /// 1: it printed more than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    out_truncated: Option<u8>,
    /// What it printed as errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    err_data: Option<String>,
    /// 1: it printed more errors than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    err_truncated: Option<u8>,
}

endpoint! {
    /// How a program in the guest stands, and what it printed. The end is told once.
    ExecStatus = get("/nodes/{node}/qemu/{vmid}/agent/exec-status"), AtGuest, ALL;
    fn call(cx, p: OneProgram) -> Json<Ended> {
        cx.ops().member(&p.node)?;
        let status = cx.ops().agent_exec_status(p.vmid, p.pid).await?;
        let cut = |output: &Option<(String, bool)>| output.as_ref().filter(|(_, cut)| *cut).map(|_| 1);
        Ok(Json(Ended {
            exited: u8::from(status.exited),
            exit_code: status.exit_code,
            signal: status.signal,
            out_truncated: cut(&status.out),
            err_truncated: cut(&status.err),
            out_data: status.out.map(|(text, _)| text),
            err_data: status.err.map(|(text, _)| text),
        }))
    }
}

#[derive(Params)]
pub struct ReadFile {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The file's path in the guest.
    file: String,
    /// From which byte on.
    #[param(default = "0")]
    offset: u64,
    /// How many bytes at most.
    #[param(min = 1, max = 16_777_216, default = "16777216")]
    count: u64,
    /// Give it as text; otherwise in base64, as binary data needs.
    #[param(default = "1")]
    decode: bool,
}

/// A part of a file.
#[derive(Serialize, Schema)]
pub struct Content {
    /// What is in it.
    content: String,
    /// 1: there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<u8>,
}

endpoint! {
    /// Reads a file of the guest.
    FileRead = get("/nodes/{node}/qemu/{vmid}/agent/file-read"), AtGuest,
        Access::Any("/vms/{vmid}", &["VM.GuestAgent.FileRead", "VM.GuestAgent.Unrestricted"]);
    fn call(cx, p: ReadFile) -> Json<Content> {
        cx.ops().member(&p.node)?;
        let (bytes, more) = cx.ops().agent_read(p.vmid, &p.file, p.offset, p.count.min(MAX_READ)).await?;
        let content = if p.decode { String::from_utf8_lossy(&bytes).into_owned() } else { STANDARD.encode(bytes) };
        Ok(Json(Content { content, truncated: more.then_some(1) }))
    }
}

#[derive(Params)]
pub struct WriteFile {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The file's path in the guest.
    file: String,
    /// What is to be in it.
    #[param(max_length = 61_440)]
    content: String,
    /// It is text; otherwise it is in base64 already, as binary data must be.
    #[param(default = "1")]
    encode: bool,
}

endpoint! {
    /// Writes a file of the guest, over one that is there.
    FileWrite = post("/nodes/{node}/qemu/{vmid}/agent/file-write"), AtGuest,
        Access::Any("/vms/{vmid}", &["VM.GuestAgent.FileWrite", "VM.GuestAgent.Unrestricted"]);
    fn call(cx, p: WriteFile) -> Null {
        cx.ops().member(&p.node)?;
        let content = if p.encode { STANDARD.encode(p.content) } else { p.content };
        cx.ops().agent_write(p.vmid, &p.file, &content).await?;
        Ok(Null)
    }
}

#[derive(Params)]
pub struct SetPassword {
    /// The node.
    node: NodeName,
    /// The VM.
    vmid: Vmid,
    /// The user in the guest.
    username: String,
    /// The new password.
    #[param(max_length = 1024)]
    password: String,
    /// It is hashed already, as the guest's system has it.
    #[param(default = "0")]
    crypted: bool,
}

endpoint! {
    /// Sets a user's password in the guest.
    Password = post("/nodes/{node}/qemu/{vmid}/agent/set-user-password"), AtGuest, ALL;
    fn call(cx, p: SetPassword) -> Json<Outcome> {
        cx.ops().member(&p.node)?;
        if p.password.chars().count() < 5 {
            return Err(Error::parameter("password", "value must be at least 5 characters long"));
        }
        let set = cx.ops().agent_set_password(p.vmid, &p.username, &p.password, p.crypted);
        Ok(Json(Outcome { result: set.await? }))
    }
}
