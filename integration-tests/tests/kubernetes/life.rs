//! A release's life: installed, upgraded, rolled back, scaled and removed.

use crate::{EXAMPLES, LEAST, complaint, example, helm, objects, text};
use integration_tests::{
    ApiServer,
    kubernetes::{chart, said},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// The images of a release's Deployments, by name.
fn images(api: &ApiServer, namespace: &str) -> BTreeMap<String, String> {
    let deployments = api.get(namespace, &["deployments"]);
    let image = |item: &Value| {
        let container = &item["spec"]["template"]["spec"]["containers"][0];
        (text(&item["metadata"]["name"]), text(&container["image"]))
    };
    deployments["items"].as_array().unwrap().iter().map(image).collect()
}

/// Kubernetes' own controller does this once no pod uses a claim.
fn let_go_of_claims(api: &ApiServer, namespace: &str) {
    for claim in api.get(namespace, &["persistentvolumeclaims"])["items"].as_array().unwrap() {
        assert!(claim["metadata"]["deletionTimestamp"].is_string(), "not deleted: {claim}");
        let name = text(&claim["metadata"]["name"]);
        let patch = r#"{"metadata": {"finalizers": null}}"#;
        api.kubectl(["patch", "pvc", &name, "-n", namespace, "--type=merge", "-p", patch]);
    }
}

#[test]
fn each_example_is_installed_upgraded_rolled_back_and_leaves_nothing() {
    let Some(api) = ApiServer::shared() else { return };
    for name in EXAMPLES {
        let namespace = &format!("life-{name}");
        api.namespace(namespace, "privileged");
        let values = [example(name)];
        said(&api.helm(["lint", "--strict", chart().to_str().unwrap(), "-f", &values[0]]));

        let notes = said(&helm(api, "install", namespace, &values, &[]));
        assert!(notes.contains(&format!("helm --namespace {namespace} test sdxl --logs")), "{notes}");
        let first = images(api, namespace);
        let stages = ["coordinator", "text-encoder", "base-unet", "refiner", "vae"];
        for stage in stages {
            let image = &first[&format!("sdxl-{stage}")];
            assert!(image.starts_with(&format!("registry.example.com/sdxl/sdxl-{stage}:0.1.0")), "{image}");
        }

        let password =
            || api.kubectl(["get", "secrets", "-n", namespace, "-o", "jsonpath={.items[*].data.password}"]);
        let first_password = password();
        assert_eq!(first_password.is_empty(), !["cpu-trial", "single-gpu"].contains(&name));
        said(&helm(api, "upgrade", namespace, &values, &["image.tag=0.2.0", "coordinator.drainSeconds=120"]));
        assert!(images(api, namespace)["sdxl-vae"].contains(":0.2.0"));
        let coordinator = api.get(namespace, &["deployment", "sdxl-coordinator"]);
        let pod = &coordinator["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], 135, "drain, preStop and ten seconds more");
        assert_eq!(password(), first_password, "Redis keeps its password");

        said(&api.helm(["rollback", "sdxl", "1", "-n", namespace]));
        assert_eq!(images(api, namespace), first);

        said(&api.helm(["uninstall", "sdxl", "-n", namespace]));
        let_go_of_claims(api, namespace);
        assert_eq!(objects(api, namespace), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn an_upgrade_does_not_undo_what_a_scaler_did() {
    let Some(api) = ApiServer::shared() else { return };
    let namespace = "scaled";
    api.namespace(namespace, "privileged");
    let replicas = || api.get(namespace, &["deployment", "sdxl-vae"])["spec"]["replicas"].clone();
    // As a scaler does it.
    let scale = |count: u32| {
        let count = format!("--replicas={count}");
        api.kubectl(["scale", "deployment/sdxl-vae", "-n", namespace, &count]);
    };
    let by_hand = [&LEAST[..], &["stages.vae.replicas=3"]].concat();
    let scaled = [&LEAST[..], &["stages.vae.autoscaling.kind=hpa"]].concat();
    said(&helm(api, "install", namespace, &[], &by_hand));
    assert_eq!(replicas(), 3);
    scale(4); // the number is not the release's any more, and stays when the release does not name it
    said(&helm(api, "upgrade", namespace, &[], &scaled));
    assert_eq!(replicas(), 4, "as operations.md says");
    scale(7);
    said(&helm(api, "upgrade", namespace, &[], &[&scaled[..], &["image.tag=0.2.0"]].concat()));
    assert_eq!(replicas(), 7);
    said(&api.helm(["rollback", "sdxl", "2", "-n", namespace]));
    assert_eq!(replicas(), 7);

    // The way back takes the number from the scaler, which has to be said.
    let back = helm(api, "upgrade", namespace, &[], &by_hand);
    assert!(complaint(&back).contains("spec.replicas"), "{}", complaint(&back));
    let forced = ["upgrade", "sdxl", "-n", namespace, "--force-conflicts", "--reuse-values", "--set"];
    let none = ["stages.vae.autoscaling.kind=none,stages.vae.replicas=3", chart().to_str().unwrap()]
        .map(str::to_owned);
    said(&api.helm(forced.map(str::to_owned).into_iter().chain(none)));
    assert_eq!(replicas(), 3);
    said(&helm(api, "upgrade", namespace, &[], &scaled));
    assert_eq!(replicas(), 1, "the number was the release's, and went with it");
}

#[test]
fn what_is_logged_changes_and_no_pod_is_replaced() {
    let Some(api) = ApiServer::shared() else { return };
    let namespace = "logged";
    api.namespace(namespace, "privileged");
    let templates = || {
        let list = api.get(namespace, &["deployments"]);
        let deployments = list["items"].as_array().unwrap().iter();
        deployments.map(|deployment| deployment["spec"]["template"].clone()).collect::<Vec<_>>()
    };
    let filter = || api.get(namespace, &["configmap", "sdxl-log"])["data"]["filter"].clone();
    said(&helm(api, "install", namespace, &[], &LEAST));
    let before = templates();
    assert_eq!((before.len(), filter()), (5, "info".into()));
    let louder = "telemetry.log=info\\,sdxl_coordinator=debug";
    said(&helm(api, "upgrade", namespace, &[], &[&LEAST[..], &[louder]].concat()));
    assert_eq!((templates(), filter()), (before, "info,sdxl_coordinator=debug".into()));
}
