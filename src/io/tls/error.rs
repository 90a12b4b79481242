use std::io;

use rustls::{AlertDescription, CertificateError, Error as Rustls, PeerIncompatible};
use thiserror::Error;

/// Why a connection is not, or no longer, secure. Nothing more is sent or received on it.
///
/// Reads and writes give it inside of an [`io::Error`], whose `get_ref` can be downcast to it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The connection ended without the peer's word that it was the end: what came last may be missing, by an attacker's doing.
    #[error("the TLS connection was cut: it ended without the peer's close_notify")]
    Truncated,
    /// The same before the handshake was over. A peer that does not like our certificate may do this.
    #[error("the peer closed the connection during the TLS handshake")]
    HandshakeCut,
    /// The peer showed no certificate, and it needs one.
    #[error("the TLS handshake failed: the peer showed no certificate")]
    NoCertificate,
    /// The peer's certificate is not accepted; the text says why.
    #[error("the TLS handshake failed: the peer's certificate {0}")]
    Certificate(String),
    /// The peer told us that it fails, as a rule since it does not accept our certificate.
    #[error("the peer ended the TLS connection: {0}")]
    Refused(String),
    /// A libvirt server, or one of ours, said something else than "your certificate is accepted".
    #[error("the peer does not say that it accepts our certificate")]
    NotAccepted,
    /// No version, cipher or signature in common.
    #[error("the TLS handshake failed: the peer offers nothing that is secure enough ({0})")]
    Incompatible(String),
    /// What came is no TLS, or broken, or was tampered with.
    #[error("the peer broke TLS: {0}")]
    Misbehaved(String),
    /// Our side cannot go on.
    #[error("TLS failed: {0}")]
    Local(String),
}

impl From<Rustls> for TlsError {
    fn from(error: Rustls) -> Self {
        match error {
            Rustls::NoCertificatesPresented => Self::NoCertificate,
            Rustls::InvalidCertificate(why) => Self::Certificate(describe(&why)),
            Rustls::AlertReceived(alert) => Self::Refused(refusal(alert)),
            Rustls::PeerIncompatible(why) => Self::Incompatible(incompatible(&why)),
            Rustls::InvalidMessage(_)
            | Rustls::PeerMisbehaved(_)
            | Rustls::DecryptError
            | Rustls::PeerSentOversizedRecord
            | Rustls::InappropriateMessage { .. }
            | Rustls::InappropriateHandshakeMessage { .. } => Self::Misbehaved(error.to_string()),
            other => Self::Local(other.to_string()),
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::Truncated | TlsError::HandshakeCut => io::ErrorKind::UnexpectedEof,
            TlsError::Local(_) => io::ErrorKind::Other,
            TlsError::Refused(_) => io::ErrorKind::ConnectionRefused,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Completes "the peer's certificate".
fn describe(why: &CertificateError) -> String {
    use CertificateError as C;
    match why {
        C::UnknownIssuer => "is of no authority that is trusted here".into(),
        C::Expired | C::ExpiredContext { .. } => "has expired".into(),
        C::NotValidYet | C::NotValidYetContext { .. } => "is not valid yet".into(),
        C::NotValidForName => "is not for the name that was dialled".into(),
        C::NotValidForNameContext { expected, presented } => {
            let presented = if presented.is_empty() { "no name".into() } else { presented.join(", ") };
            format!("is not for `{}`, which was dialled, but for {presented}", expected.to_str())
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => "is not for this purpose (extended key usage)".into(),
        other => format!("is not accepted: {other}"),
    }
}

fn refusal(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => "it wants a certificate".into(),
        A::UnknownCA => "our certificate is of no authority that it trusts".into(),
        A::CertificateExpired => "our certificate has expired".into(),
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown | A::CertificateRevoked => {
            format!("it does not accept our certificate ({alert:?})")
        }
        A::ProtocolVersion => "it has no version of TLS in common with us".into(),
        other => format!("{other:?}"),
    }
}

fn incompatible(why: &PeerIncompatible) -> String {
    match why {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic
        | PeerIncompatible::SupportedVersionsExtensionRequired => "neither TLS 1.3 nor 1.2".into(),
        // What a client of before TLS 1.2 lacks.
        PeerIncompatible::SignatureAlgorithmsExtensionRequired => "neither TLS 1.3 nor a TLS 1.2 of today".into(),
        other => format!("{other:?}"),
    }
}

/// Whether a connection ended without the peer's word.
pub(in crate::io) fn is_cut(error: &io::Error) -> bool {
    error.get_ref().and_then(|error| error.downcast_ref()) == Some(&TlsError::Truncated)
}
