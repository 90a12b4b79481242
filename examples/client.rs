//! A client that owns its connection: its own socket, its own loop, and on it BiStream and libvirt's RPC side by side.
//!
//! ```sh
//! cargo run --example client -- unix:/run/example.sock vda <there >back
//! cargo run --example client -- unix:/run/libvirt/libvirt-sock
//! ```
//!
//! With a peer that knows BiStream, standard input goes to TARGET and what comes from there to standard output. With any
//! other it says so and goes on without. Either way it asks for the hypervisor's version, on the same connection. What it
//! has to tell goes to standard error.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use virbistream::io::Address;
use virbistream::proto::{Config, Event, Session, StreamId};
use virbistream::rpc::{CallError, Client, ClientEvent, Login, ProcedureId};
use virbistream::wire::{Decoder, HEADER_LEN, Open, PACKET_MAX, Piece, RemoteError, codes, decode_legacy, domains};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const CONNECT_GET_VERSION: ProcedureId = ProcedureId::remote(4);
const CONNECT_CLOSE: ProcedureId = ProcedureId::remote(2);

/// What is asked to be opened: there it is wherever libvirtd is.
const HYPERVISOR: &str = "test:///default";

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(30);

const CHUNK: usize = 64 << 10;

/// What the threads have for the loop.
enum Input {
    /// Bytes of the link.
    Link(Vec<u8>),
    LinkEnded(String),
    /// Bytes of standard input; none is its end.
    Stdin(io::Result<Vec<u8>>),
    /// So many bytes have gone to standard output.
    Printed(io::Result<usize>),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Outcome {
    let (address, target) = match arguments {
        [address] => (address, None),
        [address, target] => (address, Some(target.clone())),
        _ => return Err("usage: client unix:PATH [TARGET]".into()),
    };
    let Address::Unix(path) = address.parse()? else { return Err("the address must be unix:PATH".into()) };
    let link = UnixStream::connect(&path)?;
    let (inputs, receiver) = channel();
    let (reader, to_loop) = (link.try_clone()?, inputs.clone());
    thread::spawn(move || read_link(reader, &to_loop));
    Peer::new(link, target, inputs).serve(&receiver)
}

fn read_link(mut link: UnixStream, inputs: &Sender<Input>) {
    let mut bytes = vec![0; CHUNK];
    loop {
        let input = match link.read(&mut bytes) {
            Ok(0) => Input::LinkEnded("the peer closed it".into()),
            Ok(len) => Input::Link(bytes[..len].to_vec()),
            Err(error) => Input::LinkEnded(error.to_string()),
        };
        let ended = matches!(input, Input::LinkEnded(_));
        if inputs.send(input).is_err() || ended {
            return;
        }
    }
}

/// Reads a chunk each time that it is asked.
fn read_stdin(asked: &Receiver<()>, inputs: &Sender<Input>) {
    for () in asked {
        let mut bytes = vec![0; CHUNK];
        let read = io::stdin().read(&mut bytes).map(|len| {
            bytes.truncate(len);
            bytes
        });
        if inputs.send(Input::Stdin(read)).is_err() {
            return;
        }
    }
}

fn print(chunks: &Receiver<Vec<u8>>, inputs: &Sender<Input>) {
    for bytes in chunks {
        let mut stdout = io::stdout().lock();
        let printed = stdout.write_all(&bytes).and_then(|()| stdout.flush()).map(|()| bytes.len());
        if inputs.send(Input::Printed(printed)).is_err() {
            return;
        }
    }
}

/// The stream to the target.
struct Stream {
    id: StreamId,
    /// Asks for a chunk of standard input.
    ask: Sender<()>,
    /// What was read of it and is not sent yet: one chunk at most.
    unsent: Vec<u8>,
    printer: Sender<Vec<u8>>,
}

/// The connection and all that is on it.
struct Peer {
    link: UnixStream,
    decoder: Decoder,
    session: Session,
    rpc: Client,
    /// Whose packet is being received.
    is_bistream: bool,
    inputs: Sender<Input>,
    target: Option<String>,
    stream: Option<Stream>,
    /// Opens libvirt's connection, before all other calls.
    login: Option<Login>,
    /// What is still to be called, the first of it now if `is_calling`.
    calls: VecDeque<ProcedureId>,
    is_calling: bool,
    /// What went wrong first, of the stream or of the session.
    outcome: Outcome,
}

impl Peer {
    fn new(link: UnixStream, target: Option<String>, inputs: Sender<Input>) -> Self {
        Self {
            link,
            decoder: Decoder::new(PACKET_MAX),
            session: Session::connect(Config::default(), Instant::now()),
            rpc: Client::new(),
            is_bistream: false,
            inputs,
            target,
            stream: None,
            login: None,
            calls: VecDeque::new(),
            is_calling: false,
            outcome: Ok(()),
        }
    }

    /// The loop.
    fn serve(mut self, inputs: &Receiver<Input>) -> Outcome {
        loop {
            // What is said can be the last of a stream, or of the session: that is an event again.
            self.take_events()?;
            while self.send()? {
                self.take_events()?;
            }
            if self.session.is_finished() {
                return self.outcome;
            }
            let deadline = self.session.poll_timeout().into_iter().chain(self.rpc.poll_timeout()).min();
            let wait = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            // What has come is handed over before time is judged.
            let first = inputs.recv_timeout(wait).ok();
            for input in first.into_iter().chain(inputs.try_iter()) {
                self.take(input)?;
                // At once: when it has answered the last call, libvirtd ends the link, as it should.
                self.take_events()?;
            }
            self.session.handle_timeout(Instant::now());
            self.rpc.handle_timeout(Instant::now());
        }
    }

    fn take(&mut self, input: Input) -> Outcome {
        match input {
            Input::Link(bytes) => return self.receive(&bytes),
            Input::LinkEnded(reason) => {
                self.rpc.handle_link_lost();
                if self.decoder.at_boundary() {
                    self.session.handle_link_ended(&reason);
                } else {
                    self.session.handle_link_lost(&reason);
                }
            }
            // An end that is none must not look like one.
            Input::Stdin(Err(error)) => self.give_up(format!("standard input: {error}")),
            Input::Stdin(Ok(bytes)) => {
                if let Some(stream) = &mut self.stream
                    && let Some(sending) = self.session.stream(stream.id)
                {
                    if bytes.is_empty() {
                        sending.finish()?;
                    } else {
                        sending.ready();
                    }
                    stream.unsent = bytes;
                }
            }
            Input::Printed(Err(error)) => self.give_up(format!("standard output: {error}")),
            Input::Printed(Ok(len)) => {
                if let Some(stream) = &self.stream
                    && let Some(receiving) = self.session.stream(stream.id)
                {
                    receiving.consumed(len as u64)?;
                }
            }
        }
        Ok(())
    }

    /// Ends the stream for a fault of ours, and the session with it.
    fn give_up(&mut self, cause: String) {
        if let Some(stream) = self.stream.take()
            && let Some(failing) = self.session.stream(stream.id)
        {
            failing.reset(RemoteError::new(codes::OPERATION_ABORTED, domains::STREAMS, &cause));
        }
        self.outcome = Err(cause.into());
        self.close();
    }

    /// Cuts bytes of the link into packets, and gives each to the one whose it is.
    fn receive(&mut self, mut bytes: &[u8]) -> Outcome {
        let now = Instant::now();
        loop {
            let piece = match self.decoder.decode(&mut bytes) {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.session.handle_framing_error(error);
                    return Ok(());
                }
            };
            let data = match piece {
                Piece::Header { header, payload_len } => {
                    self.is_bistream = self.session.owns(&header);
                    if self.is_bistream {
                        self.session.handle_header(now, &header, payload_len).map(|()| None)
                    } else {
                        self.session.handle_heard(now);
                        self.rpc.handle_header(&header, payload_len)?;
                        Ok(None)
                    }
                }
                Piece::Payload { bytes, remaining } if self.is_bistream => {
                    self.session.handle_payload(now, bytes, remaining)
                }
                Piece::Payload { bytes, remaining } => {
                    self.session.handle_heard(now);
                    // It would give what comes on legacy streams, of which we begin none.
                    self.rpc.handle_payload(bytes, remaining)?;
                    Ok(None)
                }
            };
            match data {
                Ok(Some(data)) => {
                    if let Some(stream) = &self.stream {
                        // The window is the most that can wait there.
                        stream.printer.send(data.bytes.to_vec())?;
                    }
                }
                Ok(None) => {}
                // Its cause comes as an event.
                Err(_) => return Ok(()),
            }
        }
    }

    fn take_events(&mut self) -> Outcome {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Established { version, .. } => {
                    eprintln!("the peer speaks BiStream {version}");
                    if let Some(target) = self.target.take() {
                        self.session.open(Instant::now(), Open { target, ..Open::default() })?;
                    }
                    self.begin_calls();
                }
                Event::Legacy(error) => {
                    eprintln!("the peer does not know BiStream: error {}, {}", error.code, error.message);
                    if let Some(target) = self.target.take() {
                        self.outcome = Err(format!("nothing went to {target}").into());
                    }
                    self.begin_calls();
                }
                Event::Accepted(id) => self.begin_stream(id)?,
                Event::Over { stats, .. } => {
                    eprintln!("the stream is over: {stats:?}");
                    self.stream = None;
                }
                Event::Failed { error, .. } => {
                    self.outcome = Err(error.into());
                    self.close();
                }
                Event::Incoming { id, .. } => {
                    if let Some(stream) = self.session.stream(id) {
                        stream.refuse(RemoteError::new(
                            codes::DEVICE_MISSING,
                            domains::STREAMS,
                            "nothing is offered",
                        ))?;
                    }
                }
                Event::Closed(cause) if self.outcome.is_ok() => self.outcome = cause.map_err(Into::into),
                // After the last byte nothing more is printed; whom the peer stops is asked for no more.
                _ => {}
            }
        }
        while let Some(event) = self.rpc.poll_event() {
            if let ClientEvent::Answered { answer, .. } = event {
                self.take_answer(answer)?;
            }
        }
        self.call_next()
    }

    fn begin_stream(&mut self, id: StreamId) -> Outcome {
        let ((ask, asked), (printer, chunks)) = (channel(), channel());
        let (inputs, to_loop) = (self.inputs.clone(), self.inputs.clone());
        thread::spawn(move || read_stdin(&asked, &inputs));
        thread::spawn(move || print(&chunks, &to_loop));
        ask.send(())?;
        self.stream = Some(Stream { id, ask, unsent: Vec::new(), printer });
        Ok(())
    }

    fn begin_calls(&mut self) {
        self.login = Some(Login::new(HYPERVISOR));
        self.calls = [CONNECT_GET_VERSION, CONNECT_CLOSE].into();
    }

    /// Makes no more calls, and closes the session: streams that are open finish first.
    fn close(&mut self) {
        self.login = None;
        self.calls.clear();
        self.session.close();
    }

    /// Calls what comes next; the last call waits for the stream, and the end of the session for both.
    fn call_next(&mut self) -> Outcome {
        let (procedure, arguments) = match (&self.login, self.calls.front()) {
            (Some(login), _) => login.poll_call(),
            (None, Some(&procedure)) => (procedure, Vec::new()),
            (None, None) => return Ok(()),
        };
        if self.is_calling || (procedure == CONNECT_CLOSE && self.session.stream_count() > 0) {
            return Ok(());
        }
        self.rpc.call(Instant::now(), procedure, &arguments, PATIENCE)?;
        self.is_calling = true;
        Ok(())
    }

    fn take_answer(&mut self, answer: Result<Vec<u8>, CallError>) -> Outcome {
        self.is_calling = false;
        if let Some(login) = &mut self.login {
            match login.handle_answer(answer) {
                None => {}
                Some(Ok(())) => self.login = None,
                Some(Err(error)) if self.session.is_established() => {
                    eprintln!("the peer speaks BiStream only: {error}");
                    self.close();
                }
                Some(Err(error)) => return Err(error.into()),
            }
            return Ok(());
        }
        let Some(procedure) = self.calls.pop_front() else { return Ok(()) };
        let body = answer?;
        match procedure {
            CONNECT_GET_VERSION => {
                let version: u64 = decode_legacy(&body)?;
                let (major, minor, release) = (version / 1_000_000, version / 1000 % 1000, version % 1000);
                eprintln!("version {major}.{minor}.{release}");
            }
            CONNECT_CLOSE => self.session.close(),
            _ => {}
        }
        Ok(())
    }

    /// Writes what is to be said next: control packets, then calls, then the stream's bytes. False when there is nothing.
    fn send(&mut self) -> Outcome<bool> {
        let mut out = [0; HEADER_LEN + CHUNK];
        let mut len = 0;
        if self.rpc.is_between_packets() {
            len = self.session.poll_control(Instant::now(), &mut out);
        }
        if len == 0 {
            len = self.rpc.poll_packets(&mut out, HEADER_LEN + CHUNK);
        }
        if len == 0 {
            len = self.fill(&mut out)?;
        }
        self.link.write_all(&out[..len])?;
        Ok(len > 0)
    }

    /// Puts a packet of the stream's bytes into the front of `out`; gives its length.
    fn fill(&mut self, out: &mut [u8]) -> Outcome<usize> {
        let (Some(grant), Some(stream)) = (self.session.poll_grant(), &mut self.stream) else { return Ok(0) };
        let Some(sending) = self.session.stream(grant.id) else { return Ok(0) };
        let len = stream.unsent.len().min(grant.max);
        if len == 0 {
            sending.blocked();
            return Ok(0);
        }
        out[..HEADER_LEN].copy_from_slice(&sending.send(len)?);
        out[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&stream.unsent[..len]);
        stream.unsent.drain(..len);
        if stream.unsent.is_empty() {
            stream.ask.send(())?;
        }
        Ok(HEADER_LEN + len)
    }
}
