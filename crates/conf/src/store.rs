//! The store on disk.

use std::path::Path;

/// Whether a folder holds a store.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join("conf.redb").exists()
}
