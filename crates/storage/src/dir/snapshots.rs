//! Snapshots of qcow2 images, kept in the images themselves.
//!
//! `qemu-img` changes an image only while it has its lock, so that none is changed under a guest. It is told the format: what a
//! guest has written into its disk must not choose it.

use super::{Answer, DirStorage};
use crate::qemu_img;
use rustix::fs::OFlags;
use std::ffi::OsString;
use std::path::Path;
use stead_driver::storage::{Content, StorageError};

/// A change by `qemu-img snapshot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Create,
    Delete,
    Apply,
}

impl Change {
    fn option(self) -> &'static str {
        match self {
            Self::Create => "-c",
            Self::Delete => "-d",
            Self::Apply => "-a",
        }
    }

    fn what(self, name: &str, snapshot: &str) -> String {
        match self {
            Self::Create => format!("take snapshot '{snapshot}' of volume '{name}'"),
            Self::Delete => format!("remove snapshot '{snapshot}' of volume '{name}'"),
            Self::Apply => format!("roll volume '{name}' back to snapshot '{snapshot}'"),
        }
    }
}

/// An image of a given format, as `qemu-img` wants it with `--image-opts`: a comma is written twice.
fn qcow2(path: &Path) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("driver=qcow2,file.driver=file,file.filename={path}").into()
}

impl DirStorage {
    /// Where a volume's image is, if that can keep snapshots.
    async fn keeper(&self, name: &str) -> Answer<OsString> {
        let name = name.to_owned();
        self.blocking("find a volume", move |inner| {
            let root = inner.root()?;
            let (volume, _) = inner.open_volume(&root, &name, OFlags::RDONLY)?;
            if volume.content != Content::Images || volume.format != "qcow2" {
                let what = format!(
                    "snapshots of volume '{name}', which is {}: qcow2 images keep them",
                    volume.format
                );
                return Err(StorageError::Unsupported { storage: inner.id.clone(), what });
            }
            Ok(qcow2(&root.path(&volume.path)))
        })
        .await
    }

    pub(super) async fn list_snapshots(&self, name: &str) -> Answer<Vec<String>> {
        let image = self.keeper(name).await?;
        // A guest may have it open.
        self.names_in(&image, name, &["-U"]).await
    }

    async fn names_in(&self, image: &OsString, name: &str, more: &[&str]) -> Answer<Vec<String>> {
        let what = format!("list the snapshots of volume '{name}'");
        let args = ["info", "--output=json"].iter().chain(more).chain(&["--image-opts"]);
        let told = qemu_img::ask(args.map(OsString::from).chain([image.clone()])).await;
        let told = told.map_err(|e| self.0.image(&what, e))?;
        qemu_img::snapshot_names(&told)
            .ok_or_else(|| self.0.failed(&what, "qemu-img's answer makes no sense"))
    }

    pub(super) async fn take_snapshot(&self, name: &str, snapshot: &str) -> Answer<()> {
        let image = self.keeper(name).await?;
        // It would make a second one of the same name. Whoever is at the image still holds its lock, and is waited for.
        if self.names_in(&image, name, &[]).await?.iter().any(|n| n == snapshot) {
            let volume = format!("{}:{name}", self.0.id);
            return Err(StorageError::SnapshotExists { volume, snapshot: snapshot.to_owned() });
        }
        self.run_change(Change::Create, &image, name, snapshot).await
    }

    pub(super) async fn change_snapshot(&self, change: Change, name: &str, snapshot: &str) -> Answer<()> {
        let image = self.keeper(name).await?;
        if !self.names_in(&image, name, &[]).await?.iter().any(|n| n == snapshot) {
            let volume = format!("{}:{name}", self.0.id);
            return Err(StorageError::NoSnapshot { volume, snapshot: snapshot.to_owned() });
        }
        self.run_change(change, &image, name, snapshot).await
    }

    async fn run_change(&self, change: Change, image: &OsString, name: &str, snapshot: &str) -> Answer<()> {
        let args = ["snapshot", "-q", change.option(), snapshot, "--image-opts"].map(OsString::from);
        let done = qemu_img::run(args.into_iter().chain([image.clone()])).await;
        done.map_err(|e| self.0.image(&change.what(name, snapshot), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_adds_no_option() {
        assert_eq!(
            qcow2(Path::new("/a,driver=raw/b.qcow2")),
            "driver=qcow2,file.driver=file,file.filename=/a,,driver=raw/b.qcow2"
        );
    }
}
