//! A tree in memory under the files, with the plans and the checks of the real one; guests aside.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests fail as tests do; not every test uses all of them"
)]

use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use stead_conf::{ClusterKey, Revision, Tree, Txn, TxnError};
use stead_files::files::Files;
use stead_files::mount::Mount;
use stead_files::shell::Limits;
use stead_files::special::{Facts, Member};
use stead_files::store::Store;
use stead_model::NodeName;
use stead_ops::files::{FileChange, FileFault, Why, check::check, is_guest, plan};

pub struct Inner {
    me: NodeName,
    key: ClusterKey,
    pub tree: Mutex<Tree>,
    times: Mutex<HashMap<(String, Revision), u64>>,
    pub writable: AtomicBool,
    /// How many transactions there were.
    pub commits: AtomicUsize,
    hangs: Mutex<(bool, bool)>,
    /// What another node does right after the next change.
    then: Mutex<Option<Txn>>,
    goes_on: Condvar,
}

#[derive(Clone)]
pub struct TreeStore(pub Arc<Inner>);

impl TreeStore {
    pub fn new() -> Self {
        let mut tree = Tree::new();
        let txn = Txn::new("test")
            .put("stead/nodes/n1", "{}")
            .put("stead/nodes/n2", "{}")
            .put("storage.cfg", "dir: local\n\tpath /var/lib/vz\n")
            .put("datacenter.cfg", "mac_prefix: 02:01:02\n")
            .put("nodes/n1/qemu-server/100.conf", "cores: 1\nname: web\n");
        tree.apply(&txn).unwrap();
        Self(Arc::new(Inner {
            me: "n1".parse().unwrap(),
            key: ClusterKey::generate().unwrap(),
            tree: Mutex::new(tree),
            times: Mutex::default(),
            writable: AtomicBool::new(true),
            commits: AtomicUsize::new(0),
            hangs: Mutex::default(),
            then: Mutex::default(),
            goes_on: Condvar::new(),
        }))
    }

    /// Everything hangs, as if a lock were never given back, until it is told to go on.
    pub fn hang(&self, hang: bool) {
        *self.0.hangs.lock().unwrap() = (hang, hang);
        self.0.goes_on.notify_all();
    }

    /// What changes hangs, and what looks goes on.
    pub fn hang_changes(&self, hang: bool) {
        self.0.hangs.lock().unwrap().1 = hang;
        self.0.goes_on.notify_all();
    }

    pub fn then(&self, txn: Txn) {
        *self.0.then.lock().unwrap() = Some(txn);
    }

    fn wait(&self, changes: bool) {
        let hangs = self.0.hangs.lock().unwrap();
        drop(self.0.goes_on.wait_while(hangs, |(all, change)| *all || changes && *change).unwrap());
    }

    /// A committed file.
    pub fn text(&self, path: &str) -> Option<String> {
        let tree = self.0.tree.lock().unwrap();
        let stored = tree.get(path)?.data.clone();
        let open = if path.starts_with("priv/") {
            self.0.key.unseal(path, &stored).unwrap()
        } else {
            stored.to_vec()
        };
        Some(String::from_utf8(open).unwrap())
    }

    /// What another node does.
    pub fn apply(&self, txn: Txn) {
        self.0.tree.lock().unwrap().apply(&txn).unwrap();
    }

    pub fn writable(&self, writable: bool) {
        self.0.writable.store(writable, Ordering::SeqCst);
    }

    pub fn commits(&self) -> usize {
        self.0.commits.load(Ordering::SeqCst)
    }
}

impl Store for TreeStore {
    fn me(&self) -> &NodeName {
        &self.0.me
    }
    fn view(&self, f: &mut dyn FnMut(&Tree)) {
        self.wait(false);
        f(&self.0.tree.lock().unwrap());
    }
    fn is_writable(&self) -> bool {
        self.0.writable.load(Ordering::SeqCst)
    }
    fn open(&self, path: &str, stored: &Bytes) -> Result<Bytes, FileFault> {
        if !path.starts_with("priv/") {
            return Ok(stored.clone());
        }
        let opened = self.0.key.unseal(path, stored).map(Bytes::from);
        opened.map_err(|e| FileFault::new(Why::Unknown, path, e.to_string()))
    }
    fn modified_ms(&self, path: &str, revision: Revision) -> Option<u64> {
        self.0.times.lock().unwrap().get(&(path.to_owned(), revision)).copied()
    }
    fn change(&self, change: FileChange) -> Result<Option<Revision>, FileFault> {
        self.wait(true);
        let mut tree = self.0.tree.lock().unwrap();
        if let FileChange::Put { path, data, .. } | FileChange::Move { data, to: (path, _), .. } = &change {
            let before = tree.text(path).unwrap_or_default();
            check(path, before, data)?;
            if is_guest(path) && data.starts_with(b"broken") {
                return Err(FileFault::new(Why::Invalid, path, "it is broken"));
            }
        }
        let seal = |path: &str, data: &[u8]| self.0.key.seal(path, data).map_err(|e| e.to_string());
        let txn = plan(&tree, "root@pam", &change, &seal)?;
        let path = txn.note.clone();
        let changed = tree.apply(&txn).map_err(|e| FileFault::of_txn(&path, &TxnError::Refused(e)))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let revision = tree.revision();
        let mut times = self.0.times.lock().unwrap();
        for one in changed {
            times.insert((one.path, revision), u64::try_from(now.as_millis()).unwrap());
        }
        if let Some(txn) = self.0.then.lock().unwrap().take() {
            tree.apply(&txn).unwrap();
        }
        self.0.commits.fetch_add(1, Ordering::SeqCst);
        // Of a guest's it is not known.
        Ok((!is_guest(change.path())).then_some(revision))
    }
    fn facts(&self) -> Facts {
        let member = |(name, id): (&str, u64)| Member {
            name: name.parse().unwrap(),
            id,
            online: true,
            ip: format!("10.0.0.{id}").parse().unwrap(),
        };
        let members = [("n1", 1), ("n2", 2)].map(member).to_vec();
        Facts { started: 1, cluster: "test".into(), quorate: self.is_writable(), members }
    }
    fn log(&self) -> Value {
        json!([])
    }
}

/// Why mounts can't be tested here; in continuous integration that is a failure.
pub fn cannot_mount(test: &str, programs: &[&str]) -> bool {
    let missing =
        programs.iter().find(|p| Command::new("which").arg(p).output().is_ok_and(|o| !o.status.success()));
    let why = if !rustix::process::geteuid().is_root() {
        "only root mounts".to_owned()
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse".to_owned()
    } else if let Some(program) = missing {
        format!("{program} is not installed")
    } else {
        return false;
    };
    assert!(std::env::var_os("STEAD_STRICT").is_none(), "{test}: {why}");
    eprintln!("SKIP {test}: {why}");
    true
}

/// A tree, mounted.
pub struct Bed {
    pub store: TreeStore,
    pub files: Arc<Files<TreeStore>>,
    pub at: PathBuf,
    mount: Option<Mount>,
    dir: tempfile::TempDir,
}

impl Bed {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let (store, dir) = (TreeStore::new(), tempfile::tempdir().unwrap());
        let at = dir.path().join("pve");
        let files = Arc::new(Files::new(store.clone()));
        let mount = Mount::new(files.clone(), &at, limits, None, None).unwrap();
        Self { store, files, at, mount: Some(mount), dir }
    }

    /// What a shell says of a script that is run at the top.
    pub fn try_sh(&self, script: &str) -> Output {
        let mut command = Command::new("bash");
        command.args(["-euc", script]).current_dir(&self.at).env("OUT", self.dir.path());
        command
            .env("HOME", self.dir.path())
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap()
    }

    /// A script that goes well; what it says.
    pub fn sh(&self, script: &str) -> String {
        let out = self.try_sh(script);
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{script}\n{said}");
        said
    }

    /// A script that fails; what it says.
    pub fn fails(&self, script: &str) -> String {
        let out = self.try_sh(script);
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!out.status.success(), "{script}\n{said}");
        said
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.store.hang(false);
        drop(self.mount.take());
    }
}
