//! The files as the kernel shows them: what administrators do with the programs that they have.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Bed, cannot_mount};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_conf::Txn;
use stead_files::files::Files;
use stead_files::ground::Ground;
use stead_files::keeper::{Program, keep};
use stead_files::mount::Mount;
use stead_files::shell::Limits;

#[test]
fn cp_sed_mv_and_shells() {
    if cannot_mount("cp_sed_mv_and_shells", &["sed", "python3"]) {
        return;
    }
    let bed = Bed::new();
    bed.sh("echo one > notes; test \"$(cat notes)\" = one; echo two >> notes; test \"$(wc -l < notes)\" = 2");
    assert_eq!(bed.store.text("notes").unwrap(), "one\ntwo\n");
    bed.sh("sed -i 's/one/three/' notes");
    assert_eq!(bed.store.text("notes").unwrap(), "three\ntwo\n");
    bed.sh("cp notes copy; cp -a copy copy2; mv copy2 mapping/copy3; mv -f copy notes; rm mapping/copy3; test ! -e copy");
    bed.sh("mkdir -p a/b/c; touch a/b/c/empty; test -f a/b/c/empty; mv a/b/c a/d; rm -r a; test ! -e a");
    bed.sh("sed -i 's/cores: 1/cores: 2/' nodes/n1/qemu-server/100.conf");
    assert_eq!(bed.store.text("nodes/n1/qemu-server/100.conf").unwrap(), "cores: 2\nname: web\n");
    bed.sh("sed -i 's/web/db/' qemu-server/100.conf; cat local/qemu-server/100.conf | grep -q db");
    bed.sh("truncate -s 3 notes; test \"$(cat notes)\" = thr; { echo a; ls > /dev/null; echo b; } > notes");
    assert_eq!(bed.store.text("notes").unwrap(), "a\nb\n");
    bed.sh("dd if=/dev/zero of=full bs=64k count=16 conv=fsync 2>&1; rm full");
    let large = bed.fails("dd if=/dev/zero of=large bs=64k count=17 2>&1");
    assert!(large.contains("File too large"), "{large}");
    bed.sh("rm -f large; test -z \"$(ls nodes/n2/qemu-server)\"; df . | grep -q 131072; find . -name '*.conf' | grep -q 100.conf");
    bed.sh("python3 - <<'P'\nimport mmap\nf=open('storage.cfg'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ,flags=mmap.MAP_PRIVATE); assert m[:3]==b'dir'\nP");
}

#[test]
fn a_broken_file_is_told_to_whoever_writes_it() {
    if cannot_mount("a_broken_file_is_told_to_whoever_writes_it", &["sed", "vim", "rsync", "python3"]) {
        return;
    }
    let bed = Bed::new();
    let before = bed.store.text("storage.cfg").unwrap();
    bed.sh("printf 'dir: x\\n\\tpath /x\\n\\nwhat is this\\n' > $OUT/broken");
    for script in [
        "cp $OUT/broken storage.cfg",
        "sed -i '$ a what is this' storage.cfg",
        "cat $OUT/broken > storage.cfg",
        "rsync $OUT/broken storage.cfg",
        "vim -es -u NONE -N -c 'normal Gowhat is this' -c 'w' -c 'q' storage.cfg",
        "python3 -c \"f=open('storage.cfg','a'); f.write('what is this'); f.flush(); import os; os.fsync(f.fileno())\"",
    ] {
        bed.fails(script);
        assert_eq!(bed.sh("cat storage.cfg"), before, "{script}");
        assert_eq!(bed.store.text("storage.cfg").unwrap(), before, "{script}");
    }
    let said = bed.fails("cp $OUT/broken storage.cfg");
    assert!(said.contains("Invalid argument"), "{said}");
    assert!(bed.sh("cat .stead-last-error").contains("storage.cfg: line 4: "));
    bed.sh("rm -f sed*; ls -la");
    assert!(
        bed.fails("cp $OUT/broken nodes/n1/qemu-server/0x.conf; rm storage.cfg")
            .contains("Operation not permitted")
    );
}

#[test]
fn vim_edits_what_it_opens() {
    if cannot_mount("vim_edits_what_it_opens", &["vim"]) {
        return;
    }
    let bed = Bed::new();
    for (file, from, to) in [
        ("storage.cfg", "local", "here"),
        ("nodes/n1/qemu-server/100.conf", "web", "db"),
        ("datacenter.cfg", "01:02", "01:03"),
    ] {
        // As a user would: with a swap file, a backup and a test of what may be done in the folder.
        bed.sh(&format!(
            "vim -es -N -u NONE -c 'set swapfile backup writebackup' -c '%s/{from}/{to}/' -c 'wq' {file}"
        ));
        assert!(bed.store.text(file).unwrap().contains(to), "{file}");
    }
    bed.sh("echo one > mine; vim -es -N -u NONE -c 'set swapfile writebackup' -c 's/one/two/' -c 'wq' mine");
    assert_eq!(bed.store.text("mine").unwrap(), "two\n");
    assert_eq!(bed.sh("ls -A | grep -c swp || true").trim(), "0");
}

#[test]
fn rsync_takes_all_out_and_puts_files_in() {
    if cannot_mount("rsync_takes_all_out_and_puts_files_in", &["rsync"]) {
        return;
    }
    let bed = Bed::new();
    bed.sh("rsync -a ./ $OUT/backup/; cmp storage.cfg $OUT/backup/storage.cfg; test -s $OUT/backup/.vmlist");
    bed.sh("mkdir $OUT/in $OUT/in/sub; echo 1 > $OUT/in/a; echo 2 > $OUT/in/sub/b; rsync -rlt $OUT/in/ scripts/; rsync -a $OUT/in/ scripts/");
    assert_eq!(
        (bed.store.text("scripts/a").unwrap().as_str(), bed.store.text("scripts/sub/b").unwrap().as_str()),
        ("1\n", "2\n")
    );
    bed.sh("rm $OUT/in/a; rsync -r --delete $OUT/in/ scripts/; test ! -e scripts/a; diff -r $OUT/in scripts");
}

#[test]
fn git_keeps_a_repository_in_it() {
    if cannot_mount("git_keeps_a_repository_in_it", &["git"]) {
        return;
    }
    let bed = Bed::new();
    bed.sh("git config --global safe.directory '*'; git config --global user.email a@b; git config --global user.name a");
    bed.sh("git init -q .; git add storage.cfg datacenter.cfg nodes; git commit -qm first");
    assert_eq!(bed.sh("git status --porcelain -uno"), "");
    bed.sh("sed -i s/01:02/01:03/ datacenter.cfg");
    assert_eq!(bed.sh("git status --porcelain -uno"), " M datacenter.cfg\n");
    bed.sh("git commit -qam second; git log --oneline | wc -l | grep -q 2; git show HEAD~1:datacenter.cfg | grep -q 01:02; git fsck --strict");
    bed.sh("git gc -q; git log --oneline | wc -l | grep -q 2; git show HEAD~1:datacenter.cfg > datacenter.cfg; grep -q 01:02 datacenter.cfg");
    bed.sh("git branch other; git checkout -q other; echo x > only-here; git add only-here; git commit -qm third; git checkout -q -; test ! -e only-here");
}

#[test]
fn private_files_are_not_for_others() {
    if cannot_mount("private_files_are_not_for_others", &["setpriv"]) {
        return;
    }
    let bed = Bed::new();
    bed.sh("chmod 755 $OUT; echo geheim > priv/key; mkdir priv/sub; echo geheim > priv/sub/key");
    assert_eq!(
        bed.sh("stat -c %a-%U . priv priv/key priv/sub storage.cfg stead .stead-last-error | tr '\\n' ' '"),
        "755-root 700-root 600-root 700-root 640-root 500-root 400-root "
    );
    for script in [
        "cat priv/key",
        "ls priv",
        "cat priv/sub/key",
        "ls stead",
        "cat .stead-last-error",
        "cat storage.cfg",
        "touch x",
    ] {
        let said = bed.fails(&format!("setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '{script}'"));
        assert!(said.contains("Permission denied"), "{script}: {said}");
    }
    if bed.sh("stat -c %G storage.cfg").trim() == "www-data" {
        let as_group = "setpriv --reuid 65534 --regid www-data --clear-groups sh -c";
        bed.sh(&format!("{as_group} 'cat storage.cfg .version nodes/n1/qemu-server/100.conf'"));
        bed.fails(&format!("{as_group} 'cat priv/key'"));
        bed.fails(&format!("{as_group} 'echo x >> storage.cfg'"));
    }
    // Nobody is to think that a file is stricter than it is.
    assert!(bed.fails("chmod 600 storage.cfg").contains("Operation not permitted"));
    bed.sh("chmod 644 storage.cfg; chown root storage.cfg; touch -d yesterday storage.cfg");
    // Nor that it can be executed, or others can write to it.
    bed.fails("chmod 755 storage.cfg");
    bed.fails("chmod 666 storage.cfg");
    bed.fails("chmod 777 nodes");
    bed.sh("chmod 640 storage.cfg; chmod u+w,o+r storage.cfg; chmod 755 nodes");
    assert_eq!(
        bed.sh("(umask 077; echo x > mine; mkdir own); stat -c %a mine own storage.cfg"),
        "640\n755\n640\n"
    );
    bed.fails("chown nobody storage.cfg");
    bed.fails("ln storage.cfg other");
    bed.fails("ln -s storage.cfg other");
    bed.fails("mkfifo pipe");
}

#[test]
fn without_a_majority_the_files_are_read_only() {
    if cannot_mount("without_a_majority_the_files_are_read_only", &[]) {
        return;
    }
    let bed = Bed::new();
    bed.store.writable(false);
    bed.sh("cat storage.cfg nodes/n1/qemu-server/100.conf > /dev/null; ls -lR > /dev/null; grep -q '\"quorate\":0' .members");
    for script in [
        "echo x > new",
        "echo x >> storage.cfg",
        "rm datacenter.cfg",
        "mkdir d",
        "mv datacenter.cfg x",
        "sed -i s/a/b/ storage.cfg",
    ] {
        let said = bed.fails(script);
        assert!(said.contains("Permission denied"), "{script}: {said}");
    }
    bed.store.writable(true);
    bed.sh("echo x > new");
}

#[test]
fn what_other_nodes_do_is_seen_soon() {
    if cannot_mount("what_other_nodes_do_is_seen_soon", &[]) {
        return;
    }
    let bed = Bed::new();
    bed.sh("cat storage.cfg; ls; ! test -e later");
    bed.store.apply(Txn::new("n2").put("later", "x").put("storage.cfg", "").delete("datacenter.cfg"));
    assert_eq!(bed.sh("cat later storage.cfg"), "x");
    let begun = Instant::now();
    while bed.try_sh("test ! -e datacenter.cfg && test $(stat -c %s storage.cfg) = 0").status.code()
        != Some(0)
    {
        assert!(begun.elapsed() < Duration::from_secs(4));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_hanging_store_does_not_hang_readers() {
    if cannot_mount("a_hanging_store_does_not_hang_readers", &[]) {
        return;
    }
    let bed = Bed::with(Limits { read: Duration::from_millis(300), write: Duration::from_millis(600) });
    bed.sh("cat storage.cfg");
    bed.store.hang(true);
    let begun = Instant::now();
    // More than there are workers.
    for _ in 0..6 {
        let read = Command::new("cat").arg(bed.at.join("storage.cfg")).env("LC_ALL", "C").output().unwrap();
        let said = String::from_utf8(read.stderr).unwrap();
        assert!(said.contains("Input/output error"), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    bed.store.hang(false);
    let begun = Instant::now();
    while !bed.try_sh("cat storage.cfg && echo x > new && rm new").status.success() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it goes on where it was");
    }
}

#[test]
fn what_is_answered_late_leaves_nothing_open_and_changes_nothing() {
    if cannot_mount("what_is_answered_late_leaves_nothing_open_and_changes_nothing", &["python3"]) {
        return;
    }
    let bed = Bed::with(Limits { read: Duration::from_millis(400), write: Duration::from_millis(600) });
    let before = bed.store.text("storage.cfg").unwrap();
    bed.sh("ls; cat storage.cfg; stat priv nodes");
    let open = bed.files.kept().1;
    let slow = |call: &str| {
        // The kernel knows the names, so that it asks for nothing else first.
        let script =
            format!("import os\nos.stat('storage.cfg')\nprint('go', flush=True)\ninput()\nos.{call}\n");
        let mut command = Command::new("python3");
        command
            .args(["-c", &script])
            .current_dir(&bed.at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut String::new()).unwrap();
        child
    };
    let calls = [
        "open('storage.cfg', os.O_RDONLY)",
        "open('storage.cfg', os.O_WRONLY | os.O_TRUNC)",
        "open('new', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)",
        "listdir('nodes')",
    ];
    let mut waiting = calls.map(slow);
    bed.store.hang(true);
    for child in &mut waiting {
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"\n").unwrap();
    }
    for child in waiting {
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(said.contains("Input/output error"), "{said}");
    }
    bed.store.hang(false);
    // Each worker is through with what it had once so many others were answered.
    bed.sh("for n in {1..50}; do cat storage.cfg > /dev/null; done");
    within(5, || bed.files.kept().1 == open);
    assert_eq!(bed.sh("cat storage.cfg; ls | grep -c '^new$' || true"), format!("{before}0\n"));
    assert_eq!((bed.store.commits(), bed.store.text("storage.cfg").unwrap()), (0, before));
    bed.sh("echo '#' >> storage.cfg");
}

#[test]
fn what_was_not_begun_in_time_is_not_done_later() {
    if cannot_mount("what_was_not_begun_in_time_is_not_done_later", &[]) {
        return;
    }
    let bed = Bed::with(Limits { read: Duration::from_secs(5), write: Duration::from_millis(600) });
    // The kernel makes one name at a time in a folder.
    bed.sh("mkdir p{1..12}; stat p{1..12}");
    bed.store.hang_changes(true);
    let said = bed.fails("for n in {1..12}; do mkdir p$n/d & done; for n in {1..12}; do wait -n || failed=1; done; exit $failed");
    assert_eq!(said.matches("Input/output error").count(), 12, "{said}");
    let said = bed.sh("cat .stead-last-error");
    assert_eq!(
        (said.matches("nothing was done").count(), said.matches("is not known").count()),
        (4, 8),
        "{said}"
    );
    bed.store.hang_changes(false);
    // All are through with what they had once as many others are done.
    bed.sh("for n in {1..12}; do mkdir p$n/e; done");
    assert_eq!(bed.sh("ls -d p*/d | wc -l").trim(), "8");
}

/// Whether the file system of a folder, and what this process may do, make folders immutable.
fn has_immutable(folder: &std::path::Path) -> bool {
    let folder = std::fs::File::open(folder).unwrap();
    let flags = rustix::fs::ioctl_getflags(&folder);
    let set = |flags| rustix::fs::ioctl_setflags(&folder, flags);
    flags.is_ok_and(|f| set(f | rustix::fs::IFlags::IMMUTABLE).and_then(|()| set(f)).is_ok())
}

#[test]
fn while_nothing_is_mounted_nobody_writes_there() {
    if cannot_mount("while_nothing_is_mounted_nobody_writes_there", &[]) {
        return;
    }
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    if !has_immutable(home.path()) {
        assert!(std::env::var_os("STEAD_STRICT").is_none(), "no folder can be made immutable here");
        eprintln!("SKIP while_nothing_is_mounted_nobody_writes_there: no folder can be made immutable here");
        return;
    }
    let (at, ground) = (dir.path().join("pve"), Ground::new(home.path()));
    let mount = || {
        let files = Arc::new(Files::new(common::TreeStore::new()));
        Mount::new(files, &at, Limits::default(), None, Some(&ground)).unwrap()
    };
    for _ in 0..2 {
        let mounted = mount();
        std::fs::write(at.join("mine"), "x").unwrap();
        drop(mounted);
        let stray = std::fs::write(at.join("storage.cfg"), "").map_err(|e| e.kind());
        assert_eq!(stray, Err(std::io::ErrorKind::PermissionDenied));
    }
    ground.hold_none_but(None);
    std::fs::write(at.join("mine"), "x").unwrap();
    let files = Arc::new(Files::new(common::TreeStore::new()));
    let said = Mount::new(files, &at, Limits::default(), None, Some(&ground)).err().unwrap().to_string();
    assert!(said.contains("move away mine"), "{said}");
    std::fs::remove_file(at.join("mine")).unwrap();
    drop(mount());
    ground.hold_none_but(None);
}

#[test]
fn a_path_that_is_oddly_spelled_is_mounted_once_and_taken_away() {
    if cannot_mount("a_path_that_is_oddly_spelled_is_mounted_once_and_taken_away", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (top, files) = (dir.path(), || Arc::new(Files::new(common::TreeStore::new())));
    std::fs::create_dir_all(top.join("sub/pve")).unwrap();
    std::os::unix::fs::symlink("sub/pve", top.join("link")).unwrap();
    for path in ["link", "sub/../sub/pve/", "./sub//pve/."] {
        let mount = Mount::new(files(), &top.join(path), Limits::default(), None, None).unwrap();
        assert!(top.join("sub/pve/storage.cfg").exists());
        for other in ["sub/pve", "link", "sub/pve/"] {
            let again = Mount::new(files(), &top.join(other), Limits::default(), None, None);
            assert!(
                again.err().unwrap().to_string().contains("something is mounted there"),
                "{path} {other}"
            );
        }
        drop(mount);
        assert_eq!(std::fs::read_dir(top.join("sub/pve")).unwrap().count(), 0, "{path}");
    }
}

/// Not a test: what a keeper of these tests is, and a daemon that mounts and does as its word says.
#[test]
fn child() {
    let Some(word) = std::env::var_os("STEAD_FILES_CHILD") else { return };
    let at = std::path::PathBuf::from(std::env::var_os("AT").unwrap());
    if word == "keeper" {
        keep(&at, Duration::from_secs(2));
        std::process::exit(0);
    }
    let files = Arc::new(Files::new(common::TreeStore::new()));
    let program = std::env::current_exe().unwrap();
    // The keeper's path and limit come as words that the test harness would take for names of tests.
    let args: Vec<OsString> =
        ["-c", "exec env STEAD_FILES_CHILD=keeper AT=\"$1\" \"$0\" child --exact --nocapture"]
            .map(Into::into)
            .into_iter()
            .chain([program.into_os_string()])
            .collect();
    let keeper = Program { program: "/bin/sh".into(), args, silence: Duration::from_secs(2) };
    let mount = Mount::new(files, &at, Limits::default(), Some(&keeper), None).unwrap();
    println!("mounted");
    // Until it is told to end.
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(mount);
    std::process::exit(0);
}

struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn daemon(at: &std::path::Path) -> Daemon {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture"]).env("STEAD_FILES_CHILD", "daemon").env("AT", at);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
    let daemon = Daemon(child);
    within(10, || at.join("storage.cfg").exists());
    daemon
}

fn within(seconds: u64, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "not within {seconds} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_daemon_that_dies_leaves_no_dead_mount() {
    if cannot_mount("a_daemon_that_dies_leaves_no_dead_mount", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("pve");
    let mut killed = daemon(&at);
    killed.0.kill().unwrap();
    killed.0.wait().unwrap();
    within(5, || std::fs::read_dir(&at).is_ok_and(|mut d| d.next().is_none()));
    // And another one mounts again, and takes it away in order.
    let mut other = daemon(&at);
    drop(other.0.stdin.take());
    assert!(other.0.wait().unwrap().success());
    assert!(std::fs::read_dir(&at).unwrap().next().is_none());
}

#[test]
fn a_daemon_that_stands_still_holds_nobody_up() {
    if cannot_mount("a_daemon_that_stands_still_holds_nobody_up", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("pve");
    let stopped = daemon(&at);
    let pid = rustix::process::Pid::from_child(&stopped.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // Each of its threads, which must be seen to.
    within(10, || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", stopped.0.id())).unwrap();
        let states = tasks.map(|t| std::fs::read_to_string(t.unwrap().path().join("stat")).unwrap());
        states.into_iter().all(|s| s.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    });
    let begun = Instant::now();
    // It waits, and is then told that there is nothing any more.
    let read = Command::new("cat").arg(at.join("storage.cfg")).output().unwrap();
    assert!(!read.status.success());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    within(5, || std::fs::read_dir(&at).is_ok_and(|mut d| d.next().is_none()));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
}

#[test]
fn what_is_somebody_else_s_is_not_mounted_over() {
    if cannot_mount("what_is_somebody_else_s_is_not_mounted_over", &[]) {
        return;
    }
    let bed = Bed::new();
    let files = || Arc::new(Files::new(common::TreeStore::new()));
    let refused = |at: &std::path::Path| {
        Mount::new(files(), at, Limits::default(), None, None).err().unwrap().to_string()
    };
    assert!(refused(&bed.at).contains("something is mounted there"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), "").unwrap();
    assert!(refused(dir.path()).contains("not empty"));
    assert!(refused(&dir.path().join("x")).contains("no folder"));
}

#[test]
fn many_guests_are_listed_and_searched() {
    if cannot_mount("many_guests_are_listed_and_searched", &[]) {
        return;
    }
    let bed = Bed::new();
    let conf = |n: u32| format!("nodes/n2/qemu-server/{n}.conf");
    for from in (1000..3000).step_by(500) {
        let txn = (from..from + 500)
            .fold(Txn::new("x"), |txn, n| txn.put(conf(n), format!("cores: 1\nname: vm{n}\n")));
        bed.store.apply(txn);
    }
    assert_eq!(bed.sh("ls nodes/n2/qemu-server | wc -l").trim(), "2000");
    assert_eq!(bed.sh("ls -lR nodes | grep -c conf").trim(), "2001");
    assert_eq!(bed.sh("grep -rl 'name: vm2' nodes | wc -l").trim(), "1000");
}
