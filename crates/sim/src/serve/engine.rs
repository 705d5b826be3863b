//! The thread on which the cluster lives: it lets time pass, and answers in between.

use super::diff::Rows;
use crate::cluster::Lab;
use crate::cluster::lab::{LabError, Summary};
use crate::scenario::Happening;
use serde_json::{Value, json};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use stead_model::ServiceId;
use tokio::sync::oneshot;

/// Questions wait about so long at most while time passes.
const TURN: Duration = Duration::from_millis(20);

/// Where time cannot pass as quickly as it is wanted, at most so much is caught up with.
const BEHIND: Duration = Duration::from_millis(250);

/// How often time is let pass while it does.
const PERIOD: Duration = Duration::from_millis(10);

/// At most so many lines of what happened are told at once.
const LINES: u64 = 400;

/// How far the time may be set.
const LATEST: Duration = Duration::from_secs(7 * 86_400);

/// What a page knows already.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    pub scenario: u64,
    pub turns: u64,
    pub look: u64,
    pub line: u64,
}

/// What is to become of the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Time {
    /// It passes, so many times as quickly as ours.
    Run(f64),
    Pause,
    /// Up to the next event.
    Step,
    /// To that moment, back or forth.
    Seek(Duration),
}

/// A question.
#[derive(Debug)]
pub(super) enum Ask {
    State(Known),
    Guest(ServiceId),
    Story,
    Act(String),
    Time(Time),
    Open(String),
}

/// An answer: what is asked for, or why it cannot be given.
pub(super) type Answer = Result<Value, String>;

/// A question, and where its answer goes.
pub(super) type Request = (Ask, oneshot::Sender<Answer>);

struct Engine {
    lab: Lab,
    rows: Rows,
    summary: Summary,
    /// What is seen may have changed.
    stale: bool,
    /// Which scenario it is: another one begins all anew.
    scenario: u64,
    speed: Option<f64>,
    /// Where both times stood when the pace was set.
    since: (Instant, Duration),
    seek: Option<Duration>,
    /// How much time is let pass at once, by how long that took.
    bite: Duration,
    /// Time that passed, in the last measured second of ours.
    pace: f64,
    measured: (Instant, Duration),
}

/// Serves requests until nobody can ask any more.
pub(super) fn run(
    text: &str,
    requests: &Receiver<Request>,
    opened: std::sync::mpsc::Sender<Result<(), LabError>>,
) {
    let lab = match Lab::open(text) {
        Ok(lab) => lab,
        Err(e) => return drop(opened.send(Err(e))),
    };
    if opened.send(Ok(())).is_err() {
        return;
    }
    drop(opened);
    let mut engine = Engine::new(lab);
    loop {
        let idle = engine.speed.is_none() && engine.seek.is_none();
        let request = if idle {
            requests.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            engine.pass();
            let wait = if engine.is_behind() { Duration::ZERO } else { PERIOD };
            requests.recv_timeout(wait)
        };
        match request {
            Ok((ask, answer)) => {
                // Who has gone away does not want to know.
                answer.send(engine.answer(ask)).ok();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Engine {
    fn new(lab: Lab) -> Self {
        let (view, now) = (lab.view(), Instant::now());
        Self {
            summary: view.summary,
            rows: Rows::default(),
            stale: true,
            scenario: 1,
            speed: None,
            since: (now, Duration::ZERO),
            seek: None,
            bite: Duration::from_millis(50),
            pace: 0.0,
            measured: (now, Duration::ZERO),
            lab,
        }
    }

    /// Where time should stand now.
    fn goal(&self) -> Duration {
        let (began, from) = self.since;
        match (self.seek, self.speed) {
            (Some(seek), _) => seek,
            (None, Some(speed)) => from + began.elapsed().mul_f64(speed),
            (None, None) => self.lab.now(),
        }
    }

    fn is_behind(&self) -> bool {
        self.goal() > self.lab.now() + Duration::from_millis(1)
    }

    /// Lets time pass for about one turn.
    fn pass(&mut self) {
        let (began, from) = (Instant::now(), self.lab.now());
        let goal = self.goal().min(LATEST);
        while self.lab.now() < goal && began.elapsed() < TURN {
            let bite = Instant::now();
            let next = self.lab.now() + self.bite;
            let to = Duration::from_millis(u64::try_from(next.min(goal).as_millis()).unwrap_or(u64::MAX));
            if to <= self.lab.now() {
                break;
            }
            self.lab.advance(to);
            let took = bite.elapsed();
            if took > TURN {
                self.bite = (self.bite / 2).max(Duration::from_millis(2));
            } else if took < TURN / 4 {
                self.bite = (self.bite * 2).min(Duration::from_secs(2));
            }
        }
        self.stale |= self.lab.now() != from;
        if let Some(seek) =
            self.seek.filter(|seek| self.lab.now() >= seek.min(&LATEST).saturating_sub(PERIOD / 10))
        {
            self.lab.advance(seek.min(LATEST));
            self.seek = None;
            self.set_pace();
        }
        if let Some(speed) = self.speed.filter(|_| self.seek.is_none()) {
            let behind = self.goal().saturating_sub(self.lab.now());
            if behind > BEHIND.mul_f64(speed) {
                self.set_pace();
            }
        }
        if self.lab.now() >= LATEST {
            self.speed = None;
        }
        let (at, stood) = self.measured;
        if at.elapsed() > Duration::from_secs(1) {
            self.pace = self.lab.now().saturating_sub(stood).as_secs_f64() / at.elapsed().as_secs_f64();
            self.measured = (Instant::now(), self.lab.now());
        }
    }

    fn set_pace(&mut self) {
        self.since = (Instant::now(), self.lab.now());
    }

    fn answer(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::State(known) => Ok(self.state(known)),
            Ask::Guest(sid) => self.guest(sid),
            Ask::Story => Ok(Value::String(self.lab.story())),
            Ask::Act(words) => {
                let done = self.lab.act(&words);
                (self.stale, self.seek) = (true, None);
                self.set_pace();
                done.map(|()| json!({"at": self.lab.now().as_secs_f64()})).map_err(|e| e.to_string())
            }
            Ask::Time(time) => {
                self.set_time(time);
                Ok(json!({"now": self.lab.now().as_secs_f64()}))
            }
            Ask::Open(text) => {
                let lab = Lab::open(&text).map_err(|e| e.to_string())?;
                *self = Self { scenario: self.scenario + 1, ..Self::new(lab) };
                Ok(json!({"furthest": self.lab.furthest().as_secs_f64()}))
            }
        }
    }

    fn set_time(&mut self, time: Time) {
        match time {
            Time::Run(speed) => {
                self.speed = Some(speed);
                self.measured = (Instant::now(), self.lab.now());
                self.pace = speed;
            }
            Time::Pause => (self.speed, self.seek) = (None, None),
            Time::Step => {
                (self.speed, self.seek) = (None, None);
                self.lab.step();
            }
            Time::Seek(to) => {
                (self.speed, self.seek) = (None, Some(to));
                if to < self.lab.now() {
                    self.lab.rewind(to);
                }
            }
        }
        self.stale = true;
        self.set_pace();
    }

    fn state(&mut self, known: Known) -> Value {
        if std::mem::take(&mut self.stale) || self.rows.look() == 0 {
            let view = self.lab.view();
            self.summary = view.summary.clone();
            self.rows.take(view);
        }
        let since = if known.scenario == self.scenario { known.look } else { 0 };
        let same = known.scenario == self.scenario && known.turns == self.lab.turns();
        let newest = self.lab.next_line();
        let from = if same { known.line } else { 0 }.max(newest.saturating_sub(LINES));
        let (first, lines) = self.lab.lines(from, usize::try_from(LINES).unwrap_or(usize::MAX));
        let lines: Vec<Value> = lines.map(line).collect();
        let acts: Vec<Value> = self.lab.acts().iter().map(|(at, w)| json!([at.as_secs_f64(), w])).collect();
        let (nodes, guests) = self.rows.size();
        json!({
            "scenario": self.scenario, "turns": self.lab.turns(), "look": self.rows.look(),
            "line": first + lines.len() as u64, "anew": !same, "lines": lines,
            "size": [nodes, guests], "nodes": self.rows.nodes(since), "guests": self.rows.guests(since),
            "speed": self.speed, "pace": self.pace, "seek": self.seek.map(|s| s.as_secs_f64()),
            "acts": acts, "summary": summary(&self.summary),
        })
    }

    fn guest(&self, sid: ServiceId) -> Answer {
        let tale = self.lab.tale(sid).ok_or_else(|| format!("there is no '{sid}'"))?;
        let s = |d: Duration| d.as_secs_f64();
        let outage = tale.outage;
        Ok(json!({
            "sid": sid.to_string(), "reason": tale.reason, "owner": tale.owner, "running": tale.running,
            "armed": tale.armed,
            "outage": {
                "since": outage.since.map(s), "count": outage.count, "total": s(outage.total),
                "longest": s(outage.longest), "last": s(outage.last),
            },
            "history": tale.history.iter().map(line).collect::<Vec<Value>>(),
        }))
    }
}

fn line(h: &Happening) -> Value {
    json!([h.at.as_secs_f64(), h.kind.as_str(), h.service, h.node, h.extra])
}

fn summary(s: &Summary) -> Value {
    let [recoveries, resets, thaws, moves] = s.counts;
    json!({
        "now": s.now.as_secs_f64(), "furthest": s.furthest.as_secs_f64(), "leader": s.leader,
        "outages": [s.outages.0, s.outages.1], "longest": s.longest.as_secs_f64(),
        "recoveries": recoveries, "resets": resets, "thaws": thaws, "moves": moves, "broken": s.broken,
        "rules": s.rules, "waiting": s.waiting, "disturbed": s.disturbed,
    })
}
