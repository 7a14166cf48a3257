//! Files read ahead of whoever converts them, so that the disk works while the processors do.

use std::{
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{
    mapping::MappedFile,
    pages::{Bytes, Pool},
    source::{BLOCK, Source},
};
use crate::ModelError;

/// How far reading goes: bytes, and how long.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Tensors are read together until they are so many.
    span: u64,
    /// Ahead of what was last asked for.
    lead: u64,
    /// May be kept of what was read and not asked for, where tensors are asked for in another order than the file's.
    most: u64,
    /// For whoever has asked to go on: the rest may be of no use to it.
    patience: Duration,
}

/// Smaller spans keep no disk busy.
const USUAL: Sizes =
    Sizes { span: 16 << 20, lead: 256 << 20, most: 1 << 30, patience: Duration::from_secs(10) };
/// Threads that read: while one's bytes are on their way the disk has the next one's to look for.
const THREADS: usize = 2;

/// Threads that read files, and what they have read. They end when this is dropped, or when nobody asks any more.
#[derive(Debug)]
pub(super) struct Reader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: Arc<Vec<MappedFile>>,
    /// In the order of the files and of their bytes.
    spans: Vec<Span>,
    sizes: Sizes,
    pool: Pool,
    state: Mutex<State>,
    changed: Condvar,
}

/// Whole tensors that are read together.
#[derive(Debug)]
struct Span {
    file: usize,
    bytes: Range<u64>,
}

#[derive(Debug)]
struct State {
    /// Of each span.
    places: Vec<Place>,
    /// What was last asked for.
    asked: usize,
    /// What somebody waits for.
    wanted: Option<usize>,
    /// Whether anything was asked for yet.
    began: bool,
    /// How many threads there are.
    threads: usize,
    dropped: bool,
}

#[derive(Debug)]
enum Place {
    OnDisk,
    OnItsWay,
    Here {
        bytes: Bytes,
        /// How many of them nobody has asked for.
        left: u64,
    },
    /// To whoever asked.
    Given,
}

impl Reader {
    /// Begins to read `files`.
    pub(super) fn new(files: &Arc<Vec<MappedFile>>) -> Self {
        Self::of_sizes(files, USUAL)
    }

    fn of_sizes(files: &Arc<Vec<MappedFile>>, sizes: Sizes) -> Self {
        let mut spans: Vec<Span> = Vec::new();
        for (file, tensors) in files.iter().enumerate() {
            for bytes in tensors.ranges() {
                match spans.last_mut() {
                    Some(last) if last.file == file && bytes.end - last.bytes.start <= sizes.span => {
                        last.bytes.end = bytes.end;
                    }
                    _ => spans.push(Span { file, bytes }),
                }
            }
        }
        let places = spans.iter().map(|_| Place::OnDisk).collect();
        let state = Mutex::new(State {
            places,
            asked: 0,
            wanted: None,
            began: false,
            threads: THREADS,
            dropped: false,
        });
        let (files, pool, changed) = (Arc::clone(files), Pool::default(), Condvar::new());
        let shared = Arc::new(Shared { files, spans, sizes, pool, state, changed });
        for _ in 0..THREADS {
            let run = {
                let shared = Arc::clone(&shared);
                move || run(&shared)
            };
            // Where there can be no thread it is only slower.
            if thread::Builder::new().name("read ahead".to_owned()).spawn(run).is_err() {
                shared.state().threads -= 1;
            }
        }
        Self(shared)
    }

    /// The bytes `range` of a file, all of them of one tensor.
    pub(super) fn bytes(&self, file: usize, range: Range<u64>) -> Result<Bytes, ModelError> {
        let shared = &*self.0;
        let at = shared.spans.partition_point(|span| (span.file, span.bytes.end) < (file, range.end));
        let mut state = shared.state();
        (state.asked, state.began) = (at, true);
        while state.threads > 0 && !range.is_empty() {
            let place = &mut state.places[at];
            if let Place::Here { bytes, left } = place {
                let first = shared.spans[at].bytes.start;
                let part = bytes.part(index(range.start - first)..index(range.end - first));
                *left = left.saturating_sub(range.end - range.start);
                if *left == 0 {
                    *place = Place::Given;
                }
                shared.changed.notify_all();
                return Ok(part);
            }
            if !matches!(place, Place::OnItsWay) && state.wanted.is_none() {
                state.wanted = Some(at);
                shared.changed.notify_all();
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        shared.read(file, &range, None).map_err(|error| shared.files[file].fault(error))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.state().dropped = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a file, from `source` where there is one.
    fn read(
        &self,
        file: usize,
        range: &Range<u64>,
        source: Option<&mut Source<'_>>,
    ) -> std::io::Result<Bytes> {
        let from = range.start / BLOCK * BLOCK;
        let wanted = index(range.end - from);
        let padded = wanted.next_multiple_of(index(BLOCK));
        let mut pages = self.pool.take(padded)?;
        match source {
            Some(source) => source.fill(from, wanted, &mut pages[..padded])?,
            None => {
                let file = self.files[file].file();
                Source::through_cache(file).fill(from, wanted, &mut pages[..padded])?;
            }
        }
        Ok(self.pool.lend(pages, index(range.start - from)..wanted))
    }

    /// The next span to read, once there is one.
    fn next(&self) -> Option<usize> {
        let mut state = self.state();
        loop {
            if state.dropped {
                return None;
            }
            if let Some(at) = state.wanted.take().or_else(|| self.ahead(&state)) {
                self.make_room(&mut state, at);
                state.places[at] = Place::OnItsWay;
                return Some(at);
            }
            let (again, waited) =
                self.changed.wait_timeout(state, self.sizes.patience).unwrap_or_else(PoisonError::into_inner);
            state = again;
            if waited.timed_out() && state.began && state.wanted.is_none() {
                return None;
            }
        }
    }

    /// The first span that nobody has read from what was asked for on, if it is not too far.
    fn ahead(&self, state: &State) -> Option<usize> {
        let mut lead = 0;
        for (at, place) in state.places.iter().enumerate().skip(state.asked) {
            match place {
                Place::OnDisk => return (lead < self.sizes.lead).then_some(at),
                Place::OnItsWay | Place::Here { .. } => lead += self.len(at),
                Place::Given => {}
            }
        }
        None
    }

    /// Forgets what lies furthest from `at` where too much is kept.
    fn make_room(&self, state: &mut State, at: usize) {
        loop {
            let here = |place: &Place| matches!(place, Place::Here { .. });
            let kept = || state.places.iter().enumerate().filter(|(_, place)| here(place)).map(|(i, _)| i);
            if kept().map(|i| self.len(i)).sum::<u64>() <= self.sizes.most {
                return;
            }
            let Some(furthest) = kept().max_by_key(|i| i.abs_diff(at)) else { return };
            state.places[furthest] = Place::OnDisk;
        }
    }

    fn len(&self, at: usize) -> u64 {
        let Range { start, end } = self.spans[at].bytes;
        end - start
    }
}

/// What a thread does.
fn run(shared: &Shared) {
    let _ends = Ends(shared);
    let mut source: Option<(usize, Source<'_>)> = None;
    while let Some(at) = shared.next() {
        let Span { file, bytes } = &shared.spans[at];
        let (_, from) = match source.take() {
            Some(open) if open.0 == *file => source.insert(open),
            _ => source.insert((*file, Source::new(shared.files[*file].file()))),
        };
        // Whoever wants it reads it, then, and tells what is wrong.
        let read = shared.read(*file, bytes, Some(from));
        let failed = read.is_err();
        let here = |bytes| Place::Here { bytes, left: shared.len(at) };
        if let Some(place) = shared.state().places.get_mut(at) {
            *place = read.map_or(Place::OnDisk, here);
        }
        shared.changed.notify_all();
        if failed {
            return;
        }
    }
}

/// Whatever ends a thread, nobody waits for it any more, and the last one keeps nothing.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        // What a thread that panics had on its way nobody would bring.
        state.threads = if thread::panicking() { 0 } else { state.threads.saturating_sub(1) };
        if state.threads == 0 {
            state.places.clear();
            state.wanted = None;
            self.0.pool.clear();
        }
        self.0.changed.notify_all();
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs, path::Path, time::Instant};

    use safetensors::{Dtype, tensor::TensorView};

    use super::*;

    const SMALL: Sizes = Sizes { span: 20_000, lead: 60_000, most: 100_000, patience: USUAL.patience };

    /// Two files with tensors of all sizes, an empty one and one that is larger than all that is read ahead.
    fn files(folder: &Path) -> Arc<Vec<MappedFile>> {
        let mut state = 1_u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        let file = |(name, lengths): (&str, &[usize])| {
            let path = folder.join(name);
            let data: Vec<Vec<u8>> =
                lengths.iter().map(|length| (0..*length).map(|_| draw()).collect()).collect();
            let views = data.iter().enumerate().map(|(i, data)| {
                (format!("{i:03}"), TensorView::new(Dtype::U8, vec![data.len()], data).unwrap())
            });
            safetensors::serialize_to_file(views.collect::<HashMap<_, _>>(), None, &path).unwrap();
            MappedFile::open(&path).unwrap()
        };
        let many: Vec<usize> = (0..80).map(|i| 1 + i * i * 7 % 9_000).collect();
        Arc::new([("a", &many[..]), ("b", &[5, 150_000, 0, 30_000, 3])].map(file).into_iter().collect())
    }

    /// Every tensor and its bytes.
    fn tensors(files: &[MappedFile]) -> Vec<(usize, Range<u64>, Vec<u8>)> {
        let mut all = Vec::new();
        for (at, file) in files.iter().enumerate() {
            let bytes = fs::read(file.path()).unwrap();
            for name in file.names() {
                let range = file.tensor(&name).unwrap().range;
                all.push((at, range.clone(), bytes[index(range.start)..index(range.end)].to_vec()));
            }
        }
        all
    }

    #[test]
    fn every_tensor_is_read_in_whatever_order_and_however_often_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let tensors = tensors(&files);
        let count = tensors.len();
        assert_eq!(count, 85);
        let forth = || 0..count;
        let orders: [Vec<usize>; 5] = [
            forth().collect(),
            forth().rev().collect(),
            forth().map(|i| i * 37 % count).collect(),
            forth().flat_map(|i| [i, i, count - 1 - i]).collect(),
            vec![count - 1],
        ];
        for sizes in [SMALL, USUAL, Sizes { lead: 0, most: 0, ..SMALL }] {
            for order in &orders {
                let reader = Reader::of_sizes(&files, sizes);
                let mut kept = Vec::new();
                for at in order {
                    let (file, range, expected) = &tensors[*at];
                    let bytes = reader.bytes(*file, range.clone()).unwrap();
                    assert!(*bytes == **expected, "{at} of {order:?}");
                    kept.push((bytes, expected));
                }
                // Nothing was read over them.
                drop(reader);
                assert!(kept.iter().all(|(bytes, expected)| **bytes == ***expected));
            }
        }
    }

    #[test]
    fn several_may_ask() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let tensors = tensors(&files);
        let reader = Reader::of_sizes(&files, SMALL);
        thread::scope(|scope| {
            for first in 0..4 {
                let (reader, tensors) = (&reader, &tensors);
                scope.spawn(move || {
                    for (file, range, expected) in tensors.iter().skip(first).chain(tensors) {
                        assert!(*reader.bytes(*file, range.clone()).unwrap() == **expected);
                    }
                });
            }
        });
    }

    #[test]
    fn who_asks_late_is_answered_and_until_then_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let tensors = tensors(&files);
        let reader = Reader::of_sizes(&files, Sizes { patience: Duration::from_millis(1), ..SMALL });
        assert!(reader.0.state().threads > 0);
        reader.bytes(0, tensors[0].1.clone()).unwrap();
        let began = Instant::now();
        while reader.0.state().threads > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "threads that nobody asks end");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(reader.0.state().places.is_empty());
        for (file, range, expected) in &tensors {
            assert!(*reader.bytes(*file, range.clone()).unwrap() == **expected);
        }
    }

    #[test]
    fn a_file_that_was_shortened_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let tensors = tensors(&files);
        fs::OpenOptions::new().write(true).open(files[0].path()).unwrap().set_len(20_000).unwrap();
        let reader = Reader::of_sizes(&files, SMALL);
        let (file, range, _) = tensors.iter().find(|(_, range, _)| range.start > 30_000).unwrap();
        let error = reader.bytes(*file, range.clone()).unwrap_err().to_string();
        assert!(error.contains("/a: truncated: 20000 bytes where its header asks for "), "{error}");
        let (file, range, expected) = tensors.last().unwrap();
        assert!(*reader.bytes(*file, range.clone()).unwrap() == **expected);
    }
}
