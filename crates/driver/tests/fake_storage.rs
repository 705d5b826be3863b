//! The storage in memory passes the storages' suite.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use stead_driver::fake::FakeStorage;
use stead_driver::storage::StorageDriver;
use stead_driver::suite::storage::StorageHarness;

struct Memory {
    folder: tempfile::TempDir,
    storage: FakeStorage,
}

impl Memory {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let storage = FakeStorage::new("mem".parse().unwrap(), 1 << 40, folder.path().to_owned());
        Self { folder, storage }
    }
}

impl StorageHarness for Memory {
    fn open(&self) -> Arc<dyn StorageDriver> {
        Arc::new(self.storage.clone())
    }

    fn small(&self) -> Result<Arc<dyn StorageDriver>, String> {
        Ok(Arc::new(FakeStorage::new("small".parse().unwrap(), 16 << 20, self.folder.path().to_owned())))
    }
}

stead_driver::storage_conformance!(Memory);
