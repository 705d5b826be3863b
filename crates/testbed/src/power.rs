//! A node's power switch: where its fence process asks for a reset, instead of touching the machine.
//!
//! The switch is a thread with a socket. `reset` cuts the node off and kills all its processes at once, in that thread, as
//! a machine's reset does; `off` and `reboot`, which a node asks for that goes down in order, do the same and are counted by themselves.
//! `feed MILLISECONDS` starts and feeds a watchdog, which resets the node by itself, whatever has become of its processes.
//! Whether the node starts again is the testbed's choice, told by an event.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running switch. Ends when dropped.
#[derive(Debug)]
pub struct Switch {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    resets: AtomicU32,
    bites: AtomicU32,
    orders: AtomicU32,
    /// When the watchdog resets the node; it is not started if none.
    watchdog: Mutex<Option<Instant>>,
}

impl Shared {
    fn watchdog(&self) -> MutexGuard<'_, Option<Instant>> {
        self.watchdog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a word. Says which end of the node it counts as, if it is one.
    fn take(&self, word: &str) -> Option<&AtomicU32> {
        match word.split_once(' ') {
            Some(("feed", ms)) => {
                let time = Duration::from_millis(ms.parse().ok()?);
                *self.watchdog() = Some(Instant::now() + time);
                None
            }
            _ if word == "stop" => {
                *self.watchdog() = None;
                None
            }
            _ if word == "reset" => Some(&self.resets),
            _ if word == "off" || word == "reboot" => Some(&self.orders),
            _ => None,
        }
    }
}

impl Switch {
    /// Listens at `path` and calls `off` at every reset, when the watchdog bites, and at every order to go down.
    pub fn start(path: &Path, off: impl Fn() + Send + 'static) -> Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("the power switch at {}", path.display()))?;
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let serve = move || {
            while !its.stop.load(SeqCst) {
                let due = *its.watchdog();
                if !comes_before(&listener, due) {
                    off();
                    *its.watchdog() = None;
                    its.bites.fetch_add(1, SeqCst);
                    continue;
                }
                let Ok((stream, _)) = listener.accept() else { continue };
                let Some(count) = word(&stream).and_then(|word| its.take(&word)) else { continue };
                off();
                *its.watchdog() = None;
                count.fetch_add(1, SeqCst);
                // Whoever waits for the end of the connection knows by it that all is done.
                drop(stream);
            }
        };
        let thread = std::thread::Builder::new().name("power".to_owned()).spawn(serve)?;
        Ok(Self { path: path.to_owned(), shared, thread: Some(thread) })
    }

    /// How often the node was reset by its own fence process.
    pub fn resets(&self) -> u32 {
        self.shared.resets.load(SeqCst)
    }

    /// How often the node was reset by its watchdog.
    pub fn bites(&self) -> u32 {
        self.shared.bites.load(SeqCst)
    }

    /// How often the node went down in order.
    pub fn orders(&self) -> u32 {
        self.shared.orders.load(SeqCst)
    }

    /// The node has no power: its watchdog counts no more.
    pub fn unplug(&self) {
        *self.shared.watchdog() = None;
    }
}

/// Waits for a connection, or for that moment. Whether a connection came first.
fn comes_before(listener: &UnixListener, due: Option<Instant>) -> bool {
    loop {
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return false;
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        // Cut short by a signal, or too early by what a timer is: again.
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0) {
            return true;
        }
    }
}

/// One line, without its end.
fn word(stream: &UnixStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(16)).read_line(&mut line).ok()?;
    line.strip_suffix('\n').map(str::to_owned)
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        let woken = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc;

    #[test]
    fn only_a_reset_resets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("power");
        let (tx, rx) = mpsc::channel();
        let switch = Switch::start(&path, move || tx.send(()).unwrap()).unwrap();
        UnixStream::connect(&path).unwrap().write_all(b"hello\n").unwrap();
        UnixStream::connect(&path).unwrap().write_all(b"reset\n").unwrap();
        rx.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(switch);
        assert!(rx.try_recv().is_err());
        assert!(!path.exists());
    }

    #[test]
    fn a_watchdog_that_is_not_fed_resets_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("power");
        let (tx, rx) = mpsc::channel();
        let switch = Switch::start(&path, move || tx.send(Instant::now()).unwrap()).unwrap();
        let tell = |word: &[u8]| UnixStream::connect(&path).unwrap().write_all(word).unwrap();
        tell(b"feed 60000\n");
        let fed = Instant::now();
        tell(b"feed 300\n");
        let bit = rx.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(bit >= fed + Duration::from_millis(300));
        tell(b"feed 60000\n");
        tell(b"stop\n");
        tell(b"reset\n");
        rx.recv_timeout(Duration::from_secs(10)).unwrap();
        let shared = Arc::clone(&switch.shared);
        drop(switch);
        assert_eq!((shared.bites.load(SeqCst), shared.resets.load(SeqCst)), (1, 1));
    }
}
