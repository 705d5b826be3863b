//! What is written and not closed, what others do meanwhile, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::TreeStore;
use rustix::io::Errno;
use std::ffi::OsStr;
use stead_conf::Txn;
use stead_files::files::{Begin, Files, TOP};
use stead_files::lane::Fate;
use stead_files::late::About;

fn files() -> (TreeStore, Files<TreeStore>) {
    let store = TreeStore::new();
    (store.clone(), Files::new(store))
}

fn ino(files: &Files<TreeStore>, path: &str) -> u64 {
    path.split('/').fold(TOP, |at, name| files.lookup(at, OsStr::new(name)).unwrap().ino)
}

fn text(files: &Files<TreeStore>, path: &str) -> String {
    let handle = files.open(ino(files, path), None).unwrap();
    let data = files.read(handle, 0, 1 << 20).unwrap();
    files.release(handle);
    String::from_utf8(data.to_vec()).unwrap()
}

#[test]
fn nothing_is_committed_before_the_close_and_all_of_it_then() {
    let (store, files) = files();
    let (attr, handle) = files.create(TOP, OsStr::new("new"), true, Begin::AsItIs).unwrap();
    files.write(handle, 0, b"one ").unwrap();
    files.write(handle, 4, b"two").unwrap();
    assert_eq!(
        (store.text("new"), text(&files, "new").as_str()),
        (None, "one two"),
        "seen on this node alone"
    );
    assert_eq!(files.attr(attr.ino).unwrap().size, 7);
    files.flush(handle).unwrap();
    assert_eq!((store.text("new").as_deref(), store.commits()), (Some("one two"), 1));
    files.flush(handle).unwrap();
    files.release(handle);
    assert_eq!(store.commits(), 1, "nothing new, nothing to commit");
}

#[test]
fn a_shell_s_close_of_a_copied_descriptor_commits_no_empty_file() {
    let (store, files) = files();
    let at = ino(&files, "storage.cfg");
    let handle = files.open(at, Some(Begin::AsItIs)).unwrap();
    files.resize(at, 0).unwrap();
    files.flush(handle).unwrap();
    assert_eq!(store.commits(), 0);
    files.write(handle, 0, b"dir: other\n\tpath /x\n").unwrap();
    files.flush(handle).unwrap();
    assert_eq!((store.commits(), store.text("storage.cfg").as_deref()), (1, Some("dir: other\n\tpath /x\n")));
    files.resize(at, 0).unwrap();
    files.release(handle);
    assert_eq!(store.text("storage.cfg").as_deref(), Some(""), "the last close commits it after all");
}

#[test]
fn a_broken_file_is_refused_with_its_line_and_stays_as_it_was() {
    let (store, files) = files();
    let handle = files.open(ino(&files, "storage.cfg"), Some(Begin::AsItIs)).unwrap();
    let end = store.text("storage.cfg").unwrap().len() as u64;
    files.write(handle, end, b"\nwhat is this\n").unwrap();
    assert_eq!(files.flush(handle), Err(Errno::INVAL));
    assert_eq!(files.sync(handle), Err(Errno::INVAL), "as often as it is asked");
    files.release(handle);
    assert_eq!(text(&files, "storage.cfg"), "dir: local\n\tpath /var/lib/vz\n");
    assert_eq!(store.commits(), 0);
    let said = text(&files, ".stead-last-error");
    assert!(said.contains("storage.cfg: line 4: "), "{said}");
}

#[test]
fn what_others_wrote_meanwhile_is_not_written_over() {
    let (store, files) = files();
    let at = ino(&files, "datacenter.cfg");
    let handle = files.open(at, Some(Begin::AsItIs)).unwrap();
    files.write(handle, 0, b"mac_prefix: 02:01:04").unwrap();
    store.apply(Txn::new("n2").put("datacenter.cfg", "mac_prefix: 02:01:05\n"));
    assert_eq!(files.flush(handle), Err(Errno::BUSY));
    files.release(handle);
    assert_eq!(text(&files, "datacenter.cfg"), "mac_prefix: 02:01:05\n");
    // Who begins after that, begins with that; also with a descriptor that was open before.
    let handle = files.open(at, Some(Begin::AsItIs)).unwrap();
    store.apply(Txn::new("n2").put("datacenter.cfg", "mac_prefix: 02:01:06\n\n"));
    files.write(handle, 18, b"07").unwrap();
    files.flush(handle).unwrap();
    files.release(handle);
    assert_eq!(store.text("datacenter.cfg").as_deref(), Some("mac_prefix: 02:01:07\n\n"));
    let (_, handle) = files.create(TOP, OsStr::new("both"), true, Begin::AsItIs).unwrap();
    files.write(handle, 0, b"mine").unwrap();
    store.apply(Txn::new("n2").put("both", "theirs"));
    assert_eq!(files.flush(handle), Err(Errno::BUSY));
    files.release(handle);
    assert_eq!(store.text("both").as_deref(), Some("theirs"));
}

#[test]
fn an_open_reader_keeps_its_version() {
    let (store, files) = files();
    let handle = files.open(ino(&files, "storage.cfg"), None).unwrap();
    store.apply(Txn::new("n2").put("storage.cfg", "").delete("datacenter.cfg"));
    assert!(files.read(handle, 0, 100).unwrap().starts_with(b"dir: local"));
    assert_eq!(files.read(handle, 5, 5).unwrap().as_ref(), b"local");
    files.release(handle);
    assert_eq!(text(&files, "storage.cfg"), "");
}

#[test]
fn without_a_majority_all_is_read_and_nothing_written() {
    let (store, files) = files();
    let at = ino(&files, "storage.cfg");
    let handle = files.open(at, Some(Begin::AsItIs)).unwrap();
    store.writable(false);
    assert_eq!(files.open(at, Some(Begin::AsItIs)), Err(Errno::ACCESS));
    assert_eq!(files.create(TOP, OsStr::new("x"), true, Begin::AsItIs).map(drop), Err(Errno::ACCESS));
    assert_eq!(files.make_folder(TOP, OsStr::new("x")).map(drop), Err(Errno::ACCESS));
    assert_eq!(files.unlink(TOP, OsStr::new("storage.cfg")), Err(Errno::ACCESS));
    assert_eq!(
        files.rename((TOP, OsStr::new("storage.cfg")), (TOP, OsStr::new("y")), true),
        Err(Errno::ACCESS)
    );
    files.write(handle, 0, b"#").unwrap();
    assert_eq!(files.flush(handle), Err(Errno::ACCESS));
    files.release(handle);
    assert!(text(&files, "storage.cfg").starts_with("dir: local"));
    assert_eq!(files.attr(at).unwrap().perm, 0o440);
}

#[test]
fn what_is_stead_s_own_is_read_and_never_written() {
    let (store, files) = files();
    for path in ["stead/nodes/n1", ".version", "local"] {
        assert_eq!(files.open(ino(&files, path), Some(Begin::AsItIs)), Err(Errno::PERM), "{path}");
    }
    let refused = |done: Result<(), Errno>| assert_eq!(done, Err(Errno::PERM));
    let (stead, nodes, n1) = (ino(&files, "stead"), ino(&files, "nodes"), ino(&files, "nodes/n1"));
    refused(files.create(stead, OsStr::new("owner"), true, Begin::AsItIs).map(drop));
    refused(files.create(TOP, OsStr::new(".stead-folder"), true, Begin::AsItIs).map(drop));
    refused(files.create(n1, OsStr::new("priv"), true, Begin::AsItIs).map(drop));
    refused(files.make_folder(nodes, OsStr::new("n3")).map(drop));
    refused(files.make_folder(n1, OsStr::new("priv")).map(drop));
    refused(files.unlink(ino(&files, "stead/nodes"), OsStr::new("n1")));
    refused(files.unlink(TOP, OsStr::new("storage.cfg")));
    refused(files.unlink(ino(&files, "nodes/n1/qemu-server"), OsStr::new("100.conf")));
    refused(files.rename((TOP, OsStr::new("storage.cfg")), (TOP, OsStr::new("storage.cfg.old")), true));
    refused(files.remove_folder(TOP, OsStr::new("ha")));
    refused(files.remove_folder(n1, OsStr::new("qemu-server")));
    refused(files.rename((TOP, OsStr::new("nodes")), (TOP, OsStr::new("x")), true));
    assert_eq!(store.commits(), 0);
}

#[test]
fn a_file_without_a_name_is_its_holder_s_alone() {
    let (store, files) = files();
    let (attr, handle) = files.create(TOP, OsStr::new("tmp"), true, Begin::AsItIs).unwrap();
    files.write(handle, 0, b"x").unwrap();
    files.unlink(TOP, OsStr::new("tmp")).unwrap();
    files.write(handle, 1, b"y").unwrap();
    assert_eq!(
        (files.attr(attr.ino).unwrap().size, files.read(handle, 0, 9).unwrap().as_ref()),
        (2, &b"xy"[..])
    );
    files.flush(handle).unwrap();
    files.release(handle);
    files.forget(attr.ino, 1);
    assert_eq!((store.commits(), files.kept()), (0, (1, 0)));
}

#[test]
fn too_much_is_refused_by_name() {
    let (_, files) = files();
    let (attr, handle) = files.create(TOP, OsStr::new("big"), true, Begin::AsItIs).unwrap();
    assert_eq!(files.write(handle, 1 << 20, b"x"), Err(Errno::FBIG));
    assert_eq!(files.resize(attr.ino, (1 << 20) + 1), Err(Errno::FBIG));
    files.resize(attr.ino, 1 << 20).unwrap();
    files.flush(handle).unwrap();
    files.release(handle);
    let long = "x".repeat(256);
    assert_eq!(files.lookup(TOP, OsStr::new(&long)).map(drop), Err(Errno::NAMETOOLONG));
    assert_eq!(files.create(TOP, OsStr::new("a\nb"), true, Begin::AsItIs).map(drop), Err(Errno::INVAL));
}

#[test]
fn of_two_who_make_a_folder_one_does() {
    let (store, files) = files();
    let other = Files::new(store);
    files.make_folder(TOP, OsStr::new("lock")).unwrap();
    assert_eq!(other.make_folder(TOP, OsStr::new("lock")).map(drop), Err(Errno::EXIST));
    other.remove_folder(TOP, OsStr::new("lock")).unwrap();
    assert_eq!(files.lookup(TOP, OsStr::new("lock")), Err(Errno::NOENT));
}

#[test]
fn secrets_are_sealed_in_the_tree_and_open_to_root() {
    let (store, files) = files();
    let private = ino(&files, "priv");
    let (attr, handle) = files.create(private, OsStr::new("key"), true, Begin::AsItIs).unwrap();
    assert_eq!(attr.perm, 0o600);
    files.write(handle, 0, b"geheim").unwrap();
    files.flush(handle).unwrap();
    files.release(handle);
    let stored = store.0.tree.lock().unwrap().get("priv/key").unwrap().data.clone();
    assert!(!stored.windows(6).any(|w| w == b"geheim"));
    assert_eq!((text(&files, "priv/key").as_str(), files.attr(attr.ino).unwrap().size), ("geheim", 6));
    files.rename((private, OsStr::new("key")), (private, OsStr::new("other")), true).unwrap();
    assert_eq!((store.text("priv/other").as_deref(), store.text("priv/key")), (Some("geheim"), None));
}

#[test]
fn what_is_written_after_a_commit_is_held_to_that_version() {
    let (store, files) = files();
    let of_other = |text: &str| Txn::new("n2").put("datacenter.cfg", text.to_owned());
    let (mine, theirs) = ("mac_prefix: 02:01:03\n", "mac_prefix: 02:01:09\n");
    let at = ino(&files, "datacenter.cfg");
    // Before anything of it is committed, what others do is what is changed.
    let handle = files.open(at, Some(Begin::AsItIs)).unwrap();
    store.apply(of_other("mac_prefix: 02:01:04\n"));
    files.write(handle, 0, mine.as_bytes()).unwrap();
    // Another node is there between the commit and a look at what came of it, or later.
    store.then(of_other(theirs));
    files.sync(handle).unwrap();
    files.write(handle, 0, b"#").unwrap();
    assert_eq!(files.flush(handle), Err(Errno::BUSY));
    files.release(handle);
    assert_eq!(store.text("datacenter.cfg").as_deref(), Some(theirs));

    let handle = files.open(at, Some(Begin::AsItIs)).unwrap();
    files.write(handle, 0, mine.as_bytes()).unwrap();
    files.flush(handle).unwrap();
    files.write(handle, 0, b"#").unwrap();
    files.flush(handle).unwrap();
    store.apply(of_other(theirs));
    files.write(handle, 0, b"##").unwrap();
    assert_eq!(files.flush(handle), Err(Errno::BUSY));
    files.release(handle);
    assert_eq!(
        (store.text("datacenter.cfg").as_deref(), text(&files, "datacenter.cfg").as_str()),
        (Some(theirs), theirs)
    );
}

#[test]
fn nothing_is_committed_of_what_was_told_to_have_failed() {
    let (store, files) = files();
    let before = store.text("datacenter.cfg").unwrap();
    let at = ino(&files, "datacenter.cfg");
    let write = || {
        let handle = files.open(at, Some(Begin::Emptied)).unwrap();
        files.write(handle, 0, b"#half").unwrap();
        handle
    };
    // A write: whatever comes later, the middle may be missing.
    let handle = write();
    files.given_up(&About::Write(handle), Fate::Undecided);
    files.write(handle, 5, b" more").unwrap();
    assert_eq!(files.flush(handle), Err(Errno::IO));
    files.release(handle);
    // A close: the kernel lets go of the file afterwards.
    let handle = write();
    files.given_up(&About::Close(handle), Fate::NeverBegun);
    files.release(handle);
    // And one that let go so late that nobody knows of it any more.
    files.close_late(write());
    // A size, by a name or by a handle.
    let handle = write();
    files.given_up(&About::Size(at), Fate::NeverBegun);
    assert_eq!(files.flush(handle), Err(Errno::IO));
    files.release(handle);
    assert_eq!((store.commits(), store.text("datacenter.cfg").unwrap()), (0, before));
    files.given_up(&About::Name(TOP, "sub".into()), Fate::Undecided);
    let said = text(&files, ".stead-last-error");
    assert!(
        said.contains("datacenter.cfg: no answer in time") && said.contains("sub: no answer in time"),
        "{said}"
    );
    // The next one begins anew.
    let handle = write();
    files.flush(handle).unwrap();
    files.release(handle);
    assert_eq!(store.text("datacenter.cfg").as_deref(), Some("#half"));
}

#[test]
fn a_file_that_was_opened_for_nobody_is_as_it_was() {
    let (store, files) = files();
    let kept = files.kept();
    let (attr, handle) = files.create(TOP, OsStr::new("new"), true, Begin::AsItIs).unwrap();
    files.unheard_file(&attr, handle);
    assert_eq!((files.kept(), files.lookup(TOP, OsStr::new("new")).map(drop)), (kept, Err(Errno::NOENT)));
    // Another one has it open, and goes on.
    let (attr, other) = files.create(TOP, OsStr::new("new"), true, Begin::AsItIs).unwrap();
    files.write(other, 0, b"x").unwrap();
    let handle = files.open(attr.ino, Some(Begin::AsItIs)).unwrap();
    files.abandon(handle);
    files.flush(other).unwrap();
    files.release(other);
    assert_eq!(store.text("new").as_deref(), Some("x"));
}

#[test]
fn many_who_have_the_same_open_have_it_once() {
    let (store, files) = files();
    let folder = |at| files.listing(files.open_folder(at).unwrap()).unwrap().1;
    assert!(std::sync::Arc::ptr_eq(&folder(TOP), &folder(TOP)));
    let before = folder(TOP);
    store.apply(Txn::new("n2").put("later", "x"));
    assert!(folder(TOP).contains(&"later".to_owned()) && !before.contains(&"later".to_owned()));
    let vm_list = || {
        let handle = files.open(ino(&files, ".vmlist"), None).unwrap();
        files.read(handle, 0, 1 << 20).unwrap()
    };
    assert_eq!(vm_list().as_ptr(), vm_list().as_ptr());
}
