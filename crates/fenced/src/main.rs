//! `stead-fenced --socket PATH --power none|socket:PATH|host`

use rustix::mm::{MlockAllFlags, mlockall};
use std::error::Error;
use std::path::{Path, PathBuf};
use stead_fenced::Server;
use stead_fenced::client::Client;
use stead_fenced::notify::{READY, notify};
use stead_fenced::power::Power;
use stead_fenced::protocol::Op;

const USAGE: &str = "usage: stead-fenced --socket PATH [--power none|socket:PATH|host]
       stead-fenced --socket PATH --stand-down

The fence process of a Stead node: guards the guests that are registered with it, and makes them safe when the
node's lease ends. Started by steadd, or by the service manager for it.

  --socket PATH         where the daemon connects; PATH.state and PATH.lock lie beside it
  --power none          no power switch (the default): a guest that cannot be made safe is killed
  --power socket:PATH   a testbed's power switch
  --power host          this machine's own; refused unless the stead package has armed it
  --stand-down          tells the one that serves PATH to stop the watchdog and to end; refused while it guards a
                        guest that lives. Without this a fence process that ends has its machine reset
";

struct Options {
    socket: PathBuf,
    power: String,
    stand_down: bool,
}

fn options() -> Result<Option<Options>, String> {
    let (mut socket, mut power, mut stand_down) = (None, "none".to_owned(), false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value\n\n{USAGE}"));
        match &*arg {
            "--socket" => socket = Some(PathBuf::from(value()?)),
            "--power" => power = value()?,
            "--stand-down" => stand_down = true,
            "--help" | "-h" => print!("{USAGE}"),
            "--version" | "-V" => println!("stead-fenced {}", env!("CARGO_PKG_VERSION")),
            _ => return Err(format!("unknown option {arg}\n\n{USAGE}")),
        }
        if matches!(&*arg, "--help" | "-h" | "--version" | "-V") {
            return Ok(None);
        }
    }
    let socket = socket.ok_or(format!("--socket is missing\n\n{USAGE}"))?;
    Ok(Some(Options { socket, power, stand_down }))
}

/// Keeps this process in memory and out of the kernel's reach when memory runs out. Neither is vital.
fn hold_on() {
    if let Err(e) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        eprintln!(
            "stead-fenced: memory is not locked ({e}): a machine short of memory may delay the fence process"
        );
    }
    // Needs CAP_SYS_RESOURCE; without it the process is one of many.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Whether a file's folder is in memory. What cannot be told is on a disk.
fn in_memory(path: &Path) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    let folder = path.parent().unwrap_or(Path::new("."));
    rustix::fs::statfs(folder).is_ok_and(|fs| fs.f_type == TMPFS)
}

fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = options()? else { return Ok(()) };
    if options.stand_down {
        Client::connect(&options.socket)?.call(Op::StandDown)?;
        return Ok(());
    }
    let power = Power::parse(&options.power)?;
    if matches!(power, Power::None) {
        eprintln!(
            "stead-fenced: NO POWER SWITCH. A guest that cannot be made safe is killed, which is no substitute for a \
             reset of the machine: writes on their way may still reach its disks. For tests and demonstrations only."
        );
    }
    if matches!(power, Power::Host(_)) && !in_memory(&options.socket) {
        eprintln!(
            "stead-fenced: {} lies on a disk: if that disk hangs, so may this process, and the watchdog resets the \
             machine. Mount a tmpfs there",
            options.socket.display()
        );
    }
    let server = Server::open(&options.socket, power)?;
    hold_on();
    eprintln!("stead-fenced: serving {}", options.socket.display());
    notify(READY);
    Ok(server.serve()?)
}

fn main() -> std::process::ExitCode {
    let Err(e) = run() else { return std::process::ExitCode::SUCCESS };
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text.push_str(&format!(": {s}"));
        source = s.source();
    }
    eprintln!("stead-fenced: {text}");
    std::process::ExitCode::FAILURE
}
