//! What alerts and dashboard ask for, and what people are told.

use crate::chart::{Rule, dashboard, laid, objects, panels, queries, rendered, rules, template, written};
use crate::{PATIENCE, queries::Asked};
use integration_tests::{Documented, kubernetes::said, process, prometheus::tool};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Output},
};

fn names(rules: &[Rule]) -> BTreeSet<String> {
    let names: BTreeSet<_> = rules.iter().map(|rule| rule.alert.clone()).collect();
    assert_eq!(names.len(), rules.len(), "a name twice");
    names
}

/// The labels that a text names after `before`, up to what is no letter.
fn named<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let parts = text.split(before).skip(1);
    parts.map(|part| part.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap()).collect()
}

#[test]
fn alerts_ask_for_what_there_is() {
    let documented = Documented::all();
    for rule in written() {
        let asked = Asked::of(&rule.expr);
        assert_eq!(asked.problems(&documented), Vec::<String>::new(), "{}", rule.alert);
        assert!(asked.groupings.contains("namespace"), "{} mixes namespaces", rule.alert);
        assert!(["warning", "critical"].contains(&rule.labels["severity"].as_str()), "{rule:?}");
        assert!(
            !rule.annotations["summary"].ends_with('.') && rule.annotations["description"].ends_with('.')
        );
        for label in rule.annotations.values().flat_map(|text| named(text, "$labels.")) {
            assert!(asked.groupings.contains(label), "{} knows no {label}", rule.alert);
        }
    }
}

#[test]
fn panels_ask_for_what_there_is() {
    let documented = Documented::all();
    let mut asked_for = BTreeSet::new();
    for panel in panels() {
        for (query, legend) in queries(&panel) {
            let asked = Asked::of(query);
            assert_eq!(asked.problems(&documented), Vec::<String>::new(), "{query}");
            for label in named(legend, "{{") {
                assert!(asked.groupings.contains(label), "{label} is not in the result of {query}");
            }
            for selector in asked.selectors {
                let of_namespace = ("namespace".to_owned(), "$namespace".to_owned());
                assert!(selector.matchers.contains(&of_namespace), "{query} is of all namespaces");
                asked_for.insert(selector.metric);
            }
        }
    }
    // What is measured is to be seen.
    let unseen = documented.iter().filter(|metric| !asked_for.iter().any(|series| metric.has(series)));
    let unseen: Vec<_> = unseen.map(|metric| metric.name.as_str()).collect();
    assert_eq!(unseen, ["target_info"]);
}

#[test]
fn panels_lie_beside_each_other_and_have_units() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id twice");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        for cell in (y..y + h).flat_map(|y| (x..x + w).map(move |x| (x, y))) {
            assert!(taken.insert(cell), "two panels at {cell:?}: {panel}");
        }
    }
    for panel in crate::chart::panels() {
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        assert_eq!(panel["datasource"], json!({"type": "prometheus", "uid": "${datasource}"}));
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables: Vec<_> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(variables, ["datasource", "namespace"]);
}

#[test]
fn each_alert_is_in_the_runbook_and_each_of_the_runbook_is_there() {
    let written = names(&written());
    let operations = include_str!("../../../docs/operations.md");
    let rows = operations.lines().filter_map(|line| line.strip_prefix("| <a id=\""));
    let told: Vec<_> = rows
        .map(|row| {
            let (id, row) = row.split_once("\"></a>`").unwrap();
            let cells: Vec<_> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
            let [name, means, to_do] = cells[..] else { panic!("three cells: {row}") };
            let name = name.trim_end_matches('`').to_owned();
            assert_eq!(id, name.to_lowercase(), "where `runbook_url` leads");
            assert!(means.len() > 20 && to_do.len() > 20, "{row}");
            name
        })
        .collect();
    assert_eq!(told.len(), told.iter().collect::<BTreeSet<_>>().len(), "a row twice");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), written);

    let schema: Value = serde_json::from_str(include_str!("../../../helm/sdxl/values.schema.json")).unwrap();
    let without = &schema["properties"]["monitoring"]["properties"]["alerts"]["properties"]["without"];
    let known = without["items"]["enum"].as_array().unwrap().iter();
    assert_eq!(known.map(|name| name.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(), written);
}

#[test]
fn promtool_takes_alerts_and_queries() {
    let Some(promtool) = tool("promtool") else { return };
    let Some(mut alerts) = rendered(json!({})) else { return };
    let checked = |text: &str| {
        let folder = laid(text);
        let mut command = Command::new(&promtool);
        command.args(["check", "rules", "rules.yaml"]).current_dir(folder.path());
        process::run(command, PATIENCE)
    };
    let found = said(&checked(&alerts));
    assert!(found.contains(&format!("{} rules found", written().len())), "{found}");
    // As rules that record, which are checked as alerts are.
    let panels = panels();
    let queries: Vec<_> = panels.iter().flat_map(queries).collect();
    let recorded = queries.iter().enumerate().map(|(index, (query, _))| {
        let query = query.replace("$__rate_interval", "5m").replace("$namespace", ".*");
        json!({"record": format!("panel_{index}"), "expr": query})
    });
    let recorded = json!({"groups": [{"name": "dashboard", "rules": recorded.collect::<Vec<_>>()}]});
    let found = said(&checked(&recorded.to_string()));
    assert!(found.contains(&format!("{} rules found", queries.len())), "{found}");

    alerts = alerts.replace("sum by (namespace) (", "sum by (namespace) ((");
    assert!(!checked(&alerts).status.success(), "it finds what is wrong");
}

#[test]
fn values_are_in_the_alerts() {
    let values = json!({
        "window": "7m",
        "for": "3m",
        "thresholds": {"deadlineShare": 0.07, "requests": 1_000_000},
        "without": ["SdxlQueueLong", "SdxlRedisGone", "SdxlCacheCollapsed"],
        "runbook": "https://example.com/operations",
    });
    let Some(text) = rendered(values) else { return };
    let all = names(&written());
    let left = rules(&text);
    let out: Vec<_> = all.difference(&names(&left)).cloned().collect();
    assert_eq!(out, ["SdxlCacheCollapsed", "SdxlQueueLong", "SdxlRedisGone"]);
    for rule in &left {
        let own = rule.alert == "SdxlReplicasUnused";
        assert_eq!(rule.lasts, if own { "30m" } else { "3m" }, "{rule:?}");
        let place = format!("https://example.com/operations#{}", rule.alert.to_lowercase());
        assert_eq!(rule.annotations.get("runbook_url"), Some(&place));
        let words = rule.expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let capitals = words.filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase()));
        assert_eq!(capitals.collect::<Vec<_>>(), Vec::<&str>::new(), "no value: {rule:?}");
    }
    let missed = &left[0].expr;
    assert!(missed.contains("[7m]))") && missed.contains("> 0.07\n") && !missed.contains("10m"), "{missed}");
    assert!(missed.contains(">= 1000000") || missed.contains(">= 1e+06"), "{missed}");
    // Without a place on the web the file is named.
    let plain = rules(&rendered(json!({})).unwrap());
    assert_eq!(plain[0].annotations["runbook"], "docs/operations.md#sdxldeadlinesmissed");
}

/// The ConfigMap of this name.
fn config_map(output: &Output, name: &str) -> Option<Value> {
    objects(output, "ConfigMap").into_iter().find(|map| map["metadata"]["name"] == name)
}

/// Helm takes null for a value that is not there, and then its word would stay in the rules.
#[test]
fn a_value_that_is_taken_away_is_missed_by_name() {
    let schema: Value = serde_json::from_str(include_str!("../../../helm/sdxl/values.schema.json")).unwrap();
    let alerts = &schema["properties"]["monitoring"]["properties"]["alerts"]["properties"];
    let thresholds = alerts["thresholds"]["properties"].as_object().unwrap();
    let keys: Vec<_> = thresholds.keys().map(String::as_str).collect();
    assert!(keys.len() > 10, "{keys:?}");
    let none: BTreeMap<_, _> = keys.iter().map(|key| (*key, Value::Null)).collect();
    for (alerts, keys) in [
        (json!({"thresholds": none}), &keys[..]),
        (json!({"window": null, "for": null, "thresholds": null}), &["window", "for", "thresholds"]),
    ] {
        let Some(output) = template(&json!({"alerts": alerts})) else { return };
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{alerts}");
        for key in keys {
            assert!(complaint.contains(&format!("'{key}'")), "{key} is not in\n{complaint}");
        }
    }
}

/// A key twice is no YAML, and [`objects`] takes none.
#[test]
fn labels_take_the_place_of_the_charts_own() {
    let labels = json!({"app.kubernetes.io/part-of": "platform", "release": "prometheus"});
    let on = json!({"enabled": true, "labels": labels});
    let Some(output) = template(&json!({"podMonitor": on, "alerts": on, "dashboard": on})) else { return };
    let dashboard = config_map(&output, "sdxl-dashboard").unwrap();
    for object in
        [objects(&output, "PodMonitor").remove(0), objects(&output, "PrometheusRule").remove(0), dashboard]
    {
        let found = &object["metadata"]["labels"];
        assert_eq!(found["app.kubernetes.io/part-of"], "platform", "{object}");
        assert_eq!(found["release"], "prometheus", "{object}");
        assert_eq!(found["app.kubernetes.io/instance"], "sdxl", "the others stay: {object}");
    }
}

#[test]
fn a_release_that_is_not_told_to_has_none_of_it() {
    let Some(plain) = template(&json!({})) else { return };
    for kind in ["PodMonitor", "PrometheusRule"] {
        assert_eq!(objects(&plain, kind), Vec::<Value>::new());
    }
    assert_eq!(config_map(&plain, "sdxl-dashboard"), None);
    assert!(config_map(&plain, "sdxl-log").is_some(), "another one is always there");
    let map = |dashboard: Value| {
        let output = template(&json!({"dashboard": dashboard})).unwrap();
        config_map(&output, "sdxl-dashboard").unwrap()
    };
    let on = map(json!({"enabled": true}));
    assert_eq!(on["metadata"]["labels"]["grafana_dashboard"], "1");
    let shown: Value = serde_json::from_str(on["data"]["sdxl.json"].as_str().unwrap()).unwrap();
    assert_eq!(shown, dashboard());
    let labelled = map(json!({"enabled": true, "labels": {"grafana_dashboard": "yes"}}));
    assert_eq!(labelled["metadata"]["labels"]["grafana_dashboard"], "yes");
}
