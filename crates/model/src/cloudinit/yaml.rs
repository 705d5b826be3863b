//! YAML of what serde_json holds, in blocks. Every string is quoted as JSON quotes it, which YAML reads alike: so none is
//! taken for a number, a date or a boolean, and none ends its line.

use serde_json::Value;

/// The text of a value that is an object or a list.
pub fn print(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

/// Lines that are indented by `depth` steps; the first begins where `out` ends.
fn block(value: &Value, depth: usize, out: &mut String) {
    let mut lines = 0;
    let mut begin = |out: &mut String| {
        if lines > 0 {
            out.push_str(&"  ".repeat(depth));
        }
        lines += 1;
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                begin(out);
                out.push_str(key);
                out.push(':');
                below(value, depth, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                begin(out);
                out.push_str("- ");
                block(value, depth + 1, out);
            }
        }
        // Numbers, booleans, quoted strings, and what is empty.
        flat => {
            out.push_str(&flat.to_string());
            out.push('\n');
        }
    }
}

/// What follows a key: on its line, or in lines of its own.
fn below(value: &Value, depth: usize, out: &mut String) {
    let lines =
        value.as_object().is_some_and(|m| !m.is_empty()) || value.as_array().is_some_and(|l| !l.is_empty());
    if lines {
        out.push('\n');
        out.push_str(&"  ".repeat(depth + 1));
        block(value, depth + 1, out);
    } else {
        out.push(' ');
        block(value, depth, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// What Python's parser reads; none where there is no such parser.
    fn read(yaml: &str) -> Option<Value> {
        let script =
            "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer.read().decode()), sys.stdout)";
        let there = Command::new("python3").args(["-c", "import yaml"]).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{yaml}");
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }

    #[test]
    fn python_reads_what_was_meant() {
        let value = json!({
            "empty": [], "nothing": {}, "text": "yes", "number": "007", "date": "2026-11-22", "null": "null",
            "quotes": "a \"b\" 'c' \\ # : - {x} [y] %z &a *b !c |d >e @f `g\ttab", "wide": "zoë 🦀", "blank": " a ",
            "bool": false, "int": 42, "list": ["a", ["b", { "c": "d" }], {}, { "e": [1], "f": { "g": "h" } }],
            "map": { "a": { "b": ["c"] }, "d": "" },
        });
        let text = print(&value);
        match read(&text) {
            Some(read) => assert_eq!(read, value, "{text}"),
            None => {
                assert!(
                    std::env::var("STEAD_STRICT").as_deref() != Ok("1"),
                    "STEAD_STRICT=1 allows no skips"
                );
                eprintln!("SKIP python_reads_what_was_meant: python3 has no module yaml here");
            }
        }
        insta::assert_snapshot!(text);
    }
}
