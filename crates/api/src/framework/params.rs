//! Parameters: what an endpoint takes, and how a request's texts become it.
//!
//! All arrive as text (path, query, form) or as JSON scalars, which become the same texts. A struct with
//! `derive(Params)` says what is expected; each wrong parameter gets an error of its own, all in one answer.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Parameters of an endpoint. Use `derive(Params)`.
pub trait Params: Sized + Send {
    /// How many there are, but for those that end in a map.
    const COUNT: usize;
    /// What is taken: [`Self::COUNT`], then what ends in a map.
    fn schema() -> Vec<ParamSchema>;
    /// Takes them out of what was given; `schemas` is what [`Self::schema`] gives. None if something is wrong, which is
    /// then noted.
    fn take(raw: &mut Raw, schemas: &[ParamSchema], errors: &mut Errors) -> Option<Self>;

    /// Takes all that was given: what is left over is wrong.
    fn parse(mut raw: Raw, schemas: &[ParamSchema]) -> Result<Self, Errors> {
        let mut errors = Errors::default();
        raw.check_requires(schemas, &mut errors);
        let taken = Self::take(&mut raw, schemas, &mut errors);
        raw.refuse_rest(&mut errors);
        taken.filter(|_| errors.is_empty()).ok_or(errors)
    }
}

/// The type of one parameter's value.
pub trait Param: Sized {
    /// Adds to the schema what the type knows: kind, format, limits.
    fn describe(s: ParamSchema) -> ParamSchema;
    /// Reads the value; the error says what is wrong with it.
    fn read(text: &str) -> Result<Self, String>;
}

/// A parameter's basic type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    #[default]
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `1`, `0`, `true`, `false`, `yes`, `no`, `on`, `off`.
    Boolean,
}

impl Kind {
    /// Its name in schemas.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// What is known of one parameter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParamSchema {
    /// Its name; `net[n]` for `net0`, `net1`, ...
    pub name: String,
    /// For people.
    pub description: String,
    /// Type.
    pub kind: Kind,
    /// May be left out.
    pub optional: bool,
    /// Several values: repeated, or split at commas, semicolons and blanks.
    pub list: bool,
    /// Of a list: each value is taken as it is, and none is split.
    pub whole: bool,
    /// What holds when it is left out, for people.
    pub default: Option<String>,
    /// Limit of a number.
    pub min: Option<f64>,
    /// Limit of a number.
    pub max: Option<f64>,
    /// Limit in characters.
    pub max_length: Option<usize>,
    /// The values that there are.
    pub choices: Vec<String>,
    /// A named format.
    pub format: Option<&'static str>,
    /// Another parameter without which this one makes no sense.
    pub requires: Option<&'static str>,
}

impl ParamSchema {
    /// A parameter of a type.
    pub fn of<T: Param>(name: &str, description: &str) -> Self {
        T::describe(Self { name: name.to_owned(), description: description.to_owned(), ..Self::default() })
    }

    /// A parameter that is not tied to a Rust type.
    pub fn plain(name: &str, kind: Kind, description: &str) -> Self {
        Self { name: name.to_owned(), description: description.to_owned(), kind, ..Self::default() }
    }

    /// May be left out.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Several values.
    #[must_use]
    pub fn list(mut self) -> Self {
        self.list = true;
        self
    }

    /// Several values, none of which is split.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// What holds when it is left out.
    #[must_use]
    pub fn defaults_to(mut self, text: &str) -> Self {
        self.default = Some(text.to_owned());
        self
    }

    /// The least number.
    #[must_use]
    pub fn min(mut self, n: f64) -> Self {
        self.min = Some(n);
        self
    }

    /// The greatest number.
    #[must_use]
    pub fn max(mut self, n: f64) -> Self {
        self.max = Some(n);
        self
    }

    /// The most characters.
    #[must_use]
    pub fn max_length(mut self, n: usize) -> Self {
        self.max_length = Some(n);
        self
    }

    /// A named format.
    #[must_use]
    pub fn format(mut self, name: &'static str) -> Self {
        self.format = Some(name);
        self
    }

    /// Needs another parameter.
    #[must_use]
    pub fn requires(mut self, name: &'static str) -> Self {
        self.requires = Some(name);
        self
    }

    /// One of these.
    #[must_use]
    pub fn choices(mut self, all: &[&str]) -> Self {
        self.choices = all.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    /// Whether this is the parameter that a request names so.
    pub fn is_for(&self, name: &str) -> bool {
        match self.name.strip_suffix("[n]") {
            None => self.name == name,
            Some(family) => name
                .strip_prefix(family)
                .is_some_and(|n| !n.is_empty() && n.len() <= 3 && n.bytes().all(|b| b.is_ascii_digit())),
        }
    }

    /// Checks one text against what the schema says by itself.
    pub fn check(&self, text: &str) -> Result<(), String> {
        let number = match self.kind {
            Kind::Integer => text.parse::<i64>().ok().map(|n| n as f64),
            Kind::Number => text.parse::<f64>().ok().filter(|n| n.is_finite()),
            Kind::Boolean => boolean(text).map(|_| 0.0),
            Kind::String => Some(0.0),
        };
        let Some(number) = number else {
            return Err(format!("type check ('{}') failed - got '{}'", self.kind.name(), shown(text)));
        };
        if let Some(min) = self.min.filter(|m| number < *m) {
            return Err(format!("value must have a minimum value of {min}"));
        }
        if let Some(max) = self.max.filter(|m| number > *m) {
            return Err(format!("value must have a maximum value of {max}"));
        }
        if let Some(n) = self.max_length.filter(|n| text.chars().count() > *n) {
            return Err(format!("value may only be {n} characters long"));
        }
        if !self.choices.is_empty() && !self.choices.iter().any(|c| c == text) {
            let all = self.choices.join(", ");
            return Err(format!("value '{}' does not have a value in the enumeration '{all}'", shown(text)));
        }
        Ok(())
    }

    /// As JSON Schema, for the OpenAPI document.
    pub fn to_json(&self) -> Value {
        let mut m = Map::new();
        m.insert("type".into(), json!(self.kind.name()));
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(v) = value {
                m.insert(key.into(), v);
            }
        };
        put("format", self.format.map(|f| json!(f)));
        put("minimum", self.min.map(number));
        put("maximum", self.max.map(number));
        put("maxLength", self.max_length.map(|n| json!(n)));
        put("enum", (!self.choices.is_empty()).then(|| json!(self.choices)));
        let mut value = Value::Object(m);
        if self.whole {
            value = json!({"type": "array", "items": value});
        } else if self.list {
            value = json!({"type": "string", "description": "a list, split at commas, semicolons and blanks",
                "x-items": value});
        }
        if let Some(d) = &self.default {
            value["default"] = json!(d);
        }
        value
    }
}

fn number(n: f64) -> Value {
    if n.fract() == 0.0 { json!(n as i64) } else { json!(n) }
}

/// A value in an error's text: not too long.
fn shown(text: &str) -> String {
    let mut s: String = text.chars().take(60).collect();
    if s.len() < text.len() {
        s.push_str("...");
    }
    s
}

/// Reads a boolean as clients write it.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// What is wrong, by parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Errors(pub BTreeMap<String, String>);

impl Errors {
    /// Notes what is wrong with a parameter; the first word counts.
    pub fn add(&mut self, name: &str, why: impl Into<String>) {
        self.0.entry(name.to_owned()).or_insert_with(|| why.into());
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request's parameters before they are understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raw {
    values: BTreeMap<String, Vec<String>>,
    unfit: BTreeSet<String>,
}

impl Raw {
    /// Adds a value.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.entry(name.into()).or_default().push(value.into());
    }

    /// Adds a JSON value: a list gives several, null none.
    pub fn add_json(&mut self, name: &str, value: &Value) {
        match value {
            Value::Null => {}
            Value::Bool(b) => self.add(name, if *b { "1" } else { "0" }),
            Value::Number(n) => self.add(name, n.to_string()),
            Value::String(s) => self.add(name, s.as_str()),
            Value::Array(items) => items.iter().for_each(|v| self.add_json(name, v)),
            Value::Object(_) => {
                self.unfit.insert(name.to_owned());
            }
        }
    }

    /// The first value of a parameter.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|v| v.first()).map(String::as_str)
    }

    /// The names of all that was given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().chain(&self.unfit).map(String::as_str)
    }

    /// Leaves a parameter out.
    pub fn forget(&mut self, name: &str) {
        self.values.remove(name);
        self.unfit.remove(name);
    }

    /// Takes a parameter's only value; the same value several times counts as one.
    fn take_one(&mut self, s: &ParamSchema, errors: &mut Errors) -> Result<Option<String>, ()> {
        if self.unfit.contains(&s.name) {
            errors.add(&s.name, format!("type check ('{}') failed - got an object", s.kind.name()));
            return Err(());
        }
        let mut values = self.values.remove(&s.name).unwrap_or_default();
        values.dedup();
        if values.len() > 1 {
            errors.add(&s.name, "more than one value was given, and they differ");
            return Err(());
        }
        Ok(values.pop())
    }

    fn read<T: Param>(s: &ParamSchema, text: &str, errors: &mut Errors) -> Option<T> {
        let value = s.check(text).and_then(|()| T::read(text));
        value.map_err(|why| errors.add(&s.name, why)).ok()
    }

    /// Takes what must be there. None if something is wrong with it, which is then noted.
    pub fn take_required<T: Param>(&mut self, s: &ParamSchema, errors: &mut Errors) -> Option<T> {
        match self.take_one(s, errors).ok()? {
            Some(text) => Self::read(s, &text, errors),
            None => {
                errors.add(&s.name, "property is missing and it is not optional");
                None
            }
        }
    }

    /// Takes what may be there. An empty text counts as left out for all but texts.
    pub fn take_optional<T: Param>(&mut self, s: &ParamSchema, errors: &mut Errors) -> Option<Option<T>> {
        match self.take_one(s, errors).ok()? {
            None => Some(None),
            Some(text) if text.is_empty() && s.kind != Kind::String => Some(None),
            Some(text) => Self::read(s, &text, errors).map(Some),
        }
    }

    /// Takes what has a default.
    pub fn take_default<T: Param>(&mut self, s: &ParamSchema, errors: &mut Errors) -> Option<T> {
        match self.take_optional(s, errors)? {
            Some(value) => Some(value),
            None => Self::read(s, s.default.as_deref().unwrap_or_default(), errors),
        }
    }

    /// Takes a list: repeated, or split at commas, semicolons, blanks and zero bytes, unless each value is taken whole.
    pub fn take_list<T: Param>(&mut self, s: &ParamSchema, errors: &mut Errors) -> Option<Vec<T>> {
        let Some(values) = self.values.remove(&s.name) else {
            if s.optional {
                return Some(vec![]);
            }
            errors.add(&s.name, "property is missing and it is not optional");
            return None;
        };
        let split = |c: char| matches!(c, ',' | ';' | '\0') || c.is_whitespace();
        let items: Vec<&str> = match s.whole {
            true => values.iter().map(String::as_str).collect(),
            false => values.iter().flat_map(|v| v.split(split)).filter(|t| !t.is_empty()).collect(),
        };
        let read: Vec<Option<T>> = items.into_iter().map(|t| Self::read(s, t, errors)).collect();
        read.into_iter().collect()
    }

    /// Takes every parameter that one of `schemas` is for, as texts.
    pub fn take_rest(&mut self, schemas: &[ParamSchema], errors: &mut Errors) -> BTreeMap<String, String> {
        let mut rest = BTreeMap::new();
        let names: Vec<String> = self.values.keys().chain(&self.unfit).cloned().collect();
        for name in names {
            let Some(schema) = schemas.iter().find(|s| s.is_for(&name)) else { continue };
            let named = ParamSchema { name: name.clone(), ..schema.clone() };
            let text = if schema.list {
                Some(self.values.remove(&name).unwrap_or_default().join(","))
            } else {
                self.take_one(&named, errors).unwrap_or_default()
            };
            self.unfit.remove(&name);
            let Some(text) = text else { continue };
            match named.check(&text) {
                // One form for all that means the same.
                Ok(()) if schema.kind == Kind::Boolean => {
                    let one = if boolean(&text) == Some(true) { "1" } else { "0" };
                    rest.insert(name, one.to_owned());
                }
                Ok(()) => {
                    rest.insert(name, text);
                }
                Err(why) => errors.add(&name, why),
            }
        }
        rest
    }

    /// Notes every parameter whose companion is missing.
    pub fn check_requires(&self, schemas: &[ParamSchema], errors: &mut Errors) {
        for s in schemas {
            if let Some(other) = s.requires
                && self.values.contains_key(&s.name)
                && !self.values.contains_key(other)
            {
                errors.add(&s.name, format!("missing property - '{other}' is required by this property"));
            }
        }
    }

    /// Notes every parameter that nobody took.
    pub fn refuse_rest(&self, errors: &mut Errors) {
        for name in self.values.keys().chain(&self.unfit) {
            errors.add(
                name,
                "property is not defined in schema and the schema does not allow additional properties",
            );
        }
    }
}
