//! Hygiene of the files that are committed.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Above it a file says in its header why it stays whole.
const LINES: usize = 800;
/// `node` is wiring only.
const NODE_LINES: usize = 2000;

struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is(&self, endings: &[&str]) -> bool {
        endings.iter().any(|e| self.path.ends_with(e))
    }

    /// The `//!` lines that a Rust file opens with.
    fn header(&self) -> String {
        let lines = self.text.lines().take_while(|l| l.starts_with("//!"));
        lines.map(|l| l.trim_start_matches("//!")).collect::<Vec<_>>().join("\n")
    }

    /// A Rust file's lines before its unit tests, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(n, l)| (n + 1, l));
        lines
            .take_while(|(_, l)| l.trim() != "#[cfg(test)]")
            .filter(|(_, l)| !l.trim_start().starts_with("//"))
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs") || self.path.contains("/suite/")
    }
}

/// The checkout. As it is when the test runs: another checkout may have built this with the same target folder.
fn top() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../..").canonicalize().unwrap()
}

/// Every text file that git knows or would add.
fn sources() -> Vec<Source> {
    let out = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(top())
        .output()
        .unwrap();
    assert!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    let names = String::from_utf8(out.stdout).unwrap();
    let found: Vec<Source> = names
        .split('\0')
        .filter(|n| !n.is_empty())
        .filter_map(|n| {
            Some(Source { path: n.to_owned(), text: std::fs::read_to_string(top().join(n)).ok()? })
        })
        .collect();
    assert!(found.len() > 50, "only {} files found", found.len());
    found
}

fn check(wrong: impl Fn(&Source) -> Vec<String>) {
    let all: Vec<String> =
        sources().iter().flat_map(|s| wrong(s).into_iter().map(|w| format!("{}{w}", s.path))).collect();
    assert!(all.is_empty(), "\n{}\n", all.join("\n"));
}

const WRITTEN: &[&str] =
    &[".rs", ".sh", ".toml", ".md", ".ts", ".tsx", ".css", ".s", ".py", ".yml", ".json", ".svg"];

#[test]
fn files_are_clean_text() {
    check(|s| {
        if !s.is(WRITTEN) || s.is(&["package-lock.json"]) {
            return vec![];
        }
        let mut wrong = vec![];
        for (n, line) in s.text.lines().enumerate() {
            if line.contains('\t') {
                wrong.push(format!(":{}: a tab", n + 1));
            }
            if line.ends_with([' ', '\r']) {
                wrong.push(format!(":{}: blanks at the line's end", n + 1));
            }
        }
        if !s.text.is_empty() && !s.text.ends_with('\n') {
            wrong.push(": no newline at the end".to_owned());
        }
        wrong
    });
}

#[test]
fn modules_say_what_they_are_for() {
    check(|s| {
        let needs = s.is(&[".rs"]) && !s.path.ends_with("/tests.rs");
        if needs && s.header().trim().is_empty() { vec![": no //! header".to_owned()] } else { vec![] }
    });
}

#[test]
fn long_files_say_why_they_stay_whole() {
    check(|s| {
        let lines = s.text.lines().count();
        // Types that a generator wrote are read by nobody.
        let long = s.is(&[".rs", ".ts", ".tsx"]) && !s.is(&[".d.ts"]) && lines > LINES;
        if long && !s.header().contains("stays whole") {
            return vec![format!(
                ": {lines} lines: split it by meaning, or say in the header why it stays whole"
            )];
        }
        vec![]
    });
}

#[test]
fn node_is_wiring_only() {
    let lines: usize = sources()
        .iter()
        .filter(|s| s.path.starts_with("crates/node/src/"))
        // Tests are no wiring.
        .map(|s| s.text.lines().take_while(|line| *line != "#[cfg(test)]").count())
        .sum();
    assert!(lines <= NODE_LINES, "crates/node has {lines} lines, and {NODE_LINES} are too many for wiring");
}

#[test]
fn nothing_is_left_undone() {
    // Put together here, so that this file is clean itself.
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["X", "XX"].concat()];
    check(|s| {
        if !s.is(&[".rs", ".sh", ".ts", ".tsx", ".py", ".s", "Makefile", ".md"]) {
            return vec![];
        }
        let word = |l: &str, m: &str| l.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == m);
        let hit =
            |(n, l): (usize, &str)| marks.iter().find(|m| word(l, m)).map(|m| format!(":{}: {m}", n + 1));
        s.text.lines().enumerate().filter_map(hit).collect()
    });
}

#[test]
fn no_test_is_switched_off() {
    let rust = [["#[", "ignore"].concat()];
    let script = [[".", "skip("].concat(), ["test", ".only("].concat(), ["describe", ".only("].concat()];
    check(|s| {
        let marks: &[String] = match s.is(&[".rs"]) {
            true => &rust,
            false if s.is(&[".ts", ".tsx"]) => &script,
            false => &[],
        };
        let hit = |l: &str| marks.iter().any(|m| l.contains(m.as_str()));
        s.text.lines().enumerate().filter(|(_, l)| hit(l)).map(|(n, l)| format!(":{}: {l}", n + 1)).collect()
    });
}

#[test]
fn no_place_of_one_machine_is_named() {
    let home = top();
    let marks = [
        home.display().to_string(),
        ["/ro", "ot/"].concat(),
        ["/home", "/"].concat(),
        ["crates", ".io/"].concat(),
        ["npm", "js.org"].concat(),
        ["py", "pi.org"].concat(),
        ["deb", ".debian.org"].concat(),
    ];
    check(|s| {
        // Cargo names its own registry there, in every project.
        if s.path == "Cargo.lock" {
            return vec![];
        }
        let hit = |(n, l): (usize, &str)| {
            let mark = marks.iter().find(|m| l.contains(m.as_str()))?;
            Some(format!(":{}: names {mark}", n + 1))
        };
        s.text.lines().enumerate().filter_map(hit).collect()
    });
}

#[test]
fn pure_crates_ask_nobody() {
    // What such code would have to name to read a clock, draw a number, or touch a file, socket, thread or process.
    const IMPURE: &[&str] = &[
        "std::fs",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "std::thread",
        "std::process",
        "std::env",
        "std::io",
        "Instant::now",
        "SystemTime",
        "tokio::",
        "rand::",
        "async fn",
        "rustix::",
        "new_v4",
        "println!",
        "eprintln!",
    ];
    check(|s| {
        let pure = ["model", "membership", "ha", "guest"]
            .iter()
            .any(|c| s.path.starts_with(&format!("crates/{c}/src/")));
        if !pure || s.is_test() {
            return vec![];
        }
        let hit = |(n, l): (usize, &str)| {
            let what = IMPURE.iter().find(|i| l.contains(*i))?;
            Some(format!(":{n}: `{what}` in a pure crate"))
        };
        s.code().filter_map(hit).collect()
    });
}

#[test]
fn only_the_fence_process_has_power_over_the_host() {
    let marks =
        [["sysrq", "-trigger"].concat(), ["/dev/", "watchdog"].concat(), ["system::", "reboot"].concat()];
    check(|s| {
        // One more names it: to make sure that it is out of the testbed's reach.
        let looks = s.path == "crates/testbed/src/machine.rs";
        if !s.is(&[".rs", ".sh", "Makefile"]) || s.path.starts_with("crates/fenced/") || looks {
            return vec![];
        }
        let hit = |(n, l): (usize, &str)| {
            let mark = marks.iter().find(|m| l.contains(m.as_str()))?;
            Some(format!(":{}: `{mark}` outside of the fence process", n + 1))
        };
        s.text.lines().enumerate().filter_map(hit).collect()
    });
}

#[test]
fn the_licence_is_there() {
    let text = std::fs::read_to_string(top().join("LICENSE")).unwrap();
    assert!(text.contains("Apache License") && text.contains("Version 2.0, January 2004"));
    let manifest = std::fs::read_to_string(top().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("license = \"Apache-2.0\""));
}

#[test]
fn documents_link_to_what_is_there() {
    check(|s| {
        if !s.is(&[".md"]) {
            return vec![];
        }
        let folder = Path::new(&s.path).parent().unwrap();
        let links = s.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        links
            .map(|l| l.split('#').next().unwrap_or(""))
            .filter(|l| !l.is_empty() && !l.contains("://") && !l.starts_with("mailto:"))
            .filter(|l| !top().join(folder).join(l).exists())
            .map(|l| format!(": links to {l}, which is not there"))
            .collect()
    });
}
