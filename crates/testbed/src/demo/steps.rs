//! Progress, as a person wants to see it: what is under way with the seconds it has taken, and what is done.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// Standard output; a line that changes while a step is under way, if it is a terminal.
    Stdout,
    /// Nowhere: for tests.
    Silent,
}

/// The steps of one play. Clones share the output.
#[derive(Debug, Clone)]
pub(super) struct Steps {
    out: Out,
    live: bool,
    /// What the step under way is doing.
    note: Arc<Mutex<String>>,
    began: Instant,
}

impl Steps {
    pub(super) fn new(out: Out) -> Self {
        let live = out == Out::Stdout && std::io::stdout().is_terminal();
        Self { out, live, note: Arc::default(), began: Instant::now() }
    }

    /// Prints a line.
    pub(super) fn say(&self, line: &str) {
        if self.out == Out::Stdout {
            println!("{line}");
        }
    }

    /// Prints a line of the timeline, with the time since the play began.
    pub(super) fn event(&self, line: &str) {
        self.say(&format!("  {:6.1} s  {line}", self.began.elapsed().as_secs_f64()));
    }

    /// Says what the step under way is doing.
    pub(super) fn note(&self, text: &str) {
        if self.live {
            text.clone_into(&mut self.note.lock().unwrap_or_else(PoisonError::into_inner));
        } else {
            self.say(&format!("        {text}"));
        }
    }

    /// Carries a step out, showing that it is under way, and says how it ended and how long it took.
    pub(super) async fn step<T, E>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begin = Instant::now();
        self.note.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut clock = tokio::time::interval(Duration::from_millis(100));
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = clock.tick() => self.show(what, begin),
            }
        };
        let mark = if done.is_ok() { "ok" } else { "failed" };
        let clear = if self.live { "\r\x1b[K" } else { "" };
        self.say(&format!("{clear}  [{mark}]  {what} ({:.1} s)", begin.elapsed().as_secs_f64()));
        done
    }

    fn show(&self, what: &str, begin: Instant) {
        if !self.live {
            return;
        }
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let note = if note.is_empty() { note } else { format!(": {note}") };
        let mut stdout = std::io::stdout().lock();
        let _ = write!(stdout, "\r\x1b[K  [..]  {what}{note} {:.1} s", begin.elapsed().as_secs_f64());
        let _ = stdout.flush();
    }
}
