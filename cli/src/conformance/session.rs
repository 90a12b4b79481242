//! A session with the peer that is judged, said packet by packet: whatever is wanted can be said.

use virbistream::wire::{
    BISTREAM_1, Body, Close, Credit, Finish, Header, Hello, HelloReply, Limits, Open, OpenReply, PROCEDURE_BASE,
    PROGRAM, Ping, RemoteError, Rule, Status, Stop, close, decode_body,
};

use super::case::{Fault, Setting, Verdict};
use super::peer::{ARE_YOU_THERE, Came, Packet, Peer, packet, reply, unknown};

/// The serial of our HELLO.
pub(super) const HELLO_SERIAL: u32 = 3;

/// A window for streams whose data we take.
pub(super) const WINDOW: u64 = 1 << 20;

/// Types and statuses by their numbers, to say what is wrong as easily as what is right.
pub(super) mod kind {
    pub(crate) const CALL: u32 = 0;
    pub(crate) const REPLY: u32 = 1;
    pub(crate) const MESSAGE: u32 = 2;
    pub(crate) const STREAM: u32 = 3;
    pub(crate) const HOLE: u32 = 6;
}

/// Procedures, as their offset in the block.
pub(super) mod block {
    pub(crate) const HELLO: u32 = 0;
    pub(crate) const OPEN: u32 = 1;
    pub(crate) const DATA: u32 = 2;
    pub(crate) const CREDIT: u32 = 3;
    pub(crate) const STOP: u32 = 4;
    pub(crate) const PING: u32 = 5;
    pub(crate) const PONG: u32 = 6;
    pub(crate) const CLOSE: u32 = 7;
    pub(crate) const RESUME: u32 = 8;
}

pub(super) fn header(procedure: u32, kind: u32, serial: u32, status: u32) -> Header {
    Header { program: PROGRAM, version: 1, procedure: PROCEDURE_BASE + procedure, kind, serial, status }
}

pub(super) fn raw(procedure: u32, kind: u32, serial: u32, status: u32, body: &[u8]) -> Vec<u8> {
    packet(&header(procedure, kind, serial, status), body)
}

pub(super) fn bytes(body: &impl Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.encode(&mut bytes).expect("a body within its bounds");
    bytes
}

pub(super) fn hello() -> Hello {
    Hello {
        min_version: BISTREAM_1,
        max_version: BISTREAM_1,
        offered: 0,
        needed: 0,
        limits: Limits { max_data: 262_120, max_streams: 16 },
        extensions: Vec::new(),
    }
}

pub(super) fn say_hello(hello: &Hello) -> Vec<u8> {
    raw(block::HELLO, kind::CALL, HELLO_SERIAL, 0, &bytes(hello))
}

pub(super) fn say_open(id: u32, open: &Open) -> Vec<u8> {
    raw(block::OPEN, kind::CALL, id, 0, &bytes(open))
}

pub(super) fn say_data(id: u32, data: &[u8]) -> Vec<u8> {
    raw(block::DATA, kind::STREAM, id, 2, data)
}

pub(super) fn say_finish(id: u32, offset: u64) -> Vec<u8> {
    raw(block::DATA, kind::STREAM, id, 0, &bytes(&Finish { offset }))
}

pub(super) fn say_reset(id: u32) -> Vec<u8> {
    raw(block::DATA, kind::STREAM, id, 1, &bytes(&RemoteError::new(78, 38, "given up")))
}

pub(super) fn say_credit(stream: u32, consumed: u64, limit: u64) -> Vec<u8> {
    raw(block::CREDIT, kind::MESSAGE, 0, 0, &bytes(&Credit { stream, consumed, limit }))
}

pub(super) fn say_stop(stream: u32) -> Vec<u8> {
    raw(block::STOP, kind::MESSAGE, 0, 0, &bytes(&Stop { stream }))
}

pub(super) fn say_ping(token: u64) -> Vec<u8> {
    raw(block::PING, kind::MESSAGE, 0, 0, &bytes(&Ping { token }))
}

pub(super) fn say_close(code: u32) -> Vec<u8> {
    raw(block::CLOSE, kind::MESSAGE, 0, 0, &bytes(&Close { code, rule: 0, text: String::new() }))
}

/// A session that stands, from the connecting side.
pub(super) struct Session {
    pub(super) peer: Peer,
    /// What the peer takes.
    pub(super) limits: Limits,
    target: String,
}

impl Session {
    pub(super) fn begin(setting: &Setting) -> Result<Self, Fault> {
        let mut peer = Peer::connect(setting)?;
        peer.send(&say_hello(&hello()))?;
        let reply = hello_reply(&mut peer)?;
        judge_reply(&reply)?;
        Ok(Self { peer, limits: reply.limits, target: setting.target.clone().unwrap_or_default() })
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Verdict {
        self.peer.send(bytes)
    }

    pub(super) fn open_of(&self, window: u64) -> Open {
        Open { target: self.target.clone(), window, ..Open::default() }
    }

    /// Opens the target; gives the window.
    pub(super) fn open(&mut self, id: u32, window: u64) -> Result<u64, Fault> {
        self.send(&say_open(id, &self.open_of(window)))?;
        self.opened(id)
    }

    /// The OPEN that was said is answered well.
    pub(super) fn opened(&mut self, id: u32) -> Result<u64, Fault> {
        let expected = header(block::OPEN, kind::REPLY, id, 0);
        let packet = self.next("the stream to be opened", |packet| packet.header == expected)?;
        decoded::<OpenReply>(&packet).map(|reply| reply.window)
    }

    /// The next packet that is wanted. PING is answered, and what may come at any time passed over.
    pub(super) fn next(&mut self, expected: &str, wanted: impl Fn(&Packet) -> bool) -> Result<Packet, Fault> {
        let until = self.peer.deadline();
        loop {
            let packet = match self.peer.receive_until(until) {
                Came::Packet(packet) if wanted(&packet) => return Ok(packet),
                Came::Packet(packet) => packet,
                other => return Err(Fault::new(expected, other)),
            };
            let Header { procedure, kind, serial, .. } = packet.header;
            match (procedure.wrapping_sub(PROCEDURE_BASE), kind, serial) {
                (block::PING, kind::MESSAGE, 0) => {
                    self.send(&raw(block::PONG, kind::MESSAGE, 0, 0, &packet.payload))?;
                }
                // The far end of a target may take no more at any time.
                (block::CREDIT | block::STOP, kind::MESSAGE, 0) => {}
                _ if packet.header == header(block::DATA, kind::STREAM, serial, 2) => {}
                (block::CLOSE, kind::MESSAGE, 0) => {
                    let close = decoded::<Close>(&packet)?;
                    return Err(Fault::new(expected, format!("{close:?}")));
                }
                _ => return Err(Fault::new(expected, Came::Packet(packet))),
            }
        }
    }

    /// CLOSE 1 with this rule, then the end and nothing else.
    pub(super) fn expect_violation(&mut self, rule: Rule) -> Verdict {
        let expected = format!("CLOSE for {rule}");
        let is_close = |packet: &Packet| packet.header == header(block::CLOSE, kind::MESSAGE, 0, 0);
        // Streams may have been answered and ended before.
        let packet = self.next_of_all(&expected, is_close)?;
        let close = decoded::<Close>(&packet)?;
        if (close.code, close.rule) != (close::VIOLATION, rule.number()) {
            return Err(Fault::new(expected, format!("{close:?}")));
        }
        self.peer.finish();
        self.peer.expect_closed()
    }

    /// As `next`, but whatever else comes is passed over.
    pub(super) fn next_of_all(&mut self, expected: &str, wanted: impl Fn(&Packet) -> bool) -> Result<Packet, Fault> {
        let until = self.peer.deadline();
        loop {
            match self.peer.receive_until(until) {
                Came::Packet(packet) if wanted(&packet) => return Ok(packet),
                Came::Packet(_) => {}
                other => return Err(Fault::new(expected, other)),
            }
        }
    }

    /// The OPEN is refused with this code and rule, 0 for none.
    pub(super) fn expect_refused(&mut self, id: u32, code: i32, rule: u32) -> Verdict {
        let expected = format!("OPEN {id} to be refused with code {code} and rule {rule}");
        let wanted = header(block::OPEN, kind::REPLY, id, 1);
        let packet = self.next(&expected, |packet| packet.header == wanted)?;
        judge(&packet, code, rule, &expected)
    }

    /// The stream is reset, for a rule.
    pub(super) fn expect_reset(&mut self, id: u32, rule: Rule) -> Verdict {
        let expected = format!("a reset of stream {id} with code 8 for {rule}");
        let wanted = header(block::DATA, kind::STREAM, id, 1);
        let packet = self.next(&expected, |packet| packet.header == wanted)?;
        judge(&packet, 8, rule.number(), &expected)
    }

    /// PING is answered, and so is a legacy call beside it.
    pub(super) fn expect_lives(&mut self) -> Verdict {
        let token = 0x7669_7262_6973_7472;
        self.send(&say_ping(token))?;
        self.expect_pong(token)?;
        self.peer.ask_whether_it_serves()?;
        let answer = reply(&ARE_YOU_THERE, Status::Error);
        let packet = self.next("an answer to a legacy call", |packet| packet.header == answer)?;
        self.peer.judge_error(Came::Packet(packet), &answer, &unknown())
    }

    pub(super) fn expect_pong(&mut self, token: u64) -> Verdict {
        let wanted = header(block::PONG, kind::MESSAGE, 0, 0);
        let packet = self.next("PONG", |packet| packet.header == wanted)?;
        let pong = decoded::<Ping>(&packet)?;
        if pong.token == token {
            return Ok(());
        }
        Err(Fault::new(format!("PONG with the token {token:#x}"), format!("{:#x}", pong.token)))
    }

    /// A stream gives back what is sent, all of it, and both ends finish.
    pub(super) fn expect_echo(&mut self, id: u32, sent: &[u8]) -> Verdict {
        let limit = self.open(id, WINDOW)?;
        let mut echo = Echo { limit, granted: WINDOW, ..Echo::default() };
        let mut until = self.peer.deadline();
        while !(echo.finished && echo.consumed == sent.len() as u64) {
            echo.say(self, id, sent)?;
            let packet = match self.peer.receive_until(until) {
                Came::Packet(packet) => packet,
                other => return Err(Fault::new(format!("{} bytes back, and a finish", sent.len()), other)),
            };
            if packet.header == header(block::PING, kind::MESSAGE, 0, 0) {
                self.send(&raw(block::PONG, kind::MESSAGE, 0, 0, &packet.payload))?;
            } else {
                echo.hear(self, id, packet)?;
                until = self.peer.deadline();
            }
        }
        if echo.back == sent { Ok(()) } else { Err(Fault::new("the bytes that were sent", "others")) }
    }
}

/// How far a stream is that gives back what it is sent.
#[derive(Default)]
struct Echo {
    /// Of ours.
    sent: usize,
    said_finish: bool,
    limit: u64,
    consumed: u64,
    /// Of the peer's.
    back: Vec<u8>,
    granted: u64,
    finished: bool,
}

impl Echo {
    /// Sends what the credit allows, and behind it the finish.
    fn say(&mut self, session: &mut Session, id: u32, bytes: &[u8]) -> Verdict {
        let most = session.limits.max_data as usize;
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX).min(bytes.len());
        while self.sent < limit {
            let end = limit.min(self.sent + most);
            session.send(&say_data(id, &bytes[self.sent..end]))?;
            self.sent = end;
        }
        if self.sent == bytes.len() && !std::mem::replace(&mut self.said_finish, true) {
            session.send(&say_finish(id, self.sent as u64))?;
        }
        Ok(())
    }

    fn hear(&mut self, session: &mut Session, id: u32, packet: Packet) -> Verdict {
        let head = packet.header;
        if head == header(block::CREDIT, kind::MESSAGE, 0, 0) {
            let credit = decoded::<Credit>(&packet)?;
            if credit.stream == id {
                if credit.consumed > self.sent as u64 {
                    return Err(Fault::new(format!("no more consumed than {} bytes", self.sent), credit.consumed));
                }
                self.limit = self.limit.max(credit.limit);
                self.consumed = self.consumed.max(credit.consumed);
            }
        } else if head == header(block::DATA, kind::STREAM, id, 2) {
            let (len, most) = (packet.payload.len(), hello().limits.max_data as usize);
            if !(1..=most).contains(&len) {
                return Err(Fault::new(format!("DATA of 1 to {most} bytes"), format!("{len} bytes")));
            }
            if self.back.len() as u64 + len as u64 > self.granted {
                return Err(Fault::new(format!("no DATA beyond the limit of {}", self.granted), "more"));
            }
            self.back.extend(packet.payload);
            let offset = self.back.len() as u64;
            self.granted = offset + WINDOW;
            session.send(&say_credit(id, offset, self.granted))?;
        } else if head == header(block::DATA, kind::STREAM, id, 0) {
            let finish = decoded::<Finish>(&packet)?;
            if finish.offset != self.back.len() as u64 {
                return Err(Fault::new(format!("a finish at {}", self.back.len()), finish.offset));
            }
            self.finished = true;
        } else {
            return Err(Fault::new("the stream to give back what is sent", Came::Packet(packet)));
        }
        Ok(())
    }
}

/// A version and limits that there can be.
pub(super) fn judge_reply(reply: &HelloReply) -> Verdict {
    match (reply.version, reply.limits.max_data) {
        (1, 4096..=16_777_216) => Ok(()),
        _ => Err(Fault::new("version 1, and max_data from 4096 to 16777216", format!("{reply:?}"))),
    }
}

/// HELLO is answered well.
pub(super) fn hello_reply(peer: &mut Peer) -> Result<HelloReply, Fault> {
    let payload = peer.expect(&header(block::HELLO, kind::REPLY, HELLO_SERIAL, 0))?;
    decode_body(&payload).map_err(|error| Fault::new("a reply to HELLO", error))
}

/// An error with this code and rule.
pub(super) fn judge(packet: &Packet, code: i32, rule: u32, expected: &str) -> Verdict {
    let error = decoded::<RemoteError>(packet)?;
    if (error.code, u32::try_from(error.int2)) == (code, Ok(rule)) {
        return Ok(());
    }
    Err(Fault::new(expected, format!("{error:?}")))
}

pub(super) fn decoded<T: Body>(packet: &Packet) -> Result<T, Fault> {
    decode_body(&packet.payload).map_err(|error| Fault::new("a body that decodes", error))
}
