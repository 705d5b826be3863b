//! The agent in a VM: what it tells of its guest, and what it does there.

use crate::{Ops, OpsError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use stead_driver::guest::GuestError;
use stead_model::Vmid;

/// The most that is read of a file: 16 MiB.
pub const MAX_READ: u64 = 16 << 20;
/// What is read of it at a time: an answer holds it in base64.
const PART: u64 = 1 << 20;
/// How long reading or writing a file may take, whatever the agent gives at a time.
const FILE_LIMIT: Duration = Duration::from_secs(120);

/// What became of a program that the agent was asked to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecStatus {
    /// It has ended.
    pub exited: bool,
    /// With this code.
    pub exit_code: Option<i64>,
    /// By this signal.
    pub signal: Option<i64>,
    /// What it printed, and whether more than the agent keeps.
    pub out: Option<(String, bool)>,
    /// The same of its errors.
    pub err: Option<(String, bool)>,
}

/// How long a command may take. Freezing waits for writes; trimming goes over whole disks.
fn patience(command: &str) -> Duration {
    Duration::from_secs(match command {
        "guest-ping" => 3,
        "guest-fsfreeze-freeze" | "guest-fsfreeze-thaw" => 60,
        "guest-fstrim" => 600,
        _ => 10,
    })
}

fn text_of(data: &Value) -> Option<String> {
    let bytes = STANDARD.decode(data.as_str()?).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn odd(command: &str) -> OpsError {
    OpsError::failed(format!("guest agent: {command}: an answer that makes no sense"))
}

impl Ops {
    /// Asks the agent of a VM that runs here.
    pub async fn agent(&self, vmid: Vmid, command: &str, arguments: &Value) -> Result<Value, OpsError> {
        if self.guests.state(vmid).await.is_none() {
            return Err(OpsError::failed(format!("VM {vmid} is not running")));
        }
        Ok(self.order_agent(vmid, command, arguments).await?)
    }

    /// As [`Self::agent`], for whoever has to know whether it may be done yet.
    pub(super) async fn order_agent(
        &self,
        vmid: Vmid,
        command: &str,
        arguments: &Value,
    ) -> Result<Value, GuestError> {
        self.guests.agent(vmid, command, arguments, patience(command)).await
    }

    /// Runs a program in the guest; the answer is its number there.
    pub async fn agent_exec(
        &self,
        vmid: Vmid,
        words: &[String],
        input: Option<&str>,
    ) -> Result<i64, OpsError> {
        let Some((program, arguments)) = words.split_first().filter(|(program, _)| !program.is_empty())
        else {
            return Err(OpsError::invalid("command", "it names no program"));
        };
        let mut asked = json!({ "path": program, "arg": arguments, "capture-output": true });
        if let Some(input) = input {
            asked["input-data"] = STANDARD.encode(input).into();
        }
        let answer = self.agent(vmid, "guest-exec", &asked).await?;
        answer["pid"].as_i64().ok_or_else(|| odd("guest-exec"))
    }

    /// How a program in the guest stands. The agent forgets it once it has told its end.
    pub async fn agent_exec_status(&self, vmid: Vmid, pid: i64) -> Result<ExecStatus, OpsError> {
        let told = self.agent(vmid, "guest-exec-status", &json!({ "pid": pid })).await?;
        let output = |name: &str| {
            Some((text_of(&told[format!("{name}-data")])?, told[format!("{name}-truncated")] == true))
        };
        Ok(ExecStatus {
            exited: told["exited"].as_bool().ok_or_else(|| odd("guest-exec-status"))?,
            exit_code: told["exitcode"].as_i64(),
            signal: told["signal"].as_i64(),
            out: output("out"),
            err: output("err"),
        })
    }

    /// Reads at most `count` bytes of a file in the guest, from `offset` on; says too whether there is more.
    pub async fn agent_read(
        self: &Arc<Self>,
        vmid: Vmid,
        file: &str,
        offset: u64,
        count: u64,
    ) -> Result<(Vec<u8>, bool), OpsError> {
        let ops = self.clone();
        let count = count.min(MAX_READ);
        self.with_file(vmid, json!({ "path": file, "mode": "r" }), move |handle| async move {
            ops.agent_read_open(vmid, &handle, offset, count).await
        })
        .await
    }

    /// Opens a file in the guest, works with it, and closes it in any case, whoever has lost patience meanwhile: the agent keeps open
    /// for ever what nobody closes.
    async fn with_file<T: Send + 'static, F: Future<Output = Result<T, OpsError>> + Send + 'static>(
        self: &Arc<Self>,
        vmid: Vmid,
        open: Value,
        work: impl FnOnce(Value) -> F + Send + 'static,
    ) -> Result<T, OpsError> {
        let ops = self.clone();
        let done = tokio::spawn(async move {
            let handle = ops.agent(vmid, "guest-file-open", &open).await?;
            let worked = tokio::time::timeout(FILE_LIMIT, work(handle.clone())).await;
            // What was written may reach the disk with this alone.
            let closed = ops.agent(vmid, "guest-file-close", &json!({ "handle": handle })).await;
            let late = |_| {
                OpsError::failed(format!("guest agent: a file took longer than {} s", FILE_LIMIT.as_secs()))
            };
            let worked = worked.map_err(late)??;
            closed.map(|_| worked)
        });
        done.await.unwrap_or_else(|e| Err(OpsError::failed(e.to_string())))
    }

    async fn agent_read_open(
        &self,
        vmid: Vmid,
        handle: &Value,
        offset: u64,
        count: u64,
    ) -> Result<(Vec<u8>, bool), OpsError> {
        const READ: &str = "guest-file-read";
        if offset > 0 {
            let seek = json!({ "handle": handle, "offset": offset, "whence": "set" });
            self.agent(vmid, "guest-file-seek", &seek).await?;
        }
        let mut content = Vec::new();
        loop {
            // One byte more than was asked for tells whether there is more.
            let left = (count + 1).saturating_sub(content.len() as u64);
            if left == 0 {
                content.truncate(usize::try_from(count).unwrap_or(usize::MAX));
                return Ok((content, true));
            }
            let part = json!({ "handle": handle, "count": left.min(PART) });
            let told = self.agent(vmid, READ, &part).await?;
            let bytes = STANDARD.decode(told["buf-b64"].as_str().unwrap_or_default());
            let bytes = bytes.map_err(|_| odd(READ))?;
            content.extend_from_slice(&bytes);
            if told["eof"] == true || bytes.is_empty() {
                let more = content.len() as u64 > count;
                content.truncate(usize::try_from(count).unwrap_or(usize::MAX));
                return Ok((content, more));
            }
        }
    }

    /// Writes a file in the guest, over one that is there. `content` is in base64.
    pub async fn agent_write(
        self: &Arc<Self>,
        vmid: Vmid,
        file: &str,
        content: &str,
    ) -> Result<(), OpsError> {
        let Ok(bytes) = STANDARD.decode(content) else {
            return Err(OpsError::invalid("content", "it is not in base64"));
        };
        let ops = self.clone();
        self.with_file(vmid, json!({ "path": file, "mode": "wb" }), move |handle| async move {
            ops.agent_write_open(vmid, &handle, &bytes).await
        })
        .await
    }

    async fn agent_write_open(&self, vmid: Vmid, handle: &Value, bytes: &[u8]) -> Result<(), OpsError> {
        const WRITE: &str = "guest-file-write";
        let mut left = bytes;
        while !left.is_empty() {
            let part = json!({ "handle": handle, "buf-b64": STANDARD.encode(left) });
            let told = self.agent(vmid, WRITE, &part).await?;
            let count = told["count"].as_u64().and_then(|n| usize::try_from(n).ok());
            left = count.filter(|n| *n > 0).and_then(|n| left.get(n..)).ok_or_else(|| odd(WRITE))?;
        }
        Ok(())
    }

    /// Sets a user's password in the guest; `crypted`: it is hashed as the guest's system has it.
    pub async fn agent_set_password(
        &self,
        vmid: Vmid,
        user: &str,
        password: &str,
        crypted: bool,
    ) -> Result<Value, OpsError> {
        let asked = json!({ "username": user, "password": STANDARD.encode(password), "crypted": crypted });
        self.agent(vmid, "guest-set-user-password", &asked).await
    }
}
