//! Whose turn it is to send: priority classes, and inside each fair queueing by bytes (docs/protocol.md, §9).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::wire::PRIORITY_MAX;

const CLASSES: usize = PRIORITY_MAX as usize + 1;

/// Bytes a stream may send in one turn.
pub(super) const QUANTUM: u32 = 262_120;

/// Bytes of other classes for one of a class that waits: it gets a sixteenth.
const PATIENCE: u64 = 15;

/// The streams that may have something to send. One that turns out not to is taken out when its turn comes.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    classes: [Class; CLASSES],
}

/// Next is the stream that will have had least when its turn is over. Bytes count from where the class was when a stream came: one that
/// comes back after a while has saved up nothing, but goes ahead of those that send more.
#[derive(Debug, Default)]
struct Class {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Streams that can send now.
    active: u64,
    /// What a stream has had that always had its share: it rises by what is sent, divided by those that can send. So it rises by what
    /// newcomers send, too, and however many come, they cannot keep those that wait from their turns.
    had: u64,
    /// Bytes that it has not risen by yet, for want of a whole one for each.
    rest: u64,
    /// Streams that came so far.
    came: u64,
    /// Bytes that went out for others while this one waited, less what it has had for them. Once that is worth a turn it
    /// goes first.
    passed_over: u64,
}

/// In the order of their turns.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    /// Bytes that it will have had then, if it sends as much as the last time.
    will_have_had: u64,
    /// Those that are equal go in the order of coming.
    came: u64,
    id: u32,
}

impl Class {
    fn rise(&mut self, bytes: u64) {
        let streams = self.active.max(1);
        self.rest += bytes;
        self.had += self.rest / streams;
        self.rest %= streams;
    }

    /// Gives what it counts as having had.
    fn push(&mut self, id: u32, had: u64, last_turn: u32) -> u64 {
        // A turn ahead at most: those that wait for theirs are no further behind.
        let had = had.max(self.had.saturating_sub(u64::from(QUANTUM)));
        self.waiting.push(Reverse(Waiting { will_have_had: had + u64::from(last_turn), came: self.came, id }));
        self.came += 1;
        had
    }
}

impl Schedule {
    /// The class and stream whose turn it is. The same again until something is changed.
    pub(super) fn front(&self) -> Option<(usize, u32)> {
        let heads = || self.classes.iter().enumerate().filter_map(|(n, class)| Some((n, class, class.waiting.peek()?)));
        let due = PATIENCE * u64::from(QUANTUM);
        let next = heads().find(|(_, class, _)| class.passed_over >= due).or_else(|| heads().next());
        next.map(|(n, _, Reverse(waiting))| (n, waiting.id))
    }

    /// Lets a stream that has had so many bytes, and so many in its last turn, stand in its class; gives what it counts as having had.
    pub(super) fn push(&mut self, priority: usize, id: u32, had: u64, last_turn: u32) -> u64 {
        self.classes.get_mut(priority).map_or(had, |class| class.push(id, had, last_turn))
    }

    /// One more stream can send, or one less.
    pub(super) fn count(&mut self, priority: usize, can_send: bool) {
        if let Some(class) = self.classes.get_mut(priority) {
            class.active = if can_send { class.active + 1 } else { class.active.saturating_sub(1) };
        }
    }

    /// Takes a stream out, wherever it stands.
    pub(super) fn remove(&mut self, priority: usize, id: u32) {
        if let Some(class) = self.classes.get_mut(priority) {
            class.waiting.retain(|Reverse(waiting)| waiting.id != id);
        }
    }

    /// Takes out the stream at the front of `class`.
    pub(super) fn remove_front(&mut self, class: usize) {
        if let Some(class) = self.classes.get_mut(class) {
            class.waiting.pop();
        }
    }

    /// Ends the turn of the stream at the front of `class`, which has now had so many bytes.
    pub(super) fn end_turn(&mut self, class: usize, had: u64) {
        if let Some(class) = self.classes.get_mut(class)
            && let Some(Reverse(Waiting { id, .. })) = class.waiting.pop()
        {
            class.push(id, had, QUANTUM);
        }
    }

    /// `bytes` went out for the front of `class`: the other classes that wait were passed over.
    pub(super) fn charge(&mut self, class: usize, bytes: u32) {
        let bytes = u64::from(bytes);
        for (n, waiting) in self.classes.iter_mut().enumerate() {
            waiting.passed_over = match waiting.waiting.peek() {
                None => 0,
                Some(_) if n == class => {
                    waiting.rise(bytes);
                    waiting.passed_over.saturating_sub(PATIENCE * bytes)
                }
                Some(_) => waiting.passed_over + bytes,
            };
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
