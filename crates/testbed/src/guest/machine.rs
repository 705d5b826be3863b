//! A machine over which `stead-fenced` has real power, emulated: Debian's cloud kernel, its `softdog`, the fence process, and
//! an `init` that plays the daemon (`guests/machine/init.rs`).
//!
//! Power over a host must never be tried on the one that runs the tests. In here `/etc/stead/host-armed` exists, and what is
//! reset is an emulated machine: QEMU ends instead of booting again.

use super::{image, kernel};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/machine"));
/// What `init` says begins so.
const WORD: &str = "stead-machine ";

/// Kernel and RAM disk, to be started any number of times.
#[derive(Debug)]
pub struct Machine {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// What a machine said, and when it ended.
#[derive(Debug)]
pub struct Story {
    /// Words of `init`, with the moment at which each arrived.
    pub words: Vec<(Instant, String)>,
    /// Everything on the serial port, for who looks for a cause.
    pub serial: String,
    /// When the machine was reset, or had switched itself off.
    pub ended: Instant,
}

impl Story {
    /// The moment of a word.
    pub fn when(&self, word: &str) -> Result<Instant> {
        let found = self.words.iter().find(|(_, w)| w == word);
        Ok(found.with_context(|| format!("the machine never said '{word}':\n{}", self.serial))?.0)
    }

    /// Whether it lived to the end of its scenario.
    pub fn alive(&self) -> bool {
        self.words.last().is_some_and(|(_, w)| w.starts_with("alive"))
    }
}

impl Machine {
    /// Lays one out in `dir`, with this fence process.
    pub fn new(dir: &Path, fenced: &Path) -> Result<Self> {
        let (cache, _lock) = image::locked_cache()?;
        let parts = kernel::parts(&cache, &["softdog"], &|what| eprintln!("{what}"))?;
        ensure!(
            parts.modules.iter().any(|(name, _)| name == "softdog.ko"),
            "the kernel has no module softdog"
        );
        let mut cpio = image::Cpio::default();
        for folder in ["bin", "dev", "proc", "run", "etc", "etc/stead", "modules"] {
            cpio.add(folder, 0o040_755, &[]);
        }
        cpio.add("etc/stead/host-armed", 0o100_644, &[]);
        cpio.add("init", 0o100_755, INIT);
        cpio.add("bin/busybox", 0o100_755, &parts.busybox);
        cpio.add_modules(&parts.modules);
        let mut files = image::program_files(fenced)?;
        files[0].0 = "stead-fenced".to_owned();
        cpio.add_programs(&files);
        let (kernel, initrd) = (dir.join("kernel"), dir.join("initrd"));
        fs::write(&kernel, &parts.kernel)?;
        fs::write(&initrd, cpio.finish())?;
        Ok(Self { kernel, initrd })
    }

    /// Plays a scenario to its end; an error if there is none within `limit`.
    pub fn play(&self, scenario: &str, limit: Duration) -> Result<Story> {
        let path = |p: &Path| p.display().to_string();
        // A panic must not look like a reset: the machine hangs then, and the limit is passed.
        let line = format!("console=ttyS0 quiet panic=0 scenario={scenario}");
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-machine",
                "pc",
                "-accel",
                "tcg",
                "-m",
                "256",
                "-display",
                "none",
            ])
            .args([
                "-no-reboot",
                "-serial",
                "stdio",
                "-kernel",
                &path(&self.kernel),
                "-initrd",
                &path(&self.initrd),
            ])
            .args(["-append", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("running qemu-system-x86_64")?;
        let lines = lines(&mut qemu)?;
        let story = listen(&lines, Instant::now() + limit);
        if story.is_err() {
            qemu.kill()?;
        }
        let status = qemu.wait()?;
        let story = story.with_context(|| format!("scenario {scenario}"))?;
        ensure!(status.success(), "scenario {scenario}: QEMU ended with {status}:\n{}", story.serial);
        Ok(story)
    }
}

fn lines(qemu: &mut Child) -> Result<Receiver<(Instant, String)>> {
    let out = qemu.stdout.take().context("QEMU's output was not piped")?;
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut out = BufReader::new(out);
        let mut line = Vec::new();
        while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if send.send((Instant::now(), text)).is_err() {
                return;
            }
            line.clear();
        }
    });
    Ok(lines)
}

fn listen(lines: &Receiver<(Instant, String)>, until: Instant) -> Result<Story> {
    let (mut words, mut serial) = (Vec::new(), String::new());
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((when, line)) => {
                // The firmware's last bytes may stand before a word.
                if let Some((_, word)) = line.split_once(WORD) {
                    words.push((when, word.to_owned()));
                }
                serial += &line;
                serial.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(Story { words, serial, ended: Instant::now() }),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine neither ended nor was reset in time:\n{serial}")
            }
        }
    }
}
