//! `derive(Schema)` against what serde writes, and the checker of answers against answers that are wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "node/schema.rs"]
mod checker;

use checker::faults;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use stead_api::framework::{Answer, Answered, Json};
use stead_api_derive::Schema;
use stead_model::Vmid;
use stead_model::schema::Schema as _;

#[derive(Serialize, Schema)]
#[serde(rename_all = "kebab-case")]
enum Word {
    MovedHere,
    #[serde(rename = "x")]
    Other,
}

#[derive(Serialize, Schema)]
struct Inner {
    /// How many.
    count: u32,
}

/// All that is heeded.
#[derive(Serialize, Schema)]
struct Outer {
    vmid: Vmid,
    #[serde(rename = "is-on")]
    on: bool,
    words: Vec<Word>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maybe: Option<f64>,
    null: Option<String>,
    #[serde(skip)]
    #[expect(dead_code, reason = "it is not written")]
    hidden: u8,
    #[serde(flatten)]
    inner: Inner,
    map: BTreeMap<String, bool>,
}

fn outer(maybe: Option<f64>) -> Outer {
    Outer {
        vmid: "100".parse().unwrap(),
        on: true,
        words: vec![Word::MovedHere, Word::Other],
        maybe,
        null: None,
        hidden: 1,
        inner: Inner { count: 3 },
        map: [("a".to_owned(), false)].into(),
    }
}

fn written(outer: Outer) -> Value {
    match Json(outer).into_answered() {
        Ok(Answered::Data(value, _)) => value,
        _ => panic!("no data"),
    }
}

#[test]
fn what_is_written_is_what_the_schema_says() {
    let schema = Outer::schema();
    assert_eq!(schema["description"], "All that is heeded.");
    assert_eq!(schema["required"], json!(["vmid", "is-on", "words", "null", "count", "map"]));
    assert_eq!(
        schema["properties"]["words"],
        json!({"type": "array", "items": {"type": "string", "enum": ["moved-here", "x"]}})
    );
    assert_eq!(
        schema["properties"]["count"],
        json!({"type": "integer", "minimum": 0, "description": "How many."})
    );
    assert!(schema["properties"].get("hidden").is_none());
    for outer in [outer(None), outer(Some(0.5))] {
        assert_eq!(faults(&schema, &written(outer)), [""; 0]);
    }
}

#[test]
fn an_answer_that_is_not_as_declared_is_found_out() {
    let schema = Outer::schema();
    let fault = |pointer: &str, value: Value| {
        let mut answer = written(outer(Some(1.0)));
        *answer.pointer_mut(pointer).unwrap() = value;
        faults(&schema, &answer).len()
    };
    assert_eq!(fault("/vmid", json!(100)), 0);
    let wrong = [
        ("/vmid", json!(1)),
        ("/vmid", json!("100")),
        ("/is-on", json!(2)),
        ("/is-on", json!(true)),
        ("/words/1", json!("other")),
        ("/maybe", json!(null)),
        ("/null", json!(1)),
        ("/count", json!(-1)),
        ("/map/a", json!("no")),
        ("", json!([])),
    ];
    for (pointer, value) in wrong {
        assert_eq!(fault(pointer, value.clone()), 1, "{pointer} = {value}");
    }
    let mut answer = written(outer(None));
    answer.as_object_mut().unwrap().remove("count");
    assert_eq!(faults(&schema, &answer), ["data: \"count\" is missing"]);
    answer["count"] = json!(1);
    answer["more"] = json!(1);
    assert_eq!(faults(&schema, &answer), ["data.more is not declared: 1"]);
}
