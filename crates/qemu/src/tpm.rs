//! A guest's TPM: a program beside QEMU, swtpm, which keeps its state on a volume.
//!
//! See [`crate::helpers`] for its place beside QEMU.
//!
//! ```text
//!  launch ─▶ swtpm listens ─▶ QEMU connects ─▶ first command: the volume is opened ─▶ … ─▶ QEMU ends ─▶ swtpm flushes, ends
//! ```
//!
//! What it has not written to its volume, a migration's stream carries: the target's program opens the volume when it gets that, and the
//! source's guest stands still by then.

use crate::command::{refuse, unusable};
use crate::process::{self, Process, Program};
use crate::rundir::RunDir;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use stead_driver::guest::{GuestError, ResolvedVolume};
use stead_model::vmconfig::{Settings, TpmVersion};

/// The option.
pub const KEY: &str = "tpmstate0";

/// What is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm {
    version: TpmVersion,
    volume: String,
}

impl Tpm {
    /// That of a configuration, if it has one. Refuses what could not be started.
    pub fn of(
        settings: &Settings,
        volumes: &[ResolvedVolume],
        program: &Path,
    ) -> Result<Option<Self>, GuestError> {
        let Some(disk) = settings.tpmstate().map_err(unusable)? else { return Ok(None) };
        let version = disk.tpm().map_err(unusable)?;
        let named = disk.volume().map(ToString::to_string).unwrap_or_default();
        let Some(volume) = volumes.iter().find(|v| v.volume == named) else {
            return refuse(KEY, format!("volume '{named}' was not found on its storage"));
        };
        if volume.format != "raw" {
            let why =
                format!("volume '{named}' is in the format {}, and a TPM reads raw alone", volume.format);
            return refuse(KEY, why);
        }
        // Its options are one list.
        let Some(path) = volume.path.to_str().filter(|path| !path.contains(',')) else {
            return refuse(
                KEY,
                format!("the program that is the TPM can't open '{}'", volume.path.display()),
            );
        };
        if !process::resolve(program).exists() {
            let why = format!("'{}' is not on this node: install the package swtpm", program.display());
            return refuse(KEY, why);
        }
        Ok(Some(Self { version, volume: path.to_owned() }))
    }

    /// Its arguments, with the descriptor of the socket on which it listens.
    fn argv(&self, dir: &RunDir, socket: i32) -> Vec<String> {
        let mut words = vec!["socket".to_owned(), "--terminate".to_owned()];
        if self.version == TpmVersion::V20 {
            words.push("--tpm2".to_owned());
        }
        for (flag, value) in [
            ("--tpmstate", format!("backend-uri=file://{}", self.volume)),
            ("--ctrl", format!("type=unixio,fd={socket}")),
            ("--pid", format!("file={}", dir.tpm_pid().display())),
        ] {
            words.extend([flag.to_owned(), value]);
        }
        words
    }

    /// Starts it. It is ready for QEMU from now on.
    pub fn start(
        &self,
        program: &Path,
        dir: &RunDir,
        cgroups: Vec<File>,
        stderr: File,
    ) -> io::Result<Process> {
        let path = dir.tpm();
        let _ = std::fs::remove_file(&path);
        let socket = [OwnedFd::from(std::os::unix::net::UnixListener::bind(path)?)];
        let argv = self.argv(dir, socket[0].as_raw_fd());
        Program { binary: program, argv: &argv, inherit: &socket, cgroups, affinity: None, stderr }.spawn()
    }
}

/// The program's name in the search path.
pub fn program() -> PathBuf {
    "swtpm".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Vmid;
    use stead_model::vmconfig::VmConfig;

    fn of(value: &str, path: &str, format: &str, program: &str) -> Result<Option<Tpm>, String> {
        let settings = VmConfig::parse(&format!("tpmstate0: {value}\n")).unwrap().current;
        let volume =
            ResolvedVolume { volume: "a1:100/t".to_owned(), path: path.into(), format: format.to_owned() };
        Tpm::of(&settings, &[volume], Path::new(program)).map_err(|e| e.to_string())
    }

    #[test]
    fn what_can_t_be_started_is_refused_by_name() {
        let none = VmConfig::parse("memory: 16\n").unwrap().current;
        assert_eq!(Tpm::of(&none, &[], Path::new("/none")).unwrap(), None);
        let tpm = of("a1:100/t,version=v2.0", "/t.raw", "raw", "sh").unwrap().unwrap();
        let dir = RunDir::new(Path::new("/run"), Vmid::new(100).unwrap());
        assert_eq!(
            tpm.argv(&dir, 7).join(" "),
            "socket --terminate --tpm2 --tpmstate backend-uri=file:///t.raw --ctrl type=unixio,fd=7 --pid file=/run/100/tpm.pid"
        );
        let older = of("a1:100/t", "/t.raw", "raw", "sh").unwrap().unwrap();
        assert!(!older.argv(&dir, 7).contains(&"--tpm2".to_owned()));
        for (value, path, format, program, why) in [
            ("a1:100/other", "/t.raw", "raw", "sh", "tpmstate0: volume 'a1:100/other' was not found"),
            ("a1:100/t", "/t.raw", "qcow2", "sh", "in the format qcow2"),
            ("a1:100/t", "/t,log=/etc/passwd", "raw", "sh", "can't open"),
            ("a1:100/t", "/t.raw", "raw", "/none/swtpm", "install the package swtpm"),
        ] {
            let e = of(value, path, format, program).unwrap_err();
            assert!(e.starts_with("tpmstate0: ") && e.contains(why), "{e}");
        }
    }
}
