//! Property strings: `virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1`.
//!
//! Parts are separated by commas; one of them, by custom the first, may lack a key and then carries the value
//! of the *default key* of the option (`local:vm-100-disk-0,size=4G`: the default key is `file`). Order and
//! unknown keys are kept, so that a text written by another version comes out as it went in.

use std::fmt;
use std::str::FromStr;

/// A text that is no property string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PropertyError(String);

/// Keys and values in order, at most one value without a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PropertyString {
    parts: Vec<(Option<String>, String)>,
}

impl PropertyString {
    /// One without parts.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value without a key.
    pub fn bare(&self) -> Option<&str> {
        self.parts.iter().find(|(k, _)| k.is_none()).map(|(_, v)| v.as_str())
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parts.iter().find(|(k, _)| k.as_deref() == Some(key)).map(|(_, v)| v.as_str())
    }

    /// The value of the option's default key, written with or without it.
    pub fn get_default(&self, key: &str) -> Option<&str> {
        self.bare().or_else(|| self.get(key))
    }

    /// Every part in order.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        self.parts.iter().map(|(k, v)| (k.as_deref(), v.as_str()))
    }

    /// Whether it has no parts.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Sets `key`, in its place where it is there, else at the end.
    ///
    /// # Errors
    /// If the value holds a comma, a control character or nothing at all.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), PropertyError> {
        check_key(key)?;
        check_value(value)?;
        match self.parts.iter_mut().find(|(k, _)| k.as_deref() == Some(key)) {
            Some((_, old)) => value.clone_into(old),
            None => self.parts.push((Some(key.to_owned()), value.to_owned())),
        }
        Ok(())
    }

    /// Sets the value without a key and puts it first.
    ///
    /// # Errors
    /// As [`Self::set`], and if it holds `=`, which would make a key of its beginning.
    pub fn set_bare(&mut self, value: &str) -> Result<(), PropertyError> {
        check_value(value)?;
        if value.contains('=') {
            return Err(PropertyError(format!("'{value}' must not contain '='")));
        }
        self.parts.retain(|(k, _)| k.is_some());
        self.parts.insert(0, (None, value.to_owned()));
        Ok(())
    }

    /// Takes a key out; returns its value.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        let at = self.parts.iter().position(|(k, _)| k.as_deref() == Some(key))?;
        Some(self.parts.remove(at).1)
    }

    /// Takes the value without a key out.
    pub fn remove_bare(&mut self) -> Option<String> {
        let at = self.parts.iter().position(|(k, _)| k.is_none())?;
        Some(self.parts.remove(at).1)
    }
}

fn check_key(key: &str) -> Result<(), PropertyError> {
    if key.is_empty() || key.trim() != key || key.contains(['=', ',']) || key.chars().any(char::is_control) {
        return Err(PropertyError(format!("'{key}' is no name of a property")));
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), PropertyError> {
    if value.is_empty() {
        return Err(PropertyError("a property must have a value".to_owned()));
    }
    if value.trim() != value || value.contains(',') || value.chars().any(char::is_control) {
        return Err(PropertyError(format!(
            "'{}' must not contain ',' or control characters, nor begin or end with a blank",
            value.escape_debug()
        )));
    }
    Ok(())
}

impl FromStr for PropertyString {
    type Err = PropertyError;

    /// Blanks around parts and empty parts are left out.
    fn from_str(text: &str) -> Result<Self, PropertyError> {
        let mut read = Self::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (Some(key), value),
                None => (None, part),
            };
            if let Some(key) = key {
                check_key(key)?;
            }
            check_value(value).map_err(|e| match key {
                Some(key) => PropertyError(format!("'{key}': {e}")),
                None => e,
            })?;
            if read.parts.iter().any(|(k, _)| k.as_deref() == key) {
                return Err(PropertyError(match key {
                    Some(key) => format!("'{key}' is given twice"),
                    None => format!("'{part}' has no name, as another value before it"),
                }));
            }
            read.parts.push((key.map(str::to_owned), value.to_owned()));
        }
        Ok(read)
    }
}

impl fmt::Display for PropertyString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.parts.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match key {
                Some(key) => write!(f, "{key}={value}")?,
                None => f.write_str(value)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_and_unknown_keys_stay() {
        let text = "local:100/vm-100-disk-0.qcow2,zeta=1,alpha=a=b,size=4G";
        let mut props: PropertyString = text.parse().unwrap();
        assert_eq!(props.to_string(), text);
        assert_eq!(props.get("alpha"), Some("a=b"));
        assert_eq!(props.get_default("file"), Some("local:100/vm-100-disk-0.qcow2"));
        props.set("size", "8G").unwrap();
        props.remove("zeta");
        props.set_bare("none").unwrap();
        assert_eq!(props.to_string(), "none,alpha=a=b,size=8G");
    }

    #[test]
    fn a_value_cannot_break_out() {
        let mut props = PropertyString::new();
        assert!(props.set("serial", "x,file=/etc/passwd").is_err());
        assert!(props.set("serial", "x\nargs: -S").is_err());
        assert!(props.set_bare("a=b").is_err());
        assert!(props.is_empty());
        for (wrong, why) in [
            ("a=1,a=2", "'a' is given twice"),
            ("x,y", "'y' has no name, as another value before it"),
            ("a=", "'a': a property must have a value"),
            ("=b", "'' is no name of a property"),
        ] {
            assert_eq!(wrong.parse::<PropertyString>().unwrap_err().to_string(), why);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_prints_and_reads_alike(text in "[a-z=,:;. \\n]{0,40}") {
            if let Ok(read) = text.parse::<PropertyString>() {
                prop_assert_eq!(read.to_string().parse::<PropertyString>().unwrap(), read);
            }
        }

        #[test]
        fn plain_texts_print_unchanged(
            bare in proptest::option::of("[a-z:/.-]{1,12}"),
            parts in proptest::collection::btree_map("[a-z_-]{1,8}", "[!-+--~]{1,12}", 0..6),
        ) {
            let text: Vec<String> = bare.into_iter().chain(parts.iter().map(|(k, v)| format!("{k}={v}"))).collect();
            let text = text.join(",");
            prop_assert_eq!(text.parse::<PropertyString>().unwrap().to_string(), text);
        }
    }
}
