//! The fence process: leases' deadline, registered guests, first `cont`.
//!
//! `stead-fenced` is the one program that may let a guest's CPUs run and that stops them when the node's lease ends. It is a
//! process of its own, tiny, single-threaded and memory-locked, so that nothing that ails the daemon (memory, a
//! deadlock, a slow disk, an upgrade) keeps a guest running that another node may soon start.
//!
//! ```text
//!   steadd ──unix socket, JSON lines──▶ Server ──▶ stead_membership::Holder   decides
//!                                         │   ◀── commands ──┘
//!                                         ├─▶ Guard (one a guest): QMP monitor, cgroup freezer   makes safe, continues
//!                                         └─▶ Power: testbed's switch, host (armed), or none     resets
//! ```
//!
//! One thread, one `poll`. A guard's procedure is an `async fn` that the loop polls after every event; there is no
//! runtime behind it. Time is `CLOCK_BOOTTIME`, waited for by a timerfd, so that a suspended machine wakes up to a
//! lease that is over. Nothing here waits: sockets do not block, and files are written in the run directory, which is to be a
//! memory file system wherever there is power over the host, and in cgroupfs.
//!
//! **If this process dies**, guests run on without a guard until it is started again. The daemon starts it again at
//! once; the next one finds the registrations in `SOCKET.state`, and makes every guest safe first, since nobody
//! knows whether the lease is still good. Where the watchdog is armed, the machine is reset by it if nobody comes. Under
//! load of that kind guests pause for as long as the daemon needs to ask for a lease and to confirm their epochs.
//!
//! **Without a power switch** (`--power none`) a guest that cannot be verified is killed, which is the best that is
//! left: it ends CPUs that run, but what the kernel has already taken from it (dirty pages of a mount, a queued write
//! on a socket) may reach the storage later. So it is no substitute for a reset, and the program says so when it starts.

mod clock;
mod freezer;
mod guard;
mod monitor;
mod process;
mod quota;
mod record;
mod server;

pub mod client;
pub mod notify;
pub mod power;
pub mod protocol;

pub use clock::boottime;
pub use server::{Server, ServerError};

use std::io::Write;

/// Writes a line for the log. Lines are dropped rather than waited for: a full pipe must not stop the fence process.
pub(crate) fn log(line: &str) {
    let stderr = std::io::stderr();
    let mut fds = [rustix::event::PollFd::new(&stderr, rustix::event::PollFlags::OUT)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut fds, Some(&zero)).is_ok_and(|n| n > 0) {
        // A log that cannot be written is no reason to stop.
        let _ = writeln!(stderr.lock(), "stead-fenced: {line}");
    }
}
