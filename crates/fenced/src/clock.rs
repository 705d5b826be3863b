//! `CLOCK_BOOTTIME`: read, and waited for.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use std::cell::Cell;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use stead_membership::Moment;

/// Time since boot, suspension counted.
pub fn boottime() -> Moment {
    let t = clock_gettime(ClockId::Boottime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(part(t.tv_sec)) + Duration::from_nanos(part(t.tv_nsec))
}

/// The moment that the loop is at, and the next one that some procedure waits for.
#[derive(Debug)]
pub(crate) struct Clock {
    now: Cell<Moment>,
    next: Cell<Option<Moment>>,
}

impl Clock {
    pub fn new() -> Self {
        Self { now: Cell::new(boottime()), next: Cell::new(None) }
    }

    /// Reads the clock; the procedures polled from here on say anew what they wait for.
    pub fn tick(&self) -> Moment {
        self.now.set(boottime());
        self.next.set(None);
        self.now.get()
    }

    pub fn now(&self) -> Moment {
        self.now.get()
    }

    /// What the procedures wait for.
    pub fn next(&self) -> Option<Moment> {
        self.next.get()
    }

    /// Is ready at `at` or later.
    pub async fn at(&self, at: Moment) {
        poll_fn(|_| {
            if self.now() >= at {
                return Poll::Ready(());
            }
            self.next.set(Some(self.next.get().map_or(at, |next| next.min(at))));
            Poll::Pending
        })
        .await;
    }

    /// Is ready after that time.
    pub async fn after(&self, time: Duration) {
        self.at(self.now() + time).await;
    }
}

/// A timer that wakes the loop.
#[derive(Debug)]
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    pub fn new() -> rustix::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Rings at `at`, or never.
    pub fn set(&self, at: Option<Moment>) -> rustix::io::Result<()> {
        // Zero would disarm it.
        let at = at.map_or(Duration::ZERO, |at| at.max(Duration::from_nanos(1)));
        let value = Timespec {
            tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: at.subsec_nanos().into(),
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &spec).map(drop)
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
