//! The files of tasks. Blocking: called off the async threads, except for the appending of log lines.

use crate::{Step, TaskInfo};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use stead_model::Upid;

/// A failed operation on the files of tasks.
#[derive(Debug, thiserror::Error)]
#[error("could not {what} '{path}': {source}")]
pub struct TasksError {
    /// What was attempted.
    pub what: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> TasksError + 'a {
    move |source| TasksError { what, path: path.to_owned(), source }
}

/// What is kept of a task that has not ended. Versioned, since another version of the daemon may adopt it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Active {
    version: u32,
    pub upid: Upid,
    pub steps: Vec<Step>,
}

/// The only version of [`Active`] there is.
const ACTIVE_VERSION: u32 = 1;

#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    pub fn open(dir: PathBuf) -> Result<Self, TasksError> {
        let active = dir.join("active");
        fs::create_dir_all(&active).map_err(at("make the folder", &active))?;
        Ok(Self { dir })
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("index")
    }

    fn active_path(&self, upid: &Upid) -> PathBuf {
        self.dir.join("active").join(upid.to_string())
    }

    pub fn log_path(&self, upid: &Upid) -> PathBuf {
        self.dir.join(format!("{:02X}", upid.starttime & 0xff)).join(upid.to_string())
    }

    /// The finished tasks, oldest first. A last line that was cut off by a crash is left out.
    pub fn read_index(&self) -> Result<Vec<TaskInfo>, TasksError> {
        let path = self.index_path();
        let file = match File::open(&path) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(at("read", &path)(e)),
        };
        let mut all = vec![];
        for line in BufReader::new(file).lines() {
            let line = line.map_err(at("read", &path))?;
            if let Ok(task) = serde_json::from_str(&line) {
                all.push(task);
            }
        }
        Ok(all)
    }

    /// Adds a finished task, durably.
    pub fn append_index(&self, task: &TaskInfo) -> Result<(), TasksError> {
        let path = self.index_path();
        let text = serde_json::to_string(task).map_err(|e| at("write", &path)(e.into()))?;
        let mut f = OpenOptions::new().create(true).append(true).open(&path).map_err(at("open", &path))?;
        // A line of its own even after one that was cut off.
        f.write_all(format!("\n{text}\n").as_bytes()).and_then(|()| f.sync_data()).map_err(at("write", &path))
    }

    /// Replaces the index.
    pub fn write_index<'a>(&self, tasks: impl Iterator<Item = &'a TaskInfo>) -> Result<(), TasksError> {
        let path = self.index_path();
        let mut text = String::new();
        for t in tasks {
            text += &serde_json::to_string(t).map_err(|e| at("write", &path)(e.into()))?;
            text.push('\n');
        }
        replace(&path, text.as_bytes())
    }

    /// Tasks that had not ended when the daemon did.
    pub fn read_active(&self) -> Result<Vec<Active>, TasksError> {
        let dir = self.dir.join("active");
        let mut all = vec![];
        let entries = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(at("read the folder", &dir))? {
            let Some(path) = finish_replace(entry.path())? else { continue };
            let text = fs::read(&path).map_err(at("read", &path))?;
            match serde_json::from_slice::<Active>(&text) {
                Ok(a) if a.version == ACTIVE_VERSION => all.push(a),
                // Half-written, or of a version that this one does not know: it can only be ended.
                _ => match path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) {
                    Some(upid) => all.push(Active { version: 0, upid, steps: vec![] }),
                    None => fs::remove_file(&path).map_err(at("remove", &path))?,
                },
            }
        }
        all.sort_by_key(|a| (a.upid.starttime, a.upid.pstart));
        Ok(all)
    }

    /// Writes a task's steps, durably.
    pub fn write_active(&self, upid: &Upid, steps: &[Step]) -> Result<(), TasksError> {
        let path = self.active_path(upid);
        let a = Active { version: ACTIVE_VERSION, upid: upid.clone(), steps: steps.to_vec() };
        let text = serde_json::to_vec(&a).map_err(|e| at("write", &path)(e.into()))?;
        replace(&path, &text)
    }

    pub fn remove_active(&self, upid: &Upid) -> Result<(), TasksError> {
        let path = self.active_path(upid);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Opens a task's log for appending.
    pub fn open_log(&self, upid: &Upid) -> Result<File, TasksError> {
        let path = self.log_path(upid);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(at("make the folder", dir))?;
        }
        OpenOptions::new().create(true).append(true).open(&path).map_err(at("open", &path))
    }

    /// Lines `start..start + limit` of a log and how many there are.
    pub fn read_log(
        &self,
        upid: &Upid,
        start: usize,
        limit: usize,
    ) -> Result<(Vec<String>, usize), TasksError> {
        let path = self.log_path(upid);
        let file = match File::open(&path) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((vec![], 0)),
            Err(e) => return Err(at("read", &path)(e)),
        };
        let (mut lines, mut total) = (vec![], 0);
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(at("read", &path))?;
            if total >= start && lines.len() < limit {
                lines.push(String::from_utf8_lossy(&line).into_owned());
            }
            total += 1;
        }
        Ok((lines, total))
    }

    pub fn remove_log(&self, upid: &Upid) -> Result<(), TasksError> {
        let path = self.log_path(upid);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

/// Writes beside and renames, so that a crash leaves the old or the new text.
fn replace(path: &Path, text: &[u8]) -> Result<(), TasksError> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = path.with_file_name(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        let mut f = File::create(&beside)?;
        f.write_all(text)?;
        f.sync_data()?;
        fs::rename(&beside, path)
    };
    write().map_err(at("write", path))
}

/// What a [`replace`] that was cut off has left takes its place where nothing had it before, and goes otherwise. The path to read, if
/// there is one; other files are as they are.
fn finish_replace(path: PathBuf) -> Result<Option<PathBuf>, TasksError> {
    let name = path.file_name().and_then(|n| n.to_str());
    let Some(name) = name.and_then(|n| n.strip_prefix('.')?.strip_suffix(".new")) else {
        return Ok(Some(path));
    };
    let whole = path.with_file_name(name);
    let text = fs::read(&path).map_err(at("read", &path))?;
    if whole.exists() || serde_json::from_slice::<Active>(&text).is_err() {
        fs::remove_file(&path).map_err(at("remove", &path))?;
        return Ok(None);
    }
    fs::rename(&path, &whole).map_err(at("rename", &path))?;
    Ok(Some(whole))
}
