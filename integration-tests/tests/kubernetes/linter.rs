//! What can be said of the chart without a server.

use crate::{EXAMPLES, PATIENCE, example};
use integration_tests::{
    kubernetes::{chart, said, tools},
    process,
};
use std::{collections::BTreeMap, fs, process::Command};

/// What the linter says, and why it may: the names of its checks come from what it prints.
const EXCEPTIONS: [(&str, &str); 5] = [
    (
        "CPU limit is not set",
        "a limit throttles a process in the middle of a step; requests share the processor",
    ),
    (
        "ImagePullPolicy is not set to Always",
        "tags of releases do not move; image.pullPolicy is there for others",
    ),
    ("does not have a host podAntiAffinity set", "topologySpreadConstraints spread over nodes"),
    ("Deployment few replicas", "one replica of a stage is what most clusters begin with"),
    ("Deployment update strategy", "two Redis pods at a time would write to one file"),
];

#[test]
fn the_linter_finds_nothing_but_what_is_explained() {
    let Some(tools) = tools() else { return };
    let mut found = BTreeMap::new();
    for name in EXAMPLES {
        let run = |tool: &str, args: &[&str]| {
            let mut command = Command::new(tools.join("bin").join(tool));
            command.args(args);
            process::run(command, PATIENCE)
        };
        let chart = chart();
        let rendered =
            run("helm", &["template", "sdxl", chart.to_str().unwrap(), "-n", "sdxl", "-f", &example(name)]);
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        fs::write(file.path(), said(&rendered)).unwrap();
        let path = file.path().to_str().unwrap();
        let linted =
            run("kube-score", &["score", "--kubernetes-version", "v1.31", "--output-format", "ci", path]);
        let lines = String::from_utf8_lossy(&linted.stdout).into_owned();
        assert!(lines.lines().filter(|line| line.starts_with("[OK]")).count() > 50, "{lines}");
        for line in lines.lines().filter(|line| !line.starts_with("[OK]") && !line.starts_with("[SKIPPED]")) {
            let exception = EXCEPTIONS.iter().find(|(problem, _)| line.contains(problem));
            let (problem, _) = exception.unwrap_or_else(|| panic!("{name}: {line}"));
            *found.entry(*problem).or_insert(0) += 1;
        }
    }
    assert_eq!(found.len(), EXCEPTIONS.len(), "an exception that nothing needs: {found:?}");
}

#[test]
fn the_charts_page_is_what_its_values_say() {
    let Some(tools) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    for name in ["Chart.yaml", "values.yaml", "README.md.gotmpl"] {
        fs::copy(chart().join(name), folder.path().join(name)).unwrap();
    }
    let mut docs = Command::new(tools.join("bin/helm-docs"));
    docs.args(["--sort-values-order", "file", "--chart-search-root"]).arg(folder.path());
    said(&process::run(docs, PATIENCE));
    let page = fs::read_to_string(folder.path().join("README.md")).unwrap();
    let kept = fs::read_to_string(chart().join("README.md")).unwrap();
    assert_eq!(page, kept, "`make chart-readme` writes it anew");
    let unexplained: Vec<_> =
        page.lines().filter(|line| line.starts_with("| ") && line.ends_with("|  |")).collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
}
