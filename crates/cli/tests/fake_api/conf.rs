//! The configuration's past.

use super::Fake;
use serde_json::{Value, json};

#[tokio::test]
async fn a_roll_back_shows_what_it_changes_and_goes_over_what_was_shown() {
    let change = json!({"revision": 9, "time": 60, "author": "bob@pve", "note": "nfs added"});
    let now = json!({"path": "storage.cfg", "content": "a\nb\n", "change": change, "now": 9});
    let was = json!({"path": "storage.cfg", "content": "a\n", "now": 9});
    let read = "GET /cluster/history/file";
    let script = [(read, now.clone()), (read, was), ("POST /cluster/history/rollback", Value::Null)];
    let words = ["stead", "conf", "rollback", "storage.cfg", "--to", "7"];
    let fake = Fake::new(&script).await;
    let asked = fake.run(&words).await;
    assert!(asked.out.contains("-b\n") && asked.out.contains("bob@pve: nfs added"), "{asked:?}");
    assert!(asked.code != 0 && asked.err.contains("--yes") && fake.changes().is_empty(), "{asked:?}");
    let fake = Fake::new(&script).await;
    let done = fake.run(&[&words[..], &["--yes"]].concat()).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(fake.changes(), ["POST /cluster/history/rollback path=storage.cfg&revision=7&over=9"]);
    // Nothing to do.
    let fake = Fake::new(&[(read, now)]).await;
    let same = fake.run(&[&words[..], &["--yes"]].concat()).await;
    assert!(same.code == 0 && same.out.contains("as it was then") && fake.changes().is_empty(), "{same:?}");
}

#[tokio::test]
async fn how_much_of_the_past_is_kept_is_shown_and_said() {
    let status = "/cluster/history/status";
    let (get, set) = (format!("GET {status}"), format!("PUT {status}"));
    let fake = Fake::new(&[(&get, json!({"changes": 7, "max_size": 16})), (&set, Value::Null)]).await;
    let shown = fake.run(&["stead", "conf", "status"]).await;
    assert!(shown.code == 0 && shown.out.contains("changes") && shown.out.contains('7'), "{shown:?}");
    assert_eq!(fake.run(&["stead", "conf", "limit"]).await.code, 2);
    assert_eq!(fake.run(&["stead", "conf", "limit", "--max-age", "30"]).await.code, 0);
    assert_eq!(fake.changes(), [format!("{set} max-age=30")]);
}
