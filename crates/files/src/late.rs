//! Requests that were told to have failed before their end: nobody may find later that they did something after all, unless it is said so.

use crate::files::{Attr, Files};
use crate::inodes::Dirt;
use crate::lane::Fate;
use crate::store::Store;
use std::ffi::OsString;
use stead_ops::files::{FileFault, Why};

/// What a request was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// Bytes written to an open file.
    Write(u64),
    /// The end of writing to an open file.
    Close(u64),
    /// A name in a folder.
    Name(u64, OsString),
    /// A file's size.
    Size(u64),
}

impl<S: Store> Files<S> {
    /// A request was given up. What was written to an open file may lack that part, and is not committed; what may be done yet is written
    /// down. Waits for nothing but the state.
    pub fn given_up(&self, about: &About, fate: Fate) {
        let ino = match about {
            About::Write(handle) | About::Close(handle) => self.writer(*handle).ok(),
            About::Size(ino) => Some(*ino),
            About::Name(..) => None,
        };
        let path = match (about, ino) {
            (About::Name(folder, name), _) => self.child(*folder, name).unwrap_or_default(),
            (_, Some(ino)) => self.state().path(ino).unwrap_or_default(),
            _ => return,
        };
        if let Some(ino) = ino
            && let Some(draft) = self.state().draft(ino)
        {
            match about {
                About::Close(_) => draft.refused = Some(draft.version),
                _ => draft.spoiled = true,
            }
        }
        let reason = match fate {
            Fate::NeverBegun => "there was no time for it: nothing was done",
            Fate::Undecided => {
                "no answer in time: it was begun, and whether it takes effect is not known: read it again"
            }
        };
        self.refused(&FileFault::new(Why::Unknown, &path, reason));
    }

    /// The last descriptor was closed so long ago that nobody counts on it any more: what was not committed goes.
    pub fn close_late(&self, handle: u64) {
        let lost = self.writer(handle).ok().and_then(|ino| {
            let mut state = self.state();
            let path = state.path(ino).ok()?;
            let draft = state.draft(ino)?;
            let is_news = draft.dirt != Dirt::Clean && draft.refused != Some(draft.version);
            (is_news && draft.writers == 1).then_some(path)
        });
        if let Some(path) = lost {
            let reason = "there was no time to keep what was written last: it is as it was";
            self.refused(&FileFault::new(Why::Unknown, &path, reason));
        }
        self.abandon(handle);
    }

    /// A name was looked up or made for nobody.
    pub fn unheard_name(&self, attr: &Attr) {
        self.forget(attr.ino, 1);
    }

    /// A file was made, or opened, for nobody.
    pub fn unheard_file(&self, attr: &Attr, handle: u64) {
        self.abandon(handle);
        self.forget(attr.ino, 1);
    }
}
