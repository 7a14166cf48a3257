//! A client in another language, which knows the contract from the server's reflection alone.

use integration_tests::{Cluster, ClusterConfig, Made, process};
use std::{path::Path, process::Command, time::Duration};

#[test]
fn a_python_client_finds_its_way_by_reflection() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.parent().unwrap().join(".venv/bin/python");
    assert!(python.exists(), "{} is missing: run integration-tests/python/setup.sh first", python.display());
    let cluster = Cluster::start(&ClusterConfig::new(&Made::pico()));
    let mut command = Command::new(python);
    command
        .arg(here.join("python/client.py"))
        .arg(cluster.coordinator.address().trim_start_matches("http://"));
    let output = process::run(command, Duration::from_secs(120));
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{said}{complained}");
    assert_eq!(said.lines().count(), 9, "a line for each thing checked:\n{said}");
}
