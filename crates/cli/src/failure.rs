//! How a command fails, and what the shell sees of it.

use std::io::Write;
use std::process::ExitCode;
use stead_transport::{Answer, ClientError};

/// Why a command did not do what was asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was called wrongly: exit code 2.
    Usage(String),
    /// It was called rightly and failed: exit code 1.
    Failed(String),
    /// The server was not reached, or cannot now: it may be well in a moment. Exit code 1.
    Away(String),
    /// Help or version was asked for, or clap has told what is wrong; the text is its own.
    Told {
        /// What to show.
        text: String,
        /// Whether that is a success.
        good: bool,
    },
}

impl Failure {
    /// Exit code 1, with a text.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// Exit code 2, with a text.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// What the server has refused, with what it says about each parameter.
    pub fn refused(answer: &Answer) -> Self {
        let mut text = answer.message();
        let body: serde_json::Value = answer.json().unwrap_or_default();
        for (name, why) in body.get("errors").and_then(|e| e.as_object()).into_iter().flatten() {
            text.push_str(&format!("\n  {name}: {}", why.as_str().unwrap_or_default().trim()));
        }
        if answer.status == http::StatusCode::UNAUTHORIZED {
            text.push_str("\n  sign in with --user and a password, or use --api-token");
        }
        if answer.status.is_server_error() { Self::Away(text) } else { Self::Failed(text) }
    }

    /// Tells the user, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        let (text, code) = match self {
            Self::Told { text, good: true } => {
                // Nobody is left to be told if that fails.
                let _ = std::io::stdout().write_all(text.as_bytes());
                return ExitCode::SUCCESS;
            }
            Self::Told { text, good: false } => (text.clone(), 2),
            Self::Usage(text) => (format!("error: {text}\n"), 2),
            Self::Failed(text) | Self::Away(text) => (format!("error: {text}\n"), 1),
        };
        let _ = std::io::stderr().write_all(text.as_bytes());
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        if e.unreachable() { Self::Away(e.to_string()) } else { Self::Failed(e.to_string()) }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Self::Failed(format!("the server's answer cannot be read: {e}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self::Failed(e.to_string())
    }
}
