//! Processes that can be killed, stopped and started again at the same address, as a supervisor would.

use crate::process::{Server, Starting};
use rustix::process::Signal;
use std::{sync::Mutex, time::Duration};

/// For a process that is told to stop to do so.
const DRAIN: Duration = Duration::from_secs(60);

/// One process of a stage, at an address that outlives it.
#[derive(Debug)]
pub struct Member {
    binary: &'static str,
    args: Vec<String>,
    address: String,
    running: Mutex<Option<Server>>,
}

/// What can befall a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    Stop,
    /// SIGTERM.
    Drain,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kill, Self::Stop, Self::Drain];
}

impl Member {
    /// Starts one.
    #[must_use]
    pub fn start(binary: &'static str, args: Vec<String>) -> Self {
        let server = Server::start(binary, &args);
        let address = server.address().to_owned();
        Self { binary, args, address, running: Mutex::new(Some(server)) }
    }

    /// Where it listens, as `http://127.0.0.1:4711`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Lets `fault` befall it, and has it running again when it returns; a process that is stopped is so for `stop`.
    pub fn suffer(&self, fault: Fault, stop: Duration) {
        let mut running = self.running.lock().expect("no test panicked in here");
        let Some(server) = running.take() else { return };
        match fault {
            Fault::Kill => server.kill(),
            Fault::Stop => {
                server.signal(Signal::STOP);
                std::thread::sleep(stop);
                server.signal(Signal::CONT);
                *running = Some(server);
                return;
            }
            Fault::Drain => {
                server.signal(Signal::TERM);
                let status = server.wait(DRAIN).expect("a stage that is told to stop ends");
                assert!(status.success(), "{status:?}\n{}", server.stderr());
            }
        }
        drop(server);
        let listen = self.address.trim_start_matches("http://");
        *running = Some(Starting::spawn_at(self.binary, &self.args, listen).listening());
    }

    /// What `/healthz` of the process says.
    ///
    /// # Panics
    /// Where there is no process, or it says nothing.
    #[must_use]
    pub fn healthz(&self) -> serde_json::Value {
        let running = self.running.lock().expect("no test panicked in here");
        running.as_ref().expect("a process").healthz()
    }

    /// What the process has written to stderr; nothing while there is none.
    #[must_use]
    pub fn stderr(&self) -> String {
        let running = self.running.lock().expect("no test panicked in here");
        running.as_ref().map(Server::stderr).unwrap_or_default()
    }

    /// Bytes of memory that the process holds at this moment; 0 while there is none.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let running = self.running.lock().expect("no test panicked in here");
        running.as_ref().map_or(0, Server::resident_bytes)
    }
}
