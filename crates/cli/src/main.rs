//! `stead`: the command line.
//!
//! It speaks to the API and knows nothing of its own about the cluster: what it can do, any client can. It also
//! answers to the names that administrators know (`qm`, `pvesh`, `pvecm`, `pvesm`, `ha-manager`, `pveum`).
//!
//! Exit codes: 0 done, 1 failed, 2 used wrongly.

mod api;
mod args;
mod cmd;
mod compat;
mod connect;
mod failure;
mod options;
mod output;
mod params;
mod task;
mod terminal;
mod upload;

use failure::Failure;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called =
        args.first().and_then(|a| Path::new(a).file_name()).map(|n| n.to_string_lossy().into_owned());
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return Failure::failed(format!("cannot start: {e}")).report(),
    };
    let tool = called.as_deref().and_then(compat::Tool::by_name).or_else(|| {
        // `stead qm list` is `qm list`, for those who have no links.
        let tool = compat::Tool::by_name(args.get(1)?.to_str()?)?;
        args.remove(0);
        Some(tool)
    });
    let done = match tool {
        Some(tool) => {
            let words = args.into_iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
            runtime.block_on(compat::run(tool, words))
        }
        None => runtime.block_on(cmd::run(args)),
    };
    // A blocked read of the terminal must not keep the process.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
