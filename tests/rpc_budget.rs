//! What clients of libvirt's RPC can make a daemon hold, all links together.

use virbistream::proto::MemoryBudget;
use virbistream::rpc::{Direction, IncomingId, Server, ServerEvent, StreamOptions};
use virbistream::wire::{
    Decoder, HEADER_LEN, Header, PACKET_MAX, PacketType, Piece, RemoteError, Status, codes, decode_body,
};

/// A call with so many bytes of arguments, of which these have come.
fn call(server: &mut Server, serial: u32, len: u32, came: u32) {
    let (kind, status) = (PacketType::Call.as_wire(), Status::Ok.as_wire());
    let header = Header { program: 7, version: 1, procedure: 1, kind, serial, status };
    server.handle_header(&header, len).unwrap();
    for at in 0..came {
        server.handle_payload(&[0], len - at - 1).unwrap();
    }
}

fn called(server: &mut Server) -> Option<IncomingId> {
    match server.poll_event()? {
        ServerEvent::Call(call) => Some(call.id),
        other => panic!("{other:?}"),
    }
}

/// The code of the error that waits to be sent; `None` when it is no error.
fn answer(server: &mut Server) -> Option<i32> {
    let mut out = vec![0; 4096];
    let len = server.poll_packets(&mut out, usize::MAX);
    let mut input = &out[..len];
    let mut decoder = Decoder::new(PACKET_MAX);
    let Some(Piece::Header { header, .. }) = decoder.decode(&mut input).unwrap() else { panic!("no answer") };
    let is_error = header.packet_status() == Some(Status::Error);
    is_error.then(|| decode_body::<RemoteError>(&out[HEADER_LEN..len]).unwrap().code)
}

#[test]
fn arguments_of_all_links_keep_to_one_budget_and_count_as_they_come() {
    let budget = MemoryBudget::new(100);
    let [mut one, mut other] = [(); 2].map(|()| Server::with_budget(budget.clone()));
    // The word alone reserves nothing.
    call(&mut one, 1, 1 << 20, 0);
    assert_eq!(budget.taken(), 0);
    call(&mut one, 1, 60, 60);
    let waiting = called(&mut one).unwrap();
    assert_eq!(budget.taken(), 60);
    // What is held for those to come counts, too: 32 bytes, for the 17 that came.
    call(&mut other, 1, 50, 17);
    assert_eq!(budget.taken(), 92);
    other.handle_payload(&[0; 15], 18).unwrap();
    assert_eq!(budget.taken(), 92);
    other.handle_payload(&[0; 18], 0).unwrap();
    assert_eq!((called(&mut other), answer(&mut other)), (None, Some(codes::RESOURCE_BUSY)));
    assert_eq!(budget.taken(), 60);
    // Another is taken once there is room.
    one.answer(waiting, Ok(&[]));
    call(&mut other, 2, 100, 100);
    assert!(called(&mut other).is_some());
    other.handle_link_lost();
    assert_eq!(budget.taken(), 0);
}

#[test]
fn a_call_that_breaks_off_gives_back_what_came_of_it() {
    let budget = MemoryBudget::new(100);
    let mut server = Server::with_budget(budget.clone());
    call(&mut server, 1, 60, 30);
    drop(server);
    assert_eq!(budget.taken(), 0);
}

#[test]
fn streams_of_all_links_keep_to_one_budget_by_their_limits() {
    let budget = MemoryBudget::new(100);
    let mut server = Server::with_budget(budget.clone());
    let mut begin = |serial, direction| {
        call(&mut server, serial, 0, 0);
        let call = called(&mut server).unwrap();
        let options = StreamOptions { limit: 60, ..StreamOptions::new(direction) };
        let stream = server.answer_with_stream(call, &[], options);
        (stream.is_some(), answer(&mut server))
    };
    assert_eq!(begin(1, Direction::Receiving), (true, None));
    assert_eq!(begin(2, Direction::Receiving), (false, Some(codes::RESOURCE_BUSY)));
    assert_eq!(begin(3, Direction::Sending), (true, None), "it holds nothing here");
    server.handle_link_lost();
    while server.poll_event().is_some() {}
    assert_eq!(budget.taken(), 0);
}
