//! Waiting for a task, as one that was started in the terminal.

use crate::api::{Api, rows, text};
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::params::escape;
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

/// How often a task is asked how it goes.
const PERIOD: Duration = Duration::from_millis(300);
/// A task's node may be away for this long, since daemons are restarted and upgraded under running tasks.
const PATIENCE: Duration = Duration::from_secs(60);
/// Log lines are fetched in parts.
const PART: usize = 500;

/// What becomes of a task's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follow {
    /// Show the result in this form.
    pub format: Format,
    /// Only name the task, and leave it alone.
    pub no_wait: bool,
}

/// The node in `UPID:node:…`.
pub fn node_of(upid: &str) -> Result<&str, Failure> {
    match upid.split(':').collect::<Vec<_>>()[..] {
        ["UPID", node, _, _, _, _, _, _, ""] if !node.is_empty() => Ok(node),
        _ => Err(Failure::usage(format!("'{upid}' is not a UPID"))),
    }
}

/// The path of a task.
pub fn path(upid: &str) -> Result<String, Failure> {
    Ok(format!("/nodes/{}/tasks/{}", escape(node_of(upid)?), escape(upid)))
}

impl Follow {
    /// Shows an answer: a task is followed to its end, anything else was done at once.
    pub async fn answer(self, api: &Api, answer: &Value, said: &str) -> Result<(), Failure> {
        match answer.as_str() {
            Some(upid) if upid.starts_with("UPID:") => self.task(api, upid).await,
            _ => self.format.done(answer, said),
        }
    }

    /// Follows a task, unless nobody wants to; ends as the task does.
    pub async fn task(self, api: &Api, upid: &str) -> Result<(), Failure> {
        if self.no_wait {
            return self.format.done(&json!(upid), upid);
        }
        let mut watch = Watch::new(api, upid, self.format)?;
        let ended = tokio::select! {
            ended = watch.until_end() => ended?,
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::failed(format!(
                    "stopped waiting; the task goes on\n  follow it: stead task log --follow {upid}\n  \
                     stop it:   stead task stop {upid}"
                )));
            }
        };
        if self.format == Format::Json {
            output::json(&json!({ "upid": upid, "exitstatus": ended }))?;
        }
        verdict(&ended)
    }
}

/// Whether a task that ended so has done its work. Warnings are in its log; it has.
fn verdict(exit: &str) -> Result<(), Failure> {
    if exit == "OK" || exit.starts_with("WARNINGS") {
        Ok(())
    } else {
        Err(Failure::failed(format!("task failed: {exit}")))
    }
}

struct Watch<'a> {
    api: &'a Api,
    path: String,
    shown: usize,
    bar: Option<ProgressBar>,
    /// What was said last while the node did not answer.
    said: Option<String>,
    format: Format,
}

impl<'a> Watch<'a> {
    fn new(api: &'a Api, upid: &str, format: Format) -> Result<Self, Failure> {
        let live =
            format == Format::Table && std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let bar = live.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Ok(Self { api, path: path(upid)?, shown: 0, bar, said: None, format })
    }

    /// Shows the log as it grows; gives the exit status.
    async fn until_end(&mut self) -> Result<String, Failure> {
        let mut last_heard = Instant::now();
        loop {
            match self.look().await {
                Ok(Some(exit)) => {
                    if let Some(bar) = self.bar.take() {
                        bar.finish_and_clear();
                    }
                    return Ok(exit);
                }
                Ok(None) => (last_heard, self.said) = (Instant::now(), None),
                Err(Failure::Away(why)) if last_heard.elapsed() <= PATIENCE => {
                    self.say(format!("waiting for the node: {why}"));
                }
                Err(e) => return Err(e),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// One look: new log lines are shown; the exit status if it has ended.
    async fn look(&mut self) -> Result<Option<String>, Failure> {
        // Status before log: what was written before the end is then in the log.
        let status = self.api.get(&format!("{}/status", self.path)).await?;
        self.shown = show_log(self.api, &self.path, self.shown, |line| self.line(line)).await?;
        let ended = status["status"] == "stopped";
        Ok(ended.then(|| status["exitstatus"].as_str().unwrap_or("unknown").to_owned()))
    }

    fn line(&self, line: &str) -> Result<(), Failure> {
        match &self.bar {
            Some(bar) => {
                bar.set_message(line.to_owned());
                bar.suspend(|| output::print(line))
            }
            // Programs read the result on the standard output; the log is for whoever watches.
            None if self.format == Format::Json => {
                let _ = writeln!(std::io::stderr(), "{line}");
                Ok(())
            }
            None => output::print(line),
        }
    }

    /// Says what is waited for; without a terminal once.
    fn say(&mut self, text: String) {
        if self.said.as_ref() == Some(&text) {
            return;
        }
        match &self.bar {
            Some(bar) => bar.set_message(text.clone()),
            None => {
                // Nobody is left to be told if that fails.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
        self.said = Some(text);
    }
}

/// Shows log lines from `from` on; gives how many there are now.
pub async fn show_log(
    api: &Api,
    path: &str,
    from: usize,
    mut show: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let mut shown = from;
    loop {
        let part = vec![("start".to_owned(), shown.to_string()), ("limit".to_owned(), PART.to_string())];
        let log = api.call(Method::GET, &format!("{path}/log"), &part).await?;
        let lines = rows(&log);
        // A log without lines is answered with one that says so.
        let real = lines.iter().filter(|l| text(&l["t"]) != "no content");
        let mut new = 0;
        for line in real {
            show(&text(&line["t"]))?;
            new += 1;
        }
        shown += new;
        if new < PART {
            return Ok(shown);
        }
    }
}

/// Shows a log, and with `follow` what is added until the task ends.
pub async fn log(api: &Api, upid: &str, follow: bool) -> Result<(), Failure> {
    let path = path(upid)?;
    let mut shown = 0;
    loop {
        let ended = api.get(&format!("{path}/status")).await?["status"] == "stopped";
        shown = show_log(api, &path, shown, output::print).await?;
        if ended || !follow {
            return Ok(());
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_stands_in_the_upid() {
        let upid = "UPID:pve1:0000A1B2:00C3D4E5:6564F3A0:qmstart:100:root@pam:";
        assert_eq!(node_of(upid), Ok("pve1"));
        assert!(path(upid).unwrap().starts_with("/nodes/pve1/tasks/UPID%3Apve1%3A"));
        for bad in ["", "UPID:pve1", "UPID::0:0:0:a:b:c:", &upid[..upid.len() - 1]] {
            assert!(matches!(node_of(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn warnings_are_a_success_and_anything_else_is_not() {
        assert_eq!(verdict("OK"), Ok(()));
        assert_eq!(verdict("WARNINGS: 2"), Ok(()));
        assert!(verdict("interrupted").is_err());
    }
}
