//! Process 1 of a machine that `stead-fenced` has power over: plays the daemon, by a scenario of the kernel's command line.
//!
//! Here alone, behind an emulated machine's walls, `--power host` can be tried: sysrq, and the kernel's `softdog`. What
//! happens is told on the serial port, a word a line; a machine that is reset says nothing more, and one
//! that has outlived its scenario says `alive` and switches itself off.

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

const SOCKET: &str = "/run/fenced.sock";
/// L, D and W in ms.
type Times = (u64, u64, u64);
/// Those of the profile `fast`, and how often it asks.
const TIMES: Times = (1500, 500, 1000);
const HEARTBEAT: Duration = Duration::from_millis(200);
/// The same of `default` and `wan`.
const DEFAULT: (Times, Duration) = ((4000, 1000, 2000), Duration::from_millis(500));
const WAN: (Times, Duration) = ((20_000, 5000, 5000), Duration::from_millis(2000));
/// Longer than any lease of those, with all that follows it.
const LONGEST: Duration = Duration::from_secs(31);
/// Longer than any of the times, softdog's own included.
const LONG: Duration = Duration::from_secs(6);

const FINIT_MODULE: c_long = 313;
const SIGKILL: c_int = 9;
const SIGSTOP: c_int = 19;
const RB_POWER_OFF: c_int = 0x4321_fedc;

unsafe extern "C" {
    fn mount(
        what: *const c_char,
        at: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn reboot(how: c_int) -> c_int;
}

fn main() {
    if let Err(e) = setup().and_then(|scenario| play(&scenario)) {
        say(&format!("failed: {e}"));
    }
    // SAFETY: no memory is involved.
    unsafe { reboot(RB_POWER_OFF) };
}

/// A line on the serial port, written when this returns.
fn say(word: &str) {
    println!("stead-machine {word}");
    let _ = io::stdout().flush();
}

fn setup() -> io::Result<String> {
    for (kind, at) in [(c"devtmpfs", c"/dev"), (c"proc", c"/proc"), (c"tmpfs", c"/run")] {
        mount_at(kind, at)?;
    }
    let line = fs::read_to_string("/proc/cmdline")?;
    let scenario = line.split_whitespace().find_map(|w| w.strip_prefix("scenario="));
    Ok(scenario.ok_or_else(|| io::Error::other("no scenario"))?.to_owned())
}

fn mount_at(kind: &CStr, at: &CStr) -> io::Result<()> {
    // SAFETY: all are texts that end with a zero byte; no data goes with them.
    match unsafe { mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel's software watchdog, which resets `LONG / 2` after it was opened, unless it is told another time.
fn watchdog() -> io::Result<()> {
    for module in fs::read_to_string("/modules/order")?.lines() {
        let file = File::open(format!("/modules/{module}"))?;
        let parameters = if module == "softdog.ko" { c"soft_margin=3" } else { c"" };
        // SAFETY: the descriptor is open, the parameters are a text that ends with a zero byte, the flags none.
        if unsafe { syscall(FINIT_MODULE, file.as_raw_fd(), parameters.as_ptr(), 0 as c_int) } != 0 {
            return Err(io::Error::other(format!("{module}: {}", io::Error::last_os_error())));
        }
    }
    Ok(())
}

fn play(scenario: &str) -> io::Result<()> {
    if scenario != "unverified" {
        watchdog()?;
    }
    let mut fence = Fence::start()?;
    let began = Instant::now();
    say("began");
    match scenario {
        // A node that waits for its cluster.
        "waiting" => sleep(LONG),
        // A node with a lease, then without, with nothing that could run.
        "quiet" => {
            fence.renew_for(LONG)?;
            fence.ask(&register("/run/none.pid"))?;
            say("lease ends");
            sleep(LONG);
            fence.renew_for(Duration::from_secs(1))?;
        }
        // Told to stand down.
        "stood-down" => {
            fence.renew_for(Duration::from_secs(1))?;
            let told = Command::new("/stead-fenced").args(["--socket", SOCKET, "--stand-down"]).status()?;
            if !told.success() || !fence.process.wait()?.success() {
                return Err(io::Error::other("it did not stand down"));
            }
            sleep(LONG);
        }
        // The fence process hangs, under a good lease.
        "hung" => {
            fence.renew_for(Duration::from_secs(2))?;
            fence.signal(SIGSTOP);
            say("hung");
            sleep(LONG);
        }
        // It dies, and nobody starts it again.
        "killed" => {
            fence.renew_for(Duration::from_secs(2))?;
            fence.signal(SIGKILL);
            say("killed");
            sleep(LONG);
        }
        // It dies, and is started again.
        "replaced" => {
            fence.renew_for(Duration::from_secs(2))?;
            fence.signal(SIGKILL);
            fence.process.wait()?;
            fence = Fence::start()?;
            say("replaced");
            sleep(LONG);
            fence.renew_for(Duration::from_secs(1))?;
        }
        // A guest that cannot be verified, a lease that ends, and no watchdog.
        "unverified" => {
            fence.renew_for(Duration::from_secs(1))?;
            fence.guest()?;
            let nonce = fence.renew()?;
            sleep_until(nonce + Duration::from_millis(TIMES.0));
            say("lease ends");
            sleep(LONG);
        }
        // The profile is changed under a guest: to shorter times, and to longer ones.
        "shorter" => fence.change(WAN, Duration::from_secs(9), DEFAULT, LONGEST)?,
        "longer" => fence.change(DEFAULT, Duration::from_secs(5), WAN, LONGEST)?,
        // And then it hangs, when the longer lease is over.
        "shorter-hung" => {
            fence.change(WAN, Duration::from_secs(3), DEFAULT, LONGEST)?;
            fence.signal(SIGSTOP);
            say("hung");
            sleep(LONGEST);
        }
        // Times that no watchdog can keep.
        "too-fast" => match fence.renew_with((1500, 400, 500)) {
            Err(e) if e.to_string().contains("choose a slower fence profile") => sleep(LONG),
            other => return Err(io::Error::other(format!("a lease that no watchdog backs: {other:?}"))),
        },
        other => return Err(io::Error::other(format!("no scenario '{other}'"))),
    }
    say(&format!("alive after {} ms", began.elapsed().as_millis()));
    Ok(())
}

fn sleep_until(moment: Instant) {
    sleep(moment.saturating_duration_since(Instant::now()));
}

fn register(pidfile: &str) -> String {
    format!(
        r#""op":"register","vmid":100,"epoch":1,"cgroup":null,"monitor":"/run/none.sock","pidfile":"{pidfile}""#
    )
}

struct Fence {
    process: Child,
    stream: BufReader<UnixStream>,
}

impl Fence {
    fn start() -> io::Result<Self> {
        let mut process =
            Command::new("/stead-fenced").args(["--socket", SOCKET, "--power", "host"]).spawn()?;
        // An earlier one's socket refuses until the new one has taken its place.
        for _ in 0..200 {
            if let Some(status) = process.try_wait()? {
                return Err(io::Error::other(format!("stead-fenced ended with {status}")));
            }
            match UnixStream::connect(Path::new(SOCKET)) {
                Ok(stream) => return Ok(Self { process, stream: BufReader::new(stream) }),
                Err(_) => sleep(Duration::from_millis(20)),
            }
        }
        Err(io::Error::other("stead-fenced does not listen"))
    }

    fn signal(&self, signal: c_int) {
        // SAFETY: no memory is involved; the process is a child that nobody has waited for.
        unsafe { kill(self.process.id() as c_int, signal) };
    }

    /// Sends a request without its braces and id; its answer, or the refusal as an error.
    fn ask(&mut self, op: &str) -> io::Result<String> {
        writeln!(self.stream.get_mut(), r#"{{"id":1,{op}}}"#)?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        if answer.contains(r#""ok":"#) { Ok(answer) } else { Err(io::Error::other(answer)) }
    }

    /// Registers a process that nobody can pause.
    fn guest(&mut self) -> io::Result<()> {
        let guest = Command::new("/bin/busybox").args(["sleep", "1000"]).spawn()?;
        fs::write("/run/guest.pid", format!("{}\n", guest.id()))?;
        self.ask(&register("/run/guest.pid")).map(drop)
    }

    /// With a guest under leases of one kind for so long, then of another kind.
    fn change(
        &mut self,
        before: (Times, Duration),
        first: Duration,
        after: (Times, Duration),
        then: Duration,
    ) -> io::Result<()> {
        self.renew_with(before.0)?;
        self.guest()?;
        self.renew_by(before, first)?;
        say("changed");
        self.renew_by(after, then)
    }

    /// As a leader grants a heartbeat at once; the moment from which the lease counts.
    fn renew(&mut self) -> io::Result<Instant> {
        self.renew_with(TIMES)
    }

    fn renew_with(&mut self, (lease, drain, watchdog): Times) -> io::Result<Instant> {
        let from = Instant::now();
        let answer = self.ask(r#""op":"nonce""#)?;
        let nonce = answer.rsplit(':').next().unwrap_or_default().trim_end().trim_end_matches('}');
        self.ask(&format!(
            r#""op":"renew","nonce":{nonce},"lease_ms":{lease},"drain_ms":{drain},"watchdog_ms":{watchdog}"#
        ))?;
        Ok(from)
    }

    fn renew_for(&mut self, time: Duration) -> io::Result<()> {
        self.renew_by((TIMES, HEARTBEAT), time)
    }

    fn renew_by(&mut self, (times, heartbeat): (Times, Duration), time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.renew_with(times)?;
            sleep(heartbeat);
        }
        Ok(())
    }
}
