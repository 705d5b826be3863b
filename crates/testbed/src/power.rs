//! A node's power switch: where its fence process asks for a reset, instead of touching the machine.
//!
//! The switch is a thread with a socket. `reset` cuts the node off and kills all its processes at once, in that thread, as
//! a machine's reset does; whether the node starts again is the testbed's choice, told by an event.

use anyhow::{Context, Result};
use std::io::Read;
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
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Listens at `path` and calls `off` at every reset.
    pub fn start(path: &Path, off: impl Fn() + Send + 'static) -> Result<Self> {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("the power switch at {}", path.display()))?;
        let (stop, resets) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&resets));
        let serve = move || {
            for stream in listener.incoming() {
                if stopped.load(SeqCst) {
                    return;
                }
                if stream.is_ok_and(|s| asks_for_reset(&s)) {
                    off();
                    count.fetch_add(1, SeqCst);
                }
            }
        };
        let thread = std::thread::Builder::new().name("power".to_owned()).spawn(serve)?;
        Ok(Self { path: path.to_owned(), stop, resets, thread: Some(thread) })
    }

    /// How often the node was reset by its own fence process.
    pub fn resets(&self) -> u32 {
        self.resets.load(SeqCst)
    }
}

fn asks_for_reset(mut stream: &UnixStream) -> bool {
    let mut line = [0u8; 6];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.read_exact(&mut line).is_ok()
        && &line == b"reset\n"
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
