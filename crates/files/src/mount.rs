//! Mounting: where it may be, what is left of an earlier daemon, and what ends.

use crate::files::Files;
use crate::ground::{self, Ground};
use crate::keeper::{self, Program, Which};
use crate::shell::{Limits, Shell};
use crate::store::{OpsStore, Store};
use fuser::{Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use stead_ops::Ops;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

/// The file system's type, by which a mount is known to be one of ours.
pub const TYPE: &str = "fuse.stead";
/// The group that may read what is not private.
const GROUP: &str = "www-data";
/// Where administrators look for it.
const USUAL: &str = "/etc/pve";
/// Where this is, [`USUAL`] is another's, be it mounted or not.
const PROXMOX: &str = "/usr/bin/pmxcfs";
/// How long after it ended, or could not be, it is mounted again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a mount's end is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the configuration is shown as files.
#[derive(Debug, Clone, clap::Args)]
pub struct FilesArgs {
    /// Where the configuration is shown as files: a folder, which is made if need be, or `none`. Without it /etc/pve, unless there is something.
    #[arg(long, value_name = "PATH")]
    pub files_path: Option<PathBuf>,
}

impl FilesArgs {
    /// The place, if there is to be one.
    fn place(&self) -> Option<Place> {
        match &self.files_path {
            None => Some(Place::Usual),
            Some(path) if path.as_os_str() == "none" => None,
            Some(path) => Some(Place::Said(path.clone())),
        }
    }
}

/// Where the configuration is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Where administrators look for it, and nobody has said anything.
    Usual,
    /// Where somebody wants it.
    Said(PathBuf),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Usual => Path::new(USUAL),
            Self::Said(path) => path,
        }
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

/// A mount. Dropped, it is taken away.
pub struct Mount {
    path: PathBuf,
    session: Option<JoinHandle<()>>,
    keeper: Option<Child>,
    is_over: watch::Receiver<bool>,
    which: Option<Which>,
}

impl Mount {
    /// Mounts files at a path, and holds the folder under it, if that is to be.
    ///
    /// # Errors
    /// If the path is not free, or this process may not mount.
    pub fn new<S: Store>(
        files: Arc<Files<S>>,
        path: &Path,
        limits: Limits,
        keeper: Option<&Program>,
        ground: Option<&Ground>,
    ) -> Result<Self, MountError> {
        let failed = |action, source: io::Error| MountError::Failed { path: path.to_owned(), action, source };
        // First of all: where there is none, no folder is made.
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let device: OwnedFd = device.map_err(|e| failed("open /dev/fuse", e.into()))?;
        let path = &ground::place(path)?;
        let under = ground::prepare(path)?;
        let gid = group();
        let options = format!(
            "fd={},rootmode=40755,user_id=0,group_id={gid},default_permissions,allow_other",
            device.as_raw_fd()
        );
        let options = CString::new(options).map_err(|e| failed("name the options", e.into()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        mount("stead", path, TYPE, flags, options.as_c_str()).map_err(|e| failed("mount", e.into()))?;
        if let Some(ground) = ground {
            ground.hold(&under, path);
        }
        drop(under);
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
        if let Some(mut keeper) = self.keeper.take() {
            // It ends with its input, and was asked for nothing else; but the kernel may hold it.
            drop(keeper.stdin.take());
            let (tell, ended) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let _ = keeper.wait();
                // Whoever waits for it may have given up.
                let _ = tell.send(());
            });
            let _ = ended.recv_timeout(PATIENCE);
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
    let task = tokio::spawn(keep_mounted(ops.clone(), args.place(), stopped));
    Mounted { stop: Some(stop), task }
}

/// Has something done that may block for ever, where that holds up neither the runtime nor its end.
fn aside<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        // What nobody waits for any more is dropped here: a mount is taken away by that.
        let _ = tell.send(job());
    });
    told
}

/// One attempt.
fn try_mount(ops: Arc<Ops>, place: &Place, ground: &Ground, runtime: Handle) -> Result<Mount, MountError> {
    let path = place.path();
    if matches!(place, Place::Usual) && Path::new(PROXMOX).exists() {
        let what = "it is Proxmox VE's, which is installed here; see --files-path".to_owned();
        return Err(MountError::Taken { path: path.to_owned(), what });
    }
    let keeper = Program::this().inspect_err(|e| tracing::warn!("the files have no keeper: {e}")).ok();
    let files = Arc::new(Files::new(OpsStore::new(ops, runtime)));
    Mount::new(files, path, Limits::default(), keeper.as_ref(), Some(ground))
}

async fn keep_mounted(ops: Arc<Ops>, place: Option<Place>, mut stopped: oneshot::Receiver<()>) {
    let ground = Arc::new(Ground::new(&ops.me.dir));
    let (earlier, path) = (ground.clone(), place.as_ref().map(|place| place.path().to_owned()));
    let freed = aside(move || earlier.hold_none_but(path.as_deref()));
    // A folder on a file system that hangs is for another time.
    let _ = tokio::time::timeout(PATIENCE, freed).await;
    let Some(place) = place else { return };
    let mut said = String::new();
    loop {
        let (ops, at, ground) = (ops.clone(), place.clone(), ground.clone());
        let runtime = Handle::current();
        let mut made = aside(move || try_mount(ops, &at, &ground, runtime));
        let made = tokio::select! {
            made = &mut made => made,
            _ = &mut stopped => {
                // What is mounted after all is taken away: here, or where it was made.
                if let Ok(Ok(Ok(mount))) = tokio::time::timeout(PATIENCE, made).await {
                    take_away(mount).await;
                }
                return;
            }
        };
        match made {
            Ok(Ok(mount)) => {
                tracing::info!("the configuration is shown as files at {}", mount.path.display());
                said.clear();
                let is_stopped = tokio::select! {
                    () = mount.over() => false,
                    _ = &mut stopped => true,
                };
                if !is_stopped {
                    tracing::warn!("{} was taken away", mount.path.display());
                }
                take_away(mount).await;
                if is_stopped {
                    return;
                }
            }
            Ok(Err(e)) => {
                // Once, not every few seconds.
                if e.to_string() != said {
                    said = e.to_string();
                    match place {
                        Place::Said(_) => tracing::error!("{said}"),
                        // Nobody has asked for it.
                        Place::Usual => tracing::warn!("{said}"),
                    }
                }
            }
            Err(_) => {
                tracing::error!("the files could not be shown, by a mistake in this program: see above");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = &mut stopped => return,
        }
    }
}

/// Takes a mount away, and waits for that, but not for ever.
async fn take_away(mount: Mount) {
    // The program may end meanwhile: then its keeper does it.
    let _ = tokio::time::timeout(2 * PATIENCE, aside(move || drop(mount))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_at_its_usual_place_unless_another_is_said_or_none() {
        let place = |path: Option<&str>| FilesArgs { files_path: path.map(Into::into) }.place();
        assert_eq!(place(None), Some(Place::Usual));
        assert_eq!(place(None).unwrap().path(), Path::new("/etc/pve"));
        assert_eq!(place(Some("none")), None);
        assert_eq!(place(Some("/etc/pve")), Some(Place::Said("/etc/pve".into())));
    }
}
