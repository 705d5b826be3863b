//! Beside a peer: Stead, and Debian's pacemaker with corosync, lose the power under the same guest by turns.
//!
//! Each that takes part has a cluster of three machines on a network of its own, and a thread for it, since namespaces belong to
//! threads. Between its turns it does nothing but be there. So all are measured within one run, on one machine, and what
//! disturbs one disturbs the others as often.
//!
//! What runs is one QEMU with one command line: Stead's, which the peer's resource agent executes. The figure is the same, too:
//! from the moment before the node's network is cut to that at which QEMU says that its CPUs run.

mod guest;
mod pacemaker;
mod stead;

use super::super::bench::{Figures, Report, runs};
use super::Samples;
use anyhow::{Context, Result};
use pacemaker::{AT_ONCE, DEFAULT, Pacemaker, TUNED};
use std::fmt::Write as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use stead::Stead;
use stead_testbed::machine::{Content, missing_for};
use stead_testbed::{bmc, netns, skip};

/// What one power loss has taken.
struct Took {
    /// Seconds until the CPUs run elsewhere.
    running: f64,
    /// What came before, by its logs: seconds after the power loss.
    steps: Vec<(&'static str, f64)>,
}

/// One that takes part.
trait Contender {
    /// A node loses its power under the guest, the coordinator's or another. When this returns all is as before.
    async fn run(&mut self, on_coordinator: bool) -> Result<Took>;

    /// Its logs are of interest.
    fn keep_logs(&mut self);
}

/// How it is called: by its file of samples, and in the report.
type Names = (&'static str, &'static str);

const STEAD: Names = ("peer-stead-default", "Stead, profile `default`");
const STEAD_FAST: Names = ("peer-stead-fast", "Stead, profile `fast`");
const PEER: Names = ("peer-pacemaker-default", "pacemaker, defaults, `fence_ipmilan`");
const PEER_AT_ONCE: Names = ("peer-pacemaker-at-once", "pacemaker, defaults, a device that answers at once");
const PEER_TUNED: Names = ("peer-pacemaker-tuned", "pacemaker, tuned, a device that answers at once");

/// One that takes part, in its thread. It has gone when this is dropped.
struct Contestant {
    names: Names,
    go: Option<Sender<bool>>,
    told: Receiver<Result<Option<Took>>>,
    thread: Option<JoinHandle<()>>,
}

impl Contestant {
    /// Sets it up, and waits for that.
    fn start<C: Contender>(
        names: Names,
        set_up: impl AsyncFnOnce() -> Result<C> + Send + 'static,
    ) -> Result<Self> {
        let (go, turns) = channel();
        let (tell, told) = channel();
        let life = move || {
            if let Err(e) = live(set_up, &turns, &tell) {
                // Nobody hears it who has an error of his own.
                let _ = tell.send(Err(e));
            }
        };
        let thread = std::thread::Builder::new().name(names.0.to_owned()).spawn(life)?;
        let contestant = Self { names, go: Some(go), told, thread: Some(thread) };
        contestant.hear().with_context(|| format!("setting up {}", names.0))?;
        Ok(contestant)
    }

    fn hear(&self) -> Result<Option<Took>> {
        self.told.recv().context("its thread has died")?
    }

    /// Its turn.
    fn run(&self, on_coordinator: bool) -> Result<Took> {
        if let Some(go) = &self.go {
            // Where it hears nothing any more, it has said why.
            let _ = go.send(on_coordinator);
        }
        self.hear()?.context("it was set up a second time")
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        self.go = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The life of a contender's thread.
fn live<C: Contender>(
    set_up: impl AsyncFnOnce() -> Result<C>,
    turns: &Receiver<bool>,
    tell: &Sender<Result<Option<Took>>>,
) -> Result<()> {
    netns::enter_own()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut contender = set_up().await?;
        let mut heard = tell.send(Ok(None)).is_ok();
        while let (true, Ok(on_coordinator)) = (heard, turns.recv()) {
            let took = contender.run(on_coordinator).await;
            if took.is_err() {
                contender.keep_logs();
            }
            heard = tell.send(Ok(Some(took?))).is_ok();
        }
        Ok(())
    })
}

#[test]
fn beside_pacemaker() {
    let missing = missing_for(Content::Peer).or_else(|| {
        bmc::missing().map(|(program, package)| format!("{program} is missing (package {package})"))
    });
    if let Some(why) = missing {
        skip!("{why}");
    }
    let all = set_up().unwrap();
    measure(&all, runs(30)).unwrap();
    report(&all).unwrap();
}

fn set_up() -> Result<Vec<Contestant>> {
    let guest = Arc::new(OnceLock::new());
    let given = Arc::clone(&guest);
    let first = Contestant::start(STEAD, async move || {
        let stead = Stead::new("default").await?;
        given.set(stead.guest()?).ok().context("there are two first ones")?;
        Ok(stead)
    })?;
    let pacemaker = |names, tuning| {
        let guest = Arc::clone(&guest);
        Contestant::start(names, async move || {
            Pacemaker::new(tuning, guest.get().context("nobody has started the guest")?).await
        })
    };
    Ok(vec![
        first,
        pacemaker(PEER, &DEFAULT)?,
        pacemaker(PEER_AT_ONCE, &AT_ONCE)?,
        Contestant::start(STEAD_FAST, async || Stead::new("fast").await)?,
        pacemaker(PEER_TUNED, &TUNED)?,
    ])
}

/// By turns, every third on the coordinator's node.
fn measure(all: &[Contestant], wanted: usize) -> Result<()> {
    for n in 0..wanted {
        for one in all {
            let (name, samples) = (one.names.0, Samples::of(one.names.0)?);
            if samples.read().len() > n {
                continue;
            }
            let on_coordinator = n % 3 == 0;
            let took = one.run(on_coordinator).with_context(|| format!("run {n} of {name}"))?;
            let mut about = String::from(if on_coordinator { "coordinator" } else { "other" });
            for (step, at) in took.steps {
                let _ = write!(about, " {step}={at:.3}");
            }
            println!("{name} run {n}: {:.2} s, {about}", took.running);
            samples.add(took.running, &about)?;
        }
    }
    Ok(())
}

fn report(all: &[Contestant]) -> Result<()> {
    let mut report = Report::new("Power loss, beside a peer");
    report.table("seconds until the vCPUs run elsewhere | n | min | p50 | p90 | max | on the coordinator's node: p50 | max");
    for one in all {
        let lines = Samples::of(one.names.0)?.lines();
        let of = |coordinator: Option<bool>| -> Figures {
            let wanted = |about: &str| coordinator.is_none_or(|c| about.starts_with("coordinator") == c);
            lines.iter().filter(|(_, about)| wanted(about)).map(|(value, _)| *value).collect()
        };
        let (each, led) = (of(None), of(Some(true)));
        report.row(&format!(
            "{} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2}",
            one.names.1,
            each.0.len(),
            each.min(),
            each.p50(),
            each.quantile(0.9),
            each.max(),
            led.p50(),
            led.max()
        ));
    }
    report.text("Where the peer's time goes: seconds after the power loss, by its logs (p50 and max):");
    report.table("until | defaults: p50 | max | device at once: p50 | max | tuned: p50 | max");
    for step in pacemaker::STEPS {
        let mut cells = vec![];
        for names in [PEER, PEER_AT_ONCE, PEER_TUNED] {
            let lines = Samples::of(names.0)?.lines();
            let mark = format!(" {}=", step.name);
            let at = |about: &str| about.split_once(&mark)?.1.split(' ').next()?.parse().ok();
            let all: Figures = lines.iter().filter_map(|(_, about)| at(about)).collect();
            cells.push(format!("{:.2} | {:.2}", all.p50(), all.max()));
        }
        report.row(&format!("{} | {}", step.title, cells.join(" | ")));
    }
    report.publish()
}
