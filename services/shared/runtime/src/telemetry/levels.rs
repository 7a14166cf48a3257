//! What is logged: a filter from the command line, or from a file, which may change while the process runs.

use crate::args::TelemetryArgs;
use anyhow::{Context, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tracing::{info, level_filters::LevelFilter, warn};
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Between two looks at the file. By content: Kubernetes changes a link to its folder, not it.
const LOOK: Duration = Duration::from_secs(2);

/// A filter for the layer of log lines, and what changes it.
pub(super) struct Levels {
    file: Option<PathBuf>,
    /// As it was given.
    text: String,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Levels {
    /// By the file where there is one, else by the flag.
    ///
    /// # Errors
    /// Where the file cannot be read, or what is said is no filter.
    pub(super) fn new(args: &TelemetryArgs) -> anyhow::Result<(Self, reload::Layer<EnvFilter, Registry>)> {
        let file = args.log_from.clone();
        let (text, filter) = match &file {
            Some(path) => {
                let text = read(path)?;
                let filter = parse(&text).with_context(|| format!("--log-from: {}", path.display()))?;
                (text, filter)
            }
            None => (args.log.clone(), parse(&args.log).context("--log")?),
        };
        let (layer, filter) = reload::Layer::new(filter);
        Ok((Self { file, text, filter }, layer))
    }

    /// Follows the file, if there is one, until what this returns is dropped. Must be called in a tokio runtime.
    pub(super) fn follow(self) -> JoinSet<()> {
        self.follow_every(LOOK)
    }

    fn follow_every(self, look: Duration) -> JoinSet<()> {
        let mut following = JoinSet::new();
        if let Some(path) = self.file {
            following.spawn(follow(path, look, self.text, self.filter));
        }
        following
    }
}

async fn follow(
    path: PathBuf,
    look: Duration,
    mut known: String,
    filter: reload::Handle<EnvFilter, Registry>,
) {
    let mut complaint = String::new();
    loop {
        sleep(look).await;
        let file = path.clone();
        let Ok(seen) = spawn_blocking(move || read(&file)).await else { continue };
        let changed = match seen {
            Ok(text) if text == known => {
                complaint.clear();
                continue;
            }
            Ok(text) => parse(&text).map(|filter| (text, filter)),
            Err(error) => Err(error),
        };
        match changed {
            Ok((text, changed)) => {
                // Before and after: one of the filters may be such that it is not seen.
                info!("--log-from: {text:?} is logged from now on");
                if filter.reload(changed).is_err() {
                    return; // the process is ending
                }
                info!("--log-from: {text:?} is logged");
                known = text;
                complaint.clear();
            }
            Err(error) => {
                let why = format!("{error:#}");
                if complaint != why {
                    warn!("--log-from: {}: {why}; {known:?} stays", path.display());
                    complaint = why;
                }
            }
        }
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text =
        fs::read_to_string(path).with_context(|| format!("--log-from: {} cannot be read", path.display()))?;
    Ok(text.trim().to_owned())
}

/// What kube's watcher complains of we say ourselves, once and not each second; a filter that names it is heeded.
fn parse(text: &str) -> anyhow::Result<EnvFilter> {
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    // A misspelt level would else be the name of a part of the program, and silence all others.
    let is_known = |part: &str| part.contains('=') || is_level(part);
    let all = text.split(',').map(str::trim);
    ensure!(
        all.clone().all(is_known),
        "{text:?} is not a filter: error, warn, info, debug, trace, off, or a list as \"info,sdxl_stage=debug\""
    );
    let directives = format!("kube_runtime=error,{text}");
    EnvFilter::try_new(&directives).with_context(|| format!("{text:?} is not a filter"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::LogFormat;
    use std::{
        io,
        sync::{Arc, Mutex},
        time::Instant,
    };
    use tracing::{debug, subscriber::set_default};
    use tracing_subscriber::{Layer, fmt::MakeWriter, layer::SubscriberExt};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn have(&self, text: &str) -> bool {
            String::from_utf8_lossy(&self.0.lock().unwrap()).contains(text)
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn args(log_from: Option<&Path>) -> TelemetryArgs {
        TelemetryArgs {
            log: "off".to_owned(),
            log_from: log_from.map(Path::to_owned),
            log_format: LogFormat::Human,
            trace_steps: false,
            trace_prompts: false,
        }
    }

    async fn until(is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < end, "it does not come to that");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_changed_file_is_heeded_and_one_that_is_no_filter_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("filter");
        // As Kubernetes does it: there is no moment at which half of it is there.
        let write = |text: &str| {
            fs::write(folder.path().join("new"), text).unwrap();
            fs::rename(folder.path().join("new"), &file).unwrap();
        };
        write("warn\n");
        let (levels, filter) = Levels::new(&args(Some(&file))).unwrap();
        let lines = Lines::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(lines.clone()).with_filter(filter);
        let _here = set_default(Registry::default().with(layer));
        let _following = levels.follow_every(Duration::from_millis(5));

        let logged = |what: &'static str| {
            debug!(what);
            lines.have(what)
        };
        assert!(!logged("first"));
        write("info,sdxl_runtime=debug");
        until(|| lines.have("\"info,sdxl_runtime=debug\" is logged\n")).await;
        assert!(logged("second"));
        write("loud");
        until(|| lines.have("\"loud\" is not a filter")).await;
        write("");
        until(|| lines.have("\"\" is not a filter")).await;
        fs::remove_file(&file).unwrap();
        until(|| lines.have("filter cannot be read")).await;
        assert!(logged("third"));
        write("off");
        until(|| lines.have("\"off\" is logged from now on")).await;
        // That line is the last one.
        sleep(Duration::from_millis(100)).await;
        assert!(!logged("fourth"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Levels::new(&args(Some(Path::new("/nowhere/filter")))).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "--log-from: /nowhere/filter cannot be read");
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in [
            "info",
            "WARN",
            "off",
            "info,sdxl_stage=debug",
            "sdxl_stage::worker=trace, warn",
            "[run{stage=vae}]=debug",
            "info,sdxl_stage[run{stage=vae}]=trace, warn",
        ] {
            parse(text).unwrap_or_else(|error| panic!("{text}: {error:#}"));
        }
        for text in ["", "inof", "sdxl_stage", "info,", "sdxl_stage=loud", "info,sdxl_stage", "7x"] {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?} is not a filter")), "{error:#}");
        }
    }
}
