//! Sockets, and the loop that drives sessions over them.
//!
//! With the feature `tls`, links over TLS, too.

mod access;
mod address;
mod backlog;
mod call;
mod channel;
mod counters;
mod dispatcher;
mod front;
mod handle;
mod handler;
mod host_limit;
mod identity;
mod legacy;
mod link;
mod listener;
mod peer;
mod places;
mod pool;
mod relay;
mod report;
mod socket;
mod status;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
mod tokens;

pub use access::{Access, Admission, Caller, Permit};
pub use address::{Address, AddressError, UNIX_PATH_MAX};
pub use call::{Call, OnAnswer, Procedure, Procedures};
pub use counters::Counters;
pub use dispatcher::Dispatcher;
pub use handle::{Handle, ListenerKey, SessionKey, SessionOptions, StreamKey};
pub use handler::{Attachment, Decision, Handler, NoTargets, Request, Targets, Waker};
pub use identity::Identity;
pub use listener::{Listener, Permissions};
pub use places::LinkLimits;
pub use relay::{Relay, UnixTargets};
pub use report::Report;
pub use socket::Socket;
pub use status::{SessionStatus, StreamStatus};
#[cfg(feature = "tls")]
pub use tls::{TlsClient, TlsConfigError, TlsError, TlsKeys, TlsServer, TlsStream};
