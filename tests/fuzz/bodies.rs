//! No body makes decoding panic, and what was decoded is encoded to the bytes it came from.
//!
//! Input: which body (u8), and its bytes.
use virbistream::wire::{
    Body, Close, Credit, Finish, HEADER_LEN, Hello, HelloReply, Hole, Open, OpenReply, PacketType, Ping, Procedure,
    ProgramId, RemoteError, Status, Stop, decode_body, encode_packet,
};

fn encoded<T: Body>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = value.encode(&mut bytes).expect("what was decoded keeps its bounds");
    assert_eq!(len, bytes.len());
    assert!(len <= T::MAX_LEN as usize, "{len} bytes, longest is {}", T::MAX_LEN);
    bytes
}

/// A packet goes out whole into room for it, and not at all into less.
fn check_packet<T: Body>(value: &T, body: &[u8]) {
    let header = ProgramId::default().header(Procedure::Data, PacketType::Stream, 1, Status::Ok);
    let mut room = vec![0xaa; HEADER_LEN + body.len() + 4];
    let len = encode_packet(&header, value, &mut room).expect("room enough");
    assert_eq!(&room[HEADER_LEN..len], body);
    assert_eq!(&room[len..], [0xaa; 4], "nothing behind it is touched");
    assert_eq!(encode_packet(&header, value, &mut room[..len - 1]), None);
}

/// One value, one encoding.
fn exact<T: Body>(bytes: &[u8]) {
    if let Ok(value) = decode_body::<T>(bytes) {
        assert_eq!(encoded(&value), bytes);
        check_packet(&value, bytes);
    }
}

/// Texts for people are read whatever they are: what is encoded may differ, once.
fn lossy<T: Body + PartialEq + std::fmt::Debug>(bytes: &[u8], texts: impl Fn(&T) -> Vec<&str>) {
    let Ok(value) = decode_body::<T>(bytes) else { return };
    assert!(bytes.len() <= T::MAX_LEN as usize);
    let once = encoded(&value);
    let again: T = decode_body(&once).expect("our own encoding");
    assert_eq!(encoded(&again), once);
    check_packet(&value, &once);
    if texts(&value).iter().all(|text| !text.contains(char::REPLACEMENT_CHARACTER)) {
        assert_eq!(again, value);
        // Of the same length: nothing was left out.
        assert!(once.len() != bytes.len() || once == bytes);
    }
}

pub(crate) fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 11 {
        0 => exact::<Hello>(bytes),
        1 => exact::<HelloReply>(bytes),
        2 => exact::<Open>(bytes),
        3 => exact::<OpenReply>(bytes),
        4 => exact::<Finish>(bytes),
        5 => exact::<Hole>(bytes),
        6 => exact::<Credit>(bytes),
        7 => exact::<Stop>(bytes),
        8 => exact::<Ping>(bytes),
        9 => lossy::<Close>(bytes, |close| vec![&close.text]),
        _ => lossy::<RemoteError>(bytes, |error| {
            let texts = [&error.str1, &error.str2, &error.str3];
            texts.into_iter().flatten().map(String::as_str).chain([error.message.as_str()]).collect()
        }),
    }
}
