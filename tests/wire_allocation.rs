//! What the wire allocates: nothing for what is hot, and nothing that its sender did not pay for.

use allocation_counter::measure;
use virbistream::wire::*;

const HEADER: Header = Header { program: PROGRAM, version: VERSION, procedure: 1, kind: 0, serial: 1, status: 0 };

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn framing_allocates_nothing() {
    let packet = [&HEADER.encode(5)[..], b"12345"].concat();
    let bytes = packet.repeat(10);
    let mut decoder = Decoder::new(PACKET_MAX);
    let used = measure(|| {
        for size in [1, 7, 28, 33, 330] {
            for mut portion in bytes.chunks(size) {
                while decoder.decode(&mut portion).unwrap().is_some() {}
            }
        }
        decoder.decode(&mut &[0xff; 4][..]).unwrap_err();
    });
    assert_eq!(used.count_total, 0);
}

#[test]
fn bodies_of_fixed_size_are_read_and_written_without_allocating() {
    fn judge<T: Body>(body: &T) {
        let mut out = [0; 64];
        let used = measure(|| {
            let length = encode_packet(&HEADER, body, &mut out).unwrap();
            decode_body::<T>(&out[HEADER_LEN..length]).unwrap();
            assert_eq!(encode_packet(&HEADER, body, &mut out[..length - 1]), None);
        });
        assert_eq!(used.count_total, 0, "{}", std::any::type_name::<T>());
    }
    judge(&Finish { offset: 1 });
    judge(&Hole { length: 1, flags: 0 });
    judge(&Credit { stream: 1, consumed: 2, limit: 3 });
    judge(&Stop { stream: 1 });
    judge(&Ping { token: 1 });
}

#[test]
fn any_packet_is_written_without_allocating_whether_or_not_it_fits() {
    let limits = Limits { max_data: 4096, max_streams: 1 };
    let extensions = vec![Extension { kind: 1, needed: false, value: vec![0; 9] }];
    let hello = Hello { min_version: 1, max_version: 1, offered: 0, needed: 0, limits, extensions };
    let error = RemoteError::new(codes::RPC, domains::RPC, "é".repeat(2000));
    let mut out = vec![0; 64 * 1024];
    let used = measure(|| {
        assert!(encode_packet(&HEADER, &hello, &mut out).is_some());
        assert!(encode_packet(&HEADER, &hello, &mut out[..80]).is_none());
        assert!(encode_packet(&HEADER, &error, &mut out).is_some());
        assert!(encode_packet(&HEADER, &error, &mut out[..80]).is_none());
    });
    assert_eq!(used.count_total, 0);
}

/// xdr-codec, left alone, reserves what the peer says; and its errors take a backtrace, megabytes of it the first time,
/// where `RUST_BACKTRACE` is set.
#[test]
fn a_length_of_4_gib_allocates_nothing() {
    fn judge<T: Body>(body: &[u8]) {
        let used = measure(|| assert!(matches!(decode_body::<T>(body), Err(BodyError::TooLong { .. }))));
        assert_eq!(used.count_total, 0);
    }
    judge::<Open>(&words(&[u32::MAX, 0]));
    judge::<OpenReply>(&words(&[0, 0, u32::MAX]));
    judge::<Hello>(&words(&[1, 1, 0, 0, 0, 0, 4096, 1, u32::MAX]));
    judge::<Close>(&words(&[1, 0, u32::MAX]));
    judge::<RemoteError>(&words(&[1, 0, 1, u32::MAX]));
    judge::<RemoteError>(&words(&[1, 0, 0, 2, 1, u32::MAX]));
}

/// A legal length whose bytes do not come: nothing is taken for a text, and a list takes its elements' frames only.
#[test]
fn what_does_not_come_is_not_allocated_for() {
    let text = words(&[1, 0, 1024]);
    let used = measure(|| assert!(matches!(decode_body::<Close>(&text), Err(BodyError::Truncated))));
    assert_eq!(used.count_total, 0);
    let list = words(&[0, 0, 16]);
    let used = measure(|| assert!(matches!(decode_body::<OpenReply>(&list), Err(BodyError::Truncated))));
    assert!(used.bytes_total <= 16 * size_of::<Extension>() as u64, "{used:?}");
    let value = words(&[0, 0, 1, 7, 0, u32::MAX]);
    let used = measure(|| assert!(matches!(decode_body::<OpenReply>(&value), Err(BodyError::TooLong { .. }))));
    assert!(used.bytes_total <= size_of::<Extension>() as u64, "{used:?}");
}

#[test]
fn no_fault_of_a_fixed_body_allocates() {
    let used = measure(|| {
        assert_eq!(decode_body::<Ping>(&[0; 7]), Err(BodyError::Truncated));
        assert_eq!(decode_body::<Ping>(&[0; 12]), Err(BodyError::Trailing { extra: 4 }));
        assert_eq!(decode_body::<RemoteError>(&[1; 44]), Err(BodyError::Bool(0x0101_0101)));
    });
    assert_eq!(used.count_total, 0);
}
