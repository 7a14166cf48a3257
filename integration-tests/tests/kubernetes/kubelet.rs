//! What a node would do with a pod: its container is started with what the chart says, and its Secrets and ConfigMaps lie in
//! files.

use crate::text;
use integration_tests::{ApiServer, kubernetes::said, process::Starting};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// A pod's only container, with its mounts in folders of this machine.
pub(crate) struct Container {
    words: Vec<String>,
    /// Where it expects a folder, and where that is.
    mounts: Vec<(String, PathBuf)>,
    _folders: Vec<tempfile::TempDir>,
}

impl Container {
    /// Of a component's Deployment.
    pub(crate) fn of(api: &ApiServer, namespace: &str, name: &str, weights: &Path) -> Self {
        let deployment = api.get(namespace, &["deployment", &format!("sdxl-{name}")]);
        let container = Self::laid(api, namespace, &deployment["spec"]["template"]["spec"], weights);
        assert_eq!(container.words[0], format!("sdxl-{name}"));
        container
    }

    /// Of the pod of `helm test`.
    pub(crate) fn of_test(api: &ApiServer, namespace: &str) -> Self {
        let hooks = said(&api.helm(["get", "hooks", "sdxl", "-n", namespace]));
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        file.write_all(hooks.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let list = api.kubectl(["create", "--dry-run=client", "-n", namespace, "-o", "json", "-f", path]);
        let mut objects = serde_json::Deserializer::from_str(&list).into_iter().map(Result::unwrap);
        let pod: Value = objects.find(|object: &Value| object["kind"] == "Pod").unwrap();
        let container = Self::laid(api, namespace, &pod["spec"], Path::new("/none"));
        assert_eq!(container.words[0], "sdxl");
        container
    }

    fn laid(api: &ApiServer, namespace: &str, spec: &Value, weights: &Path) -> Self {
        let container = &spec["containers"][0];
        let words = ["command", "args"].iter().flat_map(|key| container[key].as_array().unwrap());
        let words = words.map(text).collect();
        let (mut mounts, mut folders) = (Vec::new(), Vec::new());
        for mount in container["volumeMounts"].as_array().unwrap() {
            if mount["name"] == "weights" {
                mounts.push((text(&mount["mountPath"]), weights.to_owned()));
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let volume = spec["volumes"].as_array().unwrap().iter().find(|v| v["name"] == mount["name"]);
            lay(api, namespace, volume.unwrap(), folder.path());
            mounts.push((text(&mount["mountPath"]), folder.path().to_owned()));
            folders.push(folder);
        }
        Self { words, mounts, _folders: folders }
    }

    /// Where a file that it knows by `path` is.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        let (mount, folder) = self.mounts.iter().find(|(mount, _)| path.starts_with(mount)).unwrap();
        folder.join(path.strip_prefix(mount).unwrap().trim_start_matches('/'))
    }

    /// What it is told, with files where they are here, and `changed` in place of what stands for them.
    pub(crate) fn args(&self, changed: &[(String, String)]) -> Vec<String> {
        let here = |word: &String| {
            if let Some((_, instead)) = changed.iter().find(|(there, _)| there == word) {
                return instead.clone();
            }
            let (flag, value) =
                word.split_once('=').map_or(("", word.as_str()), |(flag, value)| (flag, value));
            match value.starts_with('/') {
                true => format!("{flag}={}", self.file(value).display()),
                false => word.clone(),
            }
        };
        self.words[1..].iter().map(here).collect()
    }

    /// Starts it as a server on loopback.
    pub(crate) fn start(&self, changed: &[(String, String)]) -> Starting {
        let args = self.args(changed).into_iter().filter(|arg| !arg.starts_with("--listen=")).map(|arg| {
            if arg.starts_with("--health-listen=") { "--health-listen=127.0.0.1:0".to_owned() } else { arg }
        });
        Starting::spawn(&self.words[0], args)
    }
}

/// A Secret's files, all or those that are named, or a ConfigMap's; other kinds of volumes are empty.
fn lay(api: &ApiServer, namespace: &str, volume: &Value, folder: &Path) {
    if let Some(name) = volume["configMap"]["name"].as_str() {
        for (key, content) in api.get(namespace, &["configmap", name])["data"].as_object().unwrap() {
            fs::write(folder.join(key), text(content)).unwrap();
        }
        return;
    }
    let Some(name) = volume["secret"]["secretName"].as_str() else {
        assert!(volume["emptyDir"].is_object(), "{volume}");
        return;
    };
    let secret = api.get(namespace, &["secret", name]);
    let all: Vec<_> =
        secret["data"].as_object().unwrap().keys().map(|key| json!({"key": key, "path": key})).collect();
    for item in volume["secret"]["items"].as_array().unwrap_or(&all) {
        let template = format!("go-template={{{{index .data {} | base64decode}}}}", item["key"]);
        let content = api.kubectl(["get", "secret", name, "-n", namespace, "-o", &template]);
        fs::write(folder.join(text(&item["path"])), content).unwrap();
    }
}
