//! TLS on links: who may connect is who has a certificate of the authority's, and both sides ask.

mod config;
mod engine;
mod error;
mod name;
mod stream;

pub use config::{TlsClient, TlsConfigError, TlsKeys, TlsServer};
pub use error::TlsError;
pub use stream::TlsStream;

pub(super) use engine::Tls;
pub(super) use error::is_cut;
