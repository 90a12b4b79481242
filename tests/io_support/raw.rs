//! A peer that follows a script, byte by byte.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Instant;

use virbistream::io::Address;
use virbistream::wire::{
    BISTREAM_1, Body, Close, HEADER_LEN, Header, Hello, Limits, Open, PacketType, Ping, Procedure, ProgramId, Status,
    decode_body, encode_packet,
};

use super::PATIENCE;

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
}

impl Raw {
    pub(crate) fn connect(address: &Address) -> Self {
        let Address::Tcp { host, port } = address else { panic!("{address} is not TCP") };
        Self::from(TcpStream::connect((host.as_str(), *port)).unwrap())
    }

    /// One whose kernel holds little of what it does not read. From the start: a window that shrinks later makes Linux drop
    /// what comes beyond it, acknowledgements too, and the connection stands still.
    pub(crate) fn narrow(address: &Address) -> Self {
        let Address::Tcp { host, port } = address else { panic!("{address} is not TCP") };
        let address = std::net::SocketAddr::new(host.parse().unwrap(), *port);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::from(TcpStream::from(socket))
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// A packet of BiStream's, with serial `id`.
    pub(crate) fn send<T: Body>(&mut self, procedure: Procedure, kind: PacketType, id: u32, status: Status, body: &T) {
        self.say(&packet(procedure, kind, id, status, body));
    }

    /// HELLO, up to its good reply.
    #[track_caller]
    pub(crate) fn hello(&mut self) {
        self.say(&hello());
        let (header, _) = self.receive();
        assert_eq!(header, ours(Procedure::Hello, PacketType::Reply, 1, Status::Ok));
    }

    /// OPEN, without waiting for its reply.
    pub(crate) fn open(&mut self, id: u32, target: &str, window: u64) {
        let open = Open { target: target.into(), window, ..Open::default() };
        self.send(Procedure::Open, PacketType::Call, id, Status::Ok, &open);
    }

    /// OPEN, up to its reply. Packets before it are passed over.
    #[track_caller]
    pub(crate) fn opened(&mut self, id: u32, target: &str, window: u64) {
        self.open(id, target, window);
        self.receive_until(ours(Procedure::Open, PacketType::Reply, id, Status::Ok));
    }

    /// PING, up to its PONG: all that was said before has been handled. Packets before the PONG are passed over.
    #[track_caller]
    pub(crate) fn ping(&mut self) {
        self.send(Procedure::Ping, PacketType::Message, 0, Status::Ok, &Ping { token: 7 });
        self.receive_until(ours(Procedure::Pong, PacketType::Message, 0, Status::Ok));
    }

    /// The payload of the next packet with this header. Packets before it are passed over.
    #[track_caller]
    fn receive_until(&mut self, wanted: Header) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive() {
                (header, payload) if header == wanted => return payload,
                _ => assert!(Instant::now() < deadline, "no packet comes with {wanted:?}"),
            }
        }
    }

    pub(crate) fn data(&mut self, id: u32, bytes: &[u8]) {
        self.say(&data_packet(id, bytes));
    }

    /// The next packet.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut head = [0; HEADER_LEN];
        self.stream.read_exact(&mut head).expect("a packet in time");
        let (length, header) = Header::decode(&head);
        let mut payload = vec![0; length as usize - HEADER_LEN];
        self.stream.read_exact(&mut payload).expect("a whole packet in time");
        (header, payload)
    }

    /// The next packet, which must have this procedure, type and status.
    #[track_caller]
    pub(crate) fn expect<T: Body>(&mut self, procedure: Procedure, kind: PacketType, id: u32, status: Status) -> T {
        let (header, payload) = self.receive();
        assert_eq!(header, ours(procedure, kind, id, status));
        decode_body(&payload).unwrap()
    }

    /// CLOSE, and after it the end of the link. Packets before it are passed over.
    #[track_caller]
    pub(crate) fn closed(&mut self) -> Close {
        let payload = self.receive_until(ours(Procedure::Close, PacketType::Message, 0, Status::Ok));
        assert_eq!(self.rest(), [], "CLOSE is the last packet");
        decode_body(&payload).unwrap()
    }

    /// All that comes until the end of the link.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        super::to_eof(&self.stream)
    }

    /// Carries all that comes, after `first`, to `other` and back, until both have ended.
    pub(crate) fn join(self, other: TcpStream, first: &[u8]) {
        (&other).write_all(first).unwrap();
        let (ours, theirs) = (self.stream.try_clone().unwrap(), other.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut &ours, &mut &theirs).map(|_| theirs.shutdown(Shutdown::Write)));
        thread::spawn(move || io::copy(&mut &other, &mut &self.stream).map(|_| self.stream.shutdown(Shutdown::Write)));
    }

    /// The next packet as it stands on the wire.
    #[track_caller]
    pub(crate) fn receive_bytes(&mut self) -> Vec<u8> {
        let (header, payload) = self.receive();
        [&header.encode(payload.len().try_into().unwrap())[..], &payload].concat()
    }

    pub(crate) fn shut(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

impl From<TcpStream> for Raw {
    fn from(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }
}

pub(crate) fn ours(procedure: Procedure, kind: PacketType, id: u32, status: Status) -> Header {
    ProgramId::default().header(procedure, kind, id, status)
}

pub(crate) fn packet<T: Body>(procedure: Procedure, kind: PacketType, id: u32, status: Status, body: &T) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN + T::MAX_LEN as usize];
    let len = encode_packet(&ours(procedure, kind, id, status), body, &mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

pub(crate) fn data_packet(id: u32, bytes: &[u8]) -> Vec<u8> {
    let header = ours(Procedure::Data, PacketType::Stream, id, Status::Continue);
    [&header.encode(bytes.len().try_into().unwrap())[..], bytes].concat()
}

pub(crate) fn hello() -> Vec<u8> {
    let hello = Hello {
        min_version: BISTREAM_1,
        max_version: BISTREAM_1,
        offered: 0,
        needed: 0,
        limits: Limits { max_data: 262_120, max_streams: 16 },
        extensions: Vec::new(),
    };
    packet(Procedure::Hello, PacketType::Call, 1, Status::Ok, &hello)
}

/// A call without arguments, of any program.
pub(crate) fn legacy_call(program: u32, version: u32, procedure: u32, serial: u32) -> [u8; HEADER_LEN] {
    Header { program, version, procedure, kind: PacketType::Call.as_wire(), serial, status: Status::Ok.as_wire() }
        .encode(0)
}
