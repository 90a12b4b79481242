//! An NBD server on a UNIX socket: a thread for each connection, requests one after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::BLOCK;
use super::error::Error;
use super::export::Export;
use super::proto::{
    Errno, Greeting, InfoRequest, MAX_OPTION, MAX_PAYLOAD, OptionHeader, OptionReply, Reply, Request, command,
    encode_block_sizes, handshake, option, reply,
};
use super::send::send;
use crate::demo::acceptor::Acceptor;

/// Serves its exports until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    _acceptor: Acceptor,
}

impl Server {
    /// Binds the UNIX socket `path`, which must not exist yet.
    pub(crate) fn bind(path: &Path, exports: Vec<Export>) -> io::Result<Server> {
        let acceptor = Acceptor::bind(path, move |stream| {
            if let Err(error) = Connection::new(stream, &exports).run() {
                log::info!("an NBD client was dropped: {error}");
            }
        })?;
        Ok(Server { _acceptor: acceptor })
    }
}

struct Connection<'a> {
    exports: &'a [Export],
    input: BufReader<&'a UnixStream>,
    output: &'a UnixStream,
    /// The data at hand, at most those of one READ.
    buffer: Vec<u8>,
}

impl<'a> Connection<'a> {
    fn new(stream: &'a UnixStream, exports: &'a [Export]) -> Connection<'a> {
        Connection { exports, input: BufReader::new(stream), output: stream, buffer: Vec::new() }
    }

    fn run(&mut self) -> Result<(), Error> {
        match self.negotiate()? {
            Some(export) => self.transmit(export),
            None => Ok(()),
        }
    }

    /// The export that the client chose; None when it left.
    fn negotiate(&mut self) -> Result<Option<&'a Export>, Error> {
        let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        self.output.write_all(&Greeting { flags }.encode())?;
        let theirs = u32::from_be_bytes(self.array()?);
        if theirs & !u32::from(flags) != 0 {
            return Err(Error::ClientFlags(theirs));
        }
        let no_zeroes = theirs & u32::from(handshake::NO_ZEROES) != 0;
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let (option, data) = self.option()?;
            match option {
                option::EXPORT_NAME => return self.export_name(&data, no_zeroes).map(Some),
                option::GO => {
                    if let Some(export) = self.info(option, &data)? {
                        return Ok(Some(export));
                    }
                }
                option::INFO => drop(self.info(option, &data)?),
                option::LIST => self.list(&data)?,
                option::ABORT => {
                    self.reply(option, reply::ACK, &[])?;
                    return Ok(None);
                }
                _ => self.reply(option, reply::UNSUPPORTED, b"this server has no such option")?,
            }
        }
    }

    fn option(&mut self) -> Result<(u32, Vec<u8>), Error> {
        let header = OptionHeader::decode(&self.array::<{ OptionHeader::LEN }>()?)?;
        if header.length > MAX_OPTION {
            return Err(Error::TooLong { what: "option", length: header.length.into(), max: MAX_OPTION.into() });
        }
        let mut data = vec![0; header.length as usize];
        self.input.read_exact(&mut data)?;
        Ok((header.option, data))
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(data.len()).map_err(|_| Error::Size("reply to an option"))?;
        let header = OptionReply { option, kind, length }.encode();
        send(self.output, &header, data)?;
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&'a Export> {
        self.exports.iter().find(|export| export.name == name)
    }

    /// The oldest way to choose: there is no reply to say no with, only the end of the connection.
    fn export_name(&mut self, data: &[u8], no_zeroes: bool) -> Result<&'a Export, Error> {
        let name = String::from_utf8_lossy(data);
        let export = self.find(&name).ok_or_else(|| Error::NoSuchExport(name.into_owned()))?;
        let mut message = export.info().encode();
        if !no_zeroes {
            message.extend([0; 124]);
        }
        self.output.write_all(&message)?;
        Ok(export)
    }

    /// GO and INFO are answered alike. None when the client was told that there is no such export.
    fn info(&mut self, option: u32, data: &[u8]) -> Result<Option<&'a Export>, Error> {
        let Ok(request) = InfoRequest::decode(data) else {
            self.reply(option, reply::INVALID, b"malformed request")?;
            return Ok(None);
        };
        let Some(export) = self.find(&request.name) else {
            self.reply(option, reply::UNKNOWN, b"there is no such export")?;
            return Ok(None);
        };
        self.reply(option, reply::INFO, &export.info().encode_info())?;
        self.reply(option, reply::INFO, &encode_block_sizes(1, 4096, MAX_PAYLOAD))?;
        self.reply(option, reply::ACK, &[])?;
        Ok(Some(export))
    }

    fn list(&mut self, data: &[u8]) -> Result<(), Error> {
        if !data.is_empty() {
            return self.reply(option::LIST, reply::INVALID, b"LIST has no data");
        }
        for export in self.exports {
            let name = export.name.as_bytes();
            let length = u32::try_from(name.len()).map_err(|_| Error::Size("export's name"))?;
            self.reply(option::LIST, reply::SERVER, &[&length.to_be_bytes(), name].concat())?;
        }
        self.reply(option::LIST, reply::ACK, &[])
    }

    /// Until DISC, or the end of the connection between two requests.
    fn transmit(&mut self, export: &Export) -> Result<(), Error> {
        while !self.input.fill_buf()?.is_empty() {
            let request = Request::decode(&self.array::<{ Request::LEN }>()?)?;
            match request.command {
                command::DISC => return Ok(()),
                command::READ => self.read(export, &request)?,
                command::WRITE => self.write(export, &request)?,
                command::FLUSH => self.answer(&request, export.flush(&request))?,
                command::WRITE_ZEROES => self.answer(&request, export.zero(&request))?,
                _ => self.answer(&request, Err(Errno::Invalid))?,
            }
        }
        Ok(())
    }

    fn answer(&mut self, request: &Request, outcome: Result<(), Errno>) -> Result<(), Error> {
        let errno = outcome.err().map_or(0, |errno| errno as u32);
        send(self.output, &Reply { errno, cookie: request.cookie }.encode(), &[])?;
        Ok(())
    }

    fn read(&mut self, export: &Export, request: &Request) -> Result<(), Error> {
        if let Err(errno) = export.check(request) {
            return self.answer(request, Err(errno));
        }
        self.buffer.resize(request.length as usize, 0);
        if let Err(errno) = export.read(request, &mut self.buffer) {
            return self.answer(request, Err(errno));
        }
        send(self.output, &Reply { errno: 0, cookie: request.cookie }.encode(), &self.buffer)?;
        Ok(())
    }

    /// The payload is read to its end even when it is not wanted: the next request stands behind it.
    fn write(&mut self, export: &Export, request: &Request) -> Result<(), Error> {
        let mut outcome = export.check(request);
        let mut done = 0;
        while done < request.length {
            let length = (request.length - done).min(BLOCK as u32);
            self.buffer.resize(length as usize, 0);
            self.input.read_exact(&mut self.buffer)?;
            outcome = outcome.and_then(|()| export.write(request.offset + u64::from(done), &self.buffer));
            done += length;
        }
        self.answer(request, outcome.and_then(|()| export.commit(request)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
