//! Packets as they stand on the wire, made and understood without a session.

use virbistream::wire::{
    Body, Close, Credit, Finish, HEADER_LEN, Header, Hello, HelloReply, Open, OpenReply, PacketType, Ping, Procedure,
    ProgramId, RemoteError, Status, Stop, decode_body,
};

/// A packet of BiStream's: with the header's serial where that is not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Hello(u32, Hello),
    HelloReply(u32, HelloReply),
    HelloRefused(u32, RemoteError),
    Open(u32, Open),
    OpenReply(u32, OpenReply),
    OpenRefused(u32, RemoteError),
    Data(u32, Vec<u8>),
    Finish(u32, u64),
    Reset(u32, RemoteError),
    Credit(Credit),
    Stop(u32),
    Ping(u64),
    Pong(u64),
    Close(Close),
}

impl Packet {
    pub(crate) fn close(code: u32, rule: u32, text: &str) -> Self {
        Self::Close(Close { code, rule, text: text.into() })
    }

    pub(crate) fn credit(stream: u32, consumed: u64, limit: u64) -> Self {
        Self::Credit(Credit { stream, consumed, limit })
    }

    pub(crate) fn open_reply(id: u32, window: u64) -> Self {
        Self::OpenReply(id, OpenReply { window, extensions: Vec::new() })
    }

    pub(crate) fn header(&self) -> Header {
        use PacketType::{Call, Message, Reply, Stream};
        let (procedure, kind, serial, status) = match self {
            Self::Hello(serial, _) => (Procedure::Hello, Call, *serial, Status::Ok),
            Self::HelloReply(serial, _) => (Procedure::Hello, Reply, *serial, Status::Ok),
            Self::HelloRefused(serial, _) => (Procedure::Hello, Reply, *serial, Status::Error),
            Self::Open(id, _) => (Procedure::Open, Call, *id, Status::Ok),
            Self::OpenReply(id, _) => (Procedure::Open, Reply, *id, Status::Ok),
            Self::OpenRefused(id, _) => (Procedure::Open, Reply, *id, Status::Error),
            Self::Data(id, _) => (Procedure::Data, Stream, *id, Status::Continue),
            Self::Finish(id, _) => (Procedure::Data, Stream, *id, Status::Ok),
            Self::Reset(id, _) => (Procedure::Data, Stream, *id, Status::Error),
            Self::Credit(_) => (Procedure::Credit, Message, 0, Status::Ok),
            Self::Stop(_) => (Procedure::Stop, Message, 0, Status::Ok),
            Self::Ping(_) => (Procedure::Ping, Message, 0, Status::Ok),
            Self::Pong(_) => (Procedure::Pong, Message, 0, Status::Ok),
            Self::Close(_) => (Procedure::Close, Message, 0, Status::Ok),
        };
        ProgramId::default().header(procedure, kind, serial, status)
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        match self {
            Self::Hello(_, body) => bytes(body),
            Self::HelloReply(_, body) => bytes(body),
            Self::HelloRefused(_, body) | Self::OpenRefused(_, body) | Self::Reset(_, body) => bytes(body),
            Self::Open(_, body) => bytes(body),
            Self::OpenReply(_, body) => bytes(body),
            Self::Data(_, body) => body.clone(),
            Self::Finish(_, offset) => bytes(&Finish { offset: *offset }),
            Self::Credit(body) => bytes(body),
            Self::Stop(stream) => bytes(&Stop { stream: *stream }),
            Self::Ping(token) | Self::Pong(token) => bytes(&Ping { token: *token }),
            Self::Close(body) => bytes(body),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = self.body();
        [&self.header().encode(body.len() as u32)[..], &body].concat()
    }

    /// A packet that a session said; panics if none may say it.
    fn decode(header: &Header, body: &[u8]) -> Self {
        let procedure = Procedure::from_offset(ProgramId::default().offset(header));
        let known = match (procedure, header.kind, header.status) {
            (Some(Procedure::Hello), 0, 0) => Self::Hello(header.serial, said(body)),
            (Some(Procedure::Hello), 1, 0) => Self::HelloReply(header.serial, said(body)),
            (Some(Procedure::Hello), 1, 1) => Self::HelloRefused(header.serial, said(body)),
            (Some(Procedure::Open), 0, 0) => Self::Open(header.serial, said(body)),
            (Some(Procedure::Open), 1, 0) => Self::OpenReply(header.serial, said(body)),
            (Some(Procedure::Open), 1, 1) => Self::OpenRefused(header.serial, said(body)),
            (Some(Procedure::Data), 3, 2) => Self::Data(header.serial, body.to_vec()),
            (Some(Procedure::Data), 3, 0) => Self::Finish(header.serial, said::<Finish>(body).offset),
            (Some(Procedure::Data), 3, 1) => Self::Reset(header.serial, said(body)),
            (Some(Procedure::Credit), 2, 0) => Self::Credit(said(body)),
            (Some(Procedure::Stop), 2, 0) => Self::Stop(said::<Stop>(body).stream),
            (Some(Procedure::Ping), 2, 0) => Self::Ping(said::<Ping>(body).token),
            (Some(Procedure::Pong), 2, 0) => Self::Pong(said::<Ping>(body).token),
            (Some(Procedure::Close), 2, 0) => Self::Close(said(body)),
            _ => panic!("no session says {header:?}"),
        };
        // Serial and the rest of the header, as the packet's meaning has them.
        assert_eq!(known.header(), *header);
        known
    }
}

fn bytes(body: &impl Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.encode(&mut bytes).expect("a body within its bounds");
    bytes
}

fn said<T: Body>(body: &[u8]) -> T {
    decode_body(body).expect("a session says strict bodies")
}

/// Any packet of the block, sensible or not; `procedure` counts from the base.
pub(crate) fn raw(procedure: u32, kind: u32, serial: u32, status: u32, body: &[u8]) -> Vec<u8> {
    let program = ProgramId::default();
    let procedure = program.base.wrapping_add(procedure);
    let header = Header { program: program.program, version: program.version, procedure, kind, serial, status };
    [&header.encode(body.len() as u32)[..], body].concat()
}

/// Takes the whole packets from the front of what was said.
pub(crate) fn split(bytes: &mut Vec<u8>) -> Vec<Packet> {
    let (mut packets, mut at) = (Vec::new(), 0);
    while let Some((head, rest)) = bytes[at..].split_first_chunk::<HEADER_LEN>() {
        let (length, header) = Header::decode(head);
        let Some(body) = rest.get(..length as usize - HEADER_LEN) else { break };
        packets.push(Packet::decode(&header, body));
        at += length as usize;
    }
    bytes.drain(..at);
    packets
}
