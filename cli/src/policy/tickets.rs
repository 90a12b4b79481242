//! Secrets that let their bearer in once.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};

use super::rule::Rights;

/// Bytes of a secret.
const SECRET_LEN: usize = 32;

/// Tickets that may wait to be used.
const MOST: usize = 1024;

/// What a ticket says. It is printed in hexadecimal digits, and shown in no message.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) [u8; SECRET_LEN]);

impl Secret {
    pub(crate) fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let byte = |at: usize| text.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let bytes: Option<Vec<u8>> = (0..SECRET_LEN).map(|n| byte(2 * n)).collect();
        let is_hex = text.len() == 2 * SECRET_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match bytes.and_then(|bytes| bytes.try_into().ok()).filter(|_| is_hex) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(format!("a ticket has {} hexadecimal digits", 2 * SECRET_LEN)),
        }
    }
}

/// Those that were made and not used. They live as long as the process, and are kept as their hashes, so that looking one up
/// tells nothing of the others by the time that it takes.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<BTreeMap<[u8; 32], Ticket>>);

#[derive(Debug)]
struct Ticket {
    rights: Rights,
    until: Instant,
}

impl Tickets {
    /// Makes one, valid for so long.
    ///
    /// # Errors
    /// The system's, or that too many are unused.
    pub(crate) fn make(&self, rights: Rights, valid: Duration) -> io::Result<Secret> {
        let mut secret = Secret([0; SECRET_LEN]);
        getrandom(&mut secret.0, GetRandomFlags::empty())?;
        let mut tickets = self.0.lock();
        let now = Instant::now();
        tickets.retain(|_, ticket| ticket.until > now);
        if tickets.len() >= MOST {
            return Err(io::Error::other(format!("{MOST} tickets are unused")));
        }
        tickets.insert(hash(&secret.0), Ticket { rights, until: now + valid });
        Ok(secret)
    }

    /// What the bearer may have; the ticket is worth nothing afterwards.
    pub(crate) fn spend(&self, secret: &[u8]) -> Option<Rights> {
        let ticket = self.0.lock().remove(&hash(secret))?;
        (ticket.until > Instant::now()).then_some(ticket.rights)
    }
}

fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::super::rule::glob;
    use super::*;

    fn rights() -> Rights {
        Rights { targets: vec![glob("vda")], ..Rights::default() }
    }

    #[test]
    fn a_ticket_is_valid_once_and_until_its_time_has_passed() {
        let tickets = Tickets::default();
        let secret = tickets.make(rights(), Duration::from_secs(60)).unwrap();
        assert!(tickets.spend(&[0; SECRET_LEN]).is_none());
        assert!(tickets.spend(b"").is_none());
        assert!(tickets.spend(&secret.0).unwrap().allow("vda", 0).is_ok());
        assert!(tickets.spend(&secret.0).is_none(), "a second time");
        let late = tickets.make(rights(), Duration::ZERO).unwrap();
        assert!(tickets.spend(&late.0).is_none(), "too late");
    }

    #[test]
    fn unused_tickets_are_bounded_and_make_room_when_their_time_has_passed() {
        let tickets = Tickets::default();
        for _ in 0..2 * MOST {
            tickets.make(rights(), Duration::ZERO).unwrap();
        }
        for _ in 0..MOST {
            tickets.make(rights(), Duration::from_secs(60)).unwrap();
        }
        assert!(tickets.make(rights(), Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_secret_is_read_as_it_was_printed_and_shown_nowhere_else() {
        let secret = Secret(std::array::from_fn(|n| n as u8 * 8));
        assert_eq!(secret.hex().parse(), Ok(secret.clone()));
        assert_eq!(format!("{}\n", secret.hex()).parse(), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "Secret");
        for wrong in ["", "00", &"0".repeat(63), &"0".repeat(65), &"+0".repeat(32), &"g".repeat(64), &"ä".repeat(32)] {
            assert!(wrong.parse::<Secret>().is_err(), "{wrong}");
        }
    }
}
