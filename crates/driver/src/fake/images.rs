//! What images keep of their earlier states: files beside where they would lie, since storages and guests' processes both
//! change it.

use std::io;
use std::path::{Path, PathBuf};

/// A kept state.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Kept {
    /// Its name.
    pub name: String,
    /// How large the image was, where that is known.
    pub size: Option<u64>,
}

fn beside(image: &Path) -> PathBuf {
    image.with_added_extension("kept")
}

/// What an image keeps.
pub(super) fn read(image: &Path) -> Vec<Kept> {
    let text = std::fs::read_to_string(beside(image)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Replaces what an image keeps.
pub(super) fn write(image: &Path, all: &[Kept]) -> io::Result<()> {
    if let Some(folder) = image.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(beside(image), serde_json::to_vec(all)?)
}

/// Makes an image that holds nothing.
pub(super) fn make(image: &Path) -> io::Result<()> {
    if let Some(folder) = image.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(image, "")
}

/// Forgets all with the image.
pub(super) fn remove(image: &Path) {
    let _ = std::fs::remove_file(image);
    // There is nothing where nothing was kept.
    let _ = std::fs::remove_file(beside(image));
}
