//! The API server of these tests itself: what others rely on when it goes away and comes back.

use crate::complaint;
use integration_tests::{ApiServer, kubernetes::tools};

#[test]
fn the_server_comes_back_with_what_it_had_and_without_its_history() {
    let Some(tools) = tools() else { return };
    let api = ApiServer::start(tools);
    api.kubectl(["create", "configmap", "kept", "-n", "default"]);
    let maps = "/api/v1/namespaces/default/configmaps";
    let before = api.get("default", &["configmap", "kept"])["metadata"]["resourceVersion"].clone();
    let watch = format!("{maps}?watch=1&timeoutSeconds=1&resourceVersion={}", before.as_str().unwrap());
    api.kubectl(["create", "configmap", "later", "-n", "default"]);
    let seen = api.kubectl(["get", "--raw", &watch]);
    assert!(seen.contains("ADDED") && seen.contains("later"), "{seen}");

    api.go_away();
    let gone = api.try_kubectl(["get", "--raw", maps]);
    assert!(complaint(&gone).contains("refused"), "{}", complaint(&gone));
    api.forget_history();
    api.come_back();
    assert_eq!(api.get("default", &["configmap", "kept"])["metadata"]["resourceVersion"], before);
    let old = api.kubectl(["get", "--raw", &watch]);
    assert!(old.contains(r#""code":410"#), "{old}");
}
