//! Real server processes.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take from its start to its first line, on a busy machine.
const START: Duration = Duration::from_secs(60);

/// Where cargo puts binaries: two folders above this test's own executable.
#[must_use]
pub fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").to_owned()
}

/// The path of one of the workspace's binaries.
///
/// # Panics
/// Where it has not been built: cargo builds the binaries of other packages only when it is told to.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = target_dir().join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// A command for one of the workspace's binaries, free of the settings that the caller's environment may hold.
pub fn command<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(binary(name));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|v| v.starts_with("SDXL_") || v.starts_with("OTEL_")) {
            command.env_remove(variable);
        }
    }
    command
}

/// A server process. It ends when this value is dropped or when the test process ends, however that happens.
#[derive(Debug)]
pub struct Server {
    name: String,
    address: String,
    child: Mutex<Child>,
    pid: Pid,
    // Its closing is what tells the server that its parent is gone.
    _stdin: ChildStdin,
    stderr: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts `binary` on a free port of 127.0.0.1 and waits for its `listening` line.
    ///
    /// # Panics
    /// Where it says nothing in time; with what it wrote to stderr.
    pub fn start<S: AsRef<OsStr>>(binary: &str, args: impl IntoIterator<Item = S>) -> Self {
        Starting::spawn(binary, args).listening()
    }

    /// The server's address, as `http://127.0.0.1:4711`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the process is there");
    }

    /// `kill -9`: returns once the process is gone.
    pub fn kill(&self) {
        let mut child = self.child.lock().expect("no test panicked in here");
        child.kill().expect("the process is ours");
        child.wait().expect("the process is ours");
    }

    /// Waits for the process to end; `None` if it runs on for longer than `limit`.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        wait(&mut self.child.lock().expect("no test panicked in here"), limit)
    }

    /// Bytes of memory that the process holds at this moment.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        kib.unwrap_or(0) * 1024
    }

    /// What `/healthz` says.
    ///
    /// # Panics
    /// Where it says nothing, or no JSON.
    #[must_use]
    pub fn healthz(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/healthz", "*/*")).expect("JSON")
    }

    /// What `/metrics` says, in the format that `accept` asks for.
    ///
    /// # Panics
    /// Where it says nothing.
    #[must_use]
    pub fn metrics(&self, accept: &str) -> String {
        self.get("/metrics", accept)
    }

    fn get(&self, path: &str, accept: &str) -> String {
        get(&self.address, path, accept)
    }

    /// What the process has written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        let log = std::fs::read(&self.stderr).unwrap_or_default();
        format!("--- {} on {}\n{}", self.name, self.address, String::from_utf8_lossy(&log))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A server that has not said where it listens yet, so that several can start side by side.
#[derive(Debug)]
pub struct Starting {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    stderr: PathBuf,
    folder: tempfile::TempDir,
}

impl Starting {
    /// Starts `binary` on a free port of 127.0.0.1.
    pub fn spawn<S: AsRef<OsStr>>(binary: &str, args: impl IntoIterator<Item = S>) -> Self {
        Self::spawn_at(binary, args, "127.0.0.1:0")
    }

    /// Starts `binary` at an address.
    pub fn spawn_at<S: AsRef<OsStr>>(binary: &str, args: impl IntoIterator<Item = S>, listen: &str) -> Self {
        Self::spawn_with(binary, args, listen, &[])
    }

    /// The same with variables of its environment.
    pub fn spawn_with<S: AsRef<OsStr>>(
        binary: &str,
        args: impl IntoIterator<Item = S>,
        listen: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder for a server's log");
        let stderr = folder.path().join("stderr");
        let mut child = command(binary, args)
            .args(["--listen", listen, "--stop-on-stdin-close"])
            .envs(variables.iter().copied())
            .stderr(File::create(&stderr).expect("a server's log"))
            .spawn()
            .expect("the binary runs");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { name: binary.to_owned(), child, lines, stderr, folder }
    }

    /// Waits for the `listening` line.
    ///
    /// # Panics
    /// Where it does not come in time; with what the server wrote to stderr.
    #[must_use]
    pub fn listening(mut self) -> Server {
        let line = self.lines.recv_timeout(START).unwrap_or_default();
        let Some(address) = line.strip_prefix("listening ") else {
            let _ = self.child.kill();
            let log = std::fs::read_to_string(&self.stderr).unwrap_or_default();
            panic!("{} did not say where it listens but {line:?}; its stderr:\n{log}", self.name);
        };
        let raw = i32::try_from(self.child.id()).expect("a process id");
        Server {
            name: self.name,
            address: address.to_owned(),
            pid: Pid::from_raw(raw).expect("a process id is not 0"),
            _stdin: self.child.stdin.take().expect("stdin is piped"),
            child: Mutex::new(self.child),
            stderr: self.stderr,
            _folder: self.folder,
        }
    }
}

/// What a server at `http://HOST:PORT` answers to a GET in the format that `accept` asks for.
///
/// # Panics
/// Where it answers nothing.
#[must_use]
pub fn get(address: &str, path: &str, accept: &str) -> String {
    let host = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).expect("it listens");
    stream.set_read_timeout(Some(START)).expect("a time");
    let head = format!("host: {host}\r\naccept: {accept}\r\nconnection: close");
    write!(stream, "GET {path} HTTP/1.1\r\n{head}\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    body.to_owned()
}

/// Waits for `child` to end; `None` if it runs on for longer than `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("the process is ours") {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end and collects what it writes. Its stdin stays open for as long as it runs.
///
/// # Panics
/// Where it runs for longer than `limit`; it is killed then.
pub fn run(mut command: Command, limit: Duration) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _stdin = child.stdin.take();
    let drain = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.expect("piped").read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = drain(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = drain(child.stderr.take().map(|p| Box::new(p) as _));
    let status = wait(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
    }
    let (stdout, stderr) = (stdout.join().expect("a reader"), stderr.join().expect("a reader"));
    let Some(status) = status else {
        panic!("{command:?} still ran after {limit:?}; its stderr:\n{}", String::from_utf8_lossy(&stderr));
    };
    Output { status, stdout, stderr }
}
