//! What the text formats share: percent-encoding of free text, booleans, and the error that names a line.

use std::fmt::Write as _;

/// A configuration text that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct FormatError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl FormatError {
    pub(crate) fn at<T>(line: usize, reason: impl Into<String>) -> Result<T, Self> {
        Err(Self { line, reason: reason.into() })
    }
}

/// Encodes free text for a place where a line break, `:` or `%` would be taken for structure.
///
/// Control characters, everything beyond ASCII, `:` and `%` become `%XX`, a byte of UTF-8 each.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for &b in text.as_bytes() {
        if matches!(b, 0x20..=0x7e) && b != b':' && b != b'%' {
            out.push(char::from(b));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// Undoes [`encode`]. A `%` without two hexadecimal digits stays as it is, bytes that are no UTF-8 become U+FFFD.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits always fit in a byte.
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                i += 3;
            }
            (b, ..) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A boolean in any of its spellings: `1`, `on`, `yes`, `true` and their opposites, in any case.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// The parts of a list, separated by `,`, `;` or blanks; empty ones are left out.
pub fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ', '\t', '\n', '\0']).filter(|part| !part.is_empty())
}

/// Whether `text` is a configuration id: a letter, then letters, digits, `_` and `-`.
pub fn is_config_id(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn structure_is_encoded_and_the_rest_stays_readable() {
        assert_eq!(encode("owner: Zoë (50%)"), "owner%3A Zo%C3%AB (50%25)");
        assert_eq!(decode("100% %zz %C3%AB"), "100% %zz ë");
    }

    #[test]
    fn lists_split_on_every_separator() {
        assert_eq!(split_list("a,b; c,,d").collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let encoded = encode(&text);
            prop_assert!(encoded.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b':'));
            prop_assert_eq!(decode(&encoded), text);
        }
    }
}
