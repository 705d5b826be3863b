//! Directories of the host that a guest mounts: a program for each, virtiofsd, which carries out what the guest asks of it.
//!
//! It sees the guest's memory, which is shared with it for that, and of the host's files those of its directory alone: it puts itself
//! into namespaces of its own. See [`crate::helpers`] for its place beside QEMU.
//!
//! There are two programs of that name. That of QEMU 7.2 and older, in C, takes other words than the one that came after it.

use crate::command::{refuse, unusable};
use crate::process::{self, Process, Program};
use crate::rundir::RunDir;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stead_driver::guest::GuestError;
use stead_model::vmconfig::{Settings, ShareCache, Virtiofs};

/// Where packages put it.
const PLACES: [&str; 4] =
    ["virtiofsd", "/usr/libexec/virtiofsd", "/usr/local/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// How long it may take to say which one it is.
const ANSWER: Duration = Duration::from_secs(5);

/// The program of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    program: PathBuf,
    /// Whether it is the older one.
    is_old: bool,
}

/// What is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    what: Virtiofs,
    path: String,
    carrier: Carrier,
}

impl Carrier {
    async fn find(named: Option<&Path>) -> Result<Self, String> {
        let places = named.map_or_else(|| PLACES.map(PathBuf::from).to_vec(), |one| vec![one.to_owned()]);
        let found = places.iter().map(|place| process::resolve(place)).find(|path| path.exists());
        let Some(program) = found else {
            let searched: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            return Err(format!(
                "no virtiofsd is on this node ({}): install the package virtiofsd, or on Debian 12 with its own QEMU qemu-system-common",
                searched.join(", ")
            ));
        };
        let asked = tokio::process::Command::new(&program).arg("--version").kill_on_drop(true).output();
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(said)) => {
                let is_old = String::from_utf8_lossy(&said.stdout).contains("QEMU");
                Ok(Self { program, is_old })
            }
            Ok(Err(e)) => Err(format!("'{}' could not be started: {e}", program.display())),
            Err(_) => Err(format!("'{}' does not say which version it is", program.display())),
        }
    }
}

impl Share {
    /// Those of a configuration. Refuses what could not be started. `named`: the program, where it is not to be searched for.
    pub async fn all(settings: &Settings, named: Option<&Path>) -> Result<Vec<Self>, GuestError> {
        let wanted = settings.virtiofs().map_err(unusable)?;
        let Some(first) = wanted.first() else { return Ok(vec![]) };
        let carrier = match Carrier::find(named).await {
            Ok(carrier) => carrier,
            Err(why) => return refuse(&first.key, why),
        };
        wanted.into_iter().map(|what| Self::of(what, &carrier)).collect()
    }

    fn of(what: Virtiofs, carrier: &Carrier) -> Result<Self, GuestError> {
        let Some(path) = &what.path else {
            let why = format!("the driver was not told where '{}' is on this node", what.dirid);
            return refuse(&what.key, why);
        };
        // Options of the older one are one list.
        let plain = |path: &&str| !carrier.is_old || !path.contains([',', '\\']);
        let Some(text) = path.to_str().filter(plain) else {
            return refuse(&what.key, format!("virtiofsd can't open '{}'", path.display()));
        };
        if carrier.is_old && what.cache == ShareCache::Metadata {
            let why = format!(
                "cache=metadata: '{}' is of QEMU 7.2 or older, which knows auto, always and never",
                carrier.program.display()
            );
            return refuse(&what.key, why);
        }
        let path = text.to_owned();
        Ok(Self { what, path, carrier: carrier.clone() })
    }

    /// The option.
    pub fn key(&self) -> &str {
        &self.what.key
    }

    /// Its arguments, with the descriptor of the socket on which it listens.
    fn argv(&self, socket: i32) -> Vec<String> {
        let Self { what, path, carrier } = self;
        let mut words = vec![format!("--fd={socket}")];
        let flags = [("allow-direct-io", what.direct_io), ("posix-acl", what.acl), ("xattr", what.xattr)];
        let on = flags.into_iter().filter(|(_, on)| *on).map(|(flag, _)| flag);
        if carrier.is_old {
            let cache = if what.cache == ShareCache::Never { "none" } else { what.cache.as_str() };
            let fixed = ["sandbox=namespace", "announce_submounts", "log_level=warn"].map(str::to_owned);
            let options = [format!("source={path}"), format!("cache={cache}")].into_iter().chain(fixed);
            let options = options.chain(on.map(|flag| flag.replace('-', "_")));
            words.extend(options.flat_map(|option| ["-o".to_owned(), option]));
        } else {
            words.extend([format!("--shared-dir={path}"), format!("--cache={}", what.cache)]);
            let fixed = ["--sandbox=namespace", "--announce-submounts", "--log-level=warn"];
            words.extend(fixed.map(str::to_owned));
            words.extend(on.map(|flag| format!("--{flag}")));
        }
        words
    }

    /// Starts it. It is ready for QEMU from now on.
    pub fn start(&self, dir: &RunDir, cgroups: Vec<File>, stderr: File) -> io::Result<Process> {
        let path = dir.share(self.what.index);
        let _ = std::fs::remove_file(&path);
        let socket = [OwnedFd::from(std::os::unix::net::UnixListener::bind(path)?)];
        let argv = self.argv(socket[0].as_raw_fd());
        let binary = &self.carrier.program;
        Program { binary, argv: &argv, inherit: &socket, cgroups, affinity: None, stderr }
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("'{}': {e}", binary.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use stead_model::vmconfig::VmConfig;

    /// A program that says which one it is.
    fn program(says: &str) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file.into_temp_path()
    }

    async fn all(program: &Path, text: &str) -> Result<Vec<Share>, String> {
        let settings = VmConfig::parse(text).unwrap().current;
        Share::all(&settings, Some(program)).await.map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn each_program_has_its_words() {
        let text = "virtiofs1: dirid=bb,path=/srv/b,cache=never,direct-io=1,expose-acl=1\nvirtiofs0: aa,path=/srv/a\n";
        let new = program("virtiofsd 1.14.0");
        let shares = all(&new, text).await.unwrap();
        let said = |share: &Share| share.argv(7).join(" ");
        let fixed = "--sandbox=namespace --announce-submounts --log-level=warn";
        assert_eq!(said(&shares[0]), format!("--fd=7 --shared-dir=/srv/a --cache=auto {fixed}"));
        let more = "--allow-direct-io --posix-acl --xattr";
        assert_eq!(said(&shares[1]), format!("--fd=7 --shared-dir=/srv/b --cache=never {fixed} {more}"));
        let old = program(
            "virtiofsd version 7.2.22\nCopyright (c) 2003-2022 Fabrice Bellard and the QEMU Project developers",
        );
        let shares = all(&old, text).await.unwrap();
        assert_eq!(
            said(&shares[1]),
            "--fd=7 -o source=/srv/b -o cache=none -o sandbox=namespace -o announce_submounts -o log_level=warn \
             -o allow_direct_io -o posix_acl -o xattr"
        );
        let e = all(&old, "virtiofs2: aa,path=/srv/a,cache=metadata\n").await.unwrap_err();
        assert!(e.starts_with("virtiofs2: cache=metadata: ") && e.contains("QEMU 7.2"), "{e}");
        assert!(all(&new, "virtiofs2: aa,path=/srv/a,cache=metadata\n").await.is_ok());
    }

    #[tokio::test]
    async fn what_can_t_be_started_is_refused_by_name() {
        let nowhere = Path::new("/nowhere/virtiofsd");
        assert_eq!(all(nowhere, "memory: 16\n").await, Ok(vec![]));
        let e = all(nowhere, "virtiofs3: aa,path=/srv/a\n").await.unwrap_err();
        assert!(e.starts_with("virtiofs3: no virtiofsd is on this node (/nowhere/virtiofsd)"), "{e}");
        let new = program("virtiofsd 1.14.0");
        let e = all(&new, "virtiofs3: aa\n").await.unwrap_err();
        assert_eq!(e, "virtiofs3: the driver was not told where 'aa' is on this node");
    }
}
