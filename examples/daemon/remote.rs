//! As much of libvirt's remote program as it takes to be seen by virsh: a domain with a screen, a pool with a volume.

use std::sync::Arc;
use std::thread;

use virbistream::io::{Call, Procedure, Procedures};
use virbistream::rpc::{Direction, ProcedureId, StreamOptions};
use virbistream::wire::{RemoteError, codes};

use crate::transfer::{Disk, Transfer};
use crate::types::{Domain, ListAll, Listed, Lookup, Pool, Range, Screenshot, State, Text, Uuid, Volume};

// Numbers of libvirt's.
const CONNECT_OPEN: u32 = 1;
const CONNECT_CLOSE: u32 = 2;
const CONNECT_GET_TYPE: u32 = 3;
const CONNECT_GET_VERSION: u32 = 4;
const CONNECT_GET_CAPABILITIES: u32 = 7;
const DOMAIN_LOOKUP_BY_NAME: u32 = 23;
const CONNECT_SUPPORTS_FEATURE: u32 = 60;
const AUTH_LIST: u32 = 66;
const POOL_LOOKUP_BY_NAME: u32 = 84;
const POOL_LOOKUP_BY_VOLUME: u32 = 86;
const VOLUME_LOOKUP_BY_NAME: u32 = 95;
const POOL_IS_ACTIVE: u32 = 154;
const CONNECT_GET_LIB_VERSION: u32 = 157;
const VOLUME_UPLOAD: u32 = 208;
const VOLUME_DOWNLOAD: u32 = 209;
const DOMAIN_SCREENSHOT: u32 = 211;
const DOMAIN_GET_STATE: u32 = 212;
const CONNECT_LIST_ALL_DOMAINS: u32 = 273;
const AUTH_NONE: u32 = 0;
const FEATURE_KEEPALIVE: i32 = 10;
const LIST_INACTIVE: u32 = 2;
const LIST_ACTIVE: u32 = 1;
const RUNNING: State = State { state: 1, reason: 1 };
const SPARSE: u32 = 1;
const NO_DOMAIN: i32 = 42;
const NO_POOL: i32 = 49;
const NO_VOLUME: i32 = 50;
const FROM_TEST: i32 = 12;
const FROM_STORAGE: i32 = 18;

/// 1.2.3 and 9.0.0, as libvirt writes them.
const VERSION: u64 = 1_002_003;
const LIB_VERSION: u64 = 9_000_000;

const VOLUME_LEN: usize = 8 << 20;

const CAPABILITIES: &str = "<capabilities>
  <host>
    <cpu>
      <arch>x86_64</arch>
    </cpu>
  </host>
</capabilities>
";

/// What can be called.
pub(crate) fn programs() -> Procedures {
    let mut programs = Procedures::new();
    let mut add = |number, procedure: fn(Call)| drop(programs.add(ProcedureId::remote(number), Arc::new(procedure)));
    add(AUTH_LIST, |call| call.answer_with(Ok(vec![AUTH_NONE])));
    add(CONNECT_SUPPORTS_FEATURE, |call| {
        // The library answers the pings.
        let answer = call.arguments().map(|feature: i32| i32::from(feature == FEATURE_KEEPALIVE));
        call.answer_with(answer);
    });
    add(CONNECT_OPEN, |call| call.answer_with(Ok(())));
    add(CONNECT_CLOSE, |call| call.answer_with(Ok(())));
    add(CONNECT_GET_TYPE, |call| call.answer_with(Ok(Text::from("EXAMPLE"))));
    add(CONNECT_GET_VERSION, |call| call.answer_with(Ok(VERSION)));
    add(CONNECT_GET_LIB_VERSION, |call| call.answer_with(Ok(LIB_VERSION)));
    add(CONNECT_GET_CAPABILITIES, |call| call.answer_with(Ok(Text::from(CAPABILITIES))));
    add(CONNECT_LIST_ALL_DOMAINS, |call| {
        let answer = call.arguments().map(list_all);
        call.answer_with(answer);
    });
    add(DOMAIN_LOOKUP_BY_NAME, |call| {
        let answer = call.arguments().and_then(|name: Text| known_domain(&name));
        call.answer_with(answer);
    });
    add(DOMAIN_GET_STATE, |call| {
        let answer = call.arguments().and_then(|domain: Domain| known_domain(&domain.name));
        call.answer_with(answer.map(|_| RUNNING));
    });
    add(DOMAIN_SCREENSHOT, screenshot);
    add(POOL_LOOKUP_BY_NAME, |call| {
        let answer = call.arguments().and_then(|name: Text| known_pool(&name));
        call.answer_with(answer);
    });
    add(POOL_LOOKUP_BY_VOLUME, |call| {
        let answer = call.arguments().and_then(|volume: Volume| known_pool(&volume.pool));
        call.answer_with(answer);
    });
    add(POOL_IS_ACTIVE, |call| {
        let answer = call.arguments().and_then(|pool: Pool| known_pool(&pool.name));
        call.answer_with(answer.map(|_| 1));
    });
    add(VOLUME_LOOKUP_BY_NAME, |call| {
        let answer = call.arguments().and_then(|asked: Lookup| known_volume(&asked.pool.name, &asked.volume));
        call.answer_with(answer);
    });

    let disk = Disk::new(vec![0; VOLUME_LEN]);
    for (number, direction) in [(VOLUME_UPLOAD, Direction::Receiving), (VOLUME_DOWNLOAD, Direction::Sending)] {
        let disk = disk.clone();
        let procedure: Arc<dyn Procedure> = Arc::new(move |call| transfer(call, &disk, direction));
        programs.add(ProcedureId::remote(number), procedure);
    }
    programs
}

fn list_all(asked: ListAll) -> Listed {
    // There is one, and it runs.
    let wanted = asked.flags & LIST_ACTIVE != 0 || asked.flags & LIST_INACTIVE == 0;
    let count = u32::from(wanted);
    Listed(if wanted && asked.wants_list != 0 { vec![domain()] } else { Vec::new() }, count)
}

fn domain() -> Domain {
    Domain { name: "test".into(), uuid: Uuid([0x11; 16]), id: 1 }
}

fn pool() -> Pool {
    Pool { name: "disks".into(), uuid: Uuid([0x22; 16]) }
}

fn volume() -> Volume {
    Volume { pool: pool().name, name: "volume".into(), key: "memory/volume".into() }
}

fn known_domain(name: &Text) -> Result<Domain, RemoteError> {
    let unknown = || RemoteError::new(NO_DOMAIN, FROM_TEST, format!("Domain not found: no domain {}", name.0));
    Some(domain()).filter(|domain| domain.name == *name).ok_or_else(unknown)
}

fn known_pool(name: &Text) -> Result<Pool, RemoteError> {
    let unknown = || RemoteError::new(NO_POOL, FROM_STORAGE, format!("Storage pool not found: no pool {}", name.0));
    Some(pool()).filter(|pool| pool.name == *name).ok_or_else(unknown)
}

fn known_volume(pool: &Text, name: &Text) -> Result<Volume, RemoteError> {
    let unknown =
        || RemoteError::new(NO_VOLUME, FROM_STORAGE, format!("Storage volume not found: no volume {}", name.0));
    known_pool(pool)?;
    Some(volume()).filter(|volume| volume.name == *name).ok_or_else(unknown)
}

/// Draws on a thread of its own: calls come on the dispatcher's, which must not wait.
fn screenshot(call: Call) {
    thread::spawn(move || match call.arguments().and_then(|asked: Screenshot| known_domain(&asked.domain.name)) {
        Err(error) => call.answer(Err(error)),
        Ok(_) => {
            let picture = Disk::new(draw());
            let mime = Some(Text::from("image/x-portable-pixmap"));
            answer_with_transfer(call, &mime, StreamOptions::new(Direction::Sending), picture.transfer(0, 0, false));
        }
    });
}

/// A picture as PPM: red grows to the right, green downwards.
fn draw() -> Vec<u8> {
    let mut picture = b"P6\n64 48\n255\n".to_vec();
    for y in 0..48 {
        picture.extend((0..64).flat_map(|x| [x * 4, y * 5, 128]));
    }
    picture
}

fn transfer(call: Call, disk: &Disk, direction: Direction) {
    match call
        .arguments::<Range>()
        .and_then(|range| known_volume(&range.volume.pool, &range.volume.name).map(|_| range))
    {
        Err(error) => call.answer(Err(error)),
        Ok(range) => {
            let options = StreamOptions { sparse: range.flags & SPARSE != 0, ..StreamOptions::new(direction) };
            answer_with_transfer(call, &(), options, disk.transfer(range.offset, range.length, options.sparse));
        }
    }
}

fn answer_with_transfer<T: xdr_codec::Pack<Vec<u8>>>(
    call: Call,
    answer: &T,
    options: StreamOptions,
    transfer: Option<Transfer>,
) {
    let mut body = Vec::new();
    match transfer {
        Some(transfer) if answer.pack(&mut body).is_ok() => call.answer_with_stream(body, options, Box::new(transfer)),
        _ => {
            let error = RemoteError::new(codes::INVALID_ARG, FROM_STORAGE, "invalid argument: beyond the volume's end");
            call.answer(Err(error));
        }
    }
}
