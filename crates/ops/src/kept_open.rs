//! Drivers that stay open, and that are not asked again while they hang.
//!
//! A driver may hold something between two calls (a locked folder for files that arrive, a session with a server), so
//! each storage has one driver as long as its options stay the same.
//!
//! A storage whose server is away may hang in the kernel for ever, and with it the thread that asked. Everything that is
//! done with a storage begins by activating it; so activation goes one at a time, and while one does not come back the
//! others are told so at once: a storage that hangs costs one thread, however often it is asked. The probes of its
//! health have a turn of their own, so that a slow one keeps nobody from the storage; they cost one more.

use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stead_driver::guest::ResolvedVolume;
use stead_driver::storage::{
    Content, NewCopy, NewVolume, Space, StorageDriver, StorageError, StorageType, VolumeInfo, Watch,
};
use stead_model::{StorageId, Vmid, VolumeId};
use tokio::sync::watch;
use tokio::time::Instant;

/// After so long without an answer a storage is taken for hanging.
const PATIENCE: Duration = Duration::from_secs(5);

type Options = BTreeMap<String, String>;
/// A driver with the options that it was opened with.
type Opened = (Options, Arc<dyn StorageDriver>);

/// A storage type whose drivers stay open.
pub struct KeptOpen<T> {
    inner: T,
    open: Mutex<HashMap<StorageId, Opened>>,
}

impl<T: StorageType> KeptOpen<T> {
    /// Keeps the drivers of `inner` open.
    pub fn new(inner: T) -> Self {
        Self { inner, open: Mutex::default() }
    }
}

impl<T: StorageType> StorageType for KeptOpen<T> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn open(&self, id: &StorageId, options: &Options) -> Result<Arc<dyn StorageDriver>, StorageError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, driver)) = open.get(id)
            && of == options
        {
            return Ok(driver.clone());
        }
        let driver: Arc<dyn StorageDriver> = Arc::new(Watched::new(self.inner.open(id, options)?, PATIENCE));
        open.insert(id.clone(), (options.clone(), driver.clone()));
        Ok(driver)
    }
}

/// A driver that is activated by one caller at a time, and probed by one.
struct Watched {
    inner: Arc<dyn StorageDriver>,
    patience: Duration,
    activating: Turns,
    probing: Turns,
}

/// Since when what goes one at a time is under way.
#[derive(Clone)]
struct Turns(Arc<watch::Sender<Option<Instant>>>);

/// The right to go, until this is dropped.
struct Turn(Turns);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.send_replace(None);
    }
}

impl Turns {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Takes the turn, or tells since when another one has it.
    fn try_take(&self) -> Result<Turn, Instant> {
        let mut taken = None;
        self.0.send_if_modified(|since| {
            taken = *since;
            since.get_or_insert_with(Instant::now);
            taken.is_none()
        });
        match taken {
            None => Ok(Turn(self.clone())),
            Some(since) => Err(since),
        }
    }

    /// Waits for a turn, for as long as the one under way has patience left. Otherwise says since when it is.
    async fn take(&self, patience: Duration) -> Result<Turn, Instant> {
        let mut changes = self.0.subscribe();
        loop {
            let since = match self.try_take() {
                Ok(turn) => return Ok(turn),
                Err(since) => since,
            };
            let over = changes.wait_for(|now| *now != Some(since));
            if tokio::time::timeout_at(since + patience, over).await.is_err() {
                return Err(since);
            }
        }
    }
}

impl Watched {
    fn new(inner: Arc<dyn StorageDriver>, patience: Duration) -> Self {
        Self { inner, patience, activating: Turns::new(), probing: Turns::new() }
    }

    fn silent(&self, since: Instant) -> StorageError {
        StorageError::Silent { storage: self.inner.id().clone(), seconds: since.elapsed().as_secs() }
    }

    /// Asks the storage something when its turn has come, and waits for the answer as long as there is patience.
    async fn ask<T, F>(&self, turns: &Turns, what: &str, question: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StorageError>> + Send + 'static,
    {
        let turn = turns.take(self.patience).await.map_err(|since| self.silent(since))?;
        let begun = Instant::now();
        // A task of its own: it keeps its turn until the storage has answered, whoever still waits for it.
        let asked = tokio::spawn(async move {
            let answer = question.await;
            drop(turn);
            answer
        });
        match tokio::time::timeout(self.patience, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => Err(StorageError::Failed {
                what: what.to_owned(),
                storage: self.inner.id().clone(),
                why: e.to_string(),
            }),
            Err(_) => Err(self.silent(begun)),
        }
    }
}

#[async_trait]
impl StorageDriver for Watched {
    fn id(&self) -> &StorageId {
        self.inner.id()
    }

    async fn activate(&self) -> Result<(), StorageError> {
        let inner = self.inner.clone();
        self.ask(&self.activating, "activate", async move { inner.activate().await }).await
    }

    async fn probe(&self) -> Result<Space, StorageError> {
        let inner = self.inner.clone();
        self.ask(&self.probing, "look after", async move { inner.probe().await }).await
    }

    async fn space(&self) -> Result<Space, StorageError> {
        self.inner.space().await
    }

    async fn list(
        &self,
        content: Option<Content>,
        vmid: Option<Vmid>,
    ) -> Result<Vec<VolumeInfo>, StorageError> {
        self.inner.list(content, vmid).await
    }

    async fn info(&self, name: &str) -> Result<VolumeInfo, StorageError> {
        self.inner.info(name).await
    }

    async fn alloc(&self, new: &NewVolume) -> Result<VolumeInfo, StorageError> {
        self.inner.alloc(new).await
    }

    async fn free(&self, name: &str) -> Result<(), StorageError> {
        self.inner.free(name).await
    }

    async fn resize(&self, name: &str, size: u64) -> Result<(), StorageError> {
        self.inner.resize(name, size).await
    }

    async fn replace(&self, name: &str, spooled: PathBuf) -> Result<VolumeInfo, StorageError> {
        self.inner.replace(name, spooled).await
    }

    async fn snapshots(&self, name: &str) -> Result<Vec<String>, StorageError> {
        self.inner.snapshots(name).await
    }

    async fn snapshot(&self, name: &str, snapshot: &str) -> Result<(), StorageError> {
        self.inner.snapshot(name, snapshot).await
    }

    async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Result<(), StorageError> {
        self.inner.delete_snapshot(name, snapshot).await
    }

    async fn rollback_snapshot(&self, name: &str, snapshot: &str) -> Result<(), StorageError> {
        self.inner.rollback_snapshot(name, snapshot).await
    }

    async fn next_name(
        &self,
        vmid: Vmid,
        format: Option<&str>,
        base: Option<&str>,
        besides: &[VolumeId],
    ) -> Result<VolumeId, StorageError> {
        self.inner.next_name(vmid, format, base, besides).await
    }

    async fn copy(&self, new: &NewCopy, watch: Watch<'_>) -> Result<VolumeInfo, StorageError> {
        self.inner.copy(new, watch).await
    }

    async fn clone_base(
        &self,
        base: &str,
        vmid: Vmid,
        name: Option<&str>,
    ) -> Result<VolumeInfo, StorageError> {
        self.inner.clone_base(base, vmid, name).await
    }

    async fn make_base(&self, name: &str) -> Result<VolumeInfo, StorageError> {
        self.inner.make_base(name).await
    }

    async fn rename(&self, name: &str, vmid: Vmid, to: Option<&str>) -> Result<VolumeInfo, StorageError> {
        self.inner.rename(name, vmid, to).await
    }

    async fn check_brought(&self, name: &str) -> Result<(), StorageError> {
        self.inner.check_brought(name).await
    }

    async fn resolve(&self, name: &str) -> Result<ResolvedVolume, StorageError> {
        self.inner.resolve(name).await
    }

    async fn spool(&self) -> Result<PathBuf, StorageError> {
        self.inner.spool().await
    }

    async fn adopt_file(
        &self,
        spooled: PathBuf,
        content: Content,
        name: &str,
    ) -> Result<VolumeInfo, StorageError> {
        self.inner.adopt_file(spooled, content, name).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use stead_driver::fake::FakeStorage;
    use tokio::sync::Semaphore;

    struct Fakes(tempfile::TempDir);

    fn fake(folder: &std::path::Path) -> FakeStorage {
        FakeStorage::new("local".parse().unwrap(), 1 << 20, folder.to_owned())
    }

    impl StorageType for Fakes {
        fn name(&self) -> &'static str {
            "fake"
        }
        fn open(&self, _: &StorageId, _: &Options) -> Result<Arc<dyn StorageDriver>, StorageError> {
            Ok(Arc::new(fake(self.0.path())))
        }
    }

    #[test]
    fn a_storage_keeps_its_driver_until_its_options_change() {
        let kept = KeptOpen::new(Fakes(tempfile::tempdir().unwrap()));
        let id: StorageId = "local".parse().unwrap();
        let open = |value: &str| kept.open(&id, &Options::from([("path".into(), value.into())])).unwrap();
        let first = open("/a");
        assert!(Arc::ptr_eq(&first, &open("/a")));
        let second = open("/b");
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &open("/b")));
    }

    #[tokio::test]
    async fn what_a_storage_can_it_can_when_it_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let s = Watched::new(Arc::new(fake(dir.path())), Duration::from_secs(1));
        let format = Some("qcow2".to_owned());
        let new = NewVolume { vmid: Vmid::new(100).unwrap(), name: None, format, size: 512 };
        let name = s.alloc(&new).await.unwrap().volid.name;
        s.snapshot(&name, "one").await.unwrap();
        assert_eq!(s.snapshots(&name).await.unwrap(), ["one"]);
        s.rollback_snapshot(&name, "one").await.unwrap();
        s.delete_snapshot(&name, "one").await.unwrap();
        assert_eq!(s.snapshots(&name).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn copies_and_clones_are_made_by_the_driver() {
        let (dir, vmid) = (tempfile::tempdir().unwrap(), Vmid::new(100).unwrap());
        let s = Watched::new(Arc::new(fake(dir.path())), PATIENCE);
        let new = NewVolume { vmid, name: None, format: None, size: 512 };
        let name = s.alloc(&new).await.unwrap().volid.name;
        assert!(s.next_name(vmid, None, None, &[]).await.unwrap().name.contains("disk-1"));
        let (path, format) = (s.resolve(&name).await.unwrap().path, "raw".to_owned());
        let of = stead_driver::storage::Image { path, format, snapshot: None, foreign: false, within: None };
        let copy = NewCopy { vmid, name: None, format: None, of, size: Some(512), limit: None };
        let copied = s.copy(&copy, &|_| {}).await.unwrap().volid.name;
        let base = s.make_base(&copied).await.unwrap().volid.name;
        s.clone_base(&base, vmid, None).await.unwrap();
        s.rename(&name, "101".parse().unwrap(), None).await.unwrap();
    }

    /// A storage that hangs until it is let go.
    struct Hanging {
        inner: FakeStorage,
        go: Arc<Semaphore>,
        asked: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl StorageDriver for Hanging {
        fn id(&self) -> &StorageId {
            self.inner.id()
        }
        async fn activate(&self) -> Result<(), StorageError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.go.acquire().await.unwrap().forget();
            Ok(())
        }
        async fn space(&self) -> Result<Space, StorageError> {
            self.inner.space().await
        }
        async fn list(&self, c: Option<Content>, v: Option<Vmid>) -> Result<Vec<VolumeInfo>, StorageError> {
            self.inner.list(c, v).await
        }
        async fn info(&self, name: &str) -> Result<VolumeInfo, StorageError> {
            self.inner.info(name).await
        }
        async fn alloc(&self, new: &NewVolume) -> Result<VolumeInfo, StorageError> {
            self.inner.alloc(new).await
        }
        async fn free(&self, name: &str) -> Result<(), StorageError> {
            self.inner.free(name).await
        }
        async fn resize(&self, name: &str, size: u64) -> Result<(), StorageError> {
            self.inner.resize(name, size).await
        }
        async fn replace(&self, name: &str, p: PathBuf) -> Result<VolumeInfo, StorageError> {
            self.inner.replace(name, p).await
        }
        async fn resolve(&self, name: &str) -> Result<ResolvedVolume, StorageError> {
            self.inner.resolve(name).await
        }
        async fn spool(&self) -> Result<PathBuf, StorageError> {
            self.inner.spool().await
        }
        async fn adopt_file(&self, p: PathBuf, c: Content, n: &str) -> Result<VolumeInfo, StorageError> {
            self.inner.adopt_file(p, c, n).await
        }
    }

    #[tokio::test]
    async fn a_storage_that_hangs_holds_one_thread_and_lets_nobody_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (go, asked) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let hanging = Hanging { inner: fake(dir.path()), go: go.clone(), asked: asked.clone() };
        let driver = Arc::new(Watched::new(Arc::new(hanging), Duration::from_millis(100)));
        let activate = |_| {
            let driver = driver.clone();
            tokio::spawn(async move { driver.activate().await })
        };
        let first: Vec<_> = (0..20).map(activate).collect();
        for asking in first {
            let e = asking.await.unwrap().unwrap_err();
            assert_eq!(e.to_string(), "storage 'local' is not available: it has not answered for 0 s");
        }
        for _ in 0..1000 {
            assert!(driver.activate().await.is_err());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "one thread, however often it is asked");
        for _ in 0..100 {
            let silent = driver.probe().await.unwrap_err();
            assert!(matches!(silent, StorageError::Silent { .. }), "{silent}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2, "and one for its probes");
        // The server is back.
        go.add_permits(100);
        driver.activating.0.subscribe().wait_for(Option::is_none).await.unwrap();
        driver.activate().await.unwrap();
        driver.probing.0.subscribe().wait_for(Option::is_none).await.unwrap();
        driver.probe().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    }
}
