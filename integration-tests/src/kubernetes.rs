//! A Kubernetes API server with the store beneath it, and helm and kubectl to talk to it. There is no controller, no
//! scheduler and no node: what is installed is checked and kept, and never runs.

use crate::{leash::Leashed, process};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

/// How long it may take to start, on a busy machine.
const START: Duration = Duration::from_secs(180);
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Who may do everything.
const ADMIN: &str = "admin-of-the-tests";
/// The folder that `make tools` lays, with `bin/` and `crds/`.
///
/// `None`, and a line that says so, where it is not there; unless `KUBERNETES_TESTS=required` says that it has to be.
///
/// # Panics
/// Where it has to be and is not.
#[must_use]
pub fn tools() -> Option<PathBuf> {
    let tools = root().join("target/tools");
    if tools.join("complete").exists() {
        return Some(tools);
    }
    let missing = format!("{} is missing: run `make tools` first", tools.display());
    let required = std::env::var("KUBERNETES_TESTS").is_ok_and(|word| word == "required");
    assert!(!required, "{missing}");
    println!("skipped: {missing}");
    None
}

/// The chart.
#[must_use]
pub fn chart() -> PathBuf {
    root().join("helm/sdxl")
}

/// The repository.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the repository")
}

/// An API server on a port of its own, with role-based access and the definitions of others' resources that the chart
/// uses. It ends when this is dropped, or when the test process does.
#[derive(Debug)]
pub struct ApiServer {
    tools: PathBuf,
    folder: PathBuf,
    port: u16,
    store: String,
    process: Mutex<Option<Leashed>>,
    _etcd: Leashed,
}

impl ApiServer {
    /// The one that the tests of a process share, each with namespaces of its own; `None` without [`tools`].
    #[must_use]
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        tools().map(|tools| SHARED.get_or_init(|| Self::start(tools)))
    }

    /// Starts one of a test's own, from the folder of [`tools`].
    ///
    /// # Panics
    /// Where it does not start; with its log.
    #[must_use]
    pub fn start(tools: PathBuf) -> Self {
        let [client, peer, port] = free_ports();
        let store = format!("127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        let folder = tempfile::Builder::new().prefix("sdxl-kubernetes-").tempdir().expect("a folder").keep();
        let etcd = Leashed::start(
            &tools.join("bin/etcd"),
            &folder,
            Some(&folder),
            [
                "--data-dir=data".to_owned(),
                format!("--listen-client-urls=http://{store}"),
                format!("--advertise-client-urls=http://{store}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster=default={peers}"),
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        );
        keys(&folder);
        let api = Self { tools, folder, port, store, process: Mutex::default(), _etcd: etcd };
        api.write_config("admin", ADMIN);
        api.come_back();
        api.kubectl(["apply", "--server-side", "-f", api.tools.join("crds").to_str().expect("a path")]);
        api.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
        api
    }

    /// Ends the API server, and leaves what it has stored.
    pub fn go_away(&self) {
        self.process.lock().expect("no test panicked in here").take();
    }

    /// Starts it after [`ApiServer::go_away`], at the same address.
    ///
    /// # Panics
    /// Where it does not start; with its log.
    pub fn come_back(&self) {
        let server = Leashed::start(
            &self.tools.join("bin/kube-apiserver"),
            &self.folder,
            None,
            [
                format!("--etcd-servers=http://{}", self.store),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={}", self.port),
                "--cert-dir=.".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                "--token-auth-file=tokens.csv".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                "--service-account-signing-key-file=accounts.key".to_owned(),
                "--service-account-key-file=accounts.key".to_owned(),
                "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                "--profiling=false".to_owned(),
            ],
        );
        *self.process.lock().expect("no test panicked in here") = Some(server);
        self.wait();
    }

    /// Has the store forget all that was, so that a watch that begins before now is told 410 by a server that has just
    /// come back.
    ///
    /// # Panics
    /// Where the store does not do it.
    pub fn forget_history(&self) {
        let now = self.ask_store("range", &serde_json::json!({"key": "AA=="}));
        let revision = &now["header"]["revision"];
        let done = self.ask_store("compaction", &serde_json::json!({"revision": revision, "physical": true}));
        assert!(done["header"].is_object(), "{done}");
    }

    /// A call of etcd's API over plain HTTP.
    fn ask_store(&self, call: &str, request: &Value) -> Value {
        let (host, body) = (&self.store, request.to_string());
        let length = body.len();
        let mut stream = TcpStream::connect(host).expect("etcd listens");
        write!(
            stream,
            "POST /v3/kv/{call} HTTP/1.0\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        serde_json::from_str(body).expect("JSON")
    }

    /// A namespace in which Pod Security at the level `restricted` is enforced, with the account that Kubernetes' own
    /// controller would make there.
    pub fn namespace(&self, name: &str, level: &str) {
        self.kubectl(["create", "namespace", name]);
        let label = |mode: &str| format!("pod-security.kubernetes.io/{mode}={level}");
        self.kubectl(["label", "namespace", name, &label("enforce"), &label("warn")]);
        self.kubectl(["create", "serviceaccount", "default", "-n", name]);
    }

    /// What kubectl prints.
    ///
    /// # Panics
    /// Where it fails.
    pub fn kubectl<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        said(&self.try_kubectl(args))
    }

    /// Runs kubectl.
    pub fn try_kubectl<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.run("kubectl", "admin", args)
    }

    /// The object that kubectl prints.
    ///
    /// # Panics
    /// Where it fails.
    #[must_use]
    pub fn get(&self, namespace: &str, args: &[&str]) -> Value {
        let text = self.kubectl(["get", "-n", namespace, "-o", "json"].iter().chain(args));
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// Runs helm.
    pub fn helm<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.run("helm", "admin", args)
    }

    /// Runs kubectl as a ServiceAccount, with a token that the API server makes for it.
    ///
    /// # Panics
    /// Where there is no such account.
    pub fn kubectl_as(&self, namespace: &str, account: &str, args: &[&str]) -> Output {
        self.log_in(namespace, account);
        self.run("kubectl", &format!("{namespace}-{account}"), args)
    }

    /// A client's configuration with which it is a ServiceAccount, by a token that the API server makes for it.
    ///
    /// # Panics
    /// Where there is no such account.
    pub fn log_in(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.kubectl(["create", "token", account, "-n", namespace]);
        let who = format!("{namespace}-{account}");
        self.write_config(&who, token.trim());
        self.config(&who)
    }

    fn run<S: AsRef<OsStr>>(&self, tool: &str, who: &str, args: impl IntoIterator<Item = S>) -> Output {
        let mut command = Command::new(self.tools.join("bin").join(tool));
        // Its settings and caches are the server's, not those of whoever runs the tests.
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.folder)
            .env("KUBECONFIG", self.config(who))
            .args(args);
        process::run(command, PATIENCE)
    }

    fn config(&self, who: &str) -> PathBuf {
        self.folder.join(format!("{who}.kubeconfig"))
    }

    /// The file that tells clients where the server is and who they are.
    fn write_config(&self, who: &str, token: &str) {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority": self.folder.join("apiserver.crt"),
            }}],
            "users": [{"name": who, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": who}}],
            "current-context": "test",
        });
        fs::write(self.config(who), config.to_string()).expect("a configuration");
    }

    fn wait(&self) {
        let end = Instant::now() + START;
        loop {
            let listens = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            if listens && self.run("kubectl", "admin", ["get", "--raw", "/readyz"]).status.success() {
                return;
            }
            let log = || fs::read_to_string(self.folder.join("kube-apiserver.log")).unwrap_or_default();
            assert!(Instant::now() < end, "the API server is not ready:\n{}", log());
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// What a command printed.
///
/// # Panics
/// Where it failed; with all that it wrote.
pub fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn free_ports() -> [u16; 3] {
    // All are held until all are known, so that none comes twice.
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("an address").port())
}

/// Who may log in, and the key that signs the tokens of ServiceAccounts.
fn keys(folder: &Path) {
    fs::write(folder.join("tokens.csv"), format!("{ADMIN},admin,1,system:masters\n")).expect("tokens");
    let mut openssl = Command::new("openssl");
    openssl.args(["genrsa", "-out", "accounts.key", "2048"]).current_dir(folder);
    said(&process::run(openssl, PATIENCE));
}
