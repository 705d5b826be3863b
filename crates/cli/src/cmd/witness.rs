//! `stead witness`: the daemon as a vote without guests. It becomes the daemon, so that whatever starts it (systemd, a shell) watches
//! the real one.

use crate::failure::Failure;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port, as the nodes reach it
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Its name in the cluster; default: the host's name
    #[arg(long)]
    pub name: Option<String>,
}

/// Becomes the daemon, in the folder `dir` if it is given. Returns only if that fails.
pub fn run(args: &Args, dir: Option<&Path>) -> Result<(), Failure> {
    let mut words: Vec<OsString> =
        vec!["--witness".into(), "--listen".into(), args.listen.to_string().into()];
    words.extend(args.name.iter().flat_map(|name| ["--name".into(), name.into()]));
    become_daemon(dir, words)
}

/// Becomes the daemon's program, in the folder `dir` if it is given. Returns only if that fails.
pub fn become_daemon(dir: Option<&Path>, words: Vec<OsString>) -> Result<(), Failure> {
    let here = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join("steadd")));
    let program = here.filter(|p| p.is_file()).unwrap_or_else(|| "steadd".into());
    let mut command = Command::new(&program);
    if let Some(dir) = dir {
        command.arg("--dir").arg(dir);
    }
    command.args(words);
    Err(Failure::failed(format!("can't run {}: {}", program.display(), command.exec())))
}
