//! What a VM's cloud-init drive holds: `stead vm cloudinit`.

use super::Cx;
use crate::api::text;
use crate::failure::Failure;
use crate::output::{Column, Kind};
use crate::params::{Params, put};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the drive holds, and what it will hold when it is written next
    Pending {
        /// The VM's number
        vmid: String,
    },
    /// Show a part of what the drive would hold if it were written now
    Dump {
        /// The VM's number
        vmid: String,
        /// Which: user, network or meta
        part: String,
    },
    /// Write the drive now; a running guest finds another medium
    Update {
        /// The VM's number
        vmid: String,
    },
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::Pending { vmid } => {
            let columns: [Column; 4] = [
                ("KEY", "key", Kind::Text),
                ("ON THE DRIVE", "value", Kind::Text),
                ("NEXT", "pending", Kind::Text),
                ("REMOVED", "delete", Kind::Truth),
            ];
            cx.format().list(&cx.api.get(&format!("{}/cloudinit", cx.api.vm(&vmid).await?)).await?, &columns)
        }
        Command::Dump { vmid, part } => {
            let mut p = Params::new();
            put(&mut p, "type", Some(part));
            let path = format!("{}/cloudinit/dump", cx.api.vm(&vmid).await?);
            let answer = cx.api.call(http::Method::GET, &path, &p).await?;
            cx.format().done(&answer, text(&answer).trim_end())
        }
        Command::Update { vmid } => {
            let path = format!("{}/cloudinit", cx.api.vm(&vmid).await?);
            let answer = cx.api.put(&path, &Params::new()).await?;
            cx.answer(&answer, &format!("VM {vmid}: its cloud-init drive is written")).await
        }
    }
}
