//! Drivers that stay open.
//!
//! A driver may hold something between two calls (a locked folder for files that arrive, a session with a server), so
//! each storage has one driver as long as its options stay the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use stead_driver::storage::{StorageDriver, StorageError, StorageType};
use stead_model::StorageId;

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
        let driver = self.inner.open(id, options)?;
        open.insert(id.clone(), (options.clone(), driver.clone()));
        Ok(driver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_driver::fake::FakeStorage;

    struct Fakes(tempfile::TempDir);

    impl StorageType for Fakes {
        fn name(&self) -> &'static str {
            "fake"
        }
        fn open(&self, id: &StorageId, _: &Options) -> Result<Arc<dyn StorageDriver>, StorageError> {
            Ok(Arc::new(FakeStorage::new(id.clone(), 1 << 20, self.0.path().to_owned())))
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
}
