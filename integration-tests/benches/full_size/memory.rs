//! Memory that a virtual machine's host leaves where it is while something is timed.

use memmap2::{Advice, MmapMut};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// What is kept together, and given back together.
const PIECE: u64 = 256 << 20;
/// What is free all the while for whoever is timed: not so much that it stays free for long, since a host takes back what has been
/// free for two seconds.
const FREE: u64 = 3 << 29;
/// Never taken.
const LEFT: u64 = 512 << 20;
/// How often it is looked at what is free.
const OFTEN: Duration = Duration::from_millis(5);
const PAGE: usize = 4096;

/// The machine's free memory, had by this process: given back bit by bit as others want it, so that nobody who is timed is the
/// first to touch it. In a group with a limit of its own it is none.
#[derive(Debug, Default)]
pub(crate) struct Memory(Vec<MmapMut>);

impl Memory {
    /// Has all that is free, times `what`, and gives back meanwhile.
    pub(crate) fn around<T>(&mut self, what: impl FnOnce() -> T) -> T {
        self.take();
        self.give();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.give();
                    thread::sleep(OFTEN);
                }
            });
            let _ends = Ends(&over);
            what()
        })
    }

    fn take(&mut self) {
        let has_limit = has_limit();
        while !has_limit && free() > LEFT + PIECE {
            let Ok(mut piece) = MmapMut::map_anon(PIECE as usize) else { return };
            // Without large pages it is only slower.
            let _ = piece.advise(Advice::HugePage);
            piece.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
            self.0.push(piece);
        }
    }

    fn give(&mut self) {
        while free() < FREE && self.0.pop().is_some() {}
    }
}

/// Told however its scope is left.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes that nobody has, the page cache neither.
fn free() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").expect("Linux");
    let free = memory.lines().find_map(|line| line.strip_prefix("MemFree:")?.trim().strip_suffix(" kB"));
    free.and_then(|kb| kb.parse::<u64>().ok()).expect("Linux tells it") * 1024
}

/// Whether this process might be killed for taking all that is free: a group that it is in, or a container, has a limit.
fn has_limit() -> bool {
    let Ok(groups) = fs::read_to_string("/proc/self/cgroup") else { return false };
    let limits = groups.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let within = Path::new(group.trim_start_matches('/')).ancestors();
        let limit = move |group: &Path| fs::read_to_string(Path::new(root).join(group).join(file)).ok();
        Some(within.filter_map(limit).collect::<Vec<_>>())
    });
    // The first version has a number that no machine has for none.
    limits.flatten().any(|limit| limit.trim() != "max" && limit.trim().len() < "9000000000000000000".len())
}
