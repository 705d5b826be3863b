//! The files against a model of a directory tree: whatever is asked in whatever order, both answer alike, and what is committed in the
//! end is what the model has.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::TreeStore;
use proptest::prelude::*;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use stead_files::files::{Answer, Begin, Files, TOP};
use stead_files::layout::Kind;

#[derive(Debug, Clone)]
enum Act {
    Write(String, String),
    Append(String, String),
    Cut(String, u64),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Rename(String, String, bool),
}

/// What a folder would be; a file has its content.
type Model = BTreeMap<String, Option<String>>;

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn is_folder(model: &Model, path: &str) -> bool {
    path.is_empty() || matches!(model.get(path), Some(None))
}

fn holds(model: &Model, path: &str) -> bool {
    model.keys().any(|k| parent(k) == path)
}

fn reach(model: &Model, path: &str) -> Answer<()> {
    let folder = parent(path);
    if is_folder(model, folder) {
        return Ok(());
    }
    // One step on the way is missing, or is a file.
    Err(Errno::NOENT)
}

fn expect(model: &mut Model, act: &Act) -> Answer<()> {
    let at = |model: &Model, path: &str| model.get(path).cloned();
    match act {
        Act::Write(path, text) | Act::Append(path, text) => {
            reach(model, path)?;
            match at(model, path) {
                Some(None) => Err(Errno::ISDIR),
                Some(Some(old)) if matches!(act, Act::Append(..)) => {
                    model.insert(path.clone(), Some(old + text));
                    Ok(())
                }
                _ => {
                    model.insert(path.clone(), Some(text.clone()));
                    Ok(())
                }
            }
        }
        Act::Cut(path, size) => {
            reach(model, path)?;
            match at(model, path) {
                None => Err(Errno::NOENT),
                Some(None) => Err(Errno::ISDIR),
                Some(Some(mut old)) => {
                    let size = usize::try_from(*size).unwrap();
                    old.truncate(size);
                    old.extend(std::iter::repeat_n('\0', size - old.len()));
                    model.insert(path.clone(), Some(old));
                    Ok(())
                }
            }
        }
        Act::Unlink(path) => {
            reach(model, path)?;
            match at(model, path) {
                None => Err(Errno::NOENT),
                Some(None) => Err(Errno::ISDIR),
                Some(Some(_)) => {
                    model.remove(path);
                    Ok(())
                }
            }
        }
        Act::Mkdir(path) => {
            reach(model, path)?;
            match at(model, path) {
                None => {
                    model.insert(path.clone(), None);
                    Ok(())
                }
                Some(_) => Err(Errno::EXIST),
            }
        }
        Act::Rmdir(path) => {
            reach(model, path)?;
            match at(model, path) {
                None => Err(Errno::NOENT),
                Some(Some(_)) => Err(Errno::NOTDIR),
                Some(None) if holds(model, path) => Err(Errno::NOTEMPTY),
                Some(None) => {
                    model.remove(path);
                    Ok(())
                }
            }
        }
        Act::Rename(from, to, replace) => {
            reach(model, from)?;
            reach(model, to)?;
            if from == to {
                return Ok(());
            }
            if to.starts_with(&format!("{from}/")) {
                return Err(Errno::INVAL);
            }
            let there = at(model, to);
            if !replace && there.is_some() {
                return Err(Errno::EXIST);
            }
            match (at(model, from), there) {
                (None, _) => Err(Errno::NOENT),
                (Some(None), Some(None)) => Err(Errno::NOTEMPTY),
                (Some(None), Some(Some(_))) => Err(Errno::NOTDIR),
                (Some(Some(_)), Some(None)) => Err(Errno::ISDIR),
                (Some(None), None) if holds(model, from) => Err(Errno::XDEV),
                (Some(what), _) => {
                    model.remove(from);
                    model.insert(to.clone(), what);
                    Ok(())
                }
            }
        }
    }
}

/// As the kernel does: step by step, each name looked up, and forgotten in the end.
fn walk<T>(files: &Files<TreeStore>, path: &str, then: impl FnOnce(u64) -> Answer<T>) -> Answer<T> {
    let mut known = vec![];
    let mut at = Ok(TOP);
    for name in path.split('/').filter(|n| !n.is_empty()) {
        at = at.and_then(|ino| files.lookup(ino, OsStr::new(name))).map(|attr| {
            known.push(attr.ino);
            attr.ino
        });
        if at.is_err() {
            break;
        }
    }
    let done = at.and_then(then);
    known.into_iter().for_each(|ino| files.forget(ino, 1));
    done
}

/// In a folder: of anything else the kernel asks for nothing below.
fn within<T>(files: &Files<TreeStore>, folder: &str, then: impl FnOnce(u64) -> Answer<T>) -> Answer<T> {
    walk(
        files,
        folder,
        |ino| if files.attr(ino)?.kind == Kind::Folder { then(ino) } else { Err(Errno::NOENT) },
    )
}

fn split(path: &str) -> (&str, &OsStr) {
    (parent(path), OsStr::new(path.rsplit('/').next().unwrap()))
}

fn put(files: &Files<TreeStore>, path: &str, text: &str, append: bool) -> Answer<()> {
    let (folder, name) = split(path);
    within(files, folder, |ino| {
        let (ino, handle, looked) = match files.lookup(ino, name) {
            Ok(attr) => match files.open(attr.ino, Some(Begin::AsItIs)) {
                Ok(handle) => (attr.ino, handle, 1),
                Err(e) => {
                    files.forget(attr.ino, 1);
                    return Err(e);
                }
            },
            Err(Errno::NOENT) => {
                files.create(ino, name, true, Begin::AsItIs).map(|(attr, handle)| (attr.ino, handle, 1))?
            }
            Err(e) => return Err(e),
        };
        if !append {
            files.resize(ino, 0)?;
        }
        let end = files.attr(ino)?.size;
        let written = if text.is_empty() { Ok(0) } else { files.write(handle, end, text.as_bytes()) };
        let done = written.and_then(|_| files.flush(handle));
        files.release(handle);
        files.forget(ino, looked);
        done
    })
}

fn act(files: &Files<TreeStore>, act: &Act) -> Answer<()> {
    match act {
        Act::Write(path, text) => put(files, path, text, false),
        Act::Append(path, text) => put(files, path, text, true),
        Act::Cut(path, size) => walk(files, path, |ino| files.resize(ino, *size).map(drop)),
        Act::Unlink(path) => within(files, split(path).0, |ino| files.unlink(ino, split(path).1)),
        Act::Mkdir(path) => within(files, split(path).0, |ino| {
            let attr = files.make_folder(ino, split(path).1)?;
            files.forget(attr.ino, 1);
            Ok(())
        }),
        Act::Rmdir(path) => within(files, split(path).0, |ino| files.remove_folder(ino, split(path).1)),
        Act::Rename(from, to, replace) => within(files, split(from).0, |one| {
            within(files, split(to).0, |other| {
                files.rename((one, split(from).1), (other, split(to).1), *replace)
            })
        }),
    }
}

/// All that is there, read as a reader would.
fn all(files: &Files<TreeStore>, path: &str, found: &mut Model) {
    let names = walk(files, path, |ino| {
        let handle = files.open_folder(ino)?;
        let names = files.listing(handle)?.1;
        files.release(handle);
        Ok(names)
    });
    for name in names.unwrap().iter() {
        let at = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        let read = walk(files, &at, |ino| match files.attr(ino)?.kind {
            Kind::Folder => Ok(None),
            Kind::Link(to) => Ok(Some(to)),
            _ => {
                let handle = files.open(ino, None)?;
                let data = files.read(handle, 0, 1 << 20)?;
                files.release(handle);
                assert_eq!(files.attr(ino)?.size, data.len() as u64, "{at}");
                Ok(Some(String::from_utf8(data.to_vec()).unwrap()))
            }
        });
        let read = read.unwrap();
        let deeper = read.is_none();
        found.insert(at.clone(), read);
        if deeper {
            all(files, &at, found);
        }
    }
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof!["[abc]", "[abc]/[abc]", "priv/[ab]", "[abc]/[ab]/[ab]",]
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (path(), "[x-z]{0,5}").prop_map(|(p, t)| Act::Write(p, t)),
        2 => (path(), "[x-z]{0,5}").prop_map(|(p, t)| Act::Append(p, t)),
        1 => (path(), 0..8u64).prop_map(|(p, n)| Act::Cut(p, n)),
        2 => path().prop_map(Act::Unlink),
        3 => path().prop_map(Act::Mkdir),
        2 => path().prop_map(Act::Rmdir),
        3 => (path(), path(), any::<bool>()).prop_map(|(a, b, r)| Act::Rename(a, b, r)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn files_are_as_files_are(script in prop::collection::vec(acts(), 1..40)) {
        let store = TreeStore::new();
        let files = Files::new(store.clone());
        let mut before = Model::new();
        all(&files, "", &mut before);
        let mut model = before.clone();
        for step in &script {
            // A file on the way is told apart by the kernel.
            let expected = expect(&mut model, step);
            prop_assert_eq!(act(&files, step), expected, "{:?}", step);
        }
        let mut found = Model::new();
        all(&files, "", &mut found);
        for special in [".version", ".vmlist", ".clusterlog", ".members", ".stead-last-error"] {
            found.remove(special);
            model.remove(special);
        }
        prop_assert_eq!(&found, &model);
        // Another node's files are the same: all of it is committed.
        let mut there = Model::new();
        all(&Files::new(store), "", &mut there);
        there.retain(|path, _| !path.starts_with('.'));
        prop_assert_eq!(there, model);
        let (inodes, handles) = files.kept();
        prop_assert_eq!((inodes, handles), (1, 0), "nothing is kept of what nobody knows");
    }
}
