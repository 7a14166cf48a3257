//! How a command ends badly: what is said, and the exit code.

use crate::console;
use std::process::ExitCode;

/// Why a command ended.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The caller's input is wrong; one line for each fault.
    BadInput(Vec<String>),
    /// Anything else that went wrong.
    Failed(anyhow::Error),
    /// Ctrl-C.
    Interrupted,
}

impl Failure {
    pub(crate) fn bad_input(line: impl Into<String>) -> Self {
        Self::BadInput(vec![line.into()])
    }

    /// What the process exits with: 2 for bad input, as clap has it, 130 after Ctrl-C, as shells have it, 1 otherwise.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::BadInput(_) => 2,
            Self::Failed(_) => 1,
            Self::Interrupted => 130,
        }
    }

    /// Tells the person and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::BadInput(lines) => {
                for line in lines {
                    console::note(format_args!("error: {line}"));
                }
            }
            Self::Failed(error) => console::note(format_args!("error: {error:#}")),
            Self::Interrupted => console::note("interrupted"),
        }
        ExitCode::from(self.code())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_bad_input_from_the_rest() {
        assert_eq!(Failure::bad_input("--width: 7").code(), 2);
        assert_eq!(Failure::from(anyhow::anyhow!("gone")).code(), 1);
        assert_eq!(Failure::Interrupted.code(), 130);
    }
}
