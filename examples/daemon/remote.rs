//! As much of libvirt's remote program as it takes to be seen by virsh: a domain with a screen, a pool with volumes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use xdr_codec::Pack;

use virbistream::io::{Call, Procedure, Procedures, SessionKey};
use virbistream::rpc::{Direction, ProcedureId, StreamOptions};
use virbistream::wire::{RemoteError, codes, domains};

use crate::storage::{Storage, known_pool, volume};
use crate::transfer::Disk;
use crate::types::{
    Create, Delete, Domain, ListAll, Listed, Lookup, Pool, Range, Screenshot, State, Text, Uuid, Volume,
};

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
const VOLUME_CREATE_XML: u32 = 93;
const VOLUME_DELETE: u32 = 94;
const VOLUME_LOOKUP_BY_KEY: u32 = 97;
const VOLUME_LOOKUP_BY_PATH: u32 = 98;
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
const FROM_TEST: i32 = 12;

/// 1.2.3 and 9.0.0, as libvirt writes them.
const VERSION: u64 = 1_002_003;
const LIB_VERSION: u64 = 9_000_000;

const CAPABILITIES: &str = "<capabilities>
  <host>
    <cpu>
      <arch>x86_64</arch>
    </cpu>
  </host>
</capabilities>
";

/// The sessions that have opened the hypervisor's connection, as libvirt calls it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opened(Arc<Mutex<HashSet<SessionKey>>>);

impl Opened {
    fn sessions(&self) -> MutexGuard<'_, HashSet<SessionKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn close(&self, session: SessionKey) {
        self.sessions().remove(&session);
    }
}

/// What can be called.
pub(crate) fn programs(opened: &Opened) -> Procedures {
    let mut programs = Procedures::new();
    add_connection(&mut programs, opened);
    let mut add = |number, procedure: fn(Call)| add_opened(&mut programs, opened, number, procedure);
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
    add_volumes(&mut programs, opened, &Storage::new());
    programs
}

/// What is called before the connection is open.
fn add_connection(programs: &mut Procedures, opened: &Opened) {
    add(programs, AUTH_LIST, |call| call.answer_with(Ok(vec![AUTH_NONE])));
    add(programs, CONNECT_SUPPORTS_FEATURE, |call| {
        // The library answers the pings.
        let answer = call.arguments().map(|feature: i32| i32::from(feature == FEATURE_KEEPALIVE));
        call.answer_with(answer);
    });
    let sessions = opened.clone();
    add(programs, CONNECT_OPEN, move |call| {
        sessions.sessions().insert(call.session());
        call.answer_with(Ok(()));
    });
    let sessions = opened.clone();
    add(programs, CONNECT_CLOSE, move |call| {
        sessions.close(call.session());
        call.answer_with(Ok(()));
    });
}

fn add_volumes(programs: &mut Procedures, opened: &Opened, storage: &Storage) {
    let mut add = |number, procedure: fn(&Storage, Call)| {
        let storage = storage.clone();
        add_opened(programs, opened, number, move |call| procedure(&storage, call));
    };
    add(VOLUME_LOOKUP_BY_NAME, |storage, call| {
        let known = |asked: Lookup| storage.find(&asked.pool.name, &asked.volume).map(|_| volume(&asked.volume.0));
        let answer = call.arguments().and_then(known);
        call.answer_with(answer);
    });
    // virsh takes what it is given for a name, a key and a path in turn.
    for number in [VOLUME_LOOKUP_BY_KEY, VOLUME_LOOKUP_BY_PATH] {
        add(number, |storage, call| {
            let answer = call.arguments().and_then(|key: Text| storage.find_by_key(&key));
            call.answer_with(answer);
        });
    }
    add(VOLUME_CREATE_XML, |storage, call| {
        let answer = call.arguments().and_then(|asked: Create| storage.create(&asked.pool.name, &asked.xml));
        call.answer_with(answer);
    });
    add(VOLUME_DELETE, |storage, call| {
        let answer = call.arguments().and_then(|asked: Delete| storage.delete(&asked.volume.pool, &asked.volume.name));
        call.answer_with(answer);
    });
    add(VOLUME_UPLOAD, |storage, call| transfer(call, storage, Direction::Receiving));
    add(VOLUME_DOWNLOAD, |storage, call| transfer(call, storage, Direction::Sending));
}

fn add(programs: &mut Procedures, number: u32, procedure: impl Fn(Call) + Send + Sync + 'static) {
    let procedure: Arc<dyn Procedure> = Arc::new(procedure);
    programs.add(ProcedureId::remote(number), procedure);
}

/// One that is refused until the connection is open.
fn add_opened(
    programs: &mut Procedures,
    opened: &Opened,
    number: u32,
    procedure: impl Fn(Call) + Send + Sync + 'static,
) {
    let opened = opened.clone();
    add(programs, number, move |call| {
        if opened.sessions().contains(&call.session()) {
            procedure(call);
        } else {
            call.answer(Err(not_open()));
        }
    });
}

/// In libvirt's words and layout.
fn not_open() -> RemoteError {
    let text = "hypervisor connection not open";
    let error = RemoteError::new(codes::INTERNAL_ERROR, domains::RPC, format!("internal error: {text}"));
    RemoteError { str1: Some("internal error: %s".into()), str2: Some(text.into()), ..error.with_ints(-1, -1) }
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

fn known_domain(name: &Text) -> Result<Domain, RemoteError> {
    let unknown = || RemoteError::new(NO_DOMAIN, FROM_TEST, format!("Domain not found: no domain {}", name.0));
    Some(domain()).filter(|domain| domain.name == *name).ok_or_else(unknown)
}

/// Draws on a thread of its own: calls come on the dispatcher's, which must not wait.
fn screenshot(call: Call) {
    thread::spawn(move || match call.arguments().and_then(|asked: Screenshot| known_domain(&asked.domain.name)) {
        Err(error) => call.answer(Err(error)),
        Ok(_) => {
            let mut mime = Vec::new();
            // Into memory: it cannot fail.
            let _ = Some(Text::from("image/x-portable-pixmap")).pack(&mut mime);
            let picture = Disk::new(draw()).transfer(0, 0);
            call.answer_with_stream(mime, StreamOptions::new(Direction::Sending), Box::new(picture));
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

fn transfer(call: Call, storage: &Storage, direction: Direction) {
    let found = |range: Range| storage.find(&range.volume.pool, &range.volume.name).map(|disk| (disk, range));
    match call.arguments().and_then(found) {
        Err(error) => call.answer(Err(error)),
        Ok((disk, range)) => {
            let options = StreamOptions { sparse: range.flags & SPARSE != 0, ..StreamOptions::new(direction) };
            let transfer = disk.transfer(range.offset, range.length);
            call.answer_with_stream(Vec::new(), options, Box::new(transfer));
        }
    }
}
