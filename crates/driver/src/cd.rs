//! Images of CDs with a few small files, for guests to read.

use async_trait::async_trait;
use std::path::Path;

/// Why there is no image. Its text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CdError {
    /// The program that makes images could not be started.
    #[error(
        "a CD image could not be made: {program} could not be started ({why}): is the package {package} installed?"
    )]
    Start {
        /// The program.
        program: String,
        /// Where it comes from.
        package: &'static str,
        /// Why not.
        why: std::io::Error,
    },
    /// It did not do it.
    #[error("a CD image could not be made: {0}")]
    Failed(String),
}

/// Makes images.
#[async_trait]
pub trait CdImages: Send + Sync {
    /// Writes over the file `to` an image (ISO 9660 with the extensions Joliet and Rock Ridge) labelled `label`. `files`
    /// are paths from its root, with `/` between folders, and contents. Takes seconds at most.
    async fn make(&self, label: &str, files: &[(&str, &str)], to: &Path) -> Result<(), CdError>;
}
