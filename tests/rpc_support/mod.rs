//! A client and a server of libvirt's RPC joined in memory, their bytes in pieces of any size.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use virbistream::rpc::{
    Client, ClientEvent, HOLE_COST, LegacyId, LinkError, ProcedureId, Server, ServerEvent, StreamEvent, StreamPiece,
};
use virbistream::wire::{Decoder, PACKET_MAX, Piece};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A procedure of libvirt's.
pub(crate) const fn remote(procedure: u32) -> ProcedureId {
    ProcedureId::remote(procedure)
}

/// What came on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Bytes(Vec<u8>),
    Hole(u64),
}

/// One end, with what it has been told.
pub(crate) struct End<T, E> {
    pub(crate) rpc: T,
    pub(crate) events: Vec<E>,
    pub(crate) streams: Vec<StreamEvent>,
    pub(crate) came: BTreeMap<LegacyId, Vec<Came>>,
    /// Whether bytes count as delivered as soon as they come.
    pub(crate) consumes: bool,
    decoder: Decoder,
}

impl<T, E> End<T, E> {
    pub(crate) fn new(rpc: T) -> Self {
        Self {
            rpc,
            events: Vec::new(),
            streams: Vec::new(),
            came: BTreeMap::new(),
            consumes: true,
            decoder: Decoder::new(PACKET_MAX),
        }
    }

    fn keep(&mut self, id: LegacyId, piece: StreamPiece<'_>) -> u64 {
        let came = self.came.entry(id).or_default();
        match piece {
            StreamPiece::Hole(length) => {
                came.push(Came::Hole(length));
                HOLE_COST
            }
            StreamPiece::Bytes(bytes) => {
                match came.last_mut() {
                    Some(Came::Bytes(before)) => before.extend_from_slice(bytes),
                    _ => came.push(Came::Bytes(bytes.to_vec())),
                }
                bytes.len() as u64
            }
        }
    }

    /// All bytes that came on a stream, holes as zeroes.
    pub(crate) fn bytes(&self, id: LegacyId) -> Vec<u8> {
        let pieces = self.came.get(&id).into_iter().flatten();
        pieces
            .flat_map(|piece| match piece {
                Came::Bytes(bytes) => bytes.clone(),
                Came::Hole(length) => vec![0; *length as usize],
            })
            .collect()
    }
}

macro_rules! end {
    ($rpc:ident, $event:ident) => {
        impl End<$rpc, $event> {
            /// All packets that it has to send now.
            pub(crate) fn packets(&mut self) -> Vec<u8> {
                let (mut said, mut room) = (Vec::new(), [0; 777]);
                loop {
                    match self.rpc.poll_packets(&mut room, 300) {
                        0 => return said,
                        len => said.extend_from_slice(&room[..len]),
                    }
                }
            }

            pub(crate) fn hear(&mut self, bytes: &[u8], piece: usize) -> Result<(), LinkError> {
                for mut input in bytes.chunks(piece) {
                    while let Some(piece) = self.decoder.decode(&mut input).expect("packets") {
                        match piece {
                            Piece::Header { header, payload_len } => self.rpc.handle_header(&header, payload_len)?,
                            Piece::Payload { bytes, remaining } => {
                                if let Some((id, piece)) = self.rpc.handle_payload(bytes, remaining)? {
                                    let bytes = self.keep(id, piece);
                                    if self.consumes {
                                        self.rpc.stream(id).expect("it lives").consumed(bytes);
                                    }
                                }
                            }
                        }
                        self.take_events();
                    }
                }
                Ok(())
            }

            pub(crate) fn take_events(&mut self) {
                while let Some(event) = self.rpc.poll_event() {
                    match event {
                        $event::Stream(event) => self.streams.push(event),
                        event => self.events.push(event),
                    }
                }
            }

            /// Sends bytes on a stream of its own, in packets of at most `max`; gives what stands on the wire.
            pub(crate) fn send(&mut self, id: LegacyId, bytes: &[u8], max: usize) -> Vec<u8> {
                let mut said = self.packets();
                self.rpc.stream(id).expect("it lives").ready();
                for packet in bytes.chunks(max) {
                    assert_eq!(self.rpc.poll_grant(), Some(id));
                    let header = self.rpc.stream(id).expect("it lives").send(packet.len() as u32).expect("its turn");
                    said.extend_from_slice(&header);
                    said.extend_from_slice(packet);
                }
                self.rpc.stream(id).expect("it lives").blocked();
                said
            }

            /// What happened to streams since the last call.
            pub(crate) fn stream_news(&mut self) -> Vec<StreamEvent> {
                self.take_events();
                std::mem::take(&mut self.streams)
            }
        }
    };
}

end!(Server, ServerEvent);
end!(Client, ClientEvent);

pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) client: End<Client, ClientEvent>,
    pub(crate) server: End<Server, ServerEvent>,
    pub(crate) piece: usize,
}

impl Pair {
    pub(crate) fn new(piece: usize) -> Self {
        let (client, server) = (End::new(Client::new()), End::new(Server::new()));
        Self { now: Instant::now(), client, server, piece }
    }

    /// Carries packets both ways until nobody has any.
    pub(crate) fn settle(&mut self) {
        loop {
            let (up, down) = (self.client.packets(), self.server.packets());
            if up.is_empty() && down.is_empty() {
                return;
            }
            self.server.hear(&up, self.piece).expect("the server bears it");
            self.client.hear(&down, self.piece).expect("the client bears it");
        }
    }

    /// The client's bytes reach the server.
    pub(crate) fn up(&mut self, bytes: &[u8]) {
        self.server.hear(bytes, self.piece).expect("the server bears it");
    }

    /// The server's bytes reach the client.
    pub(crate) fn down(&mut self, bytes: &[u8]) {
        self.client.hear(bytes, self.piece).expect("the client bears it");
    }

    /// The last call that reached the server.
    pub(crate) fn call(&mut self) -> virbistream::rpc::IncomingCall {
        match self.server.events.pop() {
            Some(ServerEvent::Call(call)) => call,
            other => panic!("no call came: {other:?}"),
        }
    }
}
