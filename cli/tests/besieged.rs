//! A migration beside a thousand links that nobody goes on with.

mod moving;
#[allow(dead_code, reason = "certificates for the loopback are others'")]
#[path = "../../tests/io_support/pki.rs"]
mod pki;
mod support;

use moving::Moving;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{PATIENCE, alone, wait_for};

/// From so many addresses, as one has but a share of the places.
const ADDRESSES: u8 = 8;

/// From each.
const LINKS: usize = 125;

/// A link to `source.example` whose TLS begins with a record that does not end.
fn link(last: u8) -> io::Result<TcpStream> {
    let link = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&link, &SocketAddrV4::new(Ipv4Addr::new(10, 77, 78, last), 0))?;
    connect(&link, &SocketAddrV4::new(Ipv4Addr::new(10, 77, 77, 1), 16515))?;
    let mut link = TcpStream::from(link);
    link.write_all(&[22, 3, 1, 2, 0, 1])?;
    link.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(link)
}

/// Has so many links at any time until it is told to stop: serve ends each when its time has passed, and another takes its place.
fn besiege(stop: &AtomicBool) {
    let addresses = || (1..=ADDRESSES).flat_map(|last| (0..LINKS).map(move |_| last));
    let mut links: Vec<_> = addresses().map(|last| link(last).expect("a place")).collect();
    for (n, last) in addresses().enumerate().cycle() {
        while matches!(links[n].read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
        links[n] = link(last).expect("its place");
    }
}

/// Tells it to, if the test fails, too.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_thousand_half_open_links_slow_no_migration_down() {
    let _alone = alone();
    let moving = Moving::start();
    let [besieged, besieging] = &moving.hosts;
    besieging.succeed(&format!("for last in $(seq {ADDRESSES}); do ip addr add 10.77.78.$last/32 dev wire; done"));
    besieged.succeed("ip route add 10.77.78.0/24 dev wire");
    let migrate = |from| {
        let begun = Instant::now();
        let finished = moving.migrate(from, "").finish(6 * PATIENCE);
        assert!(finished.status.success(), "{finished}");
        begun.elapsed()
    };
    migrate(0);
    let alone = migrate(1);
    migrate(0);
    let stop = AtomicBool::new(false);
    let beside = thread::scope(|scope| {
        let stopping = Stopping(&stop);
        scope.spawn(|| besieging.in_network(|| besiege(&stop)));
        wait_for("a thousand links", PATIENCE, || {
            let said = besieged.succeed(r#"echo '{"counters":{}}' | socat -t 5 - UNIX-CONNECT:/run/serve.sock"#).stdout;
            said.contains(r#""half_open_now":1000"#).then_some(())
        });
        let beside = migrate(1);
        drop(stopping);
        beside
    });
    moving.assert_runs_at(0);
    moving.assert_nothing_is_left();
    assert!(beside < 2 * alone + PATIENCE / 10, "{beside:?} beside them, {alone:?} alone");
    moving.end(0);
}
