//! What mio's tokens stand for. None is used twice, so that a late event for what is gone meets nobody else.

use std::collections::HashMap;

use mio::Token;

use super::handle::{ListenerKey, SessionKey};
use crate::proto::StreamId;
use crate::rpc::LegacyId;

#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Waker,
    Listener(ListenerKey),
    Link(SessionKey),
    Daemon(SessionKey),
    Stream(SessionKey, StreamId),
    Legacy(SessionKey, LegacyId),
}

#[derive(Debug, Default)]
pub(super) struct Tokens {
    places: HashMap<Token, Place>,
    next: usize,
}

impl Tokens {
    pub(super) fn add(&mut self, place: Place) -> Token {
        let token = Token(self.next);
        self.next += 1;
        self.places.insert(token, place);
        token
    }

    pub(super) fn get(&self, token: Token) -> Option<Place> {
        self.places.get(&token).copied()
    }

    pub(super) fn remove(&mut self, token: Token) {
        self.places.remove(&token);
    }
}
