//! Images of CDs, by `xorrisofs`.
//!
//! The files lie in a folder of this process's own while it runs, readable by nobody else: they may hold a password's hash.

use async_trait::async_trait;
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use stead_driver::cd::{CdError, CdImages};

/// A few small files take a twentieth of a second; a machine without memory may take longer.
const LIMIT: Duration = Duration::from_secs(30);
/// Debian's package.
const PACKAGE: &str = "xorriso";

/// Makes images by the program.
#[derive(Debug, Clone)]
pub struct Xorriso {
    program: OsString,
    folder: PathBuf,
}

/// Removes a folder with all that is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left goes when the next process begins.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn failed(why: impl std::fmt::Display) -> CdError {
    CdError::Failed(why.to_string())
}

impl Xorriso {
    /// Below `folder`, which is this process's alone and is emptied now, lie the files of images that are being made.
    pub fn new(folder: &Path) -> Self {
        let _ = std::fs::remove_dir_all(folder);
        Self { program: "xorrisofs".into(), folder: folder.to_owned() }
    }

    /// As [`Self::new`], with another program.
    pub fn with_program(folder: &Path, program: impl Into<OsString>) -> Self {
        Self { program: program.into(), ..Self::new(folder) }
    }

    fn lay_out(&self, files: &[(&str, &str)]) -> std::io::Result<Folder> {
        let folder = Folder(self.folder.join(uuid::Uuid::new_v4().to_string()));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder.0)?;
        for (path, content) in files {
            let path = folder.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(&folder.0))?;
            std::fs::write(path, content)?;
        }
        Ok(folder)
    }
}

#[async_trait]
impl CdImages for Xorriso {
    async fn make(&self, label: &str, files: &[(&str, &str)], to: &Path) -> Result<(), CdError> {
        let folder = self.lay_out(files).map_err(failed)?;
        let run = tokio::process::Command::new(&self.program)
            .args(["-quiet", "-joliet", "-rational-rock", "-no-pad", "-volid", label, "-output"])
            .args([to, &folder.0])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let ended = tokio::time::timeout(LIMIT, run).await;
        let program = self.program.to_string_lossy().into_owned();
        let output = match ended {
            Err(_) => return Err(failed(format!("{program} has not ended within {} s", LIMIT.as_secs()))),
            Ok(Err(why)) => return Err(CdError::Start { program, package: PACKAGE, why }),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(());
        }
        let words: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
        Err(failed(format!("{program}: {words}")))
    }
}
