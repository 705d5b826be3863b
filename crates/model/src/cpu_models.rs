//! CPU models that administrators make, `virtual-guest/cpu-models.conf`: one of QEMU's with features switched on and off.
//!
//! ```text
//! cpu-model: fast
//!     flags +aes;-pcid
//!     hidden 1
//!     reported-model Haswell
//! ```

use crate::cpu::CUSTOM;
use crate::property::PropertyString;
use crate::sectionconfig::{Section, SectionConfig, SectionError};
use crate::text::{FormatError, is_config_id};
use crate::vmconfig::{Cpu, KeyError};
use std::collections::BTreeMap;

/// What a model's section says, by name: all but its own name.
pub type ModelOptions = BTreeMap<String, String>;

/// The type of its sections.
const KIND: &str = "cpu-model";

/// The options that a model has.
pub const OPTIONS: [&str; 7] =
    ["flags", "guest-phys-bits", "hidden", "hv-vendor-id", "level", "phys-bits", "reported-model"];

/// A whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuModels(SectionConfig);

impl CpuModels {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        SectionConfig::parse(text).map(Self)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Section::id)
    }

    /// What one says.
    pub fn get(&self, name: &str) -> Option<ModelOptions> {
        self.0.get(name).map(Section::options)
    }

    /// Makes one, or says something else of it.
    ///
    /// # Errors
    /// If what is said cannot stand in the file.
    pub fn set(&mut self, name: &str, options: &ModelOptions) -> Result<(), SectionError> {
        if self.0.get(name).is_none() {
            self.0.insert(Section::new(KIND, name)?)?;
        }
        let section = self.0.get_mut(name)?;
        for key in OPTIONS {
            section.assign(key, options.get(key).map(String::as_str))?;
        }
        Ok(())
    }

    /// Takes one out.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn remove(&mut self, name: &str) -> Result<(), SectionError> {
        self.0.remove(name).map(drop)
    }
}

impl std::fmt::Display for CpuModels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a model may be called so.
pub fn is_model_name(name: &str) -> bool {
    (2..=40).contains(&name.len()) && is_config_id(name) && !name.starts_with(CUSTOM)
}

/// Checks what is said of a model.
///
/// # Errors
/// Names the option at fault.
pub fn check(options: &ModelOptions) -> Result<(), KeyError> {
    let Some(reported) = options.get("reported-model") else {
        return KeyError::value("reported-model", "property is missing and it is not optional");
    };
    if reported.is_empty() || !reported.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        return KeyError::value(
            "reported-model",
            format_args!("'{reported}' is not the name of a CPU model"),
        );
    }
    if let Some(key) = options.keys().find(|key| !OPTIONS.contains(&key.as_str())) {
        return KeyError::value(key, "a CPU model has no such option");
    }
    for (key, value) in options {
        // Each by itself, so that what is wrong has its name.
        let text = match key.as_str() {
            "reported-model" => continue,
            key => format!("{reported},{key}={value}"),
        };
        Cpu::parse(key, &text)?;
    }
    Ok(())
}

/// An option `cpu` in which a model is spelled out: `base` is what takes the place of its name, and what the VM itself says counts
/// for more.
///
/// # Errors
/// If either cannot be read.
pub fn spell_out(base: &str, own: &str) -> Result<String, KeyError> {
    let read = |text: &str| text.parse::<PropertyString>().or_else(|e| KeyError::value("cpu", e));
    let (base, own) = (read(base)?, read(own)?);
    let mut made = PropertyString::new();
    let wrong = |e: crate::property::PropertyError| KeyError::value::<()>("cpu", e);
    made.set_bare(base.get_default("cputype").unwrap_or_default()).or_else(wrong)?;
    let all = base.iter().chain(own.iter());
    for (key, value) in all.filter_map(|(key, value)| Some((key?, value))) {
        match key {
            "cputype" | "reported-model" => {}
            "flags" => {
                let value = match made.get("flags") {
                    Some(before) => merged(before, value),
                    None => value.to_owned(),
                };
                made.set("flags", &value).or_else(wrong)?;
            }
            key => made.set(key, value).or_else(wrong)?,
        }
    }
    Ok(made.to_string())
}

/// Features of both; where both name one, the second counts.
fn merged(first: &str, second: &str) -> String {
    let name = |flag: &str| flag.trim_start_matches(['+', '-']).to_owned();
    let later: Vec<&str> = second.split(';').filter(|f| !f.is_empty()).collect();
    let kept = first.split(';').filter(|f| !f.is_empty() && !later.iter().any(|l| name(l) == name(f)));
    kept.chain(later.iter().copied()).collect::<Vec<_>>().join(";")
}

/// What takes the place of a model's name in an option `cpu`.
pub fn as_cpu(options: &ModelOptions) -> String {
    let mut words = vec![options.get("reported-model").cloned().unwrap_or_default()];
    let others = options.iter().filter(|(key, _)| *key != "reported-model");
    words.extend(others.map(|(key, value)| format!("{key}={value}")));
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(all: &[(&str, &str)]) -> ModelOptions {
        all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_model_is_kept_and_spelled_out() {
        let mut models = CpuModels::default();
        let fast = options(&[("reported-model", "Haswell"), ("flags", "+aes;-pcid"), ("hidden", "1")]);
        check(&fast).unwrap();
        models.set("fast", &fast).unwrap();
        let text = models.to_string();
        assert_eq!(text, "cpu-model: fast\n\tflags +aes;-pcid\n\thidden 1\n\treported-model Haswell\n");
        assert_eq!(CpuModels::parse(&text).unwrap().get("fast"), Some(fast.clone()));
        let spelled = spell_out(&as_cpu(&fast), "custom-fast,flags=+pcid;+avx,phys-bits=40").unwrap();
        assert_eq!(spelled, "Haswell,flags=+aes;+pcid;+avx,hidden=1,phys-bits=40");
        models.remove("fast").unwrap();
        assert!(models.get("fast").is_none() && models.remove("fast").is_err());
    }

    #[test]
    fn what_is_wrong_has_its_name() {
        let key = |all: &[(&str, &str)]| check(&options(all)).unwrap_err().key;
        assert_eq!(key(&[("flags", "+aes")]), "reported-model");
        assert_eq!(key(&[("reported-model", "a b")]), "reported-model");
        assert_eq!(key(&[("reported-model", "host"), ("flags", "aes")]), "flags");
        assert_eq!(key(&[("reported-model", "host"), ("phys-bits", "99")]), "phys-bits");
        assert_eq!(key(&[("reported-model", "host"), ("level", "x")]), "level");
        assert_eq!(key(&[("reported-model", "host"), ("colour", "red")]), "colour");
        assert!(is_model_name("fast-1") && !is_model_name("1fast"));
    }
}
