//! The client's half of the handshake: from a fresh connection to an export one may use.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::PATIENCE;
use super::error::Error;
use super::proto::{
    ExportInfo, Greeting, InfoRequest, MAX_OPTION, OptionHeader, OptionReply, handshake, option, reply,
};

/// Chooses `export` of the server that was connected to.
pub(super) fn open(stream: &mut UnixStream, export: &str) -> Result<ExportInfo, Error> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    greet(stream)?;
    let data = InfoRequest { name: export.to_owned() }.encode()?;
    let length = u32::try_from(data.len()).map_err(|_| Error::Size("export's name"))?;
    stream.write_all(&[OptionHeader { option: option::GO, length }.encode(), data].concat())?;
    await_go(stream)
}

fn greet(stream: &mut UnixStream) -> Result<(), Error> {
    let mut bytes = [0; Greeting::LEN];
    stream.read_exact(&mut bytes)?;
    let flags = Greeting::decode(&bytes)?.flags;
    if flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(Error::NotFixedNewstyle);
    }
    let ours = u32::from(flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES));
    stream.write_all(&ours.to_be_bytes())?;
    Ok(())
}

/// GO is answered by any number of informations, then an acknowledgement or an error.
fn await_go(stream: &mut UnixStream) -> Result<ExportInfo, Error> {
    let mut export = None;
    loop {
        let (kind, data) = option_reply(stream)?;
        match kind {
            reply::INFO => export = ExportInfo::decode_info(&data)?.or(export),
            reply::ACK => return export.ok_or(Error::NoExportInfo),
            code => return Err(Error::Refused { code, text: String::from_utf8_lossy(&data).into_owned() }),
        }
    }
}

fn option_reply(stream: &mut UnixStream) -> Result<(u32, Vec<u8>), Error> {
    let mut bytes = [0; OptionReply::LEN];
    stream.read_exact(&mut bytes)?;
    let header = OptionReply::decode(&bytes)?;
    if header.option != option::GO {
        return Err(Error::OtherOption { asked: option::GO, got: header.option });
    }
    if header.length > MAX_OPTION {
        return Err(Error::TooLong {
            what: "reply to an option",
            length: header.length.into(),
            max: MAX_OPTION.into(),
        });
    }
    let mut data = vec![0; header.length as usize];
    stream.read_exact(&mut data)?;
    Ok((header.kind, data))
}
