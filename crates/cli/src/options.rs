//! The options of every command.

use crate::connect::Connection;
use crate::output::Format;
use crate::task::Follow;

/// What every command takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub connection: Connection,
    /// How to show results
    #[arg(long, short = 'o', global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Start tasks and name them, without waiting for their end
    #[arg(long, global = true)]
    pub no_wait: bool,
}

impl Options {
    /// How to treat tasks.
    pub fn follow(&self) -> Follow {
        Follow { format: self.output, no_wait: self.no_wait }
    }
}
