//! A node's power switch: where its fence process asks for a reset, instead of touching the machine.
//!
//! The switch is a thread with a socket. `reset` cuts the node off and kills all its processes at once, in that thread, as
//! a machine's reset does; `off` and `reboot`, which a node asks for that goes down in order, do the same and are counted by themselves.
//! Whether the node starts again is the testbed's choice, told by an event.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running switch. Ends when dropped.
#[derive(Debug)]
pub struct Switch {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    resets: Arc<AtomicU32>,
    orders: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Listens at `path` and calls `off` at every reset, and at every order to go down.
    pub fn start(path: &Path, off: impl Fn() + Send + 'static) -> Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("the power switch at {}", path.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (resets, orders) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (stopped, reset, ordered) = (Arc::clone(&stop), Arc::clone(&resets), Arc::clone(&orders));
        let serve = move || {
            for stream in listener.incoming() {
                if stopped.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let count = match word(&stream).as_deref() {
                    Some("reset") => &reset,
                    Some("off" | "reboot") => &ordered,
                    _ => continue,
                };
                off();
                count.fetch_add(1, SeqCst);
                // Whoever waits for the end of the connection knows by it that all is done.
                drop(stream);
            }
        };
        let thread = std::thread::Builder::new().name("power".to_owned()).spawn(serve)?;
        Ok(Self { path: path.to_owned(), stop, resets, orders, thread: Some(thread) })
    }

    /// How often the node was reset by its own fence process.
    pub fn resets(&self) -> u32 {
        self.resets.load(SeqCst)
    }

    /// How often the node went down in order.
    pub fn orders(&self) -> u32 {
        self.orders.load(SeqCst)
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
        self.stop.store(true, SeqCst);
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
}
