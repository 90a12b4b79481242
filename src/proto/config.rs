use std::time::Duration;

use super::memory::MemoryBudget;
use crate::wire::{DATA_MAX, DATA_MIN, EXTENSION_LEN, EXTENSIONS_MAX, Extension, ProgramId};

/// What one side of a session asks, grants and waits for.
///
/// Every limit here binds the *peer* unless it says otherwise. [`Session`](super::Session) brings
/// values out of range into it instead of failing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The program, version and procedure block that mark our packets; both peers must have the same.
    pub program: ProgramId,
    /// The most payload bytes that one DATA packet to us may carry: 4 KiB to 16 MiB.
    ///
    /// The default is libvirt's own payload for one stream packet, 262,120 bytes.
    pub max_data: u32,
    /// How many streams the peer may have open at us at once.
    pub max_streams: u32,
    /// Bytes that the peer may send on a stream ahead of what we consumed, at least 4 KiB. On a long link it becomes more, and later
    /// streams begin with what was needed there, up to a quarter of what is left to grow.
    pub window: u64,
    /// The most that a stream's window grows to: while it is what holds the peer up, it follows what is delivered in two round
    /// trips, the shortest seen since the session began. A link of 10 Gbit/s and 200 ms takes 250 MB. What is beyond `window` comes from one half of the memory budget alone.
    pub window_max: u64,
    /// Bytes that all windows together may add up to, of this session and of those whose configuration is a clone of this one. A stream
    /// whose first window would not fit is refused, ours and the peer's alike.
    pub memory_budget: MemoryBudget,
    /// Bytes that this session's windows may add up to, of that, so that one peer leaves some to others; at least one window. A stream whose first
    /// window would not fit is refused; what is beyond first windows comes from one half of this, too.
    pub session_memory: u64,
    /// Streams that the peer may ask for in a second, and in four at once; more are refused.
    pub max_opens: u32,
    /// Control packets in a second, and in four at once, that change nothing or only ask for an answer: PING, a PONG for none of ours,
    /// CREDIT that raises nothing, STOP said twice, any of them for a stream that is over. With more the peer is flooding us.
    pub max_idle_control: u32,
    /// Every HELLO that we could take is judged by our owner: [`Event::Hello`](super::Event::Hello) is answered by
    /// [`Session::admit`](super::Session::admit) or [`deny`](super::Session::deny), within `hello_timeout`.
    pub judge_hello: bool,
    /// What our HELLO says besides, a ticket say: at most 16, of at most 1,024 bytes each; what is beyond is left out.
    pub hello_extensions: Vec<Extension>,
    /// How long HELLO, or on the connecting side its reply, may take; `None` waits for ever.
    pub hello_timeout: Option<Duration>,
    /// How long our own OPEN may stay without a reply.
    pub open_timeout: Duration,
    /// PING is sent this often; at least 1 ms.
    pub ping_interval: Duration,
    /// A peer of which nothing was heard for this long is gone; at least twice the ping interval is wise.
    pub silence_limit: Duration,
}

/// As good as never, and no clock overflows: a hundred years.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// With less, a session would have nothing else to do.
const SHORTEST_PING: Duration = Duration::from_millis(1);

impl Config {
    pub(super) fn in_range(mut self) -> Self {
        self.max_data = self.max_data.clamp(DATA_MIN, DATA_MAX);
        self.window = self.window.max(u64::from(DATA_MIN));
        self.window_max = self.window_max.max(self.window);
        self.session_memory = self.session_memory.max(self.window);
        self.hello_timeout = self.hello_timeout.map(|timeout| timeout.min(LONGEST));
        for time in [&mut self.open_timeout, &mut self.ping_interval, &mut self.silence_limit] {
            *time = LONGEST.min(*time);
        }
        self.hello_extensions.retain(|extension| extension.value.len() <= EXTENSION_LEN);
        self.hello_extensions.truncate(EXTENSIONS_MAX);
        self.ping_interval = self.ping_interval.max(SHORTEST_PING);
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            program: ProgramId::default(),
            max_data: 262_120,
            max_streams: 1024,
            window: 256 << 10,
            window_max: 256 << 20,
            memory_budget: MemoryBudget::new(2 << 30),
            session_memory: 1 << 30,
            max_opens: 10_000,
            max_idle_control: 4_000,
            judge_hello: false,
            hello_extensions: Vec::new(),
            hello_timeout: Some(Duration::from_secs(10)),
            open_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(5),
            silence_limit: Duration::from_secs(30),
        }
    }
}
