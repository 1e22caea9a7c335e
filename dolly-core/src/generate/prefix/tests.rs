use proptest::prelude::*;

use super::*;
use crate::backend::cpu::CpuBackend;
use crate::backend::tests::{Sequences, cpu};

const TOKENS: usize = Sequences::<CpuBackend>::TOKENS;

struct Store {
    on: Sequences<CpuBackend>,
    kept: Prefixes<CpuBackend>,
}

impl Store {
    fn new(budget: u64) -> Self {
        Self { on: cpu(), kept: Prefixes::new(budget) }
    }

    /// Runs a sequence and offers copies of its rows.
    fn keep(&mut self, ids: &[u32], room: u64) {
        self.offer(ids, u64::MAX, room);
    }

    /// Runs a sequence and offers its cache, of so many bytes as it is told.
    fn offer(&mut self, ids: &[u32], held: u64, room: u64) {
        let mut cache = self.on.cache(TOKENS);
        if !ids.is_empty() {
            self.on.run(&mut cache, 0, ids);
        }
        self.kept.keep((&self.on.backend, &self.on.config), ids, (cache, held), room);
        self.check();
    }

    /// How many rows are found; they must serve as those that would be computed.
    fn find(&mut self, ids: &[u32]) -> usize {
        let expected = self.kept.known(ids);
        let mut cache = self.on.cache(TOKENS);
        let found = self.kept.copy_to(&self.on.backend, ids, &mut cache).unwrap();
        assert_eq!(found, expected);
        let all = [ids, [7].as_slice()].concat();
        let rest = self.on.run(&mut cache, found, &all[found..]);
        assert_eq!(rest, self.on.whole(&all, found..all.len()));
        found
    }

    /// Bytes of an entry of so many rows and so many ids.
    fn bytes(&self, rows: usize, ids: usize) -> u64 {
        self.on.backend.cache_bytes(&self.on.config, rows) + 4 * ids as u64
    }

    fn check(&self) {
        let Prefixes { budget, bytes, entries, .. } = &self.kept;
        assert!(bytes <= budget && entries.len() <= MOST_ENTRIES);
        assert_eq!(entries.iter().map(|entry| entry.bytes).sum::<u64>(), *bytes);
        for (index, entry) in entries.iter().enumerate() {
            let rows = entry.ids.len() - entry.start;
            assert_eq!(entry.bytes, self.bytes(entry.rows.tokens(), entry.ids.len()));
            assert!(entry.rows.tokens() == rows || entry.start == 0 && rows < entry.rows.tokens());
            assert_eq!(entry.start == 0, entry.parent.is_none());
            if entry.parent.is_some() {
                let parent = &entries[self.kept.parent(index).unwrap()];
                assert!(parent.start < entry.start && entry.start <= parent.ids.len());
                assert_eq!(parent.ids[..entry.start], entry.ids[..entry.start]);
                assert!(parent.used >= entry.used);
            }
        }
    }
}

fn ids(from: u32, count: u32) -> Vec<u32> {
    (from..from + count).collect()
}

#[test]
fn what_was_kept_serves_what_begins_alike() {
    let mut store = Store::new(1 << 20);
    assert_eq!(store.find(&ids(0, 9)), 0);
    store.keep(&ids(0, 9), u64::MAX);
    assert_eq!(store.find(&ids(0, 9)), 9);
    assert_eq!(store.find(&ids(0, 20)), 9);
    assert_eq!(store.find(&ids(0, 4)), 4);
    assert_eq!(store.find(&[ids(0, 5), ids(30, 5)].concat()), 5);
    assert_eq!(store.find(&ids(1, 9)), 0);
    assert_eq!(store.find(&[]), 0);
}

#[test]
fn a_cache_with_little_else_in_it_is_kept_itself() {
    for (count, held) in [(36, TOKENS), (20, 20)] {
        let mut store = Store::new(1 << 20);
        let bytes = store.on.backend.cache_bytes(&store.on.config, TOKENS);
        store.offer(&ids(0, count), bytes, u64::MAX);
        assert_eq!(store.kept.entries[0].rows.tokens(), held);
        assert_eq!(store.find(&ids(0, 39)), count as usize);
        // What the next one has in common is not held again.
        store.offer(&[ids(0, 12), ids(40, 15)].concat(), bytes, u64::MAX);
        assert_eq!(store.kept.entries[1].rows.tokens(), 15);
        assert_eq!(store.find(&[ids(0, 12), ids(40, 15)].concat()), 27);
    }
}

#[test]
fn common_rows_are_held_once() {
    let mut store = Store::new(1 << 20);
    let tails = [ids(20, 3), ids(30, 5), ids(40, 2)];
    let prompts = tails.map(|tail| [ids(0, 10), tail].concat());
    prompts.iter().for_each(|prompt| store.keep(prompt, u64::MAX));
    let bytes = store.bytes(13, 13) + store.bytes(5, 15) + store.bytes(2, 12);
    assert_eq!(store.kept.bytes(), bytes);
    for prompt in &prompts {
        assert_eq!(store.find(prompt), prompt.len());
        store.keep(prompt, u64::MAX);
    }
    assert_eq!(store.kept.entries.len(), 3);
    // A tail on a tail, and one that leaves the trunk before its parent's own rows begin.
    let longer = [prompts[1].clone(), ids(50, 4)].concat();
    store.keep(&longer, u64::MAX);
    let early = [&longer[..16], &[3, 3, 3]].concat();
    store.keep(&early, u64::MAX);
    let earliest = [&longer[..4], &[3, 3, 3]].concat();
    store.keep(&earliest, u64::MAX);
    for prompt in [&longer, &early, &earliest] {
        assert_eq!(store.find(prompt), prompt.len());
    }
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut store = Store::new(0);
    store.kept.budget = 3 * store.bytes(10, 10);
    let [a, b, c, d] = [0, 10, 20, 30].map(|from| ids(from, 10));
    for prompt in [&a, &b, &c] {
        store.keep(prompt, u64::MAX);
    }
    assert_eq!(store.kept.bytes(), store.kept.budget);
    assert_eq!(store.find(&a), 10);
    store.keep(&d, u64::MAX);
    assert_eq!([&a, &b, &c, &d].map(|prompt| store.kept.known(prompt)), [10, 0, 10, 10]);
    store.kept.touch(&c);
    store.kept.shrink_to(2 * store.bytes(10, 10) - 1);
    assert_eq!([&a, &b, &c, &d].map(|prompt| store.kept.known(prompt)), [0, 0, 10, 0]);
    store.kept.shrink_to(0);
    assert_eq!((store.kept.bytes(), store.kept.entries.len()), (0, 0));
}

#[test]
fn a_prefix_is_cut_to_the_room_there_is() {
    let mut store = Store::new(0);
    store.keep(&ids(0, 20), u64::MAX);
    assert_eq!((store.kept.known(&ids(0, 20)), store.kept.is_off()), (0, true));
    store.kept.budget = 1 << 20;
    let room = store.bytes(7, 7);
    store.keep(&ids(0, 20), room + 3);
    assert_eq!((store.find(&ids(0, 20)), store.kept.bytes()), (7, room));
    // What a new entry stands on does not go for it.
    let room = store.bytes(7, 7) + store.bytes(5, 12);
    store.keep(&ids(0, 20), room);
    assert_eq!((store.find(&ids(0, 20)), store.kept.bytes()), (12, room));
    store.keep(&ids(0, 20), room);
    assert_eq!(store.find(&ids(0, 20)), 12);
    store.keep(&ids(30, 5), room - 1);
    assert_eq!(store.find(&ids(30, 5)), 5);
}

#[test]
fn entries_are_counted_too() {
    let mut store = Store::new(1 << 30);
    for n in 0..MOST_ENTRIES as u32 + 9 {
        store.keep(&[n % 58, n / 58, 1], u64::MAX);
    }
    assert_eq!(store.kept.entries.len(), MOST_ENTRIES);
    // The first 58 share no token; others stand on them. The nine oldest of these went.
    let known = [[0, 0, 1], [0, 1, 1], [8, 1, 1], [9, 1, 1]].map(|ids| store.kept.known(&ids));
    assert_eq!(known, [3, 1, 1, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Few different ids, so that sequences share their beginnings; what is found is a real prefix
    /// of something kept, its rows are right, and the books balance.
    #[test]
    fn any_history_serves_right_rows(
        budget in 0usize..60,
        sequences in prop::collection::vec(prop::collection::vec(0u32..3, 0..12), 1..24),
    ) {
        let mut store = Store::new(0);
        store.kept.budget = store.bytes(budget, budget);
        for (n, ids) in sequences.iter().enumerate() {
            let seen = sequences[..n].iter().map(|other| common(other, ids)).max();
            prop_assert!(store.find(ids) <= seen.unwrap_or(0));
            store.keep(ids, u64::MAX);
            if budget >= 40 && n == 0 {
                prop_assert_eq!(store.find(ids), ids.len());
            }
            if n % 7 == 6 {
                let half = store.kept.bytes() / 2;
                store.kept.shrink_to(half);
                prop_assert!(store.kept.bytes() <= half);
            }
        }
    }
}
