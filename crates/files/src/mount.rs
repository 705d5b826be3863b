//! Mounting: where it may be, what is left of an earlier daemon, and what ends.

use crate::files::Files;
use crate::keeper::{self, Program, Which};
use crate::shell::{Limits, Shell};
use crate::store::{OpsStore, Store};
use fuser::{Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use stead_ops::Ops;
use tokio::sync::{oneshot, watch};

/// The file system's type, by which a mount is known to be one of ours.
pub const TYPE: &str = "fuse.stead";
/// The group that may read what is not private.
const GROUP: &str = "www-data";
/// How long after it ended, or could not be, it is mounted again.
const AGAIN: Duration = Duration::from_secs(5);

/// Where the configuration is shown as files.
#[derive(Debug, Clone, clap::Args)]
pub struct FilesArgs {
    /// Where the configuration is shown as files: a folder, which is made if need be, as /etc/pve. Nowhere unless it is said, or if it is `none`.
    #[arg(long, value_name = "PATH")]
    pub files_path: Option<PathBuf>,
}

impl FilesArgs {
    /// The path, if there is to be one.
    fn path(&self) -> Option<PathBuf> {
        self.files_path.clone().filter(|path| path.as_os_str() != "none")
    }
}

/// Why nothing was mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is something.
    #[error("{path} is not free ({what}): the configuration is not shown there")]
    Taken {
        /// Where.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// It failed.
    #[error("the configuration cannot be shown as files at {path}: can't {action}: {source}")]
    Failed {
        /// Where.
        path: PathBuf,
        /// What.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The group's number, or root's where there is no such group.
fn group() -> u32 {
    let all = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let fields = all.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields.into_iter().find(|f| f.first() == Some(&GROUP));
    found.and_then(|f| f.get(2)?.parse().ok()).unwrap_or(0)
}

/// Whether a path is where a mount of its own begins.
fn is_mount(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.into_iter().any(|at| keeper::unescape(at) == path.as_os_str().as_bytes())
}

/// Makes a path ready: what an earlier daemon has left is taken away; what is somebody else's is not touched.
fn prepare(path: &Path) -> Result<(), MountError> {
    let failed = |action, source: io::Error| MountError::Failed { path: path.to_owned(), action, source };
    let taken = |what: &str| MountError::Taken { path: path.to_owned(), what: what.to_owned() };
    loop {
        match rustix::fs::stat(path) {
            Err(Errno::NOENT) => {
                std::fs::create_dir_all(path).map_err(|e| failed("make the folder", e))?;
                return Ok(());
            }
            // Its daemon has died.
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                unmount(path, UnmountFlags::DETACH)
                    .map_err(|e| failed("take an old mount away", e.into()))?;
            }
            Err(e) => return Err(failed("look at it", e.into())),
            Ok(_) if is_mount(path) => return Err(taken("something is mounted there")),
            Ok(stat)
                if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory =>
            {
                return Err(taken("it is no folder"));
            }
            Ok(_) => {
                let mut held = std::fs::read_dir(path).map_err(|e| failed("look into it", e))?;
                return if held.next().is_some() { Err(taken("the folder is not empty")) } else { Ok(()) };
            }
        }
    }
}

/// A mount. Dropped, it is taken away.
pub struct Mount {
    path: PathBuf,
    session: Option<JoinHandle<()>>,
    keeper: Option<Child>,
    is_over: watch::Receiver<bool>,
    which: Option<Which>,
}

impl Mount {
    /// Mounts files at a path.
    ///
    /// # Errors
    /// If the path is not free, or this process may not mount.
    pub fn new<S: Store>(
        files: Arc<Files<S>>,
        path: &Path,
        limits: Limits,
        keeper: Option<&Program>,
    ) -> Result<Self, MountError> {
        let failed = |action, source: io::Error| MountError::Failed { path: path.to_owned(), action, source };
        prepare(path)?;
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let device: OwnedFd = device.map_err(|e| failed("open /dev/fuse", e.into()))?;
        let gid = group();
        let options = format!(
            "fd={},rootmode=40755,user_id=0,group_id={gid},default_permissions,allow_other",
            device.as_raw_fd()
        );
        let options = CString::new(options).map_err(|e| failed("name the options", e.into()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        mount("stead", path, TYPE, flags, options.as_c_str()).map_err(|e| failed("mount", e.into()))?;
        let mut mounted = Self {
            path: path.to_owned(),
            session: None,
            keeper: None,
            is_over: watch::channel(false).1,
            which: keeper::which(path),
        };
        let shell = Shell::new(files, limits, gid).map_err(|e| failed("start its threads", e))?;
        let session = Session::from_fd(shell, device, SessionACL::All, Config::default());
        let session = session.map_err(|e| failed("speak to the kernel", e))?;
        let (over, is_over) = watch::channel(false);
        mounted.is_over = is_over;
        let run = move || {
            if let Err(e) = session.run() {
                tracing::warn!("the files' connection to the kernel failed: {e}");
            }
            // Whoever mounts may have gone.
            let _ = over.send(true);
        };
        let thread = std::thread::Builder::new().name("files".to_owned()).spawn(run);
        mounted.session = Some(thread.map_err(|e| failed("start its thread", e))?);
        if let Some(keeper) = keeper {
            mounted.keeper = Some(keeper.start(path).map_err(|e| failed("start its keeper", e))?);
        }
        Ok(mounted)
    }

    /// Resolves when it is mounted no more.
    pub fn over(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut is_over = self.is_over.clone();
        // Nobody who could say so is left: that is the end, too.
        async move { drop(is_over.wait_for(|over| *over).await) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        keeper::end(&self.path, self.which.as_ref());
        if let Some(keeper) = &mut self.keeper {
            // It ends with its input, and was asked for nothing else.
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
        // A worker may hang: nothing here waits for it.
        self.session.take();
    }
}

/// The files of a daemon, mounted as long as it runs.
pub struct Mounted {
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Mounted {
    /// Takes the mount away, and returns once it is gone.
    pub async fn unmount(mut self) {
        drop(self.stop.take());
        if let Err(e) = self.task.await {
            tracing::warn!("the files: {e}");
        }
    }
}

/// Shows the configuration of a node as files, as long as what is returned is there; that it can't be shown is a warning, not an error.
pub fn start(ops: &Arc<Ops>, args: &FilesArgs) -> Mounted {
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(keep_mounted(ops.clone(), args.path(), stopped));
    Mounted { stop: Some(stop), task }
}

async fn keep_mounted(ops: Arc<Ops>, path: Option<PathBuf>, mut stopped: oneshot::Receiver<()>) {
    let Some(path) = path else { return };
    let runtime = tokio::runtime::Handle::current();
    let mut said = String::new();
    loop {
        let (ops, at, runtime) = (ops.clone(), path.clone(), runtime.clone());
        let made = tokio::task::spawn_blocking(move || {
            let keeper =
                Program::this().inspect_err(|e| tracing::warn!("the files have no keeper: {e}")).ok();
            let files = Arc::new(Files::new(OpsStore::new(ops, runtime)));
            Mount::new(files, &at, Limits::default(), keeper.as_ref())
        });
        match made.await {
            Ok(Ok(mount)) => {
                tracing::info!("the configuration is shown as files at {}", path.display());
                said.clear();
                let over = mount.over();
                tokio::select! {
                    () = over => tracing::warn!("{} was taken away", path.display()),
                    _ = &mut stopped => {
                        // Dropped where it may wait for its keeper.
                        let _ = tokio::task::spawn_blocking(move || drop(mount)).await;
                        return;
                    }
                }
            }
            Ok(Err(e)) => {
                // Once, not every few seconds.
                if e.to_string() != said {
                    said = e.to_string();
                    tracing::error!("{said}");
                }
            }
            Err(e) => tracing::error!("the files: {e}"),
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = &mut stopped => return,
        }
    }
}
