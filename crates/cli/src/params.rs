//! Parameters of calls: how they are written on the command line, and how they are sent.

use crate::failure::Failure;

/// Names and values, in order. Names may repeat.
pub type Params = Vec<(String, String)>;

/// Options that need no value: given without one they mean 1.
const SWITCHES: [&str; 22] = [
    "current",
    "destroy-unreferenced-disks",
    "disable",
    "force",
    "forceStop",
    "full",
    "human-readable",
    "keepActive",
    "noborder",
    "noheader",
    "noproxy",
    "online",
    "overrule-shutdown",
    "overwrite",
    "privsep",
    "purge",
    "quiet",
    "skiplock",
    "start",
    "vmstate",
    "with-local-disks",
    "regenerate",
];
/// What a switch may be followed by.
const TRUTHS: [&str; 8] = ["0", "1", "on", "off", "yes", "no", "true", "false"];

/// Divides words into what stands alone and options: `--name value`, `--name=value`, `-name value`; a switch, and
/// an option that is followed by another or by nothing, means 1.
pub fn divide(words: impl IntoIterator<Item = String>) -> Result<(Vec<String>, Params), Failure> {
    let mut words = words.into_iter().peekable();
    let (mut alone, mut params) = (vec![], vec![]);
    while let Some(word) = words.next() {
        if word == "--" {
            alone.extend(words.by_ref());
            break;
        }
        let Some(option) = as_option(&word) else {
            alone.push(word);
            continue;
        };
        if let Some((name, value)) = option.split_once('=') {
            params.push((name.to_owned(), value.to_owned()));
            continue;
        }
        let takes = |next: &String| match SWITCHES.contains(&option) {
            true => TRUTHS.contains(&next.as_str()),
            false => as_option(next).is_none(),
        };
        let value = words.next_if(takes).unwrap_or_else(|| "1".to_owned());
        params.push((option.to_owned(), value));
    }
    match params.iter().find(|(name, _)| name.is_empty()) {
        Some((_, value)) => Err(Failure::usage(format!("an option without a name stands before '{value}'"))),
        None => Ok((alone, params)),
    }
}

/// The name in `--name` or `-name`; a number like `-1` is a value.
fn as_option(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    name.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(name)
}

/// `KEY=VALUE` words, or options as [`divide`] reads them.
pub fn settings(words: &[String]) -> Result<Params, Failure> {
    let (alone, mut params) = divide(words.iter().cloned())?;
    for word in alone {
        match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => params.push((name.to_owned(), value.to_owned())),
            _ => return Err(Failure::usage(format!("'{word}' is not of the form KEY=VALUE"))),
        }
    }
    Ok(params)
}

/// Takes an option out of the parameters.
pub fn take(params: &mut Params, name: &str) -> Option<String> {
    let at = params.iter().position(|(n, _)| n == name)?;
    Some(params.remove(at).1)
}

/// Adds a parameter if there is a value.
pub fn put<T: ToString>(params: &mut Params, name: &str, value: Option<T>) {
    if let Some(value) = value {
        params.push((name.to_owned(), value.to_string()));
    }
}

/// Adds a switch if it is on.
pub fn switch(params: &mut Params, name: &str, on: bool) {
    put(params, name, on.then_some(1));
}

/// Parameters as a form or query.
pub fn form(params: &Params) -> String {
    let pairs: Vec<String> = params.iter().map(|(n, v)| format!("{}={}", escape(n), escape(v))).collect();
    pairs.join("&")
}

/// Percent-encodes a path's segment or a form's value.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn shown(text: &str) -> String {
        match divide(words(text)) {
            Ok((alone, params)) => format!("{} | {}", alone.join(" "), form(&params)),
            Err(e) => format!("{e:?}"),
        }
    }

    #[test]
    fn options_are_read_as_administrators_write_them() {
        assert_eq!(shown("100 --memory 512 -name web --cores=2"), "100 | memory=512&name=web&cores=2");
        assert_eq!(shown("100 --online --target pve2"), "100 | online=1&target=pve2");
        assert_eq!(shown("100 pve2 --online"), "100 pve2 | online=1");
        assert_eq!(shown("100 --revert memory"), "100 | revert=memory");
        assert_eq!(shown("--purge 100"), "100 | purge=1");
        assert_eq!(shown("--purge 0 100"), "100 | purge=0");
        assert_eq!(
            shown("100 --scsi0 local:8,iothread=1 --balloon -1"),
            "100 | scsi0=local%3A8%2Ciothread%3D1&balloon=-1"
        );
        assert_eq!(shown("100 --onboot"), "100 | onboot=1");
        assert_eq!(shown("a -- --b c"), "a --b c | ");
    }

    #[test]
    fn settings_take_both_forms_and_nothing_else() {
        let params = settings(&words("memory=512 --cores 2 args=a=b")).unwrap();
        assert_eq!(form(&params), "cores=2&memory=512&args=a%3Db");
        assert!(matches!(settings(&words("memory")), Err(Failure::Usage(_))));
        assert!(matches!(settings(&words("=x")), Err(Failure::Usage(_))));
    }
}
