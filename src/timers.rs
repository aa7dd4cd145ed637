//! The timer queue: deadlines in order, cancelled in constant time.
//!
//! A binary heap of small keys orders the timers; what each timer holds lives in a slab beside it. Cancelling takes
//! the value out of the slab at once and leaves the key behind as a tombstone, because finding it in the heap would
//! cost a search. Tombstones fall out when their time has come, and all of them are swept when they outnumber the
//! living, so timers that are always cancelled early (the usual fate of a timeout) do not let the heap grow. To take
//! one out from the top costs a walk through the heap, to sweep it next to nothing: so nobody looks for the earliest
//! living timer as long as it is enough to know that none is due.
//!
//! Equal deadlines fire in the order in which they were added. asyncio's own heap does not promise that.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use slab::Slab;

/// Below this many tombstones a sweep costs more than it frees.
const MIN_TOMBSTONES: usize = 64;

/// A tombstone may wake a sleeper that sleeps this long, in seconds.
const LONG_SLEEP: f64 = 1.0;

/// New timers are noted one by one until they are so many, or this part of all places: then a look through all places
/// costs no more than their adding did.
const MIN_NOTED: usize = 64;
const NOTED_PART: usize = 8;

/// So many timers, or this part of all, are taken from the heap one by one.
const MIN_SORTED: usize = 64;
const SORTED_PART: usize = 32;

/// Names one timer for as long as it is in the queue, and nothing after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerKey {
    slot: usize,
    sequence: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    deadline: f64,
    key: TimerKey,
}

impl Ord for Entry {
    /// Reversed, because `BinaryHeap` keeps the greatest on top.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then_with(|| other.key.sequence.cmp(&self.key.sequence))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

/// Values of type `T`, each with a deadline in seconds.
pub struct TimerQueue<T> {
    heap: BinaryHeap<Entry>,
    live: Slab<(u64, T)>,
    next_sequence: u64,
    /// The first number that was given after the last `mark`.
    marked: u64,
    /// What was added since; `None` if that is too much to be noted.
    noted: Option<Vec<TimerKey>>,
}

impl<T> TimerQueue<T> {
    pub fn new() -> Self {
        TimerQueue {
            heap: BinaryHeap::new(),
            live: Slab::new(),
            next_sequence: 0,
            marked: 0,
            noted: Some(Vec::new()),
        }
    }

    /// Adds a timer. A deadline that is not a number counts as long past, as it does in asyncio, where every
    /// comparison with it says "not later than now".
    pub fn insert(&mut self, deadline: f64, value: T) -> TimerKey {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let deadline = if deadline.is_nan() { f64::NEG_INFINITY } else { deadline };
        let key = TimerKey { slot: self.live.insert((sequence, value)), sequence };
        self.heap.push(Entry { deadline, key });
        self.note(key);
        key
    }

    /// Takes a timer out before its time. Returns what it held, or `None` if it has fired or was cancelled.
    pub fn cancel(&mut self, key: TimerKey) -> Option<T> {
        if !self.is_live(key) {
            return None;
        }
        let (_, value) = self.live.remove(key.slot);
        let tombstones = self.heap.len() - self.live.len();
        if self.live.is_empty() {
            self.clear_heap();
        } else if tombstones > MIN_TOMBSTONES && tombstones > self.live.len() {
            self.sweep();
        }
        Some(value)
    }

    #[cold]
    fn sweep(&mut self) {
        let live = &self.live;
        self.heap.retain(|entry| is_live(live, entry.key));
        self.give_back();
    }

    /// Of tombstones, when nothing lives.
    fn clear_heap(&mut self) {
        self.heap.clear();
        self.give_back();
    }

    /// Memory, but not all that is not needed now, or as many timers as there just were would let it grow again.
    fn give_back(&mut self) {
        let enough = self.live.len().max(2 * MIN_TOMBSTONES);
        if self.heap.capacity() / 4 > enough {
            self.heap.shrink_to(2 * enough);
        }
    }

    /// No timer is due before this. (That at this time was perhaps cancelled.)
    pub fn none_before(&self) -> Option<f64> {
        self.heap.peek().map(|entry| entry.deadline)
    }

    /// Until when somebody can sleep: to the earliest deadline, or for a while.
    pub fn sleep_until(&mut self, now: f64) -> Option<f64> {
        self.drop_tombstones(now + LONG_SLEEP);
        self.none_before()
    }

    /// Takes the earliest timer whose deadline lies before `end`.
    pub fn pop_before(&mut self, end: f64) -> Option<T> {
        self.drop_tombstones(end);
        if self.none_before()? >= end {
            return None;
        }
        let entry = self.heap.pop()?;
        let (_, value) = self.live.remove(entry.key.slot);
        if self.live.is_empty() {
            self.clear_heap();
        }
        Some(value)
    }

    /// Hands over all timers whose deadlines lie before `end`, in order.
    ///
    /// If they are a good part of all, it is cheaper to sort them than to take each from the top of the heap.
    pub fn take_before(&mut self, end: f64, mut take: impl FnMut(T)) {
        for _ in 0..MIN_SORTED + self.heap.len() / SORTED_PART {
            match self.pop_before(end) {
                Some(value) => take(value),
                None => return,
            }
        }
        let mut due = Vec::new();
        self.heap.retain(|entry| {
            let waits = entry.deadline >= end;
            if !waits {
                due.push(Reverse(*entry));
            }
            waits
        });
        due.sort_unstable();
        for Reverse(Entry { key, .. }) in due {
            if self.is_live(key) {
                take(self.live.remove(key.slot).1);
            }
        }
        if self.live.is_empty() {
            self.clear_heap();
        }
    }

    /// Afterwards the first key is a living one's, or its time is not before `end`.
    fn drop_tombstones(&mut self, end: f64) {
        while let Some(entry) = self.heap.peek()
            && entry.deadline < end
            && !self.is_live(entry.key)
        {
            self.heap.pop();
        }
    }

    /// The values still waiting, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.live.iter().map(|(_, (_, value))| value)
    }

    /// Begins a new time for `for_each_since_mark`.
    pub fn mark(&mut self) {
        self.marked = self.next_sequence;
        self.noted.get_or_insert_default().clear();
    }

    /// Calls for all values still waiting that were added since the last `mark`. However many others there are, it
    /// costs no more than a fixed multiple of what adding these did.
    pub fn for_each_since_mark(&self, mut visit: impl FnMut(&T)) {
        match &self.noted {
            Some(noted) => {
                let waiting = noted.iter().filter_map(|key| {
                    self.live.get(key.slot).filter(|(sequence, _)| *sequence == key.sequence)
                });
                waiting.for_each(|(_, value)| visit(value));
            }
            None => {
                let waiting = self.live.iter().filter(|(_, (sequence, _))| *sequence >= self.marked);
                waiting.for_each(|(_, (_, value))| visit(value));
            }
        }
    }

    fn note(&mut self, key: TimerKey) {
        if let Some(noted) = &mut self.noted {
            if noted.len() < MIN_NOTED + self.live.capacity() / NOTED_PART {
                noted.push(key);
            } else {
                self.noted = None;
            }
        }
    }

    fn is_live(&self, key: TimerKey) -> bool {
        is_live(&self.live, key)
    }
}

fn is_live<T>(live: &Slab<(u64, T)>, key: TimerKey) -> bool {
    live.get(key.slot).is_some_and(|(sequence, _)| *sequence == key.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8),
        Cancel(usize),
        Advance(u8),
        /// The same, one by one.
        Pop(u8),
        Sleep(u8),
        Mark,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<u8>().prop_map(Step::Insert),
            3 => any::<usize>().prop_map(Step::Cancel),
            1 => any::<u8>().prop_map(Step::Advance),
            1 => any::<u8>().prop_map(Step::Pop),
        ];
        let rare = prop_oneof![
            4 => any::<u8>().prop_map(Step::Sleep),
            1 => Just(Step::Mark),
            1 => Just(Step::Advance(u8::MAX)),
        ];
        let step = prop_oneof![100 => step, 6 => rare];
        prop::collection::vec(step, 0..1500)
    }

    proptest! {
        /// The queue does what a sorted list does, whatever the mix of inserts, cancels and time.
        #[test]
        fn behaves_as_a_stable_sorted_list(steps in steps()) {
            let mut queue = TimerQueue::new();
            let mut model: Vec<(u8, usize)> = Vec::new();
            let mut keys = Vec::new();
            let mut marked = 0;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(deadline) => {
                        keys.push((queue.insert(f64::from(deadline), number), number));
                        model.push((deadline, number));
                    }
                    Step::Cancel(pick) if !keys.is_empty() => {
                        let (key, number) = keys[pick % keys.len()];
                        let held = model.iter().position(|&(_, n)| n == number).map(|at| model.remove(at).1);
                        prop_assert_eq!(queue.cancel(key), held);
                        prop_assert_eq!(queue.cancel(key), None);
                    }
                    Step::Cancel(_) => {}
                    Step::Sleep(now) => {
                        let earliest = model.iter().map(|t| f64::from(t.0)).reduce(f64::min);
                        let until = queue.sleep_until(f64::from(now));
                        prop_assert!(until == earliest || until.is_some_and(|u| u >= f64::from(now) + LONG_SLEEP));
                    }
                    Step::Mark => {
                        queue.mark();
                        marked = number;
                    }
                    Step::Advance(end) | Step::Pop(end) => {
                        model.sort_by_key(|&(deadline, _)| deadline);
                        let due: Vec<usize> = model.iter().filter(|t| t.0 < end).map(|t| t.1).collect();
                        model.retain(|t| t.0 >= end);
                        let mut fired = Vec::new();
                        match step {
                            Step::Pop(_) => fired.extend(std::iter::from_fn(|| queue.pop_before(f64::from(end)))),
                            _ => queue.take_before(f64::from(end), |value| fired.push(value)),
                        }
                        prop_assert_eq!(fired, due);
                    }
                }
                let earliest = model.iter().map(|t| f64::from(t.0)).reduce(f64::min);
                prop_assert!(queue.none_before().is_some() == earliest.is_some() && queue.none_before() <= earliest);
                prop_assert_eq!(queue.values().count(), model.len());
                let mut since = Vec::new();
                queue.for_each_since_mark(|&value| since.push(value));
                since.sort_unstable();
                let mut expected: Vec<usize> = model.iter().map(|t| t.1).filter(|&n| n >= marked).collect();
                expected.sort_unstable();
                prop_assert_eq!(since, expected);
            }
        }
    }

    #[test]
    fn cancelled_timers_leave_nothing_behind() {
        let mut queue = TimerQueue::new();
        for round in 0..100_000 {
            let key = queue.insert(1e9 + f64::from(round), Box::new(round));
            assert!(queue.cancel(key).is_some());
        }
        assert!(queue.heap.len() <= MIN_TOMBSTONES + 1);
        assert!(queue.heap.capacity() <= 4 * MIN_TOMBSTONES);
    }

    #[test]
    fn many_that_are_due_at_once_come_in_order() {
        let mut queue = TimerQueue::new();
        let deadlines = (0..10_000_u32).map(|number| (number * 7919 % 5000, number));
        let keys: Vec<_> = deadlines.clone().map(|timer| queue.insert(f64::from(timer.0), timer)).collect();
        for key in keys.iter().step_by(3) {
            queue.cancel(*key);
        }
        let mut expected: Vec<_> = deadlines.filter(|timer| timer.1 % 3 != 0).collect();
        expected.sort_unstable();
        let mut taken = Vec::new();
        for end in [3000.0, 3000.0, 4999.0, 1e9] {
            queue.take_before(end, |timer| taken.push(timer));
            assert!(taken.iter().all(|timer| f64::from(timer.0) < end));
            assert!(queue.values().all(|timer| f64::from(timer.0) >= end));
        }
        assert_eq!(taken, expected);
        assert!(queue.heap.is_empty());
    }

    #[test]
    fn a_million_others_are_not_looked_at_for_a_few_new_ones() {
        let mut queue = TimerQueue::new();
        for number in 0..1_000_000 {
            queue.insert(1e9, number);
        }
        queue.mark();
        let keys: Vec<_> = (0..1000).map(|number| queue.insert(1e9, 2_000_000 + number)).collect();
        for key in &keys[1..] {
            queue.cancel(*key);
        }
        let mut since = Vec::new();
        queue.for_each_since_mark(|&value| since.push(value));
        assert_eq!(since, [2_000_000]);
        assert_eq!(queue.noted.as_ref().map(Vec::len), Some(1000));
    }

    #[test]
    fn a_sleeper_is_not_woken_for_what_was_cancelled_but_once_in_a_while() {
        let mut queue = TimerQueue::new();
        queue.insert(100.0, 0);
        let keys: Vec<_> = (1..60).map(|number| queue.insert(f64::from(number) / 10.0, number)).collect();
        for key in keys {
            queue.cancel(key);
        }
        let mut now = 0.0;
        let mut wakes = 0;
        while let Some(until) = queue.sleep_until(now)
            && until < 100.0
        {
            assert!(until >= now + LONG_SLEEP);
            queue.take_before(until, |_| panic!("nothing is due"));
            now = until;
            wakes += 1;
        }
        assert!(wakes <= 6);
        assert_eq!(queue.heap.len(), 1);
    }

    #[test]
    fn extreme_deadlines_have_a_place() {
        let mut queue = TimerQueue::new();
        queue.insert(f64::INFINITY, "never");
        queue.insert(0.0, "now");
        queue.insert(f64::NAN, "not a number");
        assert_eq!(queue.pop_before(1.0), Some("not a number"));
        assert_eq!(queue.pop_before(1.0), Some("now"));
        assert_eq!(queue.pop_before(f64::MAX), None);
        assert_eq!(queue.none_before(), Some(f64::INFINITY));
    }
}
