//! `stead mapping`.

use super::Cx;
use crate::failure::Failure;
use crate::output::{Column, Format, Kind};
use crate::params::{Params, escape, put};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

const COLUMNS: [Column; 4] = [
    ("NAME", "id", Kind::Text),
    ("MAP", "places", Kind::Text),
    ("DESCRIPTION", "description", Kind::Text),
    ("WRONG", "wrong", Kind::Text),
];

/// What is mapped.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Of {
    /// PCI devices
    Pci,
    /// USB devices
    Usb,
    /// Directories
    Dir,
}

impl Of {
    fn path(self) -> &'static str {
        match self {
            Self::Pci => "/cluster/mapping/pci",
            Self::Usb => "/cluster/mapping/usb",
            Self::Dir => "/cluster/mapping/dir",
        }
    }
}

/// What is said of a mapping.
#[derive(Debug, Args)]
pub struct Given {
    /// What a node has: 'node=pve1,id=046d:c52b,path=1-2.3'. All of them take the place of what there is
    #[arg(long, value_name = "WORDS")]
    map: Vec<String>,
    /// For people
    #[arg(long)]
    description: Option<String>,
    /// Of PCI devices: give away mediated devices that they make (1, 0)
    #[arg(long, value_name = "ON")]
    mdev: Option<u8>,
    /// Of PCI devices: a running VM can move with them (1, 0)
    #[arg(long, value_name = "ON")]
    live_migration_capable: Option<u8>,
}

impl Given {
    fn params(self) -> Params {
        let mut p = Params::new();
        self.map.into_iter().for_each(|entry| put(&mut p, "map", Some(entry)));
        put(&mut p, "description", self.description);
        put(&mut p, "mdev", self.mdev);
        put(&mut p, "live-migration-capable", self.live_migration_capable);
        p
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the mappings of a kind that you may see
    List {
        /// What is mapped
        of: Of,
        /// Say what is wrong with each on this node
        #[arg(long, value_name = "NODE")]
        check: Option<String>,
    },
    /// Make a mapping: one name for what each node has of its own
    #[command(
        after_help = "A VM that uses it ('stead vm set 100 usb0 mapping=key') runs on any node that it names.\n\nExamples:\n  \
                      stead mapping add usb key --map node=pve1,id=046d:c52b --map node=pve2,id=046d:c52b,path=1-2\n  \
                      stead mapping add pci gpu --map node=pve1,id=10de:2204,path=0000:01:00\n  \
                      stead mapping add dir iso --map node=pve1,path=/srv/iso"
    )]
    Add {
        /// What is mapped
        of: Of,
        /// Its name
        name: String,
        #[command(flatten)]
        given: Given,
    },
    /// Change a mapping
    Set {
        /// What is mapped
        of: Of,
        /// Its name
        name: String,
        #[command(flatten)]
        given: Given,
        /// What to take out: description, mdev, live-migration-capable
        #[arg(long, value_name = "OPTION")]
        delete: Vec<String>,
    },
    /// Remove a mapping; a VM that uses it does not start any more
    Remove {
        /// What is mapped
        of: Of,
        /// Its name
        name: String,
    },
}

fn path(of: Of, name: &str) -> String {
    format!("{}/{}", of.path(), escape(name))
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { of, check } => list(cx, of, check).await,
        Command::Add { of, name, given } => {
            let mut p = given.params();
            put(&mut p, "id", Some(&name));
            cx.format().done(&cx.api.post(of.path(), &p).await?, &format!("mapping '{name}' made"))
        }
        Command::Set { of, name, given, delete } => {
            let mut p = given.params();
            if matches!(of, Of::Usb) && !p.iter().any(|(key, _)| key == "map") {
                // The API wants it each time.
                let now = cx.api.get(&path(of, &name)).await?;
                let entries = now["map"].as_array().into_iter().flatten().filter_map(Value::as_str);
                entries.for_each(|entry| put(&mut p, "map", Some(entry)));
            }
            if !delete.is_empty() {
                put(&mut p, "delete", Some(delete.join(",")));
            }
            cx.format().done(&cx.api.put(&path(of, &name), &p).await?, &format!("mapping '{name}' changed"))
        }
        Command::Remove { of, name } => {
            let answer = cx.api.delete(&path(of, &name), &Params::new()).await?;
            cx.format().done(&answer, &format!("mapping '{name}' removed"))
        }
    }
}

async fn list(cx: &Cx, of: Of, check: Option<String>) -> Result<(), Failure> {
    let query = check.map_or_else(String::new, |node| format!("?check-node={}", escape(&node)));
    let mut all = cx.api.get(&format!("{}{query}", of.path())).await?;
    if cx.format() == Format::Table {
        for row in all.as_array_mut().into_iter().flatten() {
            let words = |value: &Value, of: fn(&Value) -> Option<&str>| {
                let parts = value.as_array().into_iter().flatten().filter_map(of);
                parts.collect::<Vec<_>>().join("; ")
            };
            row["places"] = words(&row["map"], Value::as_str).into();
            let faults = if row["error"].is_array() { &row["error"] } else { &row["checks"] };
            row["wrong"] = words(faults, |fault| fault["message"].as_str()).into();
        }
    }
    cx.format().list(&all, &COLUMNS)
}
