//! The published distributions: `make figures`, hours on a machine that does nothing else.
//!
//! Where `make bench` asks whether something got worse, these ask how long it takes at all: so many runs that the
//! hundredth worst means something. Each run is written down as it ends (`STEAD_FIGURES`, a folder), so that a
//! measurement that is ended early has lost nothing, and one that is begun again goes on. The picture is drawn from what
//! was written.

mod outage;
mod peer;
mod picture;
mod power_loss;

use anyhow::{Context, Result};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

/// Runs of one kind, in a file of one number a line.
struct Samples(PathBuf);

impl Samples {
    fn folder() -> Result<PathBuf> {
        let dir = std::env::var_os("STEAD_FIGURES").map_or_else(std::env::temp_dir, PathBuf::from);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    fn of(name: &str) -> Result<Self> {
        Ok(Self(Self::folder()?.join(format!("{name}.txt"))))
    }

    /// What was measured so far.
    fn read(&self) -> Vec<f64> {
        self.lines().into_iter().map(|(value, _)| value).collect()
    }

    /// The same, each with what is to be known of it.
    fn lines(&self) -> Vec<(f64, String)> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let line = |l: &str| {
            let (value, about) = l.split_once(' ').unwrap_or((l, ""));
            Some((value.parse().ok()?, about.to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    /// One more, with what is to be known of it.
    fn add(&self, value: f64, about: &str) -> Result<()> {
        let mut file = fs::File::options().create(true).append(true).open(&self.0)?;
        writeln!(file, "{value:.3} {about}").with_context(|| format!("writing {}", self.0.display()))
    }
}
