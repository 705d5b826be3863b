//! The power switch behind the fence process.
//!
//! **Power over the host** exists only where the Debian package has written [`HOST_ARMED`]. Without that file
//! [`HostPower::open`] refuses before it has opened anything, as root too, and so does `--power host`.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Written by the Debian package when it is installed on a machine that is to be a node.
pub const HOST_ARMED: &str = "/etc/stead/host-armed";

/// A power switch that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// The machine was not given to Stead.
    #[error(
        "refused to take power over this machine: {0} does not exist. It is written by the stead package; \
         elsewhere use --power socket:PATH or --power none"
    )]
    NotArmed(PathBuf),
    /// Not a switch.
    #[error("'{0}' is no power switch: it must be none, socket:PATH, watchdog:PATH or host")]
    Syntax(String),
    /// The switch does not work.
    #[error("could not {what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The watchdog's shortest time-out is longer than the profile allows.
    #[error(
        "the watchdog cannot fire within {wanted:?}, its shortest time-out is {got} s: choose a slower fence profile"
    )]
    Watchdog {
        /// D + W, less drift.
        wanted: Duration,
        /// What it would be set to, in seconds.
        got: i32,
    },
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PowerError {
    let path = path.to_owned();
    move |source| PowerError::Io { what, path, source }
}

/// What can be done to the machine when guests cannot be verified safe.
#[derive(Debug)]
pub enum Power {
    /// Nothing. Unverified guests are killed.
    None,
    /// The testbed's power switch: a unix socket that takes `reset\n`.
    Socket(PathBuf),
    /// The same with a watchdog, which `feed MILLISECONDS\n` starts and feeds.
    Watchdog(PathBuf),
    /// This machine: sysrq, and the watchdog behind it.
    Host(HostPower),
}

impl Power {
    /// Reads `none`, `socket:PATH`, `watchdog:PATH` or `host`.
    pub fn parse(text: &str) -> Result<Self, PowerError> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "host" => Ok(Self::Host(HostPower::open(Path::new(HOST_ARMED))?)),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            Some(("watchdog", path)) if !path.is_empty() => Ok(Self::Watchdog(path.into())),
            _ => Err(PowerError::Syntax(text.to_owned())),
        }
    }

    /// `none`, `socket`, `watchdog` or `host`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Socket(_) => "socket",
            Self::Watchdog(_) => "watchdog",
            Self::Host(_) => "host",
        }
    }

    /// Resets the machine. Says whether there is a switch that was asked.
    pub fn reset(&mut self) -> Result<bool, PowerError> {
        match self {
            Self::None => Ok(false),
            Self::Socket(path) | Self::Watchdog(path) => tell(path, "reset\n").map(|()| true),
            Self::Host(host) => host.reset().map(|()| true),
        }
    }

    /// Feeds the watchdog, where there is one.
    pub fn feed(&mut self, timeout: Duration) -> Result<(), PowerError> {
        match self {
            Self::None | Self::Socket(_) => Ok(()),
            Self::Watchdog(path) => tell(path, &format!("feed {}\n", timeout.as_millis())),
            Self::Host(host) => host.feed(timeout),
        }
    }

    /// Whether a machine without lease can be reset within `timeout` (D + W) by the watchdog, if there is one.
    /// The first call starts it.
    pub fn admit(&mut self, timeout: Duration) -> Result<(), PowerError> {
        match self {
            Self::None | Self::Socket(_) => Ok(()),
            // What it counts is told with each feed.
            Self::Watchdog(_) => self.feed(timeout),
            Self::Host(host) => host.set_timeout(timeout),
        }
    }

    /// Stops the watchdog, where there is one: nothing is left to guard.
    pub fn stand_down(&mut self) -> Result<(), PowerError> {
        match self {
            Self::None | Self::Socket(_) => Ok(()),
            Self::Watchdog(path) => tell(path, "stop\n"),
            Self::Host(host) => host.stand_down(),
        }
    }
}

/// A word to the testbed's power switch.
fn tell(path: &Path, word: &str) -> Result<(), PowerError> {
    let mut switch = UnixStream::connect(path).map_err(io("connect to the power switch", path))?;
    let sent = switch.set_write_timeout(Some(Duration::from_millis(100)));
    sent.and_then(|()| switch.write_all(word.as_bytes())).map_err(io("tell the power switch", path))
}

/// Power over this machine.
#[derive(Debug)]
pub struct HostPower {
    /// Opened at the start: when it is needed, no disk may answer any more.
    sysrq: std::fs::File,
    watchdog: Watchdog,
}

/// The kernel's watchdog. Opening it starts it, so it is opened when the first lease comes: a node that waits for its
/// cluster, maybe for hours, has nothing to be reset for.
#[derive(Debug)]
enum Watchdog {
    /// Not needed yet.
    Closed,
    /// Resets the machine unless it is fed within so many seconds.
    Armed { file: std::fs::File, seconds: i32 },
    /// There is none that could be used.
    Absent,
}

const SYSRQ: &str = "/proc/sysrq-trigger";
const WATCHDOG: &str = "/dev/watchdog";

impl HostPower {
    /// Opens sysrq and the watchdog, if the machine was given to Stead.
    fn open(armed: &Path) -> Result<Self, PowerError> {
        if !armed.exists() {
            return Err(PowerError::NotArmed(armed.to_owned()));
        }
        let sysrq = open_to_write(SYSRQ).map_err(io("open", Path::new(SYSRQ)))?;
        if !Path::new(WATCHDOG).exists() {
            without_watchdog("it does not exist");
        }
        Ok(Self { sysrq, watchdog: Watchdog::Closed })
    }

    /// `b`: reset at once, without sync or unmount: whatever is not on the disks now must not get there.
    fn reset(&mut self) -> Result<(), PowerError> {
        self.sysrq.write_all(b"b").map_err(io("write to", Path::new(SYSRQ)))
    }

    fn feed(&mut self, timeout: Duration) -> Result<(), PowerError> {
        self.set_timeout(timeout)?;
        match &mut self.watchdog {
            Watchdog::Armed { file, .. } => file.write_all(b"\0").map_err(io("feed", Path::new(WATCHDOG))),
            Watchdog::Closed | Watchdog::Absent => Ok(()),
        }
    }

    /// Arms the watchdog if it is not. One that was armed for this and cannot keep the time is stopped again: nothing
    /// would feed it.
    fn set_timeout(&mut self, timeout: Duration) -> Result<(), PowerError> {
        let first = matches!(self.watchdog, Watchdog::Closed);
        if first {
            self.watchdog = match open_to_write(WATCHDOG) {
                Ok(file) => Watchdog::Armed { file, seconds: 0 },
                Err(e) => {
                    without_watchdog(&e.to_string());
                    Watchdog::Absent
                }
            };
        }
        let Watchdog::Armed { file, seconds } = &mut self.watchdog else { return Ok(()) };
        let set = set_seconds(file, seconds, timeout);
        if set.is_err() && first {
            self.stand_down()?;
        }
        set
    }

    fn stand_down(&mut self) -> Result<(), PowerError> {
        if let Watchdog::Armed { file, .. } = &mut self.watchdog {
            // The letter says that the close that follows is meant; without it the watchdog goes on.
            file.write_all(b"V").map_err(io("stop", Path::new(WATCHDOG)))?;
        }
        self.watchdog = Watchdog::Closed;
        Ok(())
    }
}

fn open_to_write(path: &str) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().write(true).open(path)
}

fn without_watchdog(why: &str) {
    crate::log(&format!(
        "no watchdog ({WATCHDOG}: {why}): if this process hangs, nothing resets the machine. Load a driver, or softdog"
    ));
}

fn set_seconds(file: &std::fs::File, seconds: &mut i32, timeout: Duration) -> Result<(), PowerError> {
    let wanted = whole_seconds(timeout)?;
    if wanted == *seconds {
        return Ok(());
    }
    // SAFETY: WDIOC_SETTIMEOUT reads and writes one int, and SetTimeout gives it one that outlives the call.
    let got = unsafe { rustix::ioctl::ioctl(file, SetTimeout(wanted)) };
    let got = got.map_err(|e| io("set the time-out of", Path::new(WATCHDOG))(e.into()))?;
    // What it counts now, wanted or not: the next feed asks again where it is too long.
    *seconds = got;
    if got > wanted { Err(PowerError::Watchdog { wanted: timeout, got }) } else { Ok(()) }
}

/// The longest time-out that a watchdog, which counts in seconds, can have.
fn whole_seconds(timeout: Duration) -> Result<i32, PowerError> {
    match i32::try_from(timeout.as_secs()) {
        Ok(0) => Err(PowerError::Watchdog { wanted: timeout, got: 1 }),
        Ok(seconds) => Ok(seconds),
        Err(_) => Ok(i32::MAX),
    }
}

/// `WDIOC_SETTIMEOUT`: seconds in, the seconds that the driver chose out.
struct SetTimeout(i32);

// SAFETY: the opcode is `_IOWR('W', 6, int)`; the pointer is to an int that lives as long as the value.
unsafe impl rustix::ioctl::Ioctl for SetTimeout {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        rustix::ioctl::opcode::read_write::<i32>(b'W', 6)
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        (&raw mut self.0).cast()
    }

    // SAFETY: called by rustix after the call succeeded, with the pointer that `as_ptr` gave.
    unsafe fn output_from_ptr(
        _: rustix::ioctl::IoctlOutput,
        ptr: *mut rustix::ffi::c_void,
    ) -> rustix::io::Result<i32> {
        // SAFETY: see above: it points to the int of `self`.
        Ok(unsafe { *ptr.cast::<i32>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_power_is_refused_on_a_machine_that_was_not_given_to_stead() {
        let dir = tempfile::tempdir().unwrap();
        let refused = HostPower::open(&dir.path().join("host-armed")).unwrap_err();
        assert!(matches!(refused, PowerError::NotArmed(_)), "{refused}");
        assert!(refused.to_string().contains("does not exist"));
    }

    #[test]
    fn a_time_below_a_second_is_beyond_every_watchdog() {
        assert!(matches!(
            whole_seconds(Duration::from_millis(990)),
            Err(PowerError::Watchdog { got: 1, .. })
        ));
        assert_eq!(whole_seconds(Duration::from_millis(2970)).unwrap(), 2, "never later than asked");
    }

    #[test]
    fn switches_are_named_as_documented() {
        assert!(matches!(Power::parse("none"), Ok(Power::None)));
        assert!(matches!(Power::parse("socket:/run/x"), Ok(Power::Socket(p)) if p == Path::new("/run/x")));
        assert!(
            matches!(Power::parse("watchdog:/run/x"), Ok(Power::Watchdog(p)) if p == Path::new("/run/x"))
        );
        for wrong in ["", "sock:/x", "socket:", "none:1", "host:/x"] {
            assert!(matches!(Power::parse(wrong), Err(PowerError::Syntax(_))), "{wrong}");
        }
    }
}
