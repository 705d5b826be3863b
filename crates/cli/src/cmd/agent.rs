//! QEMU's agent in a VM: `stead vm agent`, `stead vm exec`.

use super::Cx;
use crate::api::text;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::params::{Params, put};
use serde_json::Value;
use std::io::Write;
use std::time::{Duration, Instant};

/// How often a program in the guest is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// A command that takes nothing, and what the agent answers.
pub async fn command(cx: &Cx, vmid: &str, command: &str) -> Result<(), Failure> {
    let mut p = Params::new();
    put(&mut p, "command", Some(command.to_owned()));
    let answer = cx.api.post(&format!("{}/agent", cx.api.vm(vmid).await?), &p).await?;
    output::json(&answer["result"])
}

/// Begins a program in the guest; its number there.
pub async fn begin(cx: &Cx, path: &str, words: &[String], input: Option<String>) -> Result<String, Failure> {
    let mut p = Params::new();
    for word in words {
        put(&mut p, "command", Some(word.clone()));
    }
    put(&mut p, "input-data", input);
    Ok(text(&cx.api.post(&format!("{path}/agent/exec"), &p).await?["pid"]))
}

/// How a program in the guest stands.
pub async fn status(cx: &Cx, path: &str, pid: &str) -> Result<Value, Failure> {
    cx.api.get(&format!("{path}/agent/exec-status?pid={pid}")).await
}

/// Waits for a program's end, at most so many seconds; with 0 for as long as it takes.
pub async fn ended(cx: &Cx, path: &str, pid: &str, seconds: u64) -> Result<Option<Value>, Failure> {
    let until = Instant::now().checked_add(Duration::from_secs(seconds)).filter(|_| seconds > 0);
    loop {
        let now = status(cx, path, pid).await?;
        if now["exited"] == 1 {
            return Ok(Some(now));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(None);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Runs a program in the guest and shows what it prints; fails if that fails.
pub async fn exec(cx: &Cx, vmid: &str, words: &[String], timeout: u64) -> Result<(), Failure> {
    let path = cx.api.vm(vmid).await?;
    let pid = begin(cx, &path, words, None).await?;
    let Some(end) = ended(cx, &path, &pid, timeout).await? else {
        return Err(Failure::failed(format!(
            "it still runs after {timeout} s, as process {pid} of the guest; \
             'qm guest exec-status {vmid} {pid}' shows its end"
        )));
    };
    if cx.format() == Format::Json {
        return output::json(&end);
    }
    std::io::stdout().write_all(text(&end["out-data"]).as_bytes())?;
    std::io::stderr().write_all(text(&end["err-data"]).as_bytes())?;
    for (cut, what) in [("out-truncated", "output"), ("err-truncated", "errors")] {
        if end[cut] == 1 {
            eprintln!("warning: the agent has kept only the beginning of its {what}");
        }
    }
    match (&end["exitcode"], &end["signal"]) {
        (Value::Number(code), _) if code.as_i64() == Some(0) => Ok(()),
        (Value::Number(code), _) => {
            Err(Failure::failed(format!("'{}' ended with exit code {code}", words.join(" "))))
        }
        (_, signal) => {
            Err(Failure::failed(format!("'{}' was ended by signal {}", words.join(" "), text(signal))))
        }
    }
}
