//! promtool has each alert fire, and not fire.

use crate::{
    PATIENCE,
    cases::{CASES, Case, Series},
    chart::{laid, rendered, rules},
};
use integration_tests::{kubernetes::said, process, prometheus::tool};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

/// A series of a namespace; of none where that is empty.
fn series(namespace: &str, of: &[Series]) -> Vec<Value> {
    let label = format!("namespace=\"{namespace}\"");
    let name = |name: &str| match name.split_once('{') {
        _ if namespace.is_empty() => name.to_owned(),
        Some((metric, labels)) => format!("{metric}{{{label}, {labels}"),
        None => format!("{name}{{{label}}}"),
    };
    of.iter().map(|(metric, values)| json!({"series": name(metric), "values": values})).collect()
}

/// That an alert fires in these namespaces alone, as promtool asks it.
fn expected(case: &Case, severity: &str, namespaces: &[String]) -> Value {
    let samples = namespaces.iter().map(|namespace| {
        let mut labels =
            BTreeMap::from([("alertname", case.alert), ("alertstate", "firing"), ("severity", severity)]);
        labels.extend(case.labels.iter().copied());
        if !namespace.is_empty() {
            labels.insert("namespace", namespace);
        }
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        json!({"labels": format!("ALERTS{{{}}}", labels.join(", ")), "value": 1})
    });
    json!([{
        "expr": format!("ALERTS{{alertname=\"{}\", alertstate=\"firing\"}}", case.alert),
        "eval_time": format!("{}m", case.at),
        "exp_samples": samples.collect::<Vec<_>>(),
    }])
}

/// All of it side by side, each in a namespace of its own; and each alone, without namespaces.
fn tests(case: &Case, severity: &str) -> Vec<Value> {
    let test = |name: &str, input: Vec<Value>, expected: Value| {
        let name = format!("{}: {name}", case.alert);
        json!({"name": name, "interval": "1m", "input_series": input, "promql_expr_test": expected})
    };
    let mut together = Vec::new();
    let mut fire = Vec::new();
    let mut tests = Vec::new();
    for (index, of) in case.fires.iter().enumerate() {
        fire.push(format!("fires-{index}"));
        together.extend(series(&fire[index], of));
        tests.push(test(&fire[index], series("", of), expected(case, severity, &[String::new()])));
    }
    for (index, of) in case.does_not.iter().enumerate() {
        let namespace = format!("does-not-{index}");
        together.extend(series(&namespace, of));
        tests.push(test(&namespace, series("", of), expected(case, severity, &[])));
    }
    tests.push(test("side by side", together, expected(case, severity, &fire)));
    tests
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() {
    let Some(promtool) = tool("promtool") else { return };
    let Some(text) = rendered(json!({})) else { return };
    let severities: BTreeMap<_, _> =
        rules(&text).into_iter().map(|rule| (rule.alert, rule.labels["severity"].clone())).collect();
    let tried: BTreeSet<_> = CASES.iter().map(|case| case.alert.to_owned()).collect();
    assert_eq!(tried, severities.keys().cloned().collect(), "each alert has a case");
    assert!(CASES.iter().all(|case| !case.fires.is_empty() && !case.does_not.is_empty()));

    let tests: Vec<_> = CASES.iter().flat_map(|case| tests(case, &severities[case.alert])).collect();
    println!("{} tests of {} alerts", tests.len(), CASES.len());
    let file = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests});
    let folder = laid(&text);
    fs::write(folder.path().join("tests.yaml"), file.to_string()).unwrap();
    let mut command = Command::new(promtool);
    command.args(["test", "rules", "tests.yaml"]).current_dir(folder.path());
    let found = process::run(command, PATIENCE);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    assert!(said(&found).contains("SUCCESS"));
}
