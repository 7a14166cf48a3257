//! A Redis server for the coordinators of a test.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long it may take to start or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server on a port of its own that keeps its data in a folder of its own, with an append-only file. It ends when this is
/// dropped.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    folder: tempfile::TempDir,
    process: Child,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// Where it does not: `integration-tests/redis/setup.sh` installs it.
    #[must_use]
    pub fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let folder = tempfile::tempdir().expect("a folder for Redis");
        let process = spawn(port, &folder);
        let redis = Self { port, folder, process };
        redis.answers();
        redis
    }

    /// Its address, as coordinators take it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Tells it to end, and starts it again after a while on what it has written.
    ///
    /// # Panics
    /// Where it does not end or does not come back.
    pub fn restart(&mut self, away: Duration) {
        let id = i32::try_from(self.process.id()).expect("a process id");
        kill_process(Pid::from_raw(id).expect("not 0"), Signal::TERM).expect("the process is ours");
        crate::process::wait(&mut self.process, PATIENCE).expect("Redis ends when it is told to");
        std::thread::sleep(away);
        self.process = spawn(self.port, &self.folder);
        self.answers();
    }

    /// What Redis says to a command of one line.
    #[must_use]
    pub fn ask(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    }

    fn answers(&self) {
        let end = Instant::now() + PATIENCE;
        while self.ask("PING").as_deref() != Some("+PONG") {
            assert!(Instant::now() < end, "Redis does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(port: u16, folder: &tempfile::TempDir) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed: integration-tests/redis/setup.sh does it")
}
