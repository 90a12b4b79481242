//! A long link over real sockets: a relay between the ends delays what passes, and lets no more through than its rate.

mod io_support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use io_support::*;
use virbistream::io::{SessionOptions, Socket};

const MIB: usize = 1 << 20;

/// One way takes half of it.
const ROUND_TRIP: Duration = Duration::from_millis(40);

const BYTES_PER_SECOND: usize = 60 * MIB;

/// What waits for the link to carry it, as time: the sender's socket is not read beyond it.
const QUEUE: Duration = Duration::from_millis(5);

/// Carries bytes one way until their end. Its sleeps are the link.
fn delay(mut from: TcpStream, mut to: TcpStream) {
    let (arrival, arrivals) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (at, bytes) in arrivals {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let (mut chunk, mut free_at) = (vec![0; 64 * 1024], Instant::now());
        while let Ok(len @ 1..) = from.read(&mut chunk) {
            let time = Duration::from_nanos(len as u64 * 1_000_000_000 / BYTES_PER_SECOND as u64);
            free_at = free_at.max(Instant::now()) + time;
            let _ = arrival.send((free_at + ROUND_TRIP / 2, chunk[..len].to_vec()));
            thread::sleep(free_at.saturating_duration_since(Instant::now() + QUEUE));
        }
    });
}

/// A connection whose ends are far from each other.
fn long_link() -> [Socket; 2] {
    let [(near, relayed_near), (far, relayed_far)] = [tcp_link(), tcp_link()];
    for (from, to) in [(&relayed_near, &relayed_far), (&relayed_far, &relayed_near)] {
        delay(from.try_clone().unwrap(), to.try_clone().unwrap());
    }
    [near, far].map(|socket| Socket::from_tcp(socket).unwrap())
}

/// The rate at which the last of the bytes come, once the windows have had a second and a half.
fn rate(change: impl FnOnce(&mut SessionOptions)) -> usize {
    let [near, far] = long_link();
    let mut tunnel = Tunnel::over(near, far, |options, _| change(options));
    let Carried { client, mut server, .. } = tunnel.carry();
    thread::spawn(move || while (&client).write_all(&[7; 65_536]).is_ok() {});
    let (begun, mut chunk) = (Instant::now(), vec![0; 256 * 1024]);
    while begun.elapsed() < Duration::from_millis(1500) {
        assert!(server.read(&mut chunk).unwrap() > 0);
    }
    let (begun, mut bytes) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(1) {
        bytes += server.read(&mut chunk).unwrap();
    }
    (bytes as u128 * 1_000_000_000 / begun.elapsed().as_nanos()) as usize
}

#[test]
fn windows_grow_until_a_long_link_is_full() {
    let narrow = rate(|options| options.config.window_max = options.config.window);
    assert!(narrow < BYTES_PER_SECOND / 4, "a window that stays is what holds it up: {narrow} bytes a second");
    // A busy machine may hold up a round; windows that stay small would hold up them all.
    let mut tuned = 0;
    for _ in 0..3 {
        tuned = tuned.max(rate(|_| ()));
        if tuned >= BYTES_PER_SECOND * 9 / 10 {
            return;
        }
    }
    panic!("no more than {tuned} bytes a second");
}
