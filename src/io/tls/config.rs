//! Certificates and keys, and what is made of them.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, Error as Rustls, RootCertStore, ServerConfig, SignatureScheme,
};
use thiserror::Error;

use super::engine::Tls;
use super::error::TlsError;
use super::name;

/// Why no TLS can be had with these certificates. Each names the file, or what was given in its place, and what is wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// Which.
        file: String,
        /// The system's words.
        source: io::Error,
    },
    /// There is none of what is wanted in a file, or it is no PEM.
    #[error("{file} has no {wanted} in PEM{detail}")]
    Pem {
        /// Which.
        file: String,
        /// What is wanted.
        wanted: &'static str,
        /// What is wrong, where that is known.
        detail: String,
    },
    /// A certificate of an authority that cannot be used.
    #[error("{file} has no certificate of an authority that can be used: {detail}")]
    Authority {
        /// Which.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// A certificate and a key that do not go together, or are of a kind that TLS does not have.
    #[error("the certificate in {certificate} cannot be used with the key in {key}: {detail}")]
    Pair {
        /// The certificate's file.
        certificate: String,
        /// The key's.
        key: String,
        /// What is wrong.
        detail: String,
    },
    /// What is dialled is neither a name of DNS nor an address.
    #[error("`{0}` is no name that a certificate can be for")]
    Name(String),
}

/// The authority's certificate, and one's own with its key.
///
/// The authority decides who may connect: whoever has a certificate of its is let in, so it had better be one for this purpose.
pub struct TlsKeys {
    authority: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// What errors call them.
    files: [String; 3],
}

impl fmt::Debug for TlsKeys {
    /// Not the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsKeys").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TlsKeys {
    /// Reads files of PEM: certificates of one or more authorities; one's own, behind it those up to the authority's, if any; and its
    /// key.
    ///
    /// # Errors
    /// See [`TlsConfigError`].
    pub fn read(authority: &Path, certificate: &Path, key: &Path) -> Result<Self, TlsConfigError> {
        let files = [authority, certificate, key].map(|path| path.display().to_string());
        let read = |path: &Path| {
            fs::read(path).map_err(|source| TlsConfigError::Read { file: path.display().to_string(), source })
        };
        Self::new(&read(authority)?, &read(certificate)?, &read(key)?, files)
    }

    /// The same of texts.
    ///
    /// # Errors
    /// See [`TlsConfigError`].
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsConfigError> {
        let files = ["the authority's text", "the certificate's text", "the key's text"].map(str::to_owned);
        Self::new(authority, certificate, key, files)
    }

    fn new(authority: &[u8], certificate: &[u8], key: &[u8], files: [String; 3]) -> Result<Self, TlsConfigError> {
        Ok(Self {
            authority: certificates(authority, &files[0])?,
            chain: certificates(certificate, &files[1])?,
            key: PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsConfigError::Pem {
                file: files[2].clone(),
                wanted: "private key",
                detail: detail(&error),
            })?,
            files,
        })
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsConfigError> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.authority {
            roots.add(certificate.clone()).map_err(|error| self.authority_error(error))?;
        }
        Ok(roots.into())
    }

    fn authority_error(&self, error: impl fmt::Display) -> TlsConfigError {
        TlsConfigError::Authority { file: self.files[0].clone(), detail: error.to_string() }
    }

    fn pair_error(&self, error: &Rustls) -> TlsConfigError {
        let [_, certificate, key] = self.files.clone();
        let detail = match error {
            Rustls::InconsistentKeys(_) => "it is of another key".into(),
            error => error.to_string(),
        };
        TlsConfigError::Pair { certificate, key, detail }
    }
}

fn certificates(pem: &[u8], file: &str) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let error = |detail| TlsConfigError::Pem { file: file.into(), wanted: "certificate", detail };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(error(String::new())),
        Ok(found) => Ok(found),
        Err(wrong) => Err(error(detail(&wrong))),
    }
}

fn detail(error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::NoItemsFound => String::new(),
        error => format!(": {error}"),
    }
}

/// ring's, with AES-128 first: it is the fastest on what hosts have, and as strong as the key exchange.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    let is_first = |suite: CipherSuite| {
        matches!(
            suite,
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), !is_first(suite.suite())));
    provider.into()
}

/// How we connect: with a certificate of our own, to who has one of the same authority that is for the name dialled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    verifies: bool,
    expires: Option<SystemTime>,
}

impl TlsClient {
    /// With these.
    ///
    /// # Errors
    /// See [`TlsConfigError`].
    pub fn new(keys: TlsKeys) -> Result<Self, TlsConfigError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(keys.roots()?, provider())
            .build()
            .map_err(|error| keys.authority_error(error))?;
        Self::with_verifier(keys, verifier, true)
    }

    /// Takes whoever answers for the server, as libvirt does with `no_verify=1`: somebody in between can read and change all that
    /// is sent. Its identity stays unknown.
    ///
    /// # Errors
    /// See [`TlsConfigError`].
    pub fn without_verification(keys: TlsKeys) -> Result<Self, TlsConfigError> {
        let algorithms = provider().signature_verification_algorithms;
        Self::with_verifier(keys, Arc::new(Anybody(algorithms)), false)
    }

    fn with_verifier(
        keys: TlsKeys,
        verifier: Arc<dyn ServerCertVerifier>,
        verifies: bool,
    ) -> Result<Self, TlsConfigError> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| keys.pair_error(&error))?;
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(keys.chain.clone(), keys.key.clone_key())
            .map_err(|error| keys.pair_error(&error))?;
        // Each connection shows its certificates anew.
        config.resumption = Resumption::disabled();
        let expires = keys.chain.first().and_then(name::expires);
        Ok(Self { config: config.into(), name: None, verifies, expires })
    }

    /// The server's certificate must be for this name, a DNS name or an address, instead of for what is dialled.
    ///
    /// # Errors
    /// [`TlsConfigError::Name`].
    pub fn expecting(mut self, name: &str) -> Result<Self, TlsConfigError> {
        self.name = Some(server_name(name)?);
        Ok(self)
    }

    /// Until when our own certificate is valid; `None` where it cannot be read.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    pub(super) fn begin(&self, dialled: &str) -> Result<Tls, TlsError> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(dialled).map_err(|error| TlsError::Local(error.to_string()))?,
        };
        Tls::client(Arc::clone(&self.config), name, self.verifies)
    }

    /// What the link to `dialled` begins with.
    pub(in crate::io) fn link(&self, dialled: &str) -> io::Result<Box<Tls>> {
        Ok(Box::new(self.begin(dialled)?))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsConfigError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsConfigError::Name(name.into()))
}

/// How we let others connect: those who have a certificate of our authority's, and nobody else. Clones are the same server: what one
/// reloads, all have.
#[derive(Clone, Debug)]
pub struct TlsServer {
    config: Arc<Mutex<Arc<ServerConfig>>>,
}

impl TlsServer {
    /// With these.
    ///
    /// # Errors
    /// See [`TlsConfigError`].
    pub fn new(keys: TlsKeys) -> Result<Self, TlsConfigError> {
        Ok(Self { config: Arc::new(Mutex::new(server_config(&keys)?)) })
    }

    /// From now on with others. Connections that stand, or whose handshake has begun, keep what they have.
    ///
    /// # Errors
    /// See [`TlsConfigError`]; nothing was changed then.
    pub fn reload(&self, keys: TlsKeys) -> Result<(), TlsConfigError> {
        let config = server_config(&keys)?;
        *self.config.lock() = config;
        Ok(())
    }

    pub(super) fn begin(&self) -> Result<Tls, TlsError> {
        let config = Arc::clone(&*self.config.lock());
        Tls::server(config)
    }

    /// What a link that was accepted begins with.
    pub(in crate::io) fn link(&self) -> io::Result<Box<Tls>> {
        Ok(Box::new(self.begin()?))
    }
}

fn server_config(keys: &TlsKeys) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(keys.roots()?, provider())
        .build()
        .map_err(|error| keys.authority_error(error))?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let mut config = builder
        .map_err(|error| keys.pair_error(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(keys.chain.clone(), keys.key.clone_key())
        .map_err(|error| keys.pair_error(&error))?;
    // A session taken up again would be that of a certificate which may have expired, or whose authority was replaced, since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config.into())
}

/// Takes every certificate. That its owner is there who has its key is looked at all the same.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Rustls> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Rustls> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Rustls> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
