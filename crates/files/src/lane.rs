//! Requests in line: workers, a clock that answers what is late, and what becomes of work whose answer nobody gets.
//!
//! ```text
//!  asked ──▶ waiting ──a worker──▶ begun ──▶ answered
//!    │          │ its time is over   │ its time is over
//!    │          ▼                    ▼
//!    │        EIO, never begun     EIO, undecided: what it makes in the end is taken back, or is told in the log
//!    └─ the line is full: EAGAIN, never begun
//! ```
//!
//! Who is told that a request failed must be able to rely on it: what was not begun by then is not begun at all, and what was begun says
//! that it is undecided. A handle or a name that was made for nobody would be kept for ever, so that goes again.

use crate::files::Answer;
use fuser::Errno;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How many requests wait for a worker. More is no load but a jam: the kernel's callers are told to try again.
const WAITING: usize = 512;

type Job = Box<dyn FnOnce() + Send>;

/// An answer that can be an error.
pub(crate) trait Refuse: Send + 'static {
    fn refuse(self, e: Errno);
}

/// How a request ended that was answered with an error before its work had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing was done, and nothing will be.
    NeverBegun,
    /// It was begun, and may be done yet.
    Undecided,
}

type GivenUp = Box<dyn Fn(Fate) + Send + Sync>;

/// What becomes of a request whose answer nobody gets.
pub(crate) struct Otherwise<T> {
    /// Takes back what was done.
    pub(crate) unheard: Box<dyn FnOnce(T) + Send>,
    /// Hears of it before the error is told.
    pub(crate) given_up: Option<GivenUp>,
}

impl<T: 'static> Default for Otherwise<T> {
    fn default() -> Self {
        Self { unheard: Box::new(drop), given_up: None }
    }
}

impl<T: 'static> Otherwise<T> {
    pub(crate) fn unheard(take_back: impl FnOnce(T) + Send + 'static) -> Self {
        Self { unheard: Box::new(take_back), given_up: None }
    }

    pub(crate) fn given_up(mut self, hear: impl Fn(Fate) + Send + Sync + 'static) -> Self {
        self.given_up = Some(Box::new(hear));
        self
    }
}

/// A reply that is given once, by whoever takes it first.
struct Slot<R> {
    held: Mutex<Held<R>>,
    given_up: Option<GivenUp>,
}

struct Held<R> {
    reply: Option<R>,
    begun: bool,
}

impl<R: Refuse> Slot<R> {
    fn held(&self) -> std::sync::MutexGuard<'_, Held<R>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is still somebody who waits for it.
    fn begin(&self) -> bool {
        let mut held = self.held();
        held.begun = true;
        held.reply.is_some()
    }

    fn take(&self) -> Option<R> {
        self.held().reply.take()
    }

    fn give_up(&self, e: Errno) {
        let (reply, begun) = {
            let mut held = self.held();
            (held.reply.take(), held.begun)
        };
        let Some(reply) = reply else { return };
        if let Some(hear) = &self.given_up {
            hear(if begun { Fate::Undecided } else { Fate::NeverBegun });
        }
        reply.refuse(e);
    }
}

trait Expire: Send + Sync {
    fn expire(&self);
}

impl<R: Refuse> Expire for Slot<R> {
    fn expire(&self) {
        self.give_up(Errno::EIO);
    }
}

/// Requests of one kind: workers, and the times by which they are answered, in order.
pub(crate) struct Lane {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
    limit: Duration,
    due: Arc<(Mutex<Due>, Condvar)>,
}

#[derive(Default)]
struct Due {
    queue: VecDeque<(Instant, Weak<dyn Expire>)>,
    ended: bool,
}

impl Lane {
    pub(crate) fn start(name: &str, workers: usize, limit: Duration) -> io::Result<Self> {
        let (jobs, taken) = channel::<Job>();
        let taken = Arc::new(Mutex::new(taken));
        let waiting: Arc<AtomicUsize> = Arc::default();
        for _ in 0..workers {
            let (taken, waiting) = (taken.clone(), waiting.clone());
            std::thread::Builder::new()
                .name(format!("files-{name}"))
                .spawn(move || work(&taken, &waiting))?;
        }
        let due: Arc<(Mutex<Due>, Condvar)> = Arc::default();
        let watched = due.clone();
        std::thread::Builder::new().name(format!("files-{name}-due")).spawn(move || watch(&watched))?;
        Ok(Self { jobs, waiting, limit, due })
    }

    /// Has `job` done, and its result answered, or an error once its time is over.
    pub(crate) fn run<R: Refuse, T: 'static>(
        &self,
        reply: R,
        job: impl FnOnce() -> Answer<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
        otherwise: Otherwise<T>,
    ) {
        let slot = self.slot(reply, otherwise.given_up);
        if self.waiting.load(Ordering::Relaxed) >= WAITING {
            return slot.give_up(Errno::EAGAIN);
        }
        let unheard = otherwise.unheard;
        let to_do = slot.clone();
        let sent = self.send(Box::new(move || {
            if !to_do.begin() {
                return;
            }
            let done = job();
            match (to_do.take(), done) {
                (Some(reply), Ok(done)) => answer(reply, done),
                (Some(reply), Err(e)) => reply.refuse(Errno::from_i32(e.raw_os_error())),
                (None, Ok(done)) => unheard(done),
                (None, Err(_)) => {}
            }
        }));
        if !sent {
            slot.give_up(Errno::EIO);
        }
    }

    /// Has `job` done however long the line is, and late, too: it hears whether somebody still waits for it.
    pub(crate) fn run_anyway<R: Refuse>(
        &self,
        reply: R,
        job: impl FnOnce(bool) + Send + 'static,
        answer: impl FnOnce(R) + Send + 'static,
    ) {
        let slot = self.slot(reply, None);
        let to_do = slot.clone();
        let sent = self.send(Box::new(move || {
            job(to_do.begin());
            if let Some(reply) = to_do.take() {
                answer(reply);
            }
        }));
        if !sent {
            slot.give_up(Errno::EIO);
        }
    }

    fn send(&self, job: Job) -> bool {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.jobs.send(job).is_ok()
    }

    fn slot<R: Refuse>(&self, reply: R, given_up: Option<GivenUp>) -> Arc<Slot<R>> {
        let held = Mutex::new(Held { reply: Some(reply), begun: false });
        let slot = Arc::new(Slot { held, given_up });
        let as_expire: Arc<dyn Expire> = slot.clone();
        let mut due = self.due.0.lock().unwrap_or_else(PoisonError::into_inner);
        while due.queue.front().is_some_and(|(_, slot)| slot.strong_count() == 0) {
            due.queue.pop_front();
        }
        due.queue.push_back((Instant::now() + self.limit, Arc::downgrade(&as_expire)));
        if due.queue.len() == 1 {
            self.due.1.notify_one();
        }
        slot
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.due.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.due.1.notify_one();
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, waiting: &AtomicUsize) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        waiting.fetch_sub(1, Ordering::Relaxed);
        // A mistake in one request must not take the worker from all others: its reply, dropped, is an error.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a request to the files has failed by a mistake in this program: see above");
        }
    }
}

fn watch(due: &(Mutex<Due>, Condvar)) {
    let mut held = due.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !held.ended {
        let now = Instant::now();
        held = match held.queue.front() {
            None => due.1.wait(held).unwrap_or_else(PoisonError::into_inner),
            Some((at, _)) if *at > now => {
                let left = *at - now;
                due.1.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                let late = held.queue.pop_front().and_then(|(_, slot)| slot.upgrade());
                drop(held);
                if let Some(late) = late {
                    late.expire();
                }
                due.0.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};

    /// A reply that says what was told.
    struct Told(SyncSender<Result<u32, i32>>);

    impl Refuse for Told {
        fn refuse(self, e: Errno) {
            let _ = self.0.send(Err(i32::from(e)));
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.try_send(Err(-1));
        }
    }

    fn told() -> (Told, Receiver<Result<u32, i32>>) {
        let (tell, hear) = sync_channel(2);
        (Told(tell), hear)
    }

    #[expect(clippy::needless_pass_by_value, reason = "a reply is given once")]
    fn answer(told: Told, n: u32) {
        let _ = told.0.send(Ok(n));
    }

    const SOON: Duration = Duration::from_secs(10);
    const EIO: i32 = 5;
    const EAGAIN: i32 = 11;

    #[test]
    fn a_mistake_costs_one_request_and_no_worker() {
        let lane = Lane::start("test", 1, SOON).unwrap();
        let (reply, hear) = told();
        lane.run::<_, u32>(reply, || panic!("a mistake"), answer, Otherwise::default());
        assert_eq!(hear.recv_timeout(SOON), Ok(Err(-1)));
        let (reply, hear) = told();
        lane.run(reply, || Ok(7), answer, Otherwise::default());
        assert_eq!(hear.recv_timeout(SOON), Ok(Ok(7)));
    }

    #[test]
    fn what_is_late_is_taken_back_and_what_waits_is_never_begun() {
        let lane = Lane::start("test", 1, Duration::from_secs(1)).unwrap();
        let (go, wait) = channel::<()>();
        let (tell, heard) = channel();
        let ask = |n: u32, job: Box<dyn FnOnce() -> Answer<u32> + Send>| {
            let (reply, hear) = told();
            let (back, fate) = (tell.clone(), tell.clone());
            let otherwise = Otherwise::unheard(move |n| back.send(format!("{n} taken back")).unwrap())
                .given_up(move |f| fate.send(format!("{n} {f:?}")).unwrap());
            lane.run(reply, job, answer, otherwise);
            hear
        };
        let slow = ask(
            1,
            Box::new(move || {
                wait.recv().unwrap();
                Ok(1)
            }),
        );
        let begun = tell.clone();
        let late = ask(
            2,
            Box::new(move || {
                begun.send("2 begun".to_owned()).unwrap();
                Ok(2)
            }),
        );
        assert_eq!((slow.recv_timeout(SOON), late.recv_timeout(SOON)), (Ok(Err(EIO)), Ok(Err(EIO))));
        let said = |_| heard.recv_timeout(SOON).unwrap();
        assert_eq!([0, 1].map(said), ["1 Undecided", "2 NeverBegun"]);
        go.send(()).unwrap();
        assert_eq!(said(0), "1 taken back");
        // The worker is done with both once it has done another.
        let (reply, hear) = told();
        lane.run_anyway(reply, |in_time| assert!(in_time), |told| answer(told, 3));
        assert_eq!(hear.recv_timeout(SOON), Ok(Ok(3)));
        assert_eq!(
            heard.recv_timeout(Duration::ZERO),
            Err(RecvTimeoutError::Timeout),
            "2 was begun after all"
        );
    }

    #[test]
    fn a_line_is_only_so_long_but_for_what_must_be_done() {
        let lane = Lane::start("test", 1, SOON).unwrap();
        let (go, wait) = channel::<()>();
        let (begun, is_begun) = channel();
        let (reply, first) = told();
        let job = move || {
            begun.send(()).unwrap();
            wait.recv().unwrap();
            Ok(0)
        };
        lane.run(reply, job, answer, Otherwise::default());
        is_begun.recv_timeout(SOON).unwrap();
        let ask = || {
            let (reply, hear) = told();
            lane.run(reply, || Ok(1), answer, Otherwise::default());
            hear
        };
        let waiting: Vec<_> = (0..WAITING).map(|_| ask()).collect();
        assert_eq!(ask().recv_timeout(SOON), Ok(Err(EAGAIN)));
        let (reply, must) = told();
        lane.run_anyway(reply, |_| {}, |told| answer(told, 2));
        go.send(()).unwrap();
        assert_eq!(first.recv_timeout(SOON), Ok(Ok(0)));
        assert!(waiting.iter().all(|hear| hear.recv_timeout(SOON) == Ok(Ok(1))));
        assert_eq!(must.recv_timeout(SOON), Ok(Ok(2)));
    }
}
