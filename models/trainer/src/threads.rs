//! The threads that train. Each shard of a batch has a thread of its own, and every kernel in it runs on that thread:
//! two shards side by side waste less than two threads in each small kernel.

use std::{env, io, os::unix::process::CommandExt, process::Command, thread};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::TrainError;

/// candle walks and drops the graph by recursion, a frame for each operation in a row.
const STACK: usize = 256 << 20;

/// How many shards there can be at once, and the threads to run them.
#[derive(Debug)]
pub struct Team {
    shards: Vec<ThreadPool>,
    together: ThreadPool,
}

impl Team {
    /// Threads for `shards` shards, at least one.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(shards: usize) -> Result<Self, TrainError> {
        let shards = shards.max(1);
        let pool = |threads| {
            let builder = ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK);
            let failed = |e| TrainError::StartUp { what: "start threads", why: format!("{e}") };
            builder.build().map_err(failed)
        };
        // rayon's kernels run in the pool that they are called from: a pool of one is its shard's alone.
        let one = (0..shards).map(|_| pool(1)).collect::<Result<_, _>>()?;
        Ok(Self { shards: one, together: pool(shards)? })
    }

    /// Threads for a shard on each processor.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn of_all_processors() -> Result<Self, TrainError> {
        Self::new(thread::available_parallelism().map_or(1, usize::from))
    }

    /// The most shards.
    #[must_use]
    pub fn size(&self) -> usize {
        self.shards.len()
    }

    /// `work` for each of `0..count` at once, each on its own thread; results in order, whichever was first done.
    pub(crate) fn each<T: Send>(&self, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let work = &work;
        thread::scope(|scope| {
            let running: Vec<_> = self.shards[..count]
                .iter()
                .enumerate()
                .map(|(i, pool)| scope.spawn(move || pool.install(|| work(i))))
                .collect();
            let joined = running.into_iter().map(|thread| thread.join());
            joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }

    /// `work` with all threads to share among its parallel loops.
    pub(crate) fn together<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.together.install(work)
    }
}

/// Lets candle's own kernels run on the thread that calls them, as [`Team`] supposes. candle reads how many threads it
/// may use from the environment, which a program cannot change safely once it runs: so the process starts itself anew,
/// under the same id, unless it has been told already. Call it first in `main`.
///
/// # Errors
/// The program cannot be started again.
pub fn one_thread_per_kernel() -> io::Result<()> {
    const THREADS: &str = "RAYON_NUM_THREADS";
    const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";
    // Single precision is meant on a GPU, too.
    const TF32: &str = "NVIDIA_TF32_OVERRIDE";
    let wanted = [(THREADS, "1"), (CANDLE_THREADS, "1"), (TF32, "0")];
    if wanted.iter().all(|(name, value)| env::var_os(name).is_some_and(|found| found == *value)) {
        return Ok(());
    }
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).envs(wanted);
    // The allocator keeps what it has: the next step needs as much again.
    again.env("MIMALLOC_PURGE_DELAY", "-1");
    Err(again.exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_has_one_thread_and_results_keep_their_order() {
        let team = Team::new(3).unwrap();
        let slow_first = |i: usize| {
            thread::sleep(std::time::Duration::from_millis(30 - 10 * i as u64));
            (i, rayon::current_num_threads())
        };
        assert_eq!(team.each(3, slow_first), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(team.each(2, |i| i), [0, 1]);
        assert_eq!(team.together(rayon::current_num_threads), 3);
    }
}
