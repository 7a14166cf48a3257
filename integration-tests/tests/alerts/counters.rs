//! `increase` sees the first time of what is counted only where the counter was there before, as 0.

use crate::{chart::written, queries::Asked};
use integration_tests::{Cluster, ClusterConfig, Documented, Profile};
use std::collections::BTreeSet;

/// Each label's part of each series that a metric can have.
fn parts(metric: &Documented) -> Vec<Vec<String>> {
    let mut series = vec![Vec::new()];
    for label in &metric.labels {
        let values = metric.values(label).unwrap_or_else(|| panic!("values of {label} are not listed"));
        let with = |before: Vec<String>| {
            let values = values.iter();
            values.map(move |value| [&before[..], &[format!("{label}=\"{value}\"")]].concat())
        };
        series = series.into_iter().flat_map(with).collect();
    }
    series
}

#[test]
fn what_alerts_count_is_there_before_it_has_happened() {
    let asked = written().into_iter().flat_map(|rule| Asked::of(&rule.expr).selectors);
    let asked: BTreeSet<_> = asked.map(|selector| selector.metric).collect();
    let counters = Documented::all().into_iter().filter(|metric| metric.kind == "counter");
    let counters: Vec<_> = counters.filter(|metric| asked.contains(&metric.name)).collect();
    assert!(counters.len() > 5, "{counters:?}");

    let profile = Profile::quick(0.001);
    let cluster = Cluster::start(&ClusterConfig::simulated(profile.path()));
    let told: String = cluster.servers().map(|server| server.metrics("text/plain")).collect();
    for counter in counters {
        let is_its = |line: &&str| {
            line.strip_prefix(counter.name.as_str()).is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let lines: Vec<_> = told.lines().filter(is_its).collect();
        for parts in parts(&counter) {
            let is_there = lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
            assert!(is_there, "{} with {parts:?} is not in {lines:#?}", counter.name);
        }
    }
}
