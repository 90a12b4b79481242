//! Whose turn it is to send: priority classes, and deficit round robin inside each (docs/protocol.md, §9).

use std::collections::VecDeque;

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

#[derive(Debug, Default)]
struct Class {
    turns: VecDeque<u32>,
    /// Bytes that went out for others while this one waited, less what it has had for them. Once that is worth a turn it
    /// goes first.
    passed_over: u64,
}

impl Schedule {
    /// The class and stream whose turn it is. The same again until something is changed.
    pub(super) fn front(&self) -> Option<(usize, u32)> {
        let heads = || self.classes.iter().enumerate().filter_map(|(n, class)| Some((n, class, *class.turns.front()?)));
        let due = PATIENCE * u64::from(QUANTUM);
        heads().find(|(_, class, _)| class.passed_over >= due).or_else(|| heads().next()).map(|(n, _, id)| (n, id))
    }

    pub(super) fn push(&mut self, priority: usize, id: u32) {
        if let Some(class) = self.classes.get_mut(priority) {
            class.turns.push_back(id);
        }
    }

    /// Takes a stream out, wherever it stands.
    pub(super) fn remove(&mut self, priority: usize, id: u32) {
        if let Some(class) = self.classes.get_mut(priority) {
            class.turns.retain(|waiting| *waiting != id);
        }
    }

    /// Ends the turn of the stream at the front of `class`, for good.
    pub(super) fn remove_front(&mut self, class: usize) {
        if let Some(class) = self.classes.get_mut(class) {
            class.turns.pop_front();
        }
    }

    /// Ends the turn of the stream at the front of `class`: the others go first.
    pub(super) fn rotate(&mut self, class: usize) {
        if let Some(class) = self.classes.get_mut(class)
            && !class.turns.is_empty()
        {
            class.turns.rotate_left(1);
        }
    }

    /// `bytes` went out for `class`: the others that wait were passed over.
    pub(super) fn charge(&mut self, class: usize, bytes: u32) {
        let bytes = u64::from(bytes);
        for (n, waiting) in self.classes.iter_mut().enumerate() {
            waiting.passed_over = match waiting.turns.is_empty() {
                true => 0,
                false if n == class => waiting.passed_over.saturating_sub(PATIENCE * bytes),
                false => waiting.passed_over + bytes,
            };
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
