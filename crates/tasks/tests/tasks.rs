//! The whole life of tasks, over real files.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stead_model::Upid;
use stead_tasks::{Filter, Outcome, Resumer, Source, TaskError, TaskEvent, Tasks};
use tokio::sync::oneshot;

fn open(dir: &tempfile::TempDir) -> Tasks {
    Tasks::open(dir.path(), "n1".parse().unwrap()).unwrap()
}

async fn ended(tasks: &Tasks, upid: &Upid) -> String {
    tasks.wait(upid).await.unwrap().exitstatus.unwrap()
}

#[tokio::test]
async fn a_task_logs_ends_and_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = open(&dir);
    let mut events = tasks.events();
    let upid = tasks
        .start("qmstart", "100", "root@pam", |cx| async move {
            cx.log("one\ntwo");
            Ok(())
        })
        .unwrap();
    assert_eq!(ended(&tasks, &upid).await, "OK");
    let page = tasks.log(&upid, 1, 10).await.unwrap();
    assert_eq!(page.total, 3);
    let text: Vec<_> = page.lines.iter().map(|l| (l.n, l.t.as_str())).collect();
    assert_eq!(text, [(2, "two"), (3, "TASK OK")]);
    assert_eq!(upid, upid.to_string().parse().unwrap());
    let task = tasks.get(&upid).unwrap();
    assert_eq!(task.exitstatus.as_deref(), Some("OK"));
    assert!(task.endtime.is_some());
    let mut kinds = vec![];
    while let Ok(e) = events.try_recv() {
        kinds.push(match e {
            TaskEvent::Started(_) => "started",
            TaskEvent::Ended(_) => "ended",
            TaskEvent::Log { .. } => "log",
            TaskEvent::Progress { .. } => "progress",
        });
    }
    assert_eq!(kinds, ["started", "log", "log", "log", "ended"]);
}

#[tokio::test]
async fn errors_warnings_and_panics_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = open(&dir);
    let bad = tasks.start("a", "1", "u@pve", |_| async { Err(TaskError::failed("no\nway")) }).unwrap();
    assert_eq!(ended(&tasks, &bad).await, "no");
    let warned = tasks
        .start("b", "2", "u@pve", |cx| async move {
            cx.warn("hm");
            cx.warn("hmm");
            Ok(())
        })
        .unwrap();
    assert_eq!(ended(&tasks, &warned).await, "WARNINGS: 2");
    let broken = tasks.start("c", "3", "root@pam", |_| async { panic!("oh") }).unwrap();
    assert!(ended(&tasks, &broken).await.starts_with("the task broke off"));

    let (errors, total) = tasks.list(&Filter { errors: true, ..Filter::default() });
    assert_eq!((errors.len(), total), (2, 2));
    assert_eq!(errors[0].upid, broken, "newest first");
    let one = |f: Filter| tasks.list(&f).0.iter().map(|t| t.upid.worker.clone()).collect::<Vec<_>>();
    assert_eq!(one(Filter { user: Some("u@".into()), ..Filter::default() }), ["b", "a"]);
    assert_eq!(one(Filter { worker: Some("c".into()), ..Filter::default() }), ["c"]);
    assert_eq!(one(Filter { vmid: Some(2), ..Filter::default() }), ["b"]);
    assert_eq!(one(Filter { outcomes: vec![Outcome::Warning], ..Filter::default() }), ["b"]);
    assert_eq!(one(Filter { start: 1, limit: 1, ..Filter::default() }), ["b"]);
    assert!(one(Filter { source: Source::Active, ..Filter::default() }).is_empty());
    assert!(one(Filter { until: Some(1), ..Filter::default() }).is_empty());
}

#[tokio::test]
async fn a_stopped_task_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = open(&dir);
    let upid = tasks
        .start("wait", "", "root@pam", |cx| async move {
            cx.or_cancelled(std::future::pending::<()>()).await?;
            Ok(())
        })
        .unwrap();
    assert_eq!(tasks.get(&upid).unwrap().exitstatus, None);
    assert_eq!(tasks.running(), 1);
    assert!(tasks.stop(&upid));
    assert_eq!(ended(&tasks, &upid).await, "interrupted by signal");
    assert!(!tasks.stop(&upid), "it has ended");
}

#[tokio::test]
async fn a_task_is_shown_as_ended_only_after_the_hook() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = open(&dir);
    let flushed = Arc::new(AtomicBool::new(false));
    let (enter, entered) = oneshot::channel();
    let (release, released) = oneshot::channel::<()>();
    let (flag, ends) = (flushed.clone(), std::sync::Mutex::new(Some((enter, released))));
    tasks.on_end(move |_| {
        let ends = ends.lock().unwrap().take();
        let flag = flag.clone();
        async move {
            let (enter, released) = ends.unwrap();
            enter.send(()).unwrap();
            released.await.unwrap();
            flag.store(true, Ordering::SeqCst);
        }
    });
    let upid = tasks.start("a", "1", "root@pam", |_| async { Ok(()) }).unwrap();
    entered.await.unwrap();
    assert_eq!(tasks.get(&upid).unwrap().exitstatus, None, "the hook is not done");
    release.send(()).unwrap();
    assert_eq!(ended(&tasks, &upid).await, "OK");
    assert!(flushed.load(Ordering::SeqCst));
}

/// Runs a task up to a saved step and drops its runtime, as a killed daemon would.
fn interrupted(dir: &tempfile::TempDir, worker: &'static str) -> Upid {
    let rt = tokio::runtime::Runtime::new().unwrap();
    let upid = rt.block_on(async {
        let tasks = open(dir);
        let (tell, told) = oneshot::channel();
        let upid = tasks
            .start(worker, "7", "root@pam", |cx| async move {
                cx.save_step("copied", &json!({"bytes": 1})).await?;
                cx.save_step("copied", &json!({"bytes": 2})).await?;
                tell.send(()).unwrap();
                std::future::pending::<()>().await;
                Ok(())
            })
            .unwrap();
        told.await.unwrap();
        upid
    });
    rt.shutdown_background();
    upid
}

#[test]
fn a_restarted_daemon_adopts_what_it_can_and_ends_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let known = interrupted(&dir, "known");
    let other = interrupted(&dir, "other");
    let rt = tokio::runtime::Runtime::new().unwrap();
    rt.block_on(async {
        let tasks = open(&dir);
        assert_eq!(tasks.get(&known).unwrap().exitstatus, None, "shown as running until adopted");
        let resume: Resumer = Arc::new(|cx| {
            Box::pin(async move {
                assert_eq!(cx.step("copied"), Some(json!({"bytes": 2})));
                assert_eq!(cx.steps().len(), 1);
                Ok(())
            })
        });
        tasks.adopt(&HashMap::from([("known", resume)]));
        assert_eq!(ended(&tasks, &known).await, "OK");
        assert!(ended(&tasks, &other).await.starts_with("daemon restarted"));
    });
    drop(rt);
    let rt = tokio::runtime::Runtime::new().unwrap();
    rt.block_on(async {
        let tasks = open(&dir);
        assert_eq!(
            tasks.get(&known).unwrap().exitstatus.as_deref(),
            Some("OK"),
            "its end outlives the daemon"
        );
        assert_eq!(tasks.list(&Filter { source: Source::Active, ..Filter::default() }).1, 0);
    });
}

#[tokio::test]
async fn the_index_is_bounded_and_old_logs_go() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = open(&dir);
    let line = |i: u32| {
        let upid = format!("UPID:n1:00000001:{i:08X}:00000001:t:{i}:root@pam:");
        json!({"upid": upid, "endtime": 2, "exitstatus": "OK"}).to_string() + "\n"
    };
    drop(tasks);
    let text: String = (0..1100).map(line).collect::<String>() + "{\"upid\": \"cut o";
    std::fs::write(dir.path().join("index"), text).unwrap();
    std::fs::create_dir_all(dir.path().join("01")).unwrap();
    let log = dir.path().join("01/UPID:n1:00000001:00000005:00000001:t:5:root@pam:");
    std::fs::write(&log, "x\n").unwrap();
    let tasks = open(&dir);
    let (all, total) = tasks.list(&Filter::default());
    assert_eq!((all.len(), total), (1000, 1000));
    assert_eq!(all[0].upid.id, "1099");
    assert!(!log.exists());
}

#[test]
fn no_end_is_lost_while_the_index_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let rt = tokio::runtime::Runtime::new().unwrap();
    rt.block_on(async {
        let tasks = open(&dir);
        let job = |_| async { Ok(()) };
        let all: Vec<Upid> =
            (0..1300).map(|i| tasks.start("t", &i.to_string(), "root@pam", job).unwrap()).collect();
        for upid in &all {
            // Of the first, nothing is known any more: they have ended, too.
            tasks.wait(upid).await;
        }
        assert_eq!(tasks.list(&Filter::default()).1, 1000);
    });
    // The first daemon is gone for good: a task is shown as ended before its files are tidied.
    drop(rt);
    let (kept, _) = open(&dir).list(&Filter::default());
    assert_eq!(kept.len(), 1000);
    assert!(kept.iter().all(|t| t.exitstatus.as_deref() == Some("OK")));
}

#[tokio::test]
async fn a_hook_that_breaks_off_does_not_keep_a_task_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = open(&dir);
    tasks.on_end(|_| async { panic!("oh") });
    let upid = tasks.start("a", "1", "root@pam", |_| async { Ok(()) }).unwrap();
    assert_eq!(ended(&tasks, &upid).await, "OK");
}

/// A daemon that dies in the middle of writing down a task: the task is known, once, and nothing of the writing stays.
#[tokio::test]
async fn a_record_that_was_not_whole_leaves_nothing() {
    let upid = |n: u8| format!("UPID:n1:00000001:0000000{n}:5F000001:qmmigrate:100:root@pam:");
    let dir = tempfile::tempdir().unwrap();
    let active = dir.path().join("active");
    std::fs::create_dir_all(&active).unwrap();
    let record = |n: u8| format!(r#"{{"version":1,"upid":"{}","steps":[]}}"#, upid(n));
    std::fs::write(active.join(format!(".{}.new", upid(1))), record(1)).unwrap();
    std::fs::write(active.join(upid(2)), record(2)).unwrap();
    std::fs::write(active.join(format!(".{}.new", upid(2))), record(2)).unwrap();
    std::fs::write(active.join(format!(".{}.new", upid(3))), "{").unwrap();
    let tasks = open(&dir);
    tasks.adopt(&HashMap::new());
    for n in 1..=2 {
        assert!(ended(&tasks, &upid(n).parse().unwrap()).await.contains("not resumed"), "{n}");
    }
    assert_eq!(tasks.list(&Filter::default()).1, 2);
    // They go just after their end is told.
    let gone = async {
        while std::fs::read_dir(&active).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("a record is left");
}
