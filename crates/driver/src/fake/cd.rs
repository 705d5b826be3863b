//! Images of CDs that are texts.

use crate::cd::{CdError, CdImages};
use async_trait::async_trait;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Makes texts: the label, and each file under its path.
#[derive(Debug, Default)]
pub struct FakeCds(Mutex<Option<String>>);

impl FakeCds {
    /// Makes every call fail as if the program were missing, or (with none) work again.
    pub fn set_missing(&self, why: Option<&str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why.map(str::to_owned);
    }
}

#[async_trait]
impl CdImages for FakeCds {
    async fn make(&self, label: &str, files: &[(&str, &str)], to: &Path) -> Result<(), CdError> {
        if let Some(why) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            let why = std::io::Error::other(why);
            return Err(CdError::Start { program: "fake".to_owned(), package: "fakes", why });
        }
        let mut text = format!("label {label}\n");
        for (path, content) in files {
            text.push_str(&format!("== {path}\n{content}"));
        }
        std::fs::write(to, text).map_err(|e| CdError::Failed(e.to_string()))
    }
}
