//! The services' log lines, each behind its service's name.

use crate::console;
use sdxl_core::StageKind;
use sdxl_runtime::args::LogFormat;
use std::io::{self, Write};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// A service of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// One that computes.
    Stage(StageKind),
    /// The one that is asked.
    Coordinator,
}

impl Role {
    /// Its executable's name.
    pub(super) fn program(self) -> String {
        format!("sdxl-{}", self.name())
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stage(stage) => stage.name(),
            Self::Coordinator => "coordinator",
        }
    }

    /// The name of its replica `index`.
    pub(super) fn replica(self, index: u32) -> String {
        match self {
            Self::Stage(stage) => format!("{stage}[{index}]"),
            Self::Coordinator => self.name().to_owned(),
        }
    }

    fn colour(self) -> u8 {
        match self {
            Self::Coordinator => 36,
            Self::Stage(StageKind::TextEncoder) => 32,
            Self::Stage(StageKind::BaseUnet) => 33,
            Self::Stage(StageKind::Refiner) => 35,
            Self::Stage(StageKind::Vae) => 34,
        }
    }
}

/// How a service's lines are written.
#[derive(Clone, Debug)]
pub(super) struct Log {
    prefix: String,
}

impl Log {
    /// For the service `name`, with its name in colour if `coloured`. Lines in JSON stay JSON: they get no prefix.
    pub(super) fn new(role: Role, name: &str, format: LogFormat, coloured: bool) -> Self {
        let prefix = match (format, coloured) {
            (LogFormat::Json, _) => String::new(),
            (LogFormat::Human, true) => format!("\x1b[{}m{name:<15} |\x1b[0m ", role.colour()),
            (LogFormat::Human, false) => format!("{name:<15} | "),
        };
        Self { prefix }
    }

    /// Writes lines as they come until `input` ends. What matters most of them is what a process that died is
    /// remembered by.
    pub(super) async fn pass_on(self, input: impl AsyncRead + Unpin) -> LastWords {
        let mut lines = BufReader::new(input);
        let (mut line, mut last) = (Vec::new(), LastWords::default());
        while matches!(lines.read_until(b'\n', &mut line).await, Ok(1..)) {
            let end = line.trim_ascii_end().len();
            last.hear(&line[..end]);
            self.write(&line[..end]);
            line.clear();
        }
        last
    }

    fn write(&self, line: &[u8]) {
        // In one piece, so that lines of several services do not mix.
        let whole = [self.prefix.as_bytes(), line, b"\n"].concat();
        let _ = io::stderr().lock().write_all(&whole);
    }
}

/// The last thing that a process said, errors first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LastWords {
    error: Option<String>,
    line: Option<String>,
}

impl LastWords {
    fn hear(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if text.trim().is_empty() {
            return;
        }
        if let Some(error) = text.strip_prefix("error: ") {
            self.error = Some(error.to_owned());
        } else if text.contains("ERROR") || text.contains("panicked at") {
            self.error = Some(text.clone().into_owned());
        }
        self.line = Some(text.into_owned());
    }

    /// The last error.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The last error, or the last line if there was none.
    pub(super) fn text(&self) -> Option<&str> {
        self.error().or(self.line.as_deref())
    }
}

/// Tells the person what `sdxl up` itself does.
pub(super) fn note(text: impl std::fmt::Display) {
    console::note(format_args!("sdxl up: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_remembered_by_its_last_error() {
        let role = Role::Stage(StageKind::Vae);
        let log = Log::new(role, &role.replica(0), LogFormat::Human, false);
        let last = |text: &'static [u8]| {
            let log = log.clone();
            async move { log.pass_on(text).await.text().map(str::to_owned) }
        };
        assert_eq!(last(b"INFO a\nerror: vae/x: truncated\nINFO b\n").await.unwrap(), "vae/x: truncated");
        assert_eq!(last(b"first\n\nlast without an end").await.unwrap(), "last without an end");
        assert_eq!(last(b"\xff\n").await.unwrap(), "\u{fffd}");
        assert_eq!(last(b"").await, None);
    }

    #[test]
    fn prefixes_are_coloured_only_when_asked_and_never_in_json() {
        let role = Role::Stage(StageKind::BaseUnet);
        let prefix = |format, coloured| Log::new(role, &role.replica(1), format, coloured).prefix;
        assert_eq!(prefix(LogFormat::Human, false), "base-unet[1]    | ");
        assert_eq!(prefix(LogFormat::Human, true), "\x1b[33mbase-unet[1]    |\x1b[0m ");
        assert_eq!(prefix(LogFormat::Json, true), "");
    }
}
