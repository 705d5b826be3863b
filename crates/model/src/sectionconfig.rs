//! Section configurations, the format of `storage.cfg`, `ha/resources.cfg` and others.
//!
//! ```text
//! # a comment
//! dir: local
//!     path /var/lib/images
//!     content iso,images
//!     disable
//! ```
//!
//! A section begins with `type: id`; its options are indented, by a tab when printed. An option without a value is switched on.
//! Comments, unknown types and options, options given more than once and the order of all are kept.

use crate::text::{FormatError, parse_bool};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A change that cannot stand in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    /// The id is taken. Clients decide by "already exists".
    #[error("'{0}' already exists")]
    Exists(String),
    /// There is no such section. Clients decide by "does not exist".
    #[error("'{0}' does not exist")]
    Missing(String),
    /// A name or a value that would change the file's structure.
    #[error("{what}: '{text}' must be one line of text{more}")]
    Text {
        /// The option, or what else it is.
        what: String,
        /// What was given.
        text: String,
        /// What else is asked of it.
        more: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Option(String, String),
    Comment(String),
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    kind: String,
    id: String,
    /// Comments above it.
    above: Vec<String>,
    lines: Vec<Line>,
}

fn word(what: &str, text: &str) -> Result<(), SectionError> {
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if text.is_empty() || text.contains(bad) || text.starts_with('#') {
        let more = " without blanks";
        return Err(SectionError::Text {
            what: what.to_owned(),
            text: text.escape_debug().to_string(),
            more,
        });
    }
    Ok(())
}

impl Section {
    /// One without options.
    ///
    /// # Errors
    /// If the type or the id are no words, or the type holds a colon.
    pub fn new(kind: &str, id: &str) -> Result<Self, SectionError> {
        word("type", kind)?;
        word("id", id)?;
        if kind.contains(':') {
            return Err(SectionError::Text {
                what: "type".to_owned(),
                text: kind.to_owned(),
                more: " without ':'",
            });
        }
        Ok(Self { kind: kind.to_owned(), id: id.to_owned(), above: Vec::new(), lines: Vec::new() })
    }

    /// What stands before the colon.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What stands behind the colon.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Every option in order; an option without a value has an empty one.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().filter_map(|line| match line {
            Line::Option(key, value) => Some((key.as_str(), value.as_str())),
            Line::Comment(_) => None,
        })
    }

    /// The value of an option; of one given more than once, the last.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().filter(|(k, _)| *k == key).last().map(|(_, v)| v)
    }

    /// Whether an option is on: given without a value or with a true one; `None`: not given, or no boolean.
    pub fn flag(&self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        if value.is_empty() { Some(true) } else { parse_bool(value) }
    }

    /// The options as a map: what is given without a value is `1`.
    pub fn options(&self) -> BTreeMap<String, String> {
        self.iter().map(|(k, v)| (k.to_owned(), if v.is_empty() { "1" } else { v }.to_owned())).collect()
    }

    /// Sets an option: in its place where it is there, else at the end.
    ///
    /// # Errors
    /// If the name is no word or the value is not one line of text.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SectionError> {
        word("option", key)?;
        let value = value.trim();
        if value.chars().any(char::is_control) {
            let text = value.escape_debug().to_string();
            return Err(SectionError::Text { what: key.to_owned(), text, more: "" });
        }
        let same = |line: &Line| matches!(line, Line::Option(k, _) if k == key);
        let new = Line::Option(key.to_owned(), value.to_owned());
        match self.lines.iter().position(same) {
            Some(at) => {
                self.lines[at] = new;
                let mut i = 0;
                self.lines.retain(|line| {
                    i += 1;
                    i - 1 <= at || !same(line)
                });
            }
            None => self.lines.push(new),
        }
        Ok(())
    }

    /// Sets an option, or takes it out where there is no value.
    ///
    /// # Errors
    /// See [`Self::set`].
    pub fn assign(&mut self, key: &str, value: Option<&str>) -> Result<(), SectionError> {
        match value {
            Some(value) => self.set(key, value),
            None => {
                self.remove(key);
                Ok(())
            }
        }
    }

    /// Takes an option out; whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| !matches!(line, Line::Option(k, _) if k == key));
        self.lines.len() < before
    }
}

/// A whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SectionConfig {
    sections: Vec<Section>,
    /// Comments below the last section.
    below: Vec<String>,
}

impl SectionConfig {
    /// Reads a file's text.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        text.parse()
    }

    /// Every section in order.
    pub fn iter(&self) -> impl Iterator<Item = &Section> {
        self.sections.iter()
    }

    /// The section of that id.
    pub fn get(&self, id: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.id == id)
    }

    /// The section of that id, to be changed.
    ///
    /// # Errors
    /// If there is none.
    pub fn get_mut(&mut self, id: &str) -> Result<&mut Section, SectionError> {
        self.sections.iter_mut().find(|s| s.id == id).ok_or_else(|| SectionError::Missing(id.to_owned()))
    }

    /// Adds a section at the end.
    ///
    /// # Errors
    /// If its id is taken, by a section of any type.
    pub fn insert(&mut self, section: Section) -> Result<(), SectionError> {
        if self.get(&section.id).is_some() {
            return Err(SectionError::Exists(section.id));
        }
        self.sections.push(section);
        Ok(())
    }

    /// Takes a section out, with the comments above it.
    ///
    /// # Errors
    /// If there is none of that id.
    pub fn remove(&mut self, id: &str) -> Result<Section, SectionError> {
        match self.sections.iter().position(|s| s.id == id) {
            Some(at) => Ok(self.sections.remove(at)),
            None => Err(SectionError::Missing(id.to_owned())),
        }
    }
}

impl FromStr for SectionConfig {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let mut read = Self::default();
        for (i, line) in text.split('\n').enumerate() {
            let number = i + 1;
            let trimmed = line.trim();
            if trimmed.chars().any(|c| c.is_control() && c != '\t') {
                return FormatError::at(number, "it holds control characters");
            }
            let indented = line.starts_with([' ', '\t']);
            match (trimmed.chars().next(), indented, read.sections.last_mut()) {
                (None, ..) => {}
                (Some('#'), true, Some(section)) if read.below.is_empty() => {
                    section.lines.push(Line::Comment(trimmed.to_owned()));
                }
                (Some('#'), ..) => read.below.push(trimmed.to_owned()),
                (Some(_), true, Some(section)) => {
                    let (key, value) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
                    let value = value.trim();
                    if value.chars().any(char::is_control) {
                        return FormatError::at(
                            number,
                            format!("the value of '{key}' holds control characters"),
                        );
                    }
                    section.lines.push(Line::Option(key.to_owned(), value.to_owned()));
                }
                (Some(_), true, None) => {
                    return FormatError::at(number, "an option stands above the first section");
                }
                (Some(_), false, _) => {
                    let Some((kind, id)) = trimmed.split_once(':') else {
                        return FormatError::at(number, format!("'{trimmed}' is not of the form 'type: id'"));
                    };
                    let mut section = Section::new(kind.trim(), id.trim())
                        .or_else(|e| FormatError::at(number, e.to_string()))?;
                    section.above = std::mem::take(&mut read.below);
                    read.insert(section).or_else(|e| FormatError::at(number, e.to_string()))?;
                }
            }
        }
        Ok(read)
    }
}

impl fmt::Display for SectionConfig {
    /// Options are indented by a tab, a blank line stands between sections.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, section) in self.sections.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            for comment in &section.above {
                writeln!(f, "{comment}")?;
            }
            writeln!(f, "{}: {}", section.kind, section.id)?;
            for line in &section.lines {
                match line {
                    Line::Option(key, value) if value.is_empty() => writeln!(f, "\t{key}")?,
                    Line::Option(key, value) => writeln!(f, "\t{key} {value}")?,
                    Line::Comment(comment) => writeln!(f, "\t{comment}")?,
                }
            }
        }
        if !self.sections.is_empty() && !self.below.is_empty() {
            writeln!(f)?;
        }
        for comment in &self.below {
            writeln!(f, "{comment}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &str = "\
# made at the start
dir: local
\tpath /var/lib/images dir
\t# for now
\tcontent iso,images
\tdisable

future: thing
\tmatch a
\tmatch b

# the end
";

    #[test]
    fn a_file_prints_as_it_was_read() {
        let read = SectionConfig::parse(GOLDEN).unwrap();
        assert_eq!(read.to_string(), GOLDEN);
        let local = read.get("local").unwrap();
        assert_eq!((local.kind(), local.get("path")), ("dir", Some("/var/lib/images dir")));
        assert_eq!((local.flag("disable"), local.flag("shared")), (Some(true), None));
        assert_eq!(local.options()["disable"], "1");
        assert_eq!(read.get("thing").unwrap().get("match"), Some("b"));
        // Spaces for tabs, blank lines within, other line ends.
        let loose = "dir:local\r\n  path   /x \r\n\r\n    shared 1\r\n";
        assert_eq!(SectionConfig::parse(loose).unwrap().to_string(), "dir: local\n\tpath /x\n\tshared 1\n");
    }

    #[test]
    fn sections_change() {
        let mut config = SectionConfig::parse(GOLDEN).unwrap();
        let thing = config.get_mut("thing").unwrap();
        thing.set("match", "c").unwrap();
        thing.set("new", "x y").unwrap();
        thing.assign("gone", None).unwrap();
        assert_eq!(thing.iter().collect::<Vec<_>>(), [("match", "c"), ("new", "x y")]);
        assert!(matches!(thing.set("new", "a\n\tb"), Err(SectionError::Text { .. })));
        assert!(thing.set("a b", "c").is_err() && thing.set("#a", "c").is_err());
        config.remove("local").unwrap();
        assert_eq!(config.to_string(), "future: thing\n\tmatch c\n\tnew x y\n\n# the end\n");
        assert_eq!(config.remove("local").unwrap_err().to_string(), "'local' does not exist");
        let again = Section::new("dir", "thing").unwrap();
        assert_eq!(config.insert(again).unwrap_err().to_string(), "'thing' already exists");
        assert!(Section::new("a:b", "c").is_err() && Section::new("a", "b c").is_err());
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_line() {
        for (text, error) in [
            ("\tpath /x\n", "line 1: an option stands above the first section"),
            ("dir: a\nnonsense\n", "line 2: 'nonsense' is not of the form 'type: id'"),
            ("dir: a\n\nnfs: a\n", "line 3: 'a' already exists"),
            ("dir: a b\n", "line 1: id: 'a b' must be one line of text without blanks"),
        ] {
            assert_eq!(SectionConfig::parse(text).unwrap_err().to_string(), error);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_prints_and_reads_alike(
            text in "((dir: |[ab]{1,2}:|\t|  |#|\t#|\r|)[ -~ä]{0,8}\n){0,10}",
        ) {
            if let Ok(read) = SectionConfig::parse(&text) {
                prop_assert_eq!(SectionConfig::parse(&read.to_string()).unwrap(), read);
            }
        }

        #[test]
        fn what_is_made_reads_as_it_prints(
            made in proptest::collection::btree_map(
                "[!-\"$-~]{1,8}",
                ("[!-\"$-9;-~]{1,6}", proptest::collection::vec(("[!-\"$-~]{1,6}", "[ -~λ]{0,10}"), 0..4)),
                0..4,
            ),
        ) {
            let mut config = SectionConfig::default();
            for (id, (kind, options)) in &made {
                let mut section = Section::new(kind, id).unwrap();
                for (key, value) in options {
                    section.set(key, value).unwrap();
                }
                config.insert(section).unwrap();
            }
            prop_assert_eq!(SectionConfig::parse(&config.to_string()).unwrap(), config);
        }
    }
}
