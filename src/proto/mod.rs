//! The session: a state machine without sockets, clocks or threads.
//!
//! The embedding contract: `handle_…` takes what happened (packets, the time, a lost link), `poll_…` gives what is to
//! be done (an event, bytes to write, the next deadline). Received data is given out borrowed, at once; the session
//! keeps no payload. Data to be sent is *asked for* when a stream's turn has come and it has credit, so the session
//! keeps none of that either. Poll events until there are none after every `handle_…`, and after `poll_control`, too: a stream may be
//! over with what is sent.
//!
//! The canonical loop, here without a network between two sessions:
//!
//! ```
//! use std::time::Instant;
//! use virbistream::proto::{Config, Event, Session};
//! use virbistream::wire::{Decoder, Open, PACKET_MAX, Piece};
//!
//! /// Writes what `from` owes, then reads it into `to`.
//! fn carry(from: &mut Session, to: &mut Session, source: &mut Vec<u8>, sink: &mut Vec<u8>) {
//!     let now = Instant::now();
//!     let mut link = vec![0; 1 << 20];
//!     let mut len = from.poll_control(now, &mut link);
//!     while let Some(grant) = from.poll_grant() {
//!         let bytes = source.len().min(grant.max);
//!         let mut stream = from.stream(grant.id).unwrap();
//!         if bytes == 0 {
//!             stream.blocked();
//!             continue;
//!         }
//!         let header = stream.send(bytes).unwrap();
//!         link[len..len + 28].copy_from_slice(&header);
//!         link[len + 28..len + 28 + bytes].copy_from_slice(&source[..bytes]);
//!         source.drain(..bytes);
//!         len += 28 + bytes;
//!     }
//!     let mut input = &link[..len];
//!     let mut decoder = Decoder::new(PACKET_MAX);
//!     while let Some(piece) = decoder.decode(&mut input).unwrap() {
//!         let data = match piece {
//!             Piece::Header { header, payload_len } => {
//!                 assert!(to.owns(&header), "legacy packets are yours");
//!                 to.handle_header(now, &header, payload_len).map(|()| None)
//!             }
//!             Piece::Payload { bytes, remaining } => to.handle_payload(now, bytes, remaining),
//!         };
//!         if let Some(data) = data.unwrap() {
//!             sink.extend_from_slice(data.bytes);
//!             to.stream(data.id).unwrap().consumed(data.bytes.len() as u64).unwrap();
//!         }
//!     }
//! }
//!
//! let now = Instant::now();
//! let (mut ours, mut theirs) = (Session::connect(Config::default(), now), Session::accept(Config::default(), now));
//! let (mut source, mut sink) = (b"hello".to_vec(), Vec::new());
//! carry(&mut ours, &mut theirs, &mut source, &mut sink); // HELLO
//! carry(&mut theirs, &mut ours, &mut Vec::new(), &mut sink); // its reply
//! assert!(matches!(ours.poll_event(), Some(Event::Established { version: 1, .. })));
//!
//! let id = ours.open(now, Open { target: "vda".into(), ..Open::default() }).unwrap();
//! carry(&mut ours, &mut theirs, &mut source, &mut sink); // OPEN
//! while let Some(event) = theirs.poll_event() {
//!     if let Event::Incoming { id, request } = event {
//!         assert_eq!(request.target, "vda");
//!         theirs.stream(id).unwrap().accept().unwrap();
//!     }
//! }
//! carry(&mut theirs, &mut ours, &mut Vec::new(), &mut sink); // its reply
//! ours.stream(id).unwrap().ready();
//! carry(&mut ours, &mut theirs, &mut source, &mut sink); // DATA
//! assert_eq!(sink, b"hello");
//! ```
#![deny(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::unwrap_used, clippy::indexing_slicing)]

mod allowance;
mod config;
mod credit;
mod error;
mod event;
mod hello;
mod liveness;
mod memory;
mod rate;
mod receive;
mod schedule;
mod session;
mod stream;
mod transmit;

pub use config::Config;
pub(crate) use config::LONGEST;
pub use error::{Misuse, OpenError, SessionError, StreamError};
pub use event::Event;
pub use memory::MemoryBudget;
pub(crate) use memory::Share;
pub use rate::TokenBucket;
pub(crate) use rate::set_rate;
pub use receive::Data;
pub use session::{RefusedOpens, Session, Side};
pub(crate) use stream::rule_error;
pub use stream::{StreamId, StreamMut, StreamStats};
pub use transmit::{CONTROL_MAX, Grant};
