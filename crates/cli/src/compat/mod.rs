//! The tools that administrators know, by their names and verbs, as far as their subject exists.
//!
//! Their options are not declared one by one: `--name value` goes to the API as it is, and the API says what it
//! does not know. Connection and sign-in come from the environment (`STEAD_DIR`, `STEAD_SERVER`, …), since these
//! tools have no options for it.

mod cluster;
mod qm;
mod storage;
mod token;

use crate::api::truth;
use crate::cmd::{Cx, raw};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output::Format;
use crate::params::{Params, divide, take};
use crate::task::Follow;

/// A tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Virtual machines.
    Qm,
    /// The API as it is.
    Pvesh,
    /// The cluster.
    Pvecm,
    /// Storages.
    Pvesm,
    /// High availability.
    HaManager,
    /// Users, of which the tokens.
    Pveum,
    /// One that is not there yet: its name, and what it is for.
    Missing(&'static str, &'static str),
}

impl Tool {
    /// The tool of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "qm" => Self::Qm,
            "pvesh" => Self::Pvesh,
            "pvecm" => Self::Pvecm,
            "pvesm" => Self::Pvesm,
            "ha-manager" => Self::HaManager,
            "pveum" => Self::Pveum,
            "pct" => Self::Missing("pct", "containers are"),
            "vzdump" => Self::Missing("vzdump", "backups are"),
            "qmrestore" => Self::Missing("qmrestore", "restoring backups is"),
            _ => return None,
        })
    }

    fn help(self) -> &'static str {
        match self {
            Self::Qm => qm::HELP,
            Self::Pvesh => PVESH,
            Self::Pvecm => cluster::PVECM,
            Self::Pvesm => storage::HELP,
            Self::HaManager => cluster::HA_MANAGER,
            Self::Pveum => token::HELP,
            Self::Missing(..) => "",
        }
    }
}

const PVESH: &str = "\
pvesh: the API as it is

  pvesh get PATH [--NAME VALUE …]
  pvesh create PATH [--NAME VALUE …]
  pvesh set PATH [--NAME VALUE …]
  pvesh delete PATH [--NAME VALUE …]
  pvesh ls PATH
  pvesh usage PATH

  --output-format text|json|json-pretty
";

/// A verb's words, divided.
#[derive(Debug)]
pub struct Words {
    alone: Vec<String>,
    /// The options.
    pub params: Params,
}

impl Words {
    /// The next word that stands alone; `what` says what is missing if there is none.
    pub fn next(&mut self, what: &str) -> Result<String, Failure> {
        if self.alone.is_empty() {
            return Err(Failure::usage(format!("{what} is missing")));
        }
        Ok(self.alone.remove(0))
    }

    /// No words may be left.
    pub fn end(&self) -> Result<(), Failure> {
        match self.alone.first() {
            Some(word) => Err(Failure::usage(format!("'{word}' is one word too many"))),
            None => Ok(()),
        }
    }

    /// Neither words nor options may be left.
    pub fn nothing(&self) -> Result<(), Failure> {
        self.end()?;
        no_more(&self.params)
    }
}

/// No options may be left.
fn no_more(params: &Params) -> Result<(), Failure> {
    match params.first() {
        Some((name, _)) => Err(Failure::usage(format!("there is no option --{name} here"))),
        None => Ok(()),
    }
}

/// Parses and does it.
pub async fn run(tool: Tool, words: Vec<String>) -> Result<(), Failure> {
    if let Tool::Missing(name, what) = tool {
        return Err(Failure::failed(format!("{name}: {what} not supported yet")));
    }
    let mut words = words.into_iter();
    let verb = match words.next().as_deref() {
        None => return Err(Failure::Told { text: tool.help().into(), good: false }),
        Some("help" | "--help" | "-h") => return Err(Failure::Told { text: tool.help().into(), good: true }),
        Some(verb) => verb.to_owned(),
    };
    let (alone, mut params) = divide(words)?;
    if params.iter().any(|(name, _)| name == "help" || name == "h") {
        return Err(Failure::Told { text: tool.help().into(), good: true });
    }
    let format = match take(&mut params, "output-format").as_deref() {
        None | Some("text") => Format::Table,
        Some("json" | "json-pretty") => Format::Json,
        Some("yaml") => {
            return Err(Failure::usage(
                "--output-format: yaml is not supported yet; use json or json-pretty",
            ));
        }
        Some(other) => {
            return Err(Failure::usage(format!(
                "--output-format: '{other}' is not text, json or json-pretty"
            )));
        }
    };
    // It belongs to the original's way of working on one node.
    take(&mut params, "noproxy");
    if take(&mut params, "quiet").is_some_and(|v| truth(&v.as_str().into())) {
        return Err(Failure::usage("--quiet: that is not supported yet; send the output to /dev/null"));
    }
    looks(&mut params)?;
    let api = Connection::from_env().open().await?;
    let cx = Cx { api, follow: Follow { format, no_wait: false } };
    let words = Words { alone, params };
    match tool {
        Tool::Qm => qm::run(&cx, &verb, words).await,
        Tool::Pvesh => pvesh(&cx, &verb, words).await,
        Tool::Pvecm => cluster::pvecm(&cx, &verb, words).await,
        Tool::Pvesm => storage::run(&cx, &verb, words).await,
        Tool::HaManager => cluster::ha_manager(&cx, &verb, words).await,
        Tool::Pveum => token::run(&cx, &verb, words).await,
        Tool::Missing(..) => Err(unknown(tool, &verb)),
    }
}

/// Takes out what the originals' tables can be told to look like, since it is for no API to know.
fn looks(params: &mut Params) -> Result<(), Failure> {
    // Tables have no border.
    take(params, "noborder");
    for (name, without) in [("noheader", "0"), ("human-readable", "1")] {
        if let Some(value) = take(params, name)
            && truth(&value.as_str().into()) != (without == "1")
        {
            return Err(Failure::usage(format!(
                "--{name} {value}: that is not supported yet; --output-format json has neither headings nor units"
            )));
        }
    }
    Ok(())
}

async fn pvesh(cx: &Cx, verb: &str, mut words: Words) -> Result<(), Failure> {
    let path = words.next("the path")?;
    words.end()?;
    raw::call(cx, verb, &path, &words.params).await
}

/// No such verb.
fn unknown(tool: Tool, verb: &str) -> Failure {
    Failure::Told { text: format!("error: there is no '{verb}' here\n\n{}", tool.help()), good: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_missing_or_too_many_are_named() {
        let mut words = Words { alone: vec!["100".into(), "x".into()], params: vec![] };
        assert_eq!(words.next("the VMID").unwrap(), "100");
        assert_eq!(words.end(), Err(Failure::usage("'x' is one word too many")));
        assert_eq!(words.next("the target node").unwrap(), "x");
        assert_eq!(words.next("the target node"), Err(Failure::usage("the target node is missing")));
        words.params.push(("y".into(), "1".into()));
        assert_eq!(words.nothing(), Err(Failure::usage("there is no option --y here")));
    }
}
