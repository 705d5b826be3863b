//! What is shown: tables for people, JSON for programs.

use crate::api::{rows, text, truth};
use crate::failure::Failure;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Map, Value};
use std::io::{ErrorKind, Write};

/// How results are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables, for people.
    #[default]
    Table,
    /// JSON, for programs: what the API has answered.
    Json,
}

/// How a value is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Text,
    /// A number, to the right.
    Number,
    /// Bytes.
    Bytes,
    /// A part of one, as per cent.
    Share,
    /// Seconds of duration.
    Seconds,
    /// Seconds since 1970.
    Time,
    /// Yes or no.
    Truth,
}

/// A column: its heading, the key in each row, how to read it.
pub type Column = (&'static str, &'static str, Kind);

/// Writes lines to the standard output. If nobody reads any more, the command has done its work.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::Told { text: String::new(), good: true }),
        done => Ok(done?),
    }
}

/// Shows a value as JSON.
pub fn json(value: &Value) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value)?)
}

impl Format {
    /// Shows a list.
    pub fn list(self, value: &Value, columns: &[Column]) -> Result<(), Failure> {
        match self {
            Self::Json => json(value),
            Self::Table => print(&table(rows(value), columns)),
        }
    }

    /// Shows one object, its keys sorted.
    pub fn object(self, value: &Value) -> Result<(), Failure> {
        match self {
            Self::Json => json(value),
            Self::Table => print(&object(value)),
        }
    }

    /// Shows whatever it is.
    pub fn any(self, value: &Value) -> Result<(), Failure> {
        match self {
            Self::Json => json(value),
            Self::Table => match any(value) {
                text if text.is_empty() => Ok(()),
                text => print(&text),
            },
        }
    }

    /// Says that something was done; programs get what the API has answered.
    pub fn done(self, value: &Value, said: &str) -> Result<(), Failure> {
        match self {
            Self::Json => json(value),
            Self::Table => print(said),
        }
    }
}

fn empty_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn finish(table: &mut Table) -> String {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table.trim_fmt()
}

/// A list as a table; a column that no row has is left out.
pub fn table(rows: &[Value], columns: &[Column]) -> String {
    let has = |key: &str| rows.is_empty() || rows.iter().any(|r| r.get(key).is_some_and(|v| !v.is_null()));
    let columns: Vec<&Column> = columns.iter().filter(|(_, key, _)| has(key)).collect();
    let mut table = empty_table();
    table.set_header(columns.iter().map(|(title, _, kind)| cell(title, *kind)));
    for row in rows {
        table.add_row(columns.iter().map(|(_, key, kind)| {
            let value = row.get(*key).unwrap_or(&Value::Null);
            cell(&shown(value, *kind), *kind)
        }));
    }
    finish(&mut table)
}

fn cell(text: &str, kind: Kind) -> Cell {
    let right = matches!(kind, Kind::Number | Kind::Bytes | Kind::Share);
    // A value's own line ends and control characters must not break the table, or reach the terminal.
    let one_line: String =
        text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    Cell::new(one_line).set_alignment(if right { CellAlignment::Right } else { CellAlignment::Left })
}

/// A value as its kind says.
pub fn shown(value: &Value, kind: Kind) -> String {
    let number = value.as_f64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
    match (kind, number) {
        (_, _) if value.is_null() => "-".into(),
        (Kind::Truth, _) => if truth(value) { "yes" } else { "no" }.into(),
        (Kind::Bytes, Some(n)) => bytes(n),
        (Kind::Share, Some(n)) => format!("{:.1} %", n * 100.0),
        (Kind::Seconds, Some(n)) => seconds(n),
        (Kind::Time, Some(n)) => time(n),
        _ => text(value),
    }
}

/// `1.5 GiB`.
pub fn bytes(n: f64) -> String {
    let mut n = n;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if n.abs() < 1024.0 {
            return if unit == "B" || n == n.trunc() {
                format!("{n:.0} {unit}")
            } else {
                format!("{n:.1} {unit}")
            };
        }
        n /= 1024.0;
    }
    format!("{n:.1} PiB")
}

#[allow(clippy::cast_possible_truncation, reason = "a duration shown to people; beyond i64 it saturates")]
fn seconds(n: f64) -> String {
    let all = n as i64;
    let (days, hours, minutes, rest) = (all / 86_400, all / 3600 % 24, all / 60 % 60, all % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A moment as `2026-11-21 04:05:06`, UTC: the same on every machine that asks.
#[allow(clippy::cast_possible_truncation, reason = "a moment shown to people; beyond i64 it saturates")]
pub fn time(unix: f64) -> String {
    let all = unix as i64;
    let (days, second) = (all.div_euclid(86_400), all.rem_euclid(86_400));
    // Days to a date: years begin in March, so that a leap day comes last.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// What [`time`] shows, and parts of it from the date on; also with `T` in between and `Z` at the end. In seconds since 1970.
pub fn unix(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, clock) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let number = |word: &str, most: u64| word.parse::<u64>().ok().filter(|n| *n <= most && word.len() <= 4);
    let mut ymd = date.split('-');
    let mut next = |most| ymd.next().and_then(|word| number(word, most));
    let (year, month, day) = (next(9999)?, next(12)?, next(31)?);
    let mut hms = clock.split(':');
    let (hour, minute) = (number(hms.next()?, 23)?, number(hms.next()?, 59)?);
    let second = hms.next().map_or(Some(0), |word| number(word, 59))?;
    if ymd.next().is_some() || hms.next().is_some() || year < 1970 || month == 0 || day == 0 {
        return None;
    }
    // Years begin in March, as in `time`.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let unix = days.checked_sub(719_468)? * 86_400 + hour * 3600 + minute * 60 + second;
    // A 30th of February is another day.
    time(unix as f64).starts_with(&format!("{year:04}-{month:02}-{day:02} ")).then_some(unix)
}

/// An object, a line a key.
pub fn object(value: &Value) -> String {
    let empty = Map::new();
    let fields = value.as_object().unwrap_or(&empty);
    let mut keys: Vec<&String> = fields.keys().collect();
    keys.sort();
    let mut table = empty_table();
    for key in keys {
        table.add_row([cell(key, Kind::Text), cell(&text(&fields[key]).replace('\n', "\\n"), Kind::Text)]);
    }
    finish(&mut table)
}

/// A value of unknown shape.
pub fn any(value: &Value) -> String {
    match value {
        Value::Object(_) => object(value),
        Value::Array(list) if list.iter().all(Value::is_object) && !list.is_empty() => wide(list),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => text(other),
    }
}

/// A list of objects of unknown keys: all of them, sorted.
fn wide(list: &[Value]) -> String {
    let mut keys: Vec<&String> = list.iter().filter_map(Value::as_object).flat_map(Map::keys).collect();
    keys.sort();
    keys.dedup();
    let mut table = empty_table();
    table.set_header(keys.iter().map(|k| cell(k, Kind::Text)));
    for row in list {
        table.add_row(keys.iter().map(|k| cell(&row.get(*k).map(text).unwrap_or_default(), Kind::Text)));
    }
    finish(&mut table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_reads_values_as_its_columns_say() {
        let rows = [
            json!({"vmid": 100, "name": "web", "mem": 536_870_912u64, "cpu": 0.256, "uptime": 93_784, "template": 0}),
            json!({"vmid": 1000, "name": "a\nb\u{1b}[2J", "mem": 0, "cpu": "0.5", "uptime": 59, "template": 1}),
        ];
        let columns: [Column; 7] = [
            ("VMID", "vmid", Kind::Number),
            ("NAME", "name", Kind::Text),
            ("MEMORY", "mem", Kind::Bytes),
            ("CPU", "cpu", Kind::Share),
            ("UPTIME", "uptime", Kind::Seconds),
            ("TEMPLATE", "template", Kind::Truth),
            ("GONE", "gone", Kind::Text),
        ];
        assert_eq!(
            table(&rows, &columns),
            "VMID  NAME   MEMORY     CPU  UPTIME  TEMPLATE\n \
             100  web   512 MiB  25.6 %  1d 2h   no\n\
             1000  a         0 B  50.0 %  59s     yes"
        );
    }

    #[test]
    fn moments_are_shown_in_utc() {
        assert_eq!(time(0.0), "1970-01-01 00:00:00");
        assert_eq!(time(951_782_400.0), "2000-02-29 00:00:00");
        assert_eq!(time(1_795_233_906.0), "2026-11-21 04:05:06");
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let shown: Vec<String> = [0.0, 1023.0, 1536.0, 8.0 * 1024.0 * 1024.0 * 1024.0].map(bytes).to_vec();
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "8 GiB"]);
    }

    #[test]
    fn unknown_shapes_are_shown_too() {
        assert_eq!(any(&json!([{"b": 1}, {"a": [1]}])), "a    b\n     1\n[1]");
        assert_eq!(any(&json!({"b": "x", "a": null})), "a\nb  x");
        assert_eq!(any(&json!(["x", 2])), "x\n2");
        assert_eq!(any(&Value::Null), "");
    }
}
