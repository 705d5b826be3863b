//! The loop: one `poll` over the daemon's connections, the guests' monitors and the timer.

use crate::clock::{Alarm, Clock};
use crate::guard::{Dirty, Guard, GuardError};
use crate::log;
use crate::power::{Power, PowerError};
use crate::protocol::{Answer, MAX_LINE, Op, Outcome, PROTOCOL, Refusal, Registration, Request, Response};
use crate::record::Record;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use stead_membership::{Hold, Holder, HolderCommand, Report, RunError, less_drift};
use stead_model::{Epoch, Vmid};

/// Connections at a time. The daemon needs two.
const MAX_CLIENTS: usize = 32;

/// The fence process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another one serves the socket.
    #[error("another fence process serves {0}")]
    Taken(PathBuf),
    /// A system call failed.
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
}

/// What a procedure ends with.
enum End {
    Safe(Report),
    Ran { thaw: bool, result: Result<(), GuardError> },
}

/// A procedure under way for one guest.
struct Job {
    future: Pin<Box<dyn Future<Output = End>>>,
    /// Whom to answer: connection and request.
    waiting: Vec<(u64, u64)>,
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The fence process.
pub struct Server {
    listener: UnixListener,
    /// Held as long as the process lives.
    _lock: std::fs::File,
    record: PathBuf,
    power: Power,
    alarm: Alarm,
    clock: Rc<Clock>,
    dirty: Rc<Dirty>,
    holder: Holder,
    guards: BTreeMap<Vmid, Rc<Guard>>,
    jobs: BTreeMap<Vmid, Job>,
    next_connection: u64,
    connections: BTreeMap<u64, Connection>,
    /// It was told to stand down.
    ending: bool,
}

impl Server {
    /// Takes the socket, and the guests that an earlier process of this boot had there.
    pub fn open(socket: &Path, power: Power) -> Result<Self, ServerError> {
        let lock = lock(&beside(socket, "lock"), socket)?;
        let record = beside(socket, "state");
        let old = Record::load(&record).map_err(io("read", &record))?;
        match std::fs::remove_file(socket) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("replace", socket)(e)),
            _ => {}
        }
        let listener = UnixListener::bind(socket).map_err(io("listen on", socket))?;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(socket, private).map_err(io("protect", socket))?;
        listener.set_nonblocking(true).map_err(io("listen on", socket))?;
        let alarm = Alarm::new().map_err(|e| io("make a timer for", socket)(e.into()))?;
        let clock = Rc::new(Clock::new());
        let mut server = Self {
            listener,
            _lock: lock,
            record,
            power,
            alarm,
            holder: Holder::new(first_nonce(&clock)),
            clock,
            dirty: Rc::default(),
            guards: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_connection: 0,
            connections: BTreeMap::new(),
            ending: false,
        };
        if let Some(old) = old {
            server.adopt(old);
        }
        Ok(server)
    }

    /// Serves until it is told to stand down.
    pub fn serve(mut self) -> Result<(), ServerError> {
        while !self.ending {
            self.work();
            self.wait()?;
        }
        log("told to stand down, no guest is guarded: ending");
        Ok(())
    }

    fn adopt(&mut self, old: Record) {
        let ms = Duration::from_millis;
        let times = (ms(old.drain_ms), ms(old.watchdog_ms));
        for entry in old.guests {
            let guard = Guard::adopt(entry, self.clock.clone(), self.dirty.clone());
            self.guards.insert(guard.entry().registration.vmid, Rc::new(guard));
        }
        let hold = |g: &Guard| match (g.is_alive(), g.is_held()) {
            (false, _) => Hold::Registered,
            (true, true) => Hold::Held,
            (true, false) => Hold::Stopping,
        };
        let guests: Vec<(Vmid, Epoch, Hold)> =
            self.guards.iter().map(|(v, g)| (*v, g.entry().registration.epoch, hold(g))).collect();
        if !guests.is_empty() {
            log(&format!("took over {} guests from an earlier fence process: {guests:?}", guests.len()));
        }
        // Without any guest the times still count: the watchdog that the earlier process armed must be fed.
        self.holder = Holder::adopt(first_nonce(&self.clock), self.clock.now(), times, guests);
    }

    /// Carries out all that is due and can be without waiting.
    fn work(&mut self) {
        loop {
            let now = self.clock.tick();
            for command in self.holder.step(now) {
                self.carry_out(command);
            }
            let ended = self.poll_jobs();
            let stored = self.dirty.take();
            if stored {
                self.store();
            }
            if !ended && !stored {
                return;
            }
        }
    }

    fn carry_out(&mut self, command: HolderCommand) {
        match command {
            HolderCommand::MakeSafe { vmid, by } => {
                let Some(guard) = self.guards.get(&vmid).cloned() else {
                    return self.holder.report(self.clock.now(), vmid, Report::Gone);
                };
                let future = async move { End::Safe(guard.make_safe(by).await) };
                self.replace_job(vmid, Job { future: Box::pin(future), waiting: Vec::new() });
            }
            HolderCommand::Cont { vmid, thaw, .. } => {
                let Some(guard) = self.guards.get(&vmid).cloned() else { return };
                let future = async move { End::Ran { thaw, result: guard.run().await } };
                self.replace_job(vmid, Job { future: Box::pin(future), waiting: Vec::new() });
            }
            HolderCommand::Reset { unverified } => self.reset(&unverified),
            HolderCommand::FeedWatchdog { timeout } => {
                if let Err(e) = self.power.feed(timeout) {
                    log(&e.to_string());
                }
            }
        }
    }

    fn replace_job(&mut self, vmid: Vmid, job: Job) {
        if let Some(old) = self.jobs.insert(vmid, job) {
            let why = "the lease ended, the guest is made safe".to_owned();
            for (connection, id) in old.waiting {
                self.answer(connection, id, Err(Refusal::Guest { why: why.clone() }));
            }
        }
    }

    fn reset(&mut self, unverified: &[Vmid]) {
        // First of all: a word could wait for a disk that answers no more.
        let asked = self.power.reset();
        log(&format!("guests {unverified:?} could not be verified safe: resetting this machine"));
        match asked {
            Ok(true) => {}
            Ok(false) => {
                log(
                    "there is no power switch: killing them, which does not stop what the kernel has already taken",
                );
                for vmid in unverified {
                    let killed = self.guards.get(vmid).map_or(Ok(()), |g| g.kill());
                    killed.unwrap_or_else(|e| log(&format!("could not kill guest {vmid}: {e}")));
                    self.jobs.remove(vmid);
                    // It is looked at again soon, and then gone.
                    self.holder.report(self.clock.now(), *vmid, Report::Failed);
                }
            }
            Err(e) => {
                let why = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
                log(&format!("{e}: {why}"));
            }
        }
    }

    /// Lets every procedure go on. Says whether one ended.
    fn poll_jobs(&mut self) -> bool {
        let mut ended = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        for (vmid, job) in &mut self.jobs {
            if let Poll::Ready(end) = job.future.as_mut().poll(&mut context) {
                ended.push((*vmid, end));
            }
        }
        let any = !ended.is_empty();
        for (vmid, end) in ended {
            let waiting = self.jobs.remove(&vmid).map(|j| j.waiting).unwrap_or_default();
            match end {
                End::Safe(report) => {
                    // A failure has been told by its guard, with its reason.
                    if report != Report::Failed {
                        log(&format!("guest {vmid}: {report:?}"));
                    }
                    self.holder.report(self.clock.now(), vmid, report);
                }
                End::Ran { thaw, result } => {
                    if thaw && result.is_err() {
                        self.holder.thaw_failed(self.clock.now(), vmid);
                    }
                    let result =
                        result.map(|()| Answer::Done).map_err(|e| Refusal::Guest { why: e.to_string() });
                    for (connection, id) in waiting {
                        self.answer(connection, id, result.clone());
                    }
                }
            }
        }
        any
    }

    /// Waits for whatever comes next, and takes it in.
    fn wait(&mut self) -> Result<(), ServerError> {
        let now = self.clock.now();
        let next = self.holder.next_wake(now).into_iter().chain(self.clock.next()).min();
        self.alarm.set(next).map_err(|e| io("set the timer of", &self.record)(e.into()))?;
        let flags = |writes: bool| if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let monitors: Vec<_> =
            self.guards.values().filter_map(|g| g.monitor.stream().map(|(s, w)| (g.clone(), s, w))).collect();
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        let mut fds =
            vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.alarm, PollFlags::IN)];
        fds.extend(self.connections.values().map(|c| PollFd::new(&c.stream, flags(!c.output.is_empty()))));
        fds.extend(monitors.iter().map(|(_, s, writes)| PollFd::new(&**s, flags(*writes))));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(io("poll", &self.record)(e.into())),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        self.clock.tick();
        for (_, (guard, ..)) in ready[2 + ids.len()..].iter().zip(&monitors).filter(|(ready, _)| **ready) {
            guard.monitor.pump();
        }
        for (_, id) in ready[2..].iter().zip(&ids).filter(|(ready, _)| **ready) {
            self.receive(*id);
        }
        if ready[0] {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let peer = rustix::net::sockopt::socket_peercred(&stream).map(|c| c.uid);
            let me = rustix::process::getuid();
            let known = peer.is_ok_and(|uid| uid == me || uid.is_root());
            if !known || self.connections.len() == MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                log("a connection was refused");
                continue;
            }
            self.next_connection += 1;
            let connection = Connection { stream, input: Vec::new(), output: Vec::new() };
            self.connections.insert(self.next_connection, connection);
        }
    }

    fn receive(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Ok(lines) = connection.pump() else {
            self.connections.remove(&id);
            return;
        };
        for line in lines {
            match serde_json::from_slice::<Request>(&line) {
                Ok(request) => self.request(id, request),
                Err(e) => {
                    let request = serde_json::from_slice::<serde_json::Value>(&line).ok();
                    let request = request.and_then(|v| v["id"].as_u64()).unwrap_or(0);
                    self.answer(id, request, Err(Refusal::Request { why: e.to_string() }));
                }
            }
        }
    }

    fn request(&mut self, connection: u64, request: Request) {
        let Request { id, op } = request;
        let now = self.clock.now();
        let result = match op {
            Op::Version => Ok(Answer::Version {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                power: self.power.name().to_owned(),
                pid: std::process::id(),
            }),
            Op::Nonce => Ok(Answer::Nonce { nonce: self.holder.nonce(now) }),
            Op::Renew { nonce, lease_ms, drain_ms, watchdog_ms } => {
                self.renew(nonce, lease_ms, drain_ms, watchdog_ms)
            }
            Op::Shorten { lease_ms } => self.shorten(Duration::from_millis(lease_ms)),
            Op::Register(registration) => self.register(registration),
            Op::Forget { vmid } => self.forget(vmid),
            Op::Run { vmid, epoch } | Op::Thaw { vmid, epoch } => match self.run(vmid, epoch, &op) {
                Ok(()) => {
                    self.jobs.entry(vmid).and_modify(|job| job.waiting.push((connection, id)));
                    return;
                }
                Err(refusal) => Err(refusal),
            },
            Op::StandDown => self.stand_down(),
            Op::Status => Ok(Answer::Status {
                lease_left_ms: self
                    .holder
                    .lease_left(now)
                    .map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX)),
                guests: self.holder.guests().map(|(v, g)| (v, g.epoch, g.hold)).collect(),
            }),
        };
        self.answer(connection, id, result);
    }

    fn renew(
        &mut self,
        nonce: u64,
        lease_ms: u64,
        drain_ms: u64,
        watchdog_ms: u64,
    ) -> Result<Answer, Refusal> {
        let ms = Duration::from_millis;
        let (lease, drain, watchdog) = (ms(lease_ms), ms(drain_ms), ms(watchdog_ms));
        let grant = |why: String| Refusal::Grant { why };
        // To admit it can feed the watchdog too: not for a grant that does not count (above all none that comes after its end), nor
        // before it is known to fit. Where another lease counts, the step that follows gives the watchdog that one's times again.
        let now = self.clock.now();
        self.holder.may_renew(now, nonce, lease, drain, watchdog).map_err(|e| grant(e.to_string()))?;
        self.power.admit(less_drift(drain + watchdog)).map_err(|e: PowerError| grant(e.to_string()))?;
        let before = self.holder.times();
        let renewed = self.holder.renew(now, nonce, lease, drain, watchdog);
        renewed.map_err(|e| grant(e.to_string()))?;
        if self.holder.times() != before {
            self.store();
        }
        Ok(Answer::Done)
    }

    /// The watchdog is given the shorter times first: if this process hangs later, they are what it promised.
    fn shorten(&mut self, most: Duration) -> Result<Answer, Refusal> {
        let grant = |why: String| Refusal::Grant { why };
        let (drain, watchdog) =
            self.holder.may_shorten(self.clock.now(), most).map_err(|e| grant(e.to_string()))?;
        self.power.admit(less_drift(drain + watchdog)).map_err(|e: PowerError| grant(e.to_string()))?;
        let before = self.holder.times();
        self.holder.shorten(self.clock.now(), most).map_err(|e| grant(e.to_string()))?;
        if self.holder.times() != before {
            self.store();
        }
        Ok(Answer::Done)
    }

    /// Stops the watchdog and ends the process, if no guest lives that it would leave unguarded.
    fn stand_down(&mut self) -> Result<Answer, Refusal> {
        let alive: Vec<Vmid> = self.guards.iter().filter(|(_, g)| g.is_alive()).map(|(v, _)| *v).collect();
        if !alive.is_empty() {
            let why = format!("guests {alive:?} are guarded: stop them, or move them to other nodes, first");
            return Err(Refusal::Guest { why });
        }
        self.power.stand_down().map_err(|e| Refusal::Guest { why: e.to_string() })?;
        self.ending = true;
        Ok(Answer::Done)
    }

    fn register(&mut self, registration: Registration) -> Result<Answer, Refusal> {
        let Registration { vmid, epoch, fetches, .. } = registration;
        let gone = self.guards.get(&vmid).is_none_or(|g| !g.is_alive());
        self.holder.register(vmid, epoch, gone).map_err(|e| Refusal::Guest { why: e.to_string() })?;
        if gone {
            self.jobs.remove(&vmid);
            let guard = Guard::new(registration, self.clock.clone(), self.dirty.clone());
            self.guards.insert(vmid, Rc::new(guard));
            // A process that is started on this word must be known to whatever fence process follows this one.
            if let Err(e) = self.write_record() {
                self.guards.remove(&vmid);
                let why = format!("could not write {}: {e}", self.record.display());
                self.holder.forget(vmid, true).unwrap_or_else(|e| log(&e.to_string()));
                return Err(Refusal::Guest { why });
            }
        } else if self.guards.get(&vmid).is_some_and(|g| g.may_fetch(fetches)) {
            self.store();
        }
        Ok(Answer::Done)
    }

    fn forget(&mut self, vmid: Vmid) -> Result<Answer, Refusal> {
        let gone = self.guards.get(&vmid).is_none_or(|g| !g.is_alive());
        self.holder.forget(vmid, gone).map_err(|e| Refusal::Guest { why: e.to_string() })?;
        self.jobs.remove(&vmid);
        if self.guards.remove(&vmid).is_some() {
            self.store();
        }
        Ok(Answer::Done)
    }

    /// Begins to continue a guest, or to thaw it alone; the answer comes when that is done.
    fn run(&mut self, vmid: Vmid, epoch: Epoch, op: &Op) -> Result<(), Refusal> {
        let command = self.holder.run(self.clock.now(), vmid, epoch).map_err(|e| match e {
            RunError::NoLease => Refusal::NoLease,
            RunError::Unknown(..) => Refusal::Unknown,
            RunError::Stopping(_) | RunError::Unsafe(_) => Refusal::Guest { why: e.to_string() },
        })?;
        // One that is under way already does the same.
        if self.jobs.contains_key(&vmid) {
            return Ok(());
        }
        match self.guards.get(&vmid).cloned() {
            Some(guard) if matches!(op, Op::Thaw { .. }) => {
                let future = async move { End::Ran { thaw: true, result: guard.thaw().await } };
                self.replace_job(vmid, Job { future: Box::pin(future), waiting: Vec::new() });
            }
            _ => self.carry_out(command),
        }
        Ok(())
    }

    fn answer(&mut self, connection: u64, id: u64, result: Result<Answer, Refusal>) {
        let Some(to) = self.connections.get_mut(&connection) else { return };
        let result = result.map_or_else(Outcome::Error, Outcome::Ok);
        let Ok(line) = serde_json::to_vec(&Response { id, result }) else { return };
        to.output.extend_from_slice(&line);
        to.output.push(b'\n');
        if to.output.len() > 4 * MAX_LINE || to.flush().is_err() {
            self.connections.remove(&connection);
        }
    }

    /// Writes the record. That it cannot be written is no reason to leave guests unguarded now.
    fn store(&self) {
        if let Err(e) = self.write_record() {
            log(&format!("could not write {}: {e}", self.record.display()));
        }
    }

    fn write_record(&self) -> std::io::Result<()> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let (drain, watchdog) = self.holder.times().unwrap_or_default();
        let guests = self.guards.values().map(|g| g.entry()).collect();
        Record::new(ms(drain), ms(watchdog), guests).store(&self.record)
    }
}

impl Connection {
    /// Reads whole lines; writes what waits.
    fn pump(&mut self) -> std::io::Result<Vec<Vec<u8>>> {
        self.flush()?;
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(n) if self.input.len() + n <= MAX_LINE => self.input.extend_from_slice(&chunk[..n]),
                Ok(_) => return Err(std::io::ErrorKind::InvalidData.into()),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = self.input.iter().position(|b| *b == b'\n') {
            lines.push(self.input.drain(..=end).collect());
        }
        Ok(lines)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Above every nonce of an earlier process of this boot: none issues one a nanosecond.
fn first_nonce(clock: &Clock) -> u64 {
    u64::try_from(clock.now().as_nanos()).unwrap_or(u64::MAX / 2)
}

fn beside(socket: &Path, what: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(format!(".{what}"));
    name.into()
}

fn lock(path: &Path, socket: &Path) -> Result<std::fs::File, ServerError> {
    use rustix::fs::{FlockOperation, flock};
    let file = std::fs::File::create(path).map_err(io("make", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServerError::Taken(socket.to_owned())),
        Err(e) => Err(io("lock", path)(e.into())),
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::Io { what, path, source }
}
