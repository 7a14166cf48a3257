//! The tables in `docs/benchmarks.md`, each part between marks of its own.

use crate::{peer::Peers, table::Section};
use std::{fs, path::Path, process::Command};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md");

/// A part's tables under the machine, the versions and the day.
pub(crate) fn section(tables: &[Box<dyn Section>], peers: &Peers) -> String {
    let date = Command::new("date").args(["-u", "+%F"]).output().expect("date tells the day");
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    let about = [machine(peers.threads()), peers.versions(), date];
    let about: Vec<_> = about.into_iter().filter(|text| !text.is_empty()).collect();
    let mut text = format!("{}.\n", about.join("; "));
    for table in tables {
        text += &format!("\n{table}");
    }
    text
}

/// Puts `text` in the place of what was measured of this part before.
pub(crate) fn write(part: &str, text: &str) {
    let (begin, end) = (format!("<!-- bench {part} -->"), format!("<!-- end of {part} -->"));
    let file = Path::new(FILE);
    let document = fs::read_to_string(file).expect("docs/benchmarks.md");
    let (before, after) = match (document.find(&begin), document.find(&end)) {
        (Some(from), Some(to)) => (document[..from].to_owned(), document[to + end.len()..].to_owned()),
        _ => (format!("{document}\n"), "\n".to_owned()),
    };
    fs::write(file, format!("{before}{begin}\n{text}{end}{after}")).expect("docs/benchmarks.md is written");
}

fn machine(threads: usize) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").expect("Linux");
    let line = |name: &str| info.lines().find(|line| line.starts_with(name)).and_then(|l| l.split_once(':'));
    let model = line("model name").map_or("unknown processor", |(_, model)| model.trim());
    let flags = line("flags").map_or("", |(_, flags)| flags);
    let has = |flag: &str| flags.split_whitespace().any(|found| found == flag);
    let wide: Vec<_> = [("avx512f", "AVX-512"), ("avx512_bf16", "AVX-512 BF16"), ("amx_bf16", "AMX")]
        .into_iter()
        .filter_map(|(flag, name)| has(flag).then_some(name))
        .collect();
    let memory = fs::read_to_string("/proc/meminfo").expect("Linux");
    let kib = memory.lines().find(|l| l.starts_with("MemTotal")).and_then(|l| l.split_whitespace().nth(1));
    let gib = kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / (1 << 20);
    format!("{model} ({}), {threads} threads, {gib} GiB", wide.join(", "))
}
