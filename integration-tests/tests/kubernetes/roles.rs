//! What a ServiceAccount of the chart may do.

use crate::{LEAST, complaint, helm, written};
use integration_tests::{ApiServer, kubernetes::said};
use serde_json::json;

#[test]
fn the_coordinator_may_look_at_its_own_endpoints_and_at_nothing_else() {
    let Some(api) = ApiServer::shared() else { return };
    for namespace in ["roles", "other", "without"] {
        api.namespace(namespace, "privileged");
    }
    said(&helm(api, "install", "roles", &[], &LEAST));
    said(&helm(api, "install", "without", &[], &[&LEAST[..], &["discovery=dns"]].concat()));
    let slices = |namespace: &str| format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let ask = |account: &str, path: &str| api.kubectl_as("roles", account, &["get", "--raw", path]);

    let list = said(&ask("sdxl-coordinator", &slices("roles")));
    assert!(list.contains("EndpointSliceList"), "{list}");
    said(&ask("sdxl-coordinator", &format!("{}?watch=1&timeoutSeconds=1", slices("roles"))));

    let denied = |account: &str, path: &str| {
        let output = ask(account, path);
        let complaint = complaint(&output);
        assert!(!output.status.success() && complaint.contains("Forbidden"), "{account} {path}: {complaint}");
    };
    for kind in ["secrets", "pods", "services", "endpoints", "configmaps", "serviceaccounts"] {
        denied("sdxl-coordinator", &format!("/api/v1/namespaces/roles/{kind}"));
    }
    denied("sdxl-coordinator", &slices("other"));
    denied("sdxl-coordinator", "/apis/discovery.k8s.io/v1/endpointslices");
    denied("sdxl-coordinator", "/api/v1/nodes");
    denied("sdxl-base-unet", &slices("roles"));
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "forged"}, "endpoints": [{"addresses": ["10.0.0.9"]}]});
    let slice = written(&slice);
    let create = ["create", "-n", "roles", "-f", slice.path().to_str().unwrap()];
    let forged = api.kubectl_as("roles", "sdxl-coordinator", &create);
    assert!(complaint(&forged).contains("Forbidden"), "{}", complaint(&forged));
    api.kubectl(create); // it is not the object that is wrong

    // Where it asks DNS, it has no business there at all, nor a token.
    let pod = &api.get("without", &["deployment", "sdxl-coordinator"])["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let args = pod["containers"][0]["args"].as_array().unwrap();
    assert!(args.contains(&json!("--vae=dns:sdxl-vae.without.svc:50064")), "{args:?}");
    let elsewhere = api.kubectl_as("without", "sdxl-coordinator", &["get", "--raw", &slices("without")]);
    assert!(complaint(&elsewhere).contains("Forbidden"), "{}", complaint(&elsewhere));
}
