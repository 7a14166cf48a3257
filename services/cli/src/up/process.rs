//! One service as a child process: its address, its end, and how it is told to stop.

use super::log::{LastWords, Log, Role};
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

/// How long the last lines of a dead process are waited for.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What a service is started with.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) role: Role,
    /// As `base-unet[0]`.
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    /// Variables that it must not see.
    pub(super) without_variables: Vec<String>,
    pub(super) log: Log,
}

/// That a process has ended.
#[derive(Clone, Debug)]
pub(super) struct Exit {
    pub(super) role: Role,
    /// As `base-unet[0] ended with exit code 1: vae/x: truncated`.
    pub(super) text: String,
}

/// A running service. It stops when this is dropped, even if `sdxl` was killed: then its standard input closes.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) role: Role,
    pub(super) name: String,
    signals: mpsc::UnboundedSender<Signal>,
    alive: watch::Receiver<bool>,
    address: Option<oneshot::Receiver<String>>,
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts it; its end is reported to `exits`.
    ///
    /// # Errors
    /// Where the system cannot start it.
    pub(super) fn start(spec: Spec, exits: mpsc::UnboundedSender<Exit>) -> anyhow::Result<Self> {
        let mut command = Command::new(&spec.program);
        command.args(&spec.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C goes to a terminal's whole foreground group; the services are stopped in order instead.
        command.process_group(0).kill_on_drop(true);
        for variable in &spec.without_variables {
            command.env_remove(variable);
        }
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", spec.program.display()))?;
        // Taken, because waiting for a child closes what is still in it.
        let stdin = child.stdin.take();
        let (found, address) = oneshot::channel();
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(read_stdout(stdout, found, spec.log.clone()));
        }
        let last_words = child.stderr.take().map(|stderr| tokio::spawn(spec.log.pass_on(stderr)));
        let (signals, orders) = mpsc::unbounded_channel();
        let (ended, alive) = watch::channel(true);
        let (role, name) = (spec.role, spec.name.clone());
        tokio::spawn(async move {
            let status = wait(&mut child, orders).await;
            let text = epitaph(&name, status, last_words).await;
            ended.send_replace(false);
            let _ = exits.send(Exit { role, text }); // nobody listens any more while stopping
        });
        let (name, address) = (spec.name, Some(address));
        Ok(Self { role: spec.role, name, signals, alive, address, _stdin: stdin })
    }

    /// Where it listens, as `http://127.0.0.1:4711`, once it says so. To be asked for once; never answers for a
    /// process that ends before.
    pub(super) fn address(&mut self) -> impl Future<Output = String> + use<> {
        let address = self.address.take();
        async move {
            match address {
                Some(address) => match address.await {
                    Ok(address) => address,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        }
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// Asks it to finish its work and end.
    pub(super) fn terminate(&self) {
        let _ = self.signals.send(Signal::TERM);
    }

    /// Ends it.
    pub(super) fn kill(&self) {
        let _ = self.signals.send(Signal::KILL);
    }

    /// Waits until it has ended.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut alive = self.alive.clone();
        async move {
            // Fails only where the sender is gone, and then so is the process.
            let _ = alive.wait_for(|alive| !alive).await;
        }
    }
}

/// Waits for the end and passes signals on; here, where it is known that the process id is still the child's.
async fn wait(child: &mut Child, mut orders: mpsc::UnboundedReceiver<Signal>) -> std::io::Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            Some(signal) = orders.recv() => {
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                if let Some(pid) = pid {
                    let _ = kill_process(pid, signal); // fails only if it has just ended
                }
            }
        }
    }
}

/// The first line tells the address; a service prints nothing else, but must not be blocked if it does.
async fn read_stdout(stdout: ChildStdout, found: oneshot::Sender<String>, log: Log) {
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    if stdout.read_line(&mut line).await.is_ok() {
        match line.trim().strip_prefix("listening ") {
            Some(address) => {
                let _ = found.send(address.to_owned());
            }
            None if line.is_empty() => {}
            None => {
                log.clone().pass_on(line.as_bytes()).await;
            }
        }
    }
    log.pass_on(stdout).await;
}

async fn epitaph(
    name: &str,
    status: std::io::Result<ExitStatus>,
    last_words: Option<JoinHandle<LastWords>>,
) -> String {
    let (how, by_itself) = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => (format!("ended with exit code {code}"), true),
            (None, Some(signal)) => (format!("was killed by signal {signal}"), false),
            (None, None) => ("ended".to_owned(), true),
        },
        Err(error) => (format!("cannot be waited for: {error}"), false),
    };
    let last = match last_words {
        Some(task) => timeout(LAST_LINES, task).await.ok().and_then(Result::ok).unwrap_or_default(),
        None => LastWords::default(),
    };
    // Whatever was said last before a kill has nothing to do with it, unless it is an error.
    match if by_itself { last.text() } else { last.error() } {
        Some(text) => format!("{name} {how}: {text}"),
        None => format!("{name} {how}"),
    }
}
