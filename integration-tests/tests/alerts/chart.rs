//! The alerts and the dashboard, as they are in the chart and as helm renders them.

use crate::PATIENCE;
use integration_tests::{
    kubernetes::{chart, said, tools},
    process,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

/// A file of rules, as Prometheus reads it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "name")]
    _name: String,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) alert: String,
    pub(crate) expr: String,
    #[serde(rename = "for")]
    pub(crate) lasts: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The rules in a file of rules.
pub(crate) fn rules(text: &str) -> Vec<Rule> {
    let rules: Rules = serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let rules: Vec<_> = rules.groups.into_iter().flat_map(|group| group.rules).collect();
    assert!(rules.len() > 10, "{rules:?}");
    rules
}

/// The file of the chart, in which words in capitals stand for values.
pub(crate) fn written() -> Vec<Rule> {
    rules(include_str!("../../../helm/sdxl/files/alerts.yaml"))
}

/// The dashboard's panels that are no rows: title, unit, and queries with their legends.
pub(crate) fn panels() -> Vec<Value> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let panels: Vec<_> = panels.filter(|panel| panel["type"] != "row").cloned().collect();
    assert!(panels.len() > 20, "{panels:?}");
    panels
}

pub(crate) fn dashboard() -> Value {
    serde_json::from_str(include_str!("../../../helm/sdxl/files/dashboard.json")).unwrap()
}

/// A panel's queries, each with its legend.
pub(crate) fn queries(panel: &Value) -> impl Iterator<Item = (&str, &str)> {
    let targets = panel["targets"].as_array().unwrap().iter();
    targets.map(|target| (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap()))
}

/// What helm makes of the chart with these values of `monitoring` and what every release needs. `None` without helm.
pub(crate) fn template(monitoring: &Value) -> Option<Output> {
    let mut helm = Command::new(tools()?.join("bin/helm"));
    let least =
        "tls.enabled=false,image.registry=registry.example.com/sdxl,weights.pvc.claimName=checkpoints";
    helm.args(["template", "sdxl", chart().to_str().unwrap(), "-n", "sdxl", "--set", least]);
    helm.args(["--set-json", &format!("monitoring={monitoring}")]);
    Some(process::run(helm, PATIENCE))
}

/// The objects of a kind among what helm made.
///
/// # Panics
/// Where helm failed, or what it made is no YAML or has a key twice.
pub(crate) fn objects(output: &Output, kind: &str) -> Vec<Value> {
    let documents = said(output);
    let documents = serde_yaml_ng::Deserializer::from_str(&documents);
    let objects = documents.map(|document| {
        // Of a key that comes twice JSON's own reading would take the last.
        let object = serde_yaml_ng::Value::deserialize(document).unwrap();
        serde_json::to_value(object).unwrap()
    });
    objects.filter(|object| object["kind"] == kind).collect()
}

/// The file of rules that is in the chart's PrometheusRule, with these values of `monitoring.alerts`.
pub(crate) fn rendered(mut alerts: Value) -> Option<String> {
    alerts["enabled"] = true.into();
    let objects = objects(&template(&json!({"alerts": alerts}))?, "PrometheusRule");
    assert_eq!(objects.len(), 1, "{objects:?}");
    Some(serde_yaml_ng::to_string(&objects[0]["spec"]).unwrap())
}

/// A folder with `rules.yaml`, for promtool.
pub(crate) fn laid(rules: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.yaml"), rules).unwrap();
    folder
}
