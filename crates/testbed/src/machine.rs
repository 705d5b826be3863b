//! A node that is a machine: its own systemd, in a container of `systemd-nspawn`, on a Debian of its own with the Debian
//! package installed.
//!
//! ```text
//!   BED/nN/upper ─┐                 ┌─ systemd (pid 1 of the machine: its life is the machine's)
//!   cached tree ──┴─ BED/nN/root ──▶│   ├─ stead-fenced, steadd ── from the package
//!                                   │   └─ guests
//!   BED/shared  ────────────────────┘   in the node's network namespace, in a cgroup (v2) of its own
//! ```
//!
//! Files outlive a power cut and a reboot, memory and processes don't. The container shares the kernel with the machine
//! that runs the tests, so whether that one's power is out of reach is looked at before the package, whose fence process
//! has power over hosts, comes in ([`out_of_reach`]).

use crate::procs::{self, run};
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs;
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The tree that `scripts/machine-tree.sh` makes.
const TREE: &str = "bookworm-2";
/// What `scripts/peer-tree.sh` lays over it.
const PEER: &str = "bookworm-2-peer-1";
/// What nspawn ends with when the machine has asked for a reboot.
pub(crate) const REBOOT: i32 = 133;
/// How long a boot may take on a busy machine.
const BOOTED_WITHIN: Duration = Duration::from_secs(60);
/// How long killed processes may take to be gone.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
/// Services of a machine's clock and console, of which these have none of their own.
const MASKED: &[&str] = &["systemd-timesyncd.service", "console-getty.service"];

/// Where the trees are kept: `STEAD_MACHINE_CACHE`, else `machine` beside the guests' images.
fn trees() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("STEAD_MACHINE_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    Ok(crate::guest::image::cache_dir()?.with_file_name("machine"))
}

/// What is there when a machine is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A small Debian with all that the package depends on.
    Plain,
    /// The same with pacemaker, corosync, and fence agents.
    Peer,
}

impl Content {
    /// Its trees, what lies above first.
    fn layers(self) -> Result<Vec<PathBuf>> {
        let names: &[&str] = match self {
            Self::Plain => &[TREE],
            Self::Peer => &[PEER, TREE],
        };
        let dir = trees()?;
        Ok(names.iter().map(|name| dir.join(name)).collect())
    }

    /// The script that makes it.
    fn script(self) -> &'static str {
        match self {
            Self::Plain => "scripts/machine-tree.sh",
            Self::Peer => "scripts/peer-tree.sh",
        }
    }
}

/// Where a v2 tree of cgroups is mounted, alone or beside v1's.
fn cgroups() -> Option<&'static Path> {
    let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    trees.into_iter().find(|tree| tree.join("cgroup.controllers").exists())
}

/// What machine nodes need and this machine has not.
pub fn missing() -> Option<String> {
    missing_for(Content::Plain)
}

/// What machine nodes of this content need and this machine has not.
pub fn missing_for(content: Content) -> Option<String> {
    if !crate::skip::is_root() {
        return Some("needs root for machine nodes".to_owned());
    }
    if Command::new("systemd-nspawn").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Some("systemd-nspawn is missing (make deps)".to_owned());
    }
    if cgroups().is_none() {
        return Some("there is no cgroup v2 tree".to_owned());
    }
    match content.layers() {
        Ok(layers) => {
            let gone = layers.into_iter().find(|tree| !tree.is_dir())?;
            Some(format!("{} is missing ({})", gone.display(), content.script()))
        }
        Err(e) => Some(format!("{e:#}")),
    }
}

/// Makes sure that whoever is root below `root` cannot reset this machine: no file there is the kernel's reset switch, open
/// to be written, and none is a watchdog, which is started by opening it.
///
/// # Errors
/// What is in reach, or that it cannot be told.
pub fn out_of_reach(root: &Path) -> Result<()> {
    let switch = root.join("proc/sysrq-trigger");
    // Opened, it does nothing; only a letter would.
    match fs::OpenOptions::new().write(true).open(&switch) {
        Ok(_) => bail!("{} can be written: this machine could be reset by a test", switch.display()),
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::NotFound | ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
            ) => {}
        Err(e) => return Err(e).with_context(|| format!("can't tell whether {} works", switch.display())),
    }
    let devices = root.join("dev");
    for entry in fs::read_dir(&devices).with_context(|| format!("can't list {}", devices.display()))? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("watchdog") {
            bail!("{} has {}: this machine could be reset by a test", devices.display(), name.display());
        }
    }
    Ok(())
}

/// A Debian of one's own: the cached trees, with what is written to it in a folder of a testbed.
#[derive(Debug)]
pub struct Debian {
    dir: PathBuf,
}

impl Debian {
    /// Lays it out in `dir`, mounted in this thread's mount namespace.
    ///
    /// # Errors
    /// The tree is missing, or cannot be mounted.
    pub fn new(dir: &Path) -> Result<Self> {
        Self::with(dir, Content::Plain)
    }

    fn with(dir: &Path, content: Content) -> Result<Self> {
        for part in ["upper", "work", "root"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let layers: Vec<String> = content.layers()?.iter().map(|tree| tree.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layers.join(":"),
            dir.join("upper").display(),
            dir.join("work").display()
        );
        let debian = Self { dir: dir.to_owned() };
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "debian"]).arg(debian.root()))?;
        Ok(debian)
    }

    /// Its root folder.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Writes one of its files.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root().join(path);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Copies the package into it, if this machine's power is out of reach there; gives its path inside.
    fn bring(&self, seen_at: &Path, deb: &Path) -> Result<PathBuf> {
        out_of_reach(seen_at)?;
        let inside = Path::new("srv").join(deb.file_name().context("the package has no name")?);
        fs::copy(deb, self.root().join(&inside)).context("copying the package")?;
        Ok(Path::new("/").join(inside))
    }

    /// Installs the package without booting anything, as an installer of systems does: nothing of `/proc` is there.
    ///
    /// # Errors
    /// It cannot be installed.
    pub fn install(&self, deb: &Path) -> Result<()> {
        let deb = self.bring(&self.root(), deb)?;
        self.command(&["dpkg", "--install", &deb.to_string_lossy()])
    }

    /// Runs a program with this for its root.
    ///
    /// # Errors
    /// It fails.
    pub fn command(&self, words: &[&str]) -> Result<()> {
        run(plain(Command::new("chroot").arg(self.root()).args(words)))
    }

    /// Takes it apart, all but its files.
    pub fn clear(&self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.root()).status();
    }
}

/// As a login would have it, and nothing of this process's.
fn plain(command: &mut Command) -> &mut Command {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let all = [("PATH", path), ("LC_ALL", "C"), ("DEBIAN_FRONTEND", "noninteractive")];
    command.env_clear().envs(all).stdin(Stdio::null())
}

/// One machine's files and where it runs.
#[derive(Debug)]
pub(crate) struct Machine {
    dir: PathBuf,
    debian: Debian,
    name: String,
    /// What it sees of the machine below, at the same paths.
    binds: Vec<PathBuf>,
    cgroup: PathBuf,
}

impl Machine {
    /// Lays its root out in `dir`; `name` is the host's.
    pub(crate) fn new(dir: &Path, name: &str, content: Content, binds: Vec<PathBuf>) -> Result<Self> {
        let bed = dir.parent().and_then(Path::file_name).context("a node lies in a testbed's folder")?;
        let cgroup = cgroups().context("there is no cgroup v2 tree")?;
        let cgroup = cgroup.join(format!("{}-{name}", bed.display()));
        let debian = Debian::with(dir, content)?;
        debian.write("etc/hostname", &format!("{name}\n"))?;
        debian.write("etc/hosts", &format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"))?;
        // A log that outlives the boot.
        fs::create_dir_all(debian.root().join("var/log/journal"))?;
        for unit in MASKED {
            let link = debian.root().join("etc/systemd/system").join(unit);
            std::os::unix::fs::symlink("/dev/null", link)?;
        }
        Ok(Self { dir: dir.to_owned(), debian, name: name.to_owned(), binds, cgroup })
    }

    /// Its files.
    pub(crate) fn debian(&self) -> &Debian {
        &self.debian
    }

    /// The command that is its power: it runs as long as the machine does.
    pub(crate) fn command(&self) -> Result<Command> {
        fs::create_dir_all(&self.cgroup).context("making a machine's cgroup")?;
        let entrance = self.cgroup.join("cgroup.procs");
        let entrance = fs::File::options().write(true).open(&entrance).context("entering its cgroup")?;
        let bed = self.dir.parent().context("a node lies in a testbed's folder")?;
        let mut command = Command::new("systemd-nspawn");
        command
            .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"])
            .arg(format!("--machine={}", self.unique()))
            .arg(format!("--hostname={}", self.name))
            .arg(format!("--directory={}", self.debian.root().display()))
            // It makes taps and bridges in its own network; all else is as nspawn would have it.
            .args(["--capability=CAP_NET_ADMIN", "--bind=/dev/net/tun"])
            .args(self.binds.iter().map(|b| format!("--bind={}", b.display())))
            // By these it is found again.
            .arg(format!("--setenv={}={}", procs::NODE_DIR, self.dir.display()))
            .arg(format!("--setenv={}={}", procs::BED_DIR, bed.display()))
            // As on every Debian since 11.
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        // SAFETY: between fork and exec it makes one system call on a descriptor that the closure keeps open.
        unsafe {
            command.pre_exec(move || rustix::io::write(&entrance, b"0").map(drop).map_err(Into::into));
        }
        Ok(command)
    }

    /// A name that no other machine has, of any testbed.
    fn unique(&self) -> String {
        self.cgroup.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its pid 1, as this machine knows it. Never a process of this machine's own, whatever its command line: what is run
    /// there may switch the power off.
    pub(crate) fn leader(&self) -> Option<i32> {
        let space = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
        let apart = |pid: i32| {
            ["pid", "mnt"].iter().all(|kind| {
                let (own, other) = (space("self", kind), space(&pid.to_string(), kind));
                own.is_some() && other.is_some() && own != other
            })
        };
        let all = procs::find(procs::NODE_DIR, &self.dir);
        let is_init = |p: &&procs::Process| p.command.ends_with("/systemd") || p.command.ends_with("/init");
        all.iter().filter(is_init).find(|p| apart(p.pid)).map(|p| p.pid)
    }

    /// Its processes: all that share its pid 1's process ids.
    pub(crate) fn processes(&self) -> Vec<procs::Process> {
        let Some(leader) = self.leader() else { return Vec::new() };
        let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = space(leader);
        procs::all().into_iter().filter(|p| own.is_some() && space(p.pid) == own).collect()
    }

    /// Runs a shell's script in it; an error where it fails.
    pub(crate) fn shell(&self, script: &str) -> Result<String> {
        let out = self.try_shell(script)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            out.status.success(),
            "'{script}' on {} ended with {}:\n{}{}",
            self.name,
            out.status,
            text(&out.stdout),
            text(&out.stderr)
        );
        Ok(text(&out.stdout))
    }

    fn try_shell(&self, script: &str) -> Result<Output> {
        let leader = self.leader().with_context(|| format!("{} does not run", self.name))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={leader}")).args(["--all", "sh", "-c", script]);
        plain(&mut command).output().context("running nsenter")
    }

    /// Waits until its systemd has started all that it shall. A unit that has failed is an error.
    pub(crate) fn wait_booted(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            // Before its pid 1 listens there is nothing to be told by; afterwards this waits for the end of the boot.
            let out = self.try_shell("systemctl is-system-running --wait");
            let state = out.as_ref().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
            match state.as_deref() {
                Ok("running") => return Ok(()),
                Ok("degraded") => {
                    bail!("{}: units have failed:\n{}", self.name, self.shell("systemctl --failed")?)
                }
                _ if begin.elapsed() > BOOTED_WITHIN => {
                    bail!("{} has not booted within {BOOTED_WITHIN:?}: {out:?}", self.name)
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Installs the package, as an administrator does; only where this machine's power is out of reach.
    pub(crate) fn install(&self, deb: &Path) -> Result<()> {
        let leader = self.leader().with_context(|| format!("{} does not run", self.name))?;
        let deb = self.debian.bring(Path::new(&format!("/proc/{leader}/root")), deb)?;
        self.shell(&format!("dpkg --install {}", deb.display())).map(drop)
    }
}

impl Machine {
    /// Waits until the last of its killed processes has gone. Its pid 1 looks gone before that.
    ///
    /// # Errors
    /// Some are still there.
    pub(crate) fn wait_empty(&self) -> Result<()> {
        let end = Instant::now() + EMPTY_WITHIN;
        // Without the group nobody is in it.
        let Ok(mut events) = fs::File::open(self.cgroup.join("cgroup.events")) else { return Ok(()) };
        loop {
            let mut text = String::new();
            events.rewind()?;
            if events.read_to_string(&mut text).is_err() || !text.lines().any(|l| l == "populated 1") {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "processes of {} outlive SIGKILL", self.name);
            // The kernel tells of a change after what was read.
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            poll(&mut changed, Some(&Timespec::try_from(left)?))?;
        }
    }

    /// Takes apart what `new` laid out, all but its files. It is off by now.
    pub(crate) fn clear(&self) {
        self.debian.clear();
        // What cannot be removed is empty, and in nobody's way. Beside a v2 tree alone nspawn makes the same group again.
        remove_cgroups(&self.cgroup);
        remove_cgroups(&Path::new("/sys/fs/cgroup/systemd").join(self.unique()));
        let _ = fs::remove_dir(Path::new("/run/systemd/nspawn/propagate").join(self.unique()));
    }
}

fn remove_cgroups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Builds the package from the programs that are built; gives its path. It lies in `dir`.
pub fn package(dir: &Path) -> Result<PathBuf> {
    let bin = crate::cluster::program("steadd")?;
    // As it is where the test runs: what was built in one checkout may run in another.
    let package =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let out = Command::new(format!("{package}/../../scripts/deb.sh"))
        .arg("--debug")
        .env("STEAD_BIN_DIR", bin.parent().context("a program lies in a folder")?)
        .env("STEAD_DEB_DIR", dir)
        .stdin(Stdio::null())
        .output()
        .context("running scripts/deb.sh")?;
    ensure!(out.status.success(), "scripts/deb.sh failed:\n{}", String::from_utf8_lossy(&out.stderr));
    Ok(PathBuf::from(String::from_utf8(out.stdout)?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_could_reset_this_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(out_of_reach(root).is_err(), "nothing can be told of a folder without devices");
        for folder in ["proc", "dev"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        out_of_reach(root).unwrap();

        let switch = root.join("proc/sysrq-trigger");
        fs::write(&switch, "").unwrap();
        assert!(out_of_reach(root).unwrap_err().to_string().contains("can be written"));
        fs::remove_file(&switch).unwrap();
        // What can't be told counts as in reach.
        fs::create_dir(&switch).unwrap();
        assert!(out_of_reach(root).is_err());
        fs::remove_dir(&switch).unwrap();

        for name in ["watchdog", "watchdog0"] {
            fs::write(root.join("dev").join(name), "").unwrap();
            assert!(out_of_reach(root).unwrap_err().to_string().contains(name));
            fs::remove_file(root.join("dev").join(name)).unwrap();
        }
        out_of_reach(root).unwrap();
    }

    #[test]
    fn a_switch_on_a_read_only_file_system_is_out_of_reach() {
        if !crate::skip::is_root() {
            crate::skip!("needs root to mount");
        }
        crate::netns::enter_own().unwrap();
        let dir = tempfile::tempdir().unwrap();
        for folder in ["proc", "dev"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let switch = dir.path().join("proc/sysrq-trigger");
        fs::write(&switch, "").unwrap();
        run(Command::new("mount").args(["-o", "bind"]).args([&switch, &switch])).unwrap();
        assert!(out_of_reach(dir.path()).is_err(), "as nspawn mounts it, but not yet read-only");
        run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&switch)).unwrap();
        out_of_reach(dir.path()).unwrap();
        run(Command::new("umount").arg(&switch)).unwrap();
    }
}
