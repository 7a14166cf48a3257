//! Files read ahead of whoever converts them, so that the disk works while the processors do.

use std::{
    num::NonZeroU64,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::mapping::MappedFile;

/// What the system is asked for at once: it takes no more of a larger piece than the disk's own read-ahead.
const PIECE: u64 = 128 << 10;
/// How far ahead: beyond it pages could be gone again before they are needed, where memory is short.
const LEAD: u64 = 1 << 30;
/// Until it is looked again how far whoever asks has come.
const PAUSE: Duration = Duration::from_millis(2);
/// For whoever asks to go on: the rest may be of no use to it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of tensors that were asked for.
pub(super) type Asked = Arc<AtomicU64>;

/// Starts to read `files` in order, no further than [`LEAD`] beyond as many bytes as were `asked` for, until all is read, nobody
/// asks any more, or they are dropped.
pub(super) fn start(files: &Arc<Vec<MappedFile>>, asked: &Asked) {
    #[cfg(target_os = "linux")]
    {
        let (files, asked) = (Arc::downgrade(files), Arc::downgrade(asked));
        // Where there can be no thread it is only slower.
        let _ = thread::Builder::new().name("read ahead".to_owned()).spawn(move || run(&files, &asked));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (files, asked);
}

#[cfg(target_os = "linux")]
fn run(files: &Weak<Vec<MappedFile>>, asked: &Weak<AtomicU64>) {
    use rustix::fs::{Advice, fadvise};
    let (mut before, mut seen) = (0, (0, Instant::now()));
    for at in 0.. {
        let mut from = 0;
        loop {
            // Held for no longer than a piece takes.
            let (Some(files), Some(asked)) = (files.upgrade(), asked.upgrade()) else { return };
            let Some(file) = files.get(at) else { return };
            if from >= file.len() {
                before += file.len();
                break;
            }
            let asked = asked.load(Ordering::Relaxed);
            if before + from > asked + LEAD {
                drop(files);
                if seen.0 != asked {
                    seen = (asked, Instant::now());
                } else if seen.1.elapsed() > PATIENCE {
                    return;
                }
                thread::sleep(PAUSE);
                continue;
            }
            if fadvise(file.file(), from, NonZeroU64::new(PIECE), Advice::WillNeed).is_err() {
                return;
            }
            from += PIECE;
        }
    }
}
