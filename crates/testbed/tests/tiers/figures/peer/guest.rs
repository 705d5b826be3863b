//! The guest's command line, as Stead has it, for others to execute.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use stead_testbed::Cluster;
use stead_testbed::node::Node;
use stead_testbed::procs::Process;

/// Where others keep the sockets.
const RUN: &str = "/run/guest";

/// A command line, and the folders that it names.
#[derive(Debug)]
pub struct Guest {
    words: Vec<String>,
    /// Where Stead keeps the guest's sockets.
    run: String,
    /// What all nodes see: the disk, and the traces.
    shared: PathBuf,
}

impl Guest {
    /// That of the only guest of a cluster.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let mut all = cluster.nodes().iter().flat_map(Node::processes);
        let qemu = all.find(Process::is_qemu).context("the guest does not run")?;
        let bytes = fs::read(format!("/proc/{}/cmdline", qemu.pid))?;
        let words = bytes.split(|b| *b == 0).filter(|w| !w.is_empty());
        let words: Vec<String> = words.map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let at = words.iter().position(|w| w == "-pidfile").context("it has no -pidfile")?;
        let pid_file = words.get(at + 1).context("-pidfile has no value")?;
        let run = Path::new(pid_file).parent().context("its -pidfile lies in no folder")?;
        let run = run.display().to_string();
        Ok(Self { words, run, shared: cluster.shared_dir().to_owned() })
    }

    /// A shell's script that becomes the same QEMU, with another folder for what is shared. Its CPUs run at once: it knows no
    /// one to wait for. Its monitors are at paths, since nobody hands them over.
    pub fn script(&self, shared: &Path) -> Result<String> {
        let (from, to) = (self.shared.display().to_string(), shared.display().to_string());
        let mut script = String::from("exec");
        for word in self.words.iter().filter(|w| *w != "-S") {
            let mut word = word.replace(&from, &to).replace(&self.run, RUN);
            for id in ["qmp", "fence"] {
                if word.starts_with(&format!("socket,id={id},fd=")) {
                    word = format!("socket,id={id},path={RUN}/{id},server=on,wait=off");
                }
            }
            script.push_str(&format!(" '{}'", word.replace('\'', r"'\''")));
        }
        ensure!(
            script.contains(&format!("-pidfile' '{RUN}/pid'")),
            "another name than the agent's: {script}"
        );
        ensure!(!script.contains(",fd="), "it was handed something over: {script}");
        Ok(script + "\n")
    }
}

#[test]
fn only_places_and_the_wait_are_changed() {
    let words = [
        "/usr/bin/q",
        "-S",
        "-pidfile",
        "/run/a/pid",
        "-chardev",
        "socket,id=qmp,fd=9,server=on",
        "-D",
        "/s/t/%d",
    ];
    let words = words.map(str::to_owned).to_vec();
    let guest = Guest { words, run: "/run/a".into(), shared: "/s".into() };
    let script = guest.script(Path::new("/other's")).unwrap();
    let qmp = "'socket,id=qmp,path=/run/guest/qmp,server=on,wait=off'";
    let expected =
        format!("exec '/usr/bin/q' '-pidfile' '/run/guest/pid' '-chardev' {qmp} '-D' '/other'\\''s/t/%d'\n");
    assert_eq!(script, expected);
}
