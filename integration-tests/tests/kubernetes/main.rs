//! The chart against a real API server: every object that it makes is checked and kept by the server that would run it.
//!
//! `make tools` builds what this needs; without it the tests say so and do nothing.

mod binaries;
mod discovery;
mod kubelet;
mod life;
mod linter;
mod pods;
mod roles;
mod secured;
mod server;
mod values;

use integration_tests::{ApiServer, kubernetes::chart};
use serde_json::Value;
use std::{io::Write, process::Output, time::Duration};

pub(crate) const EXAMPLES: [&str; 4] = ["cpu-trial", "h200-pools", "multi-zone", "single-gpu"];
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// What every release needs, for tests of other things.
pub(crate) const LEAST: [&str; 3] =
    ["tls.enabled=false", "image.registry=registry.example.com/sdxl", "weights.pvc.claimName=checkpoints"];

pub(crate) fn example(name: &str) -> String {
    chart().join("examples").join(format!("{name}.yaml")).to_str().unwrap().to_owned()
}

/// `helm COMMAND RELEASE CHART` in a namespace, with settings as `key=value`.
pub(crate) fn helm(
    api: &ApiServer,
    command: &str,
    namespace: &str,
    files: &[String],
    settings: &[&str],
) -> Output {
    let mut args = vec![command.to_owned(), "sdxl".to_owned(), chart().to_str().unwrap().to_owned()];
    args.extend(["-n".to_owned(), namespace.to_owned()]);
    args.extend(files.iter().flat_map(|file| ["-f".to_owned(), file.clone()]));
    args.extend(settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]));
    api.helm(args)
}

pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}

/// The namespaces' objects of whatever kind can be listed, but the account that each has from the start.
pub(crate) fn objects(api: &ApiServer, namespace: &str) -> Vec<String> {
    let kinds = api.kubectl(["api-resources", "--namespaced", "--verbs=list", "-o", "name"]);
    let kinds: Vec<_> =
        kinds.lines().filter(|kind| *kind != "events" && !kind.starts_with("events.")).collect();
    assert!(kinds.len() > 30, "kinds of objects: {kinds:?}");
    let listed = api.kubectl(["get", &kinds.join(","), "-n", namespace, "-o", "name"]);
    listed.lines().filter(|name| *name != "serviceaccount/default").map(str::to_owned).collect()
}

/// A file with an object, for kubectl.
pub(crate) fn written(object: &Value) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    file.write_all(object.to_string().as_bytes()).unwrap();
    file
}
