//! What an expression of Prometheus's language asks for, as far as the chart's expressions need it.

use integration_tests::{Documented, documented::METRICS};
use std::collections::BTreeSet;

/// What Prometheus gives to whatever it scrapes, and a histogram's buckets have.
const OF_TARGETS: [&str; 4] = ["namespace", "pod", "instance", "le"];
const AGGREGATIONS: [&str; 5] = ["sum", "max", "min", "avg", "group"];
const WORDS: [&str; 4] = ["and", "or", "unless", "bool"];
/// What labels in brackets follow.
const GROUPINGS: [&str; 5] = ["by", "without", "on", "ignoring", "group_left"];

/// A metric that is asked for, and the labels by which series are chosen, with the values that they may have.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    pub(crate) matchers: Vec<(String, String)>,
}

/// What an expression asks for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) selectors: BTreeSet<Selector>,
    /// Labels that it groups by.
    pub(crate) groupings: BTreeSet<String>,
}

impl Asked {
    /// # Panics
    /// Where brackets do not close.
    pub(crate) fn of(expression: &str) -> Self {
        let mut asked = Self::default();
        let mut rest = expression;
        while let Some(next) = rest.chars().next() {
            if next == '[' {
                rest = inside(rest, ']').1;
            } else if next.is_ascii_alphabetic() || next == '_' {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let word = &rest[..end];
                rest = asked.word(word, rest[end..].trim_start());
            } else if next.is_ascii_digit() {
                rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
            } else {
                rest = &rest[next.len_utf8()..];
            }
        }
        assert!(!asked.selectors.is_empty(), "it asks for nothing: {expression}");
        asked
    }

    /// Takes a word, and what belongs to it from what follows; the rest of that.
    fn word<'a>(&mut self, word: &str, follows: &'a str) -> &'a str {
        if GROUPINGS.contains(&word) && follows.starts_with('(') {
            let (labels, rest) = inside(follows, ')');
            self.groupings.extend(labels.split(',').map(|label| label.trim().to_owned()));
            return rest;
        }
        let is_value_of_chart = word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        let is_known = [&AGGREGATIONS[..], &WORDS, &GROUPINGS].iter().any(|words| words.contains(&word));
        if is_known || is_value_of_chart || follows.starts_with('(') {
            return follows;
        }
        let (matchers, rest) = if follows.starts_with('{') { inside(follows, '}') } else { ("", follows) };
        let matchers = matchers.split(", ").filter(|matcher| !matcher.is_empty()).map(|matcher| {
            let (label, value) = matcher.split_once(['=', '!']).unwrap_or_else(|| panic!("{matcher}"));
            (label.to_owned(), value.trim_matches(['=', '~', '"']).to_owned())
        });
        self.selectors.insert(Selector { metric: word.to_owned(), matchers: matchers.collect() });
        rest
    }

    /// What is wrong with it, by what is documented.
    pub(crate) fn problems(&self, documented: &[Documented]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut labels: BTreeSet<&str> = OF_TARGETS.into();
        for Selector { metric, matchers } in &self.selectors {
            let Some(known) = documented.iter().find(|known| known.has(metric)) else {
                problems.push(format!("there is no {metric}"));
                continue;
            };
            labels.extend(known.labels.iter().map(String::as_str));
            for (label, values) in matchers {
                if !known.labels.contains(label) && !OF_TARGETS.contains(&label.as_str()) {
                    problems.push(format!("{metric} has no {label}"));
                }
                let listed = known.values(label);
                let is_known = |value: &str| match &listed {
                    Some(listed) => listed.contains(value),
                    None => METRICS.contains(&format!("`{value}`")),
                };
                let values = values.split('|').filter(|value| !value.starts_with('$'));
                let unknown = values.filter(|value| !is_known(value));
                problems.extend(unknown.map(|value| format!("{metric} has no {label}=\"{value}\"")));
            }
        }
        let unknown = self.groupings.iter().filter(|label| !labels.contains(label.as_str()));
        problems.extend(unknown.map(|label| format!("nothing has {label}")));
        problems
    }
}

/// What is inside the bracket that `text` begins with, and what comes after.
fn inside(text: &str, close: char) -> (&str, &str) {
    text[1..].split_once(close).unwrap_or_else(|| panic!("no {close} in {text}"))
}

#[test]
fn what_an_expression_asks_for_is_found() {
    let asked = Asked::of(
        "max by (stage) (rate(a_total{x=\"1\", y!~\"2|3\"}[5m])) / ignoring (z) group_left sum(b) > SHARE and 1e3",
    );
    let selector = |metric: &str, matchers: &[(&str, &str)]| {
        let matchers = matchers.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
        Selector { metric: metric.to_owned(), matchers: matchers.collect() }
    };
    let selectors = BTreeSet::from([selector("a_total", &[("x", "1"), ("y", "2|3")]), selector("b", &[])]);
    assert_eq!(asked.selectors, selectors);
    assert_eq!(asked.groupings, BTreeSet::from(["stage", "z"].map(str::to_owned)));

    let documented = Documented::all();
    let problems = |expression: &str| Asked::of(expression).problems(&documented);
    assert_eq!(problems("sum by (stage, le) (sdxl_stage_duration_seconds_bucket)"), Vec::<String>::new());
    for (wrong, problem) in [
        ("sdxl_stage_duration_seconds", "there is no sdxl_stage_duration_seconds"),
        ("sdxl_resumes", "there is no sdxl_resumes"),
        ("sdxl_resumes_total{outcome=\"ok\"}", "sdxl_resumes_total has no outcome"),
        ("sdxl_requests_total{outcome=~\"ok|lost\"}", "sdxl_requests_total has no outcome=\"lost\""),
        // Others have these.
        ("sdxl_requests_total{outcome=\"ready\"}", "sdxl_requests_total has no outcome=\"ready\""),
        ("sdxl_stage_replicas{state=\"failed\"}", "sdxl_stage_replicas has no state=\"failed\""),
        ("sdxl_runs_total{outcome=\"refused\"}", "sdxl_runs_total has no outcome=\"refused\""),
        ("sdxl_resumes_total{stage=\"unet\"}", "sdxl_resumes_total has no stage=\"unet\""),
        ("sum by (size) (sdxl_resumes_total)", "nothing has size"),
    ] {
        assert_eq!(problems(wrong), [problem]);
    }
}
