//! From a request to a process that answers, or to nothing at all.

use crate::command::{self, Chipset, CommandLine, Context, Endpoint, NetPlan, refuse, unusable};
use crate::firmware::{self, Firmware};
use crate::guest::Guest;
use crate::helpers::Helpers;
use crate::probe::Machines;
use crate::process::{Process, Program};
use crate::qmp::{PATIENCE, Qmp, QmpError};
use crate::rundir::{FORMAT, Meta, RunDir};
use crate::share::Share;
use crate::tpm::{self, Tpm};
use crate::vfio::{self, Mdev, Passed};
use crate::{Accel, QemuOptions, cgroup::Cgroup, cpu_group, huge, migration, net, sys, tune};
use rustix::thread::CpuSet;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use stead_driver::guest::{GuestError, Launch};
use stead_model::Vmid;
use stead_model::vmconfig::{Bios, Usb, UsbSource, VmConfig};

/// A launch with all that it needs.
#[derive(Debug)]
pub struct Job<'a> {
    pub options: &'a QemuOptions,
    pub machines: &'a Machines,
    pub accel: Accel,
    pub launch: &'a Launch,
    pub config: VmConfig,
    pub dir: RunDir,
    /// PCI devices that other guests have.
    pub taken: BTreeSet<String>,
}

/// Why a try failed, and whether another one without image locks may be made.
#[derive(Debug)]
struct Failure {
    why: String,
    locked: bool,
}

impl<'a> Job<'a> {
    /// Reads the configuration.
    pub fn new(
        options: &'a QemuOptions,
        machines: &'a Machines,
        accel: Accel,
        launch: &'a Launch,
    ) -> Result<Self, GuestError> {
        let config = match VmConfig::parse(&launch.config) {
            Ok(config) => config,
            Err(e) => return refuse("config", e.to_string()),
        };
        let dir = RunDir::new(&options.run_dir, launch.vmid);
        Ok(Self { options, machines, accel, launch, config, dir, taken: BTreeSet::new() })
    }

    /// What a launch would do otherwise than the configuration says.
    pub async fn warnings(&self) -> Vec<String> {
        let idle = self.config.current.without_effect();
        let mut all: Vec<String> = idle.iter().map(|e| format!("without effect: {e}")).collect();
        let missing = self.affinity().ok().and_then(|(_, missing)| missing);
        all.extend(missing.map(|why| format!("affinity: {why}")));
        all.extend(cpu_group::warning(self.options, &self.config.current));
        all.extend(self.firmware_warning());
        all.extend(self.missing_usb());
        // Where they can't be read the launch will say so.
        if let Ok(nets) = self.config.current.nets() {
            all.extend(net::warnings(&nets, self.options.bridges).await);
        }
        all
    }

    fn firmware_warning(&self) -> Option<String> {
        let settings = &self.config.current;
        if settings.bios().ok()? != Bios::Ovmf {
            return None;
        }
        let Some(disk) = settings.efidisk().ok()? else {
            return Some(
                "bios: what the UEFI firmware is told is lost when the VM stops: it has no efidisk0"
                    .to_owned(),
            );
        };
        let machine = settings.machine().ok()?.unwrap_or_default();
        let old = Chipset::of(&machine) == Chipset::I440fx && machine != "q35";
        let enrolled = disk.efi().ok()?.enrolled;
        (old && enrolled).then(|| "efidisk0: Secure Boot is off, since it needs the machine q35".to_owned())
    }

    /// All that would make a launch fail, as far as that shows without one.
    pub async fn obstacles(&self) -> Vec<String> {
        let settings = &self.config.current;
        let mut found: Vec<String> = vec![];
        match settings.nets() {
            Ok(nets) => {
                // Each by itself: a plan ends with the first device that has none.
                for net in nets {
                    let plan =
                        net::plan(self.launch.vmid, std::slice::from_ref(&net), self.options.bridges, None);
                    found.extend(plan.await.err().map(|(key, why)| format!("{key}: {why}")));
                }
            }
            Err(e) => found.push(e.to_string()),
        }
        let runs_with = self.launch.incoming.as_ref().and_then(|incoming| incoming.cpu.as_deref());
        match (settings.cpu(), runs_with) {
            (_, Some(cpu)) => found.extend(command::cpu_lacks(cpu, self.machines)),
            (Ok(cpu), None) => {
                found.extend(command::check_cpu(&cpu, self.machines).err().map(|e| e.to_string()));
            }
            (Err(e), None) => found.push(e.to_string()),
        }
        found.extend(self.tpm().err().map(|e| e.to_string()));
        found.extend(self.shares().await.err().map(|e| e.to_string()));
        let nets: Vec<NetPlan> =
            settings.nets().unwrap_or_default().iter().map(|_| NetPlan::User { forward: None }).collect();
        // Machine type, accelerator, firmware, disks: the first of them.
        let line = self.line([Endpoint::Path; 2], &nets, true).err().map(|e| e.to_string());
        found.extend(line.filter(|e| !found.contains(e)));
        found
    }

    async fn nets(&self) -> Result<Vec<NetPlan>, GuestError> {
        let nets = self.config.current.nets().map_err(unusable)?;
        let plan = net::plan(self.launch.vmid, &nets, self.options.bridges, self.options.forward.as_ref());
        plan.await.or_else(|(key, why)| refuse(&key, why))
    }

    /// The CPUs of the host that the guest may run on, and what is to be said of those that this host has not. Where it has none of
    /// them the guest runs on any: that it runs matters more than where.
    fn affinity(&self) -> Result<(Option<CpuSet>, Option<String>), GuestError> {
        let Some(wanted) = self.config.current.affinity().map_err(unusable)? else { return Ok((None, None)) };
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        let (there, missing): (Vec<u32>, Vec<u32>) = wanted.into_iter().partition(|cpu| lists(&online, *cpu));
        let missing: Vec<String> = missing.iter().map(u32::to_string).collect();
        let said = (!missing.is_empty())
            .then(|| format!("this node has CPUs {}, and not {}", online.trim(), missing.join(", ")));
        if there.is_empty() {
            return Ok((None, said.map(|said| format!("{said}: the VM runs on any of them"))));
        }
        let mut set = CpuSet::new();
        there.iter().for_each(|cpu| set.set(*cpu as usize));
        Ok((Some(set), said))
    }

    /// Its UEFI firmware, if it has one. The variables of a guest with a disk for them are on that.
    fn firmware(&self) -> Result<Option<Firmware>, GuestError> {
        let settings = &self.config.current;
        if settings.bios().map_err(unusable)? != Bios::Ovmf {
            return Ok(None);
        }
        let Some(disk) = settings.efidisk().map_err(unusable)? else {
            let (code, _) = firmware::programs(firmware::of_a_run()?)?;
            let (vars, node) = (self.dir.firmware_vars(), "pflash1".to_owned());
            return Ok(Some(Firmware { code, secure: None, vars, format: "raw".to_owned(), node }));
        };
        let named = disk.volume().map(ToString::to_string).unwrap_or_default();
        let Some(volume) = self.launch.volumes.iter().find(|v| v.volume == named) else {
            return refuse(&disk.key, format!("volume '{named}' was not found on its storage"));
        };
        let (code, secure) = firmware::programs(disk.efi().map_err(unusable)?)?;
        let (vars, format) = (volume.path.clone(), volume.format.clone());
        Ok(Some(Firmware { code, secure, vars, format, node: command::node_name(&disk.key) }))
    }

    /// Its TPM, if it has one.
    fn tpm(&self) -> Result<Option<Tpm>, GuestError> {
        Tpm::of(&self.config.current, &self.launch.volumes, &self.options.tpm)
    }

    /// The host's directories that it gets.
    async fn shares(&self) -> Result<Vec<Share>, GuestError> {
        Share::all(&self.config.current, self.options.virtiofsd.as_deref()).await
    }

    /// The host's PCI devices that it gets.
    fn passed(&self) -> Result<Vec<Passed>, GuestError> {
        vfio::plan(&self.options.sys, self.launch.vmid, &self.config.current, &self.taken)
    }

    /// What is said of its USB devices that are not plugged in.
    fn missing_usb(&self) -> Vec<String> {
        let all = self.config.current.usbs().unwrap_or_default();
        if all.is_empty() {
            return vec![];
        }
        let hardware = sys::hardware(&self.options.sys);
        let missing = |usb: &Usb| {
            let (there, what) = match &usb.source {
                UsbSource::Id(vendor, product) => {
                    let id = format!("{vendor}:{product}");
                    (hardware.usb.iter().any(|d| d.id() == id), id)
                }
                UsbSource::Port(bus, ports) => {
                    let path = format!("{bus}-{ports}");
                    (hardware.usb_at(&path).is_some(), path)
                }
                UsbSource::Mapping(_) | UsbSource::Spice => return None,
            };
            (!there).then(|| format!("{}: {what} is not plugged in; the guest sees it once it is", usb.key))
        };
        all.iter().filter_map(missing).collect()
    }

    /// The command line with its firmware, if it needs one.
    pub fn line(
        &self,
        monitors: [Endpoint; 2],
        nets: &[NetPlan],
        locks: bool,
    ) -> Result<CommandLine, GuestError> {
        sys::encrypted(&self.options.dev, &self.config.current)?;
        let firmware = self.firmware()?;
        command::build(&Context {
            vmid: self.launch.vmid,
            settings: &self.config.current,
            volumes: &self.launch.volumes,
            incoming: self.launch.incoming.as_ref(),
            accel: self.accel,
            machines: self.machines,
            dir: &self.dir,
            nets,
            passed: &self.passed()?,
            firmware: firmware.as_ref(),
            monitors,
            locks,
            page_mib: huge::Host::default().page(&self.config.current)?.map(|size| size.0),
        })
    }

    /// The command line as people would type it.
    pub async fn describe(&self) -> Result<Vec<String>, GuestError> {
        let mut words = vec![self.options.binary.display().to_string()];
        words.extend(self.line([Endpoint::Path; 2], &self.nets().await?, true)?.argv);
        Ok(words)
    }

    /// Starts the process and waits until it answers.
    pub async fn run(&self) -> Result<Guest, GuestError> {
        let nets = self.nets().await?;
        // A refusal by configuration costs nothing yet.
        self.line([Endpoint::Path; 2], &nets, true)?;
        self.tpm()?;
        self.shares().await?;
        let mut outcome = self.attempt(&nets, true).await;
        if let Err(Attempt::Failed(Failure { why, locked: true })) = &outcome {
            tracing::warn!(vmid = %self.launch.vmid, epoch = %self.launch.epoch,
                "another process holds a lock on the guest's disk, a frozen copy of an earlier epoch perhaps; \
                 this node's epoch is committed, so the lock is passed over: {why}");
            outcome = self.attempt(&nets, false).await;
        }
        outcome.map_err(|e| match e {
            Attempt::Refused(e) => e,
            Attempt::Failed(f) => GuestError::Launch { vmid: self.launch.vmid, why: f.why },
        })
    }

    async fn attempt(&self, nets: &[NetPlan], locks: bool) -> Result<Guest, Attempt> {
        let started = self.start(nets, locks).await;
        let (cleaner, meta) = match started {
            Ok((process, helpers, meta)) => (Cleaner { job: self, process: Some(process), helpers }, meta),
            Err(e) => {
                self.clear();
                return Err(e);
            }
        };
        match self.greet(cleaner.process.as_ref(), nets).await {
            Ok(qmp) => self.finish(cleaner, meta, qmp),
            Err(trouble) => {
                let why = self.end(&cleaner, trouble).await;
                let locked = locks && self.is_own_lock(&why);
                drop(cleaner);
                Err(Attempt::Failed(Failure { why, locked }))
            }
        }
    }

    fn finish(&self, mut cleaner: Cleaner<'_>, meta: Meta, qmp: Qmp) -> Result<Guest, Attempt> {
        let (major, minor, micro) = qmp.version();
        let process = cleaner.process.as_ref().map(|p| (p.pid, p.start));
        let meta = Meta { version: format!("{major}.{minor}.{micro}"), process, ..meta };
        self.dir.store(&meta).map_err(|e| failed(format!("its record could not be written: {e}")))?;
        match cleaner.process.take() {
            Some(process) => {
                let helpers = std::mem::take(&mut cleaner.helpers);
                Ok(Guest::new(self.dir.clone(), meta, process, helpers, Some(qmp)))
            }
            None => Err(failed("it has no process".to_owned())),
        }
    }

    /// Removes what a failed launch leaves, once no process is left.
    fn clear(&self) {
        let meta = self.dir.load();
        self.dir.remove();
        if let Some(cgroup) = cgroup_path(self.options, self.launch.vmid).and_then(Cgroup::at) {
            cgroup.remove();
        }
        cpu_group::clear(cpu_group::own_group(self.options, self.launch.vmid));
        if let Some(meta) = meta {
            huge::give_back(&meta.huge);
            meta.mdevs.iter().for_each(Mdev::remove);
        }
    }

    /// Makes the huge pages that its memory needs. Those that were added and go back at its end.
    fn huge(&self) -> Result<Vec<huge::Added>, Attempt> {
        let added = huge::Host::default().take(&self.config.current).map_err(Attempt::Refused)?;
        Ok(if self.config.current.keeps_huge_pages() { vec![] } else { added })
    }

    /// The group for its share of the CPUs, if it is one of its own. That the guest runs matters more than at what speed.
    fn cpu_group(&self) -> Result<Option<Cgroup>, Attempt> {
        let share = self.config.current.cpu_share().map_err(|e| Attempt::Refused(unusable(e)))?;
        Ok(cpu_group::bound_later(self.options, self.launch.vmid, share).unwrap_or_else(|e| {
            tracing::warn!(vmid = %self.launch.vmid, error = %e, "cpulimit, cpuunits: the VM runs without them");
            None
        }))
    }

    /// Executes the program.
    async fn start(&self, nets: &[NetPlan], locks: bool) -> Result<(Process, Helpers, Meta), Attempt> {
        let vmid = self.launch.vmid;
        let io = |what: &'static str| move |e: std::io::Error| failed(format!("{what}: {e}"));
        let cgroup = make_room(self.options, vmid).map_err(io("its run directory could not be made"))?;
        let firmware = self.firmware().map_err(Attempt::Refused)?;
        if let Some(firmware) = firmware.filter(|f| f.vars == self.dir.firmware_vars()) {
            let fresh = firmware::of_a_run().and_then(firmware::variables).map_err(Attempt::Refused)?;
            std::fs::copy(fresh, &firmware.vars).map_err(io("the firmware's variables"))?;
        }
        let bind = |path: PathBuf| -> std::io::Result<OwnedFd> {
            let _ = std::fs::remove_file(&path);
            Ok(std::os::unix::net::UnixListener::bind(path)?.into())
        };
        let monitors = [
            bind(self.dir.qmp()).map_err(io("its monitor"))?,
            bind(self.dir.fence()).map_err(io("its monitor"))?,
        ];
        let endpoints = [Endpoint::Fd(monitors[0].as_raw_fd()), Endpoint::Fd(monitors[1].as_raw_fd())];
        let line = self.line(endpoints, nets, locks).map_err(Attempt::Refused)?;
        let cpu_group = self.cpu_group()?;
        let groups: Vec<&Cgroup> = cgroup.iter().chain(&cpu_group).collect();
        let passed = self.passed().map_err(Attempt::Refused)?;
        let mut meta = self.record(line, nets)?;
        // Named before they are made, as all that is removed with it.
        meta.mdevs = passed.iter().filter_map(|p| p.mdev.clone()).collect();
        let folder = |group: &Cgroup| group.path().to_owned();
        meta.cgroup = cgroup.as_ref().map(folder);
        meta.cpu_cgroup = cpu_group.as_ref().map(folder);
        // Written before the process exists: what a dying daemon leaves is known to be unfinished.
        self.dir.store(&meta).map_err(io("its record could not be written"))?;
        vfio::take(&self.options.sys, &passed).await.map_err(Attempt::Refused)?;
        let mut helpers = Helpers::default();
        let spawned = async {
            self.start_helpers(&mut helpers, &groups).await?;
            helpers.note(&mut meta);
            // Before there is a QEMU with which they would end: a later daemon ends them.
            self.dir.store(&meta).map_err(io("its record could not be written"))?;
            self.execute(&meta, &monitors, &groups)
        };
        match spawned.await {
            Ok(process) => Ok((process, helpers, meta)),
            Err(e) => {
                helpers.gone(false).await;
                Err(e)
            }
        }
    }

    fn execute(&self, meta: &Meta, monitors: &[OwnedFd], groups: &[&Cgroup]) -> Result<Process, Attempt> {
        let io = |what: &'static str| move |e: std::io::Error| failed(format!("{what}: {e}"));
        let binary = &self.options.binary;
        let program = Program {
            binary,
            argv: &meta.argv,
            inherit: monitors,
            cgroups: entrances(groups).map_err(io("its cgroup"))?,
            affinity: self.affinity().map_err(Attempt::Refused)?.0,
            stderr: self.stderr().map_err(io("the file for its messages"))?,
        };
        program.spawn().map_err(|e| failed(format!("'{}' could not be started: {e}", binary.display())))
    }

    /// What a later daemon is to know of it, without its groups and what only a process has.
    fn record(&self, line: CommandLine, nets: &[NetPlan]) -> Result<Meta, Attempt> {
        let agent = self.config.current.agent().map_err(|e| Attempt::Refused(unusable(e)))?;
        let taps = nets.iter().filter_map(|n| match n {
            NetPlan::Tap { ifname, .. } => Some(ifname.clone()),
            NetPlan::User { .. } => None,
        });
        Ok(Meta {
            format: FORMAT,
            vmid: self.launch.vmid,
            epoch: self.launch.epoch,
            machine: line.machine,
            accel: line.accel,
            version: String::new(),
            cpus: line.cpus,
            agent: agent.enabled,
            stands: false,
            incoming: self.launch.incoming.is_some(),
            taps: taps.collect(),
            cgroup: None,
            huge: self.huge()?,
            cpu_cgroup: None,
            mdevs: vec![],
            argv: line.argv,
            asked: BTreeSet::new(),
            process: None,
            tpm: None,
            shares: BTreeMap::new(),
        })
    }

    /// Takes what a process says.
    fn stderr(&self) -> std::io::Result<std::fs::File> {
        std::fs::File::options().create(true).append(true).open(self.dir.stderr())
    }

    /// Starts what is beside QEMU. After an error some of it may be there.
    async fn start_helpers(&self, helpers: &mut Helpers, groups: &[&Cgroup]) -> Result<(), Attempt> {
        if let Some(tpm) = self.tpm().map_err(Attempt::Refused)? {
            let program = &self.options.tpm;
            let start = || tpm.start(program, &self.dir, entrances(groups)?, self.stderr()?);
            let failed = |e| failed(format!("'{}' could not be started: {e}", program.display()));
            helpers.add(tpm::KEY, start().map_err(failed)?);
        }
        for share in self.shares().await.map_err(Attempt::Refused)? {
            let start = || share.start(&self.dir, entrances(groups)?, self.stderr()?);
            let failed = |e| failed(format!("{}: {e}", share.key()));
            helpers.add(share.key(), start().map_err(failed)?);
        }
        Ok(())
    }

    /// Waits until QEMU answers, and does what can only be done then.
    async fn greet(&self, process: Option<&Process>, nets: &[NetPlan]) -> Result<Qmp, Trouble> {
        let exited = async {
            match process {
                Some(process) => process.exited().await,
                None => std::future::pending().await,
            }
        };
        let ready = async {
            let silent = |e: QmpError| Trouble::Silent(e.to_string());
            let qmp = Qmp::connect(&self.dir.qmp()).await.map_err(silent)?;
            // Answered by the main loop, once the machine is complete.
            qmp.execute_within("query-status", serde_json::json!({}), self.patience())
                .await
                .map_err(silent)?;
            for plan in nets {
                net::attach(plan).await.map_err(Trouble::Refused)?;
            }
            self.settle(&qmp).await.map_err(Trouble::Refused)?;
            if let Ok(share) = self.config.current.cpu_share()
                && let Err(e) = cpu_group::bound(self.options, self.launch.vmid, share)
            {
                tracing::warn!(vmid = %self.launch.vmid, error = %e, "the VM runs without its limit of CPUs");
            }
            Ok(qmp)
        };
        tokio::select! {
            ready = ready => ready,
            () = exited => Err(Trouble::Silent("it ended at once".to_owned())),
        }
    }

    /// How long it may take to answer for the first time: huge pages are cleared before, at the least a GiB a second.
    fn patience(&self) -> Duration {
        let huge = self.config.current.huge_pages().is_ok_and(|sizes| !sizes.is_empty());
        let memory = self.config.current.memory().map_or(0, |memory| memory.0);
        PATIENCE + Duration::from_secs(if huge { memory / 1024 } else { 0 })
    }

    async fn settle(&self, qmp: &Qmp) -> Result<(), String> {
        let settings = &self.config.current;
        let tell = async |key: &str| {
            let (command, arguments) = tune::command(settings, key).map_err(|e| e.to_string())?;
            qmp.execute(command, arguments).await.map_err(|e| format!("{key}: {e}"))
        };
        for key in tune::after_start(settings).map_err(|e| e.to_string())? {
            tell(&key).await?;
        }
        if let Some(incoming) = &self.launch.incoming {
            let begun = match &incoming.state {
                Some(state) => migration::load(qmp, state).await,
                None => migration::listen(qmp, &self.dir.inlet(), incoming.streams).await,
            };
            return begun.map_err(|e| e.to_string());
        }
        let memory = settings.memory().map_err(|e| e.to_string())?;
        if settings.balloon().is_ok_and(|target| target.is_some_and(|t| t.0 > 0 && t < memory)) {
            tell("balloon").await?;
        }
        Ok(())
    }

    /// Ends a process that did not come up, and finds its last words.
    async fn end(&self, cleaner: &Cleaner<'_>, trouble: Trouble) -> String {
        if let Some(process) = &cleaner.process {
            let _ = process.kill();
            process.exited().await;
        }
        cleaner.helpers.gone(false).await;
        let why = match trouble {
            Trouble::Refused(why) => return why,
            Trouble::Silent(why) => why,
        };
        let words = std::fs::read(self.dir.stderr()).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let program = self.options.binary.file_name().and_then(|n| n.to_str()).unwrap_or("qemu");
        let lines: Vec<&str> = words
            .lines()
            .map(|l| l.trim().trim_start_matches(program).trim_start_matches(": "))
            .filter(|l| !l.is_empty())
            .collect();
        let last = lines[lines.len().saturating_sub(8)..].join("; ");
        if last.is_empty() { why } else { last }
    }

    /// Whether the guest may pass over the lock that stopped it: on its own disk, after a
    /// recovery. A disk of another guest, or one that only tools have ever had open, keeps its protection.
    fn is_own_lock(&self, words: &str) -> bool {
        let own = format!(":{}/", self.launch.vmid);
        words.contains("Failed to get")
            && words.contains("lock")
            && self.launch.recovered
            && self
                .launch
                .volumes
                .iter()
                .any(|v| v.volume.contains(&own) && v.path.to_str().is_some_and(|path| words.contains(path)))
    }
}

/// Why a process did not come up.
#[derive(Debug)]
enum Trouble {
    /// It does not answer: what it said before is the cause.
    Silent(String),
    /// It answers, and something was refused.
    Refused(String),
}

/// Why a try failed.
#[derive(Debug)]
enum Attempt {
    Refused(GuestError),
    Failed(Failure),
}

fn failed(why: String) -> Attempt {
    Attempt::Failed(Failure { why, locked: false })
}

/// Removes what a failed launch leaves.
#[derive(Debug)]
struct Cleaner<'a> {
    job: &'a Job<'a>,
    process: Option<Process>,
    helpers: Helpers,
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            let _ = process.kill();
            process.reap();
            self.helpers.kill_and_reap();
            self.job.clear();
        }
    }
}

/// Whether a CPU is in a list as the kernel writes it: `0,4-7`.
fn lists(list: &str, cpu: u32) -> bool {
    list.trim().split(',').any(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        from.parse().is_ok_and(|from: u32| from <= cpu) && to.parse().is_ok_and(|to: u32| cpu <= to)
    })
}

fn entrances(groups: &[&Cgroup]) -> std::io::Result<Vec<std::fs::File>> {
    groups.iter().map(|group| group.entrance()).collect()
}

/// Where a guest's cgroup is made.
fn cgroup_path(options: &QemuOptions, vmid: Vmid) -> Option<PathBuf> {
    options.cgroup_root.as_ref().map(|root| root.join(vmid.to_string()))
}

/// Makes a guest's run directory and cgroup. Repeating it is no error.
pub fn make_room(options: &QemuOptions, vmid: Vmid) -> std::io::Result<Option<Cgroup>> {
    RunDir::new(&options.run_dir, vmid).create()?;
    cpu_group::clear(cpu_group::own_group(options, vmid));
    let Some(path) = cgroup_path(options, vmid) else { return Ok(None) };
    match Cgroup::create(path) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(e) => {
            tracing::warn!(%vmid, error = %e, "the guest gets no cgroup of its own");
            Ok(None)
        }
    }
}
