//! The peers: Python processes that print their figures as JSON.

use crate::network::DTYPES;
use integration_tests::process;
use serde_json::Value;
use std::{
    cell::RefCell,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(1800);

/// A Python with all peers, and what it has told of their versions.
#[derive(Debug)]
pub(crate) struct Peers {
    python: PathBuf,
    threads: usize,
    dtypes: Vec<&'static str>,
    versions: RefCell<String>,
}

impl Peers {
    /// Compared in the number formats of `dtypes`, or in all where there is none.
    pub(crate) fn from_environment(dtypes: &[&str]) -> Self {
        let python = std::env::var_os("SDXL_BENCH_PYTHON").expect("make bench names a Python with the peers");
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let dtypes = DTYPES.into_iter().filter(|dtype| dtypes.is_empty() || dtypes.contains(dtype)).collect();
        Self { python: python.into(), threads, dtypes, versions: RefCell::default() }
    }

    /// The number formats that both sides compute in.
    pub(crate) fn dtypes(&self) -> impl Iterator<Item = &'static str> {
        self.dtypes.iter().copied()
    }

    /// All of the machine's, on every side.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// As `torch 2.15.0, diffusers 0.42.1`.
    pub(crate) fn versions(&self) -> String {
        self.versions.borrow().clone()
    }

    /// Runs `script` and gives the JSON of its last line, or the last line of what went wrong.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, script: &str, args: &[S]) -> Result<Value, String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
        let mut command = Command::new(&self.python);
        command.arg(folder.join(script)).args(args);
        eprintln!("{}", describe(script, args));
        let output = process::run(command, LIMIT);
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            eprintln!("{errors}");
            let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            return Err(format!("{script}: {}: {last}", output.status));
        }
        let last = text.lines().last().unwrap_or_default();
        let json: Value = serde_json::from_str(last).map_err(|error| format!("{script}: {error}: {text}"))?;
        if let Some(versions) = json["versions"].as_object() {
            let all =
                versions.iter().map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or("?")));
            *self.versions.borrow_mut() = all.collect::<Vec<_>>().join(", ");
        }
        Ok(json)
    }
}

/// The script with those of its arguments that are short enough to read.
fn describe<S: AsRef<OsStr>>(script: &str, args: &[S]) -> String {
    let short = args.iter().filter_map(|arg| arg.as_ref().to_str()).filter(|arg| !arg.contains(['/', ' ']));
    format!("  {script} {} ...", short.collect::<Vec<_>>().join(" "))
}

/// The least of `times` in a peer's answer.
pub(crate) fn best(json: &Value) -> f64 {
    let times = json["times"].as_array().into_iter().flatten().filter_map(Value::as_f64);
    times.fold(f64::NAN, f64::min)
}

/// One figure of a peer's answer.
pub(crate) fn figure(json: &Value, key: &str) -> f64 {
    json[key].as_f64().unwrap_or(f64::NAN)
}
