//! Holds an answer against the JSON Schema that its endpoint declares. What the schema does not name is not allowed.

use serde_json::Value;

/// What is wrong with `value`, each with its place.
pub fn faults(schema: &Value, value: &Value) -> Vec<String> {
    let mut all = vec![];
    check(schema, value, "data", &mut all);
    all
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the checker does not know the type '{other}'"),
    }
}

fn check(schema: &Value, value: &Value, at: &str, all: &mut Vec<String>) {
    for key in schema.as_object().unwrap().keys() {
        let known = [
            "type",
            "enum",
            "anyOf",
            "minimum",
            "items",
            "minItems",
            "maxItems",
            "properties",
            "required",
            "additionalProperties",
            "description",
            "format",
        ];
        assert!(known.contains(&key.as_str()), "the checker does not know '{key}'");
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Null => vec![],
        Value::Array(kinds) => kinds.iter().map(|k| k.as_str().unwrap()).collect(),
        kind => vec![kind.as_str().unwrap()],
    };
    if !kinds.is_empty() && !kinds.iter().any(|k| is_a(k, value)) {
        return all.push(format!("{at}: {value} is not of type {kinds:?}"));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        all.push(format!("{at}: {value} is not one of {}", schema["enum"]));
    }
    if schema["minimum"].as_f64().zip(value.as_f64()).is_some_and(|(min, n)| n < min) {
        all.push(format!("{at}: {value} is too small"));
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let tried: Vec<Vec<String>> = any.iter().map(|s| faults(s, value)).collect();
        if tried.iter().all(|t| !t.is_empty()) {
            all.push(format!("{at}: {value} is none of the possible: {tried:?}"));
        }
    }
    if let Some(items) = value.as_array() {
        let bound = |key: &str| schema[key].as_u64().map(|n| n as usize);
        if bound("minItems").is_some_and(|n| items.len() < n)
            || bound("maxItems").is_some_and(|n| items.len() > n)
        {
            all.push(format!("{at}: {} items", items.len()));
        }
        for (i, item) in items.iter().enumerate().filter(|_| schema["items"].is_object()) {
            check(&schema["items"], item, &format!("{at}[{i}]"), all);
        }
    }
    if let Some(fields) = value.as_object().filter(|_| kinds.contains(&"object")) {
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                all.push(format!("{at}: {name} is missing"));
            }
        }
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            match (&schema["properties"][name], &schema["additionalProperties"]) {
                (Value::Null, Value::Object(_)) => check(&schema["additionalProperties"], field, &at, all),
                (Value::Null, Value::Bool(true)) => {}
                (Value::Null, _) => all.push(format!("{at} is not declared: {field}")),
                (own, _) => check(own, field, &at, all),
            }
        }
    }
}
