//! A map with a bound in bytes, which drops what was not asked for the longest.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

/// See the module. What a value costs is said when it is put in.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    limit: usize,
    bytes: usize,
    /// Of the last use of anything.
    clock: u64,
    values: HashMap<K, Slot<V>>,
    by_use: BTreeMap<u64, K>,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    bytes: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    /// An empty one that holds `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, clock: 0, values: HashMap::new(), by_use: BTreeMap::new() }
    }

    /// The value of `key`, which is now the last to go.
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        let slot = self.values.get_mut(key)?;
        self.clock += 1;
        self.by_use.remove(&std::mem::replace(&mut slot.used, self.clock));
        self.by_use.insert(self.clock, key.clone());
        Some(&slot.value)
    }

    /// Puts a value in that costs `bytes`, in place of what `key` had, and drops what does not fit any more. A value that
    /// is larger than the whole is not kept.
    pub(crate) fn put(&mut self, key: K, value: V, bytes: usize) {
        self.remove(&key);
        if bytes > self.limit {
            return;
        }
        while self.bytes + bytes > self.limit {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.forget(&oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.by_use.insert(self.clock, key.clone());
        self.values.insert(key, Slot { value, bytes, used: self.clock });
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(slot) = self.values.get(key) {
            self.by_use.remove(&slot.used);
            self.forget(key);
        }
    }

    /// Drops, from the one on that was not asked for the longest, what `stale` says is of no use any more; ends at the
    /// first that is.
    pub(crate) fn drop_stale(&mut self, stale: impl Fn(&V) -> bool) {
        while let Some((_, key)) = self.by_use.first_key_value() {
            let key = key.clone();
            if !self.values.get(&key).is_none_or(|slot| stale(&slot.value)) {
                return;
            }
            self.remove(&key);
        }
    }

    fn forget(&mut self, key: &K) {
        if let Some(slot) = self.values.remove(key) {
            self.bytes -= slot.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_the_longest_unused_goes_first() {
        let mut lru = Lru::new(100);
        for key in 0..4 {
            lru.put(key, key * 10, 25);
        }
        assert_eq!(lru.get(&0), Some(&0));
        lru.put(4, 40, 50);
        assert_eq!(
            [0, 1, 2, 3, 4].map(|key| lru.get(&key).copied()),
            [Some(0), None, None, Some(30), Some(40)]
        );
        assert_eq!(lru.bytes, 100);
        lru.put(5, 50, 101);
        assert_eq!(lru.get(&5), None);
        assert_eq!((lru.values.len(), lru.by_use.len()), (3, 3));
    }

    #[test]
    fn a_value_takes_the_place_of_an_older_one() {
        let mut lru = Lru::new(100);
        lru.put("a", 1, 60);
        lru.put("a", 2, 70);
        assert_eq!(lru.get(&"a"), Some(&2));
        assert_eq!(lru.bytes, 70);
        lru.remove(&"a");
        assert_eq!((lru.bytes, lru.values.len(), lru.by_use.len()), (0, 0, 0));
    }

    #[test]
    fn what_is_stale_goes_from_the_oldest_on() {
        let mut lru = Lru::new(100);
        for key in 0..4 {
            lru.put(key, key, 1);
        }
        lru.drop_stale(|value| *value != 2);
        assert_eq!([2, 3].map(|key| lru.get(&key).copied()), [Some(2), Some(3)]);
        assert_eq!(lru.bytes, 2);
    }
}
