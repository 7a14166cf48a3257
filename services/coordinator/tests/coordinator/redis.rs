//! A Redis server of a test's own.

use redis::{Client, Cmd, FromRedisValue};
use sdxl_coordinator::{Keep, Redis};
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A server that keeps its data in a folder of its own, with an append-only file. It ends with this value.
pub(crate) struct RedisServer {
    port: u16,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { port, folder: tempfile::tempdir().unwrap(), process: None };
        server.resume();
        server
    }

    /// Starts it again where it was, with what it had.
    pub(crate) fn resume(&mut self) {
        let child = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
            ])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed: integration-tests/redis/setup.sh does it");
        self.process = Some(child);
        let end = Instant::now() + Duration::from_secs(20);
        while self.client().get_connection().and_then(|mut c| redis::cmd("PING").query::<()>(&mut c)).is_err()
        {
            assert!(Instant::now() < end, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Stops it in its tracks, or lets it go on: it keeps its connections and does not answer.
    pub(crate) fn freeze(&self, is_frozen: bool) {
        let process = self.process.as_ref().expect("it runs").id().to_string();
        let signal = if is_frozen { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    pub(crate) fn client(&self) -> Client {
        Client::open(self.url()).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// What a coordinator is told of it.
    pub(crate) fn keep(&self) -> Keep {
        Keep { redis: Some(Redis::new(&self.url()).unwrap()), ..Keep::default() }
    }

    pub(crate) fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query(&mut self.client().get_connection().unwrap()).unwrap()
    }

    pub(crate) fn keys(&self, pattern: &str) -> Vec<String> {
        self.ask(redis::cmd("KEYS").arg(pattern))
    }

    /// Waits until there are so many keys.
    pub(crate) async fn has(&self, pattern: &str, count: usize) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let keys = self.keys(pattern);
            if keys.len() == count {
                return keys;
            }
            assert!(Instant::now() < end, "{keys:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}
