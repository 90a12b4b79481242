//! Where certificates and keys are: libvirt's layout, or a directory that has them all, as libvirt's `pkipath` has.

use std::path::{Path, PathBuf};

use clap::Args;
use virbistream::io::{Address, TlsClient, TlsConfigError, TlsKeys, TlsServer};

#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct Pki {
    /// For tls:// addresses: a directory with cacert.pem and, to listen, servercert.pem and serverkey.pem, to connect,
    /// clientcert.pem and clientkey.pem. Without it they are where libvirt has them: /etc/pki/CA/cacert.pem, and in /etc/pki/libvirt
    /// the certificates, in its directory private the keys
    #[arg(long = "pki", value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

impl Pki {
    /// What one who listens shows.
    pub(crate) fn server(&self) -> Result<TlsServer, TlsConfigError> {
        TlsServer::new(self.keys("server")?)
    }

    /// Reads the same files anew.
    pub(crate) fn reload(&self, server: &TlsServer) -> Result<(), TlsConfigError> {
        server.reload(self.keys("server")?)
    }

    /// What one who connects shows, if the address has TLS.
    pub(crate) fn client(&self, address: &Address) -> Result<Option<TlsClient>, TlsConfigError> {
        match address {
            Address::Tls { .. } => self.client_keys().and_then(TlsClient::new).map(Some),
            Address::Tcp { .. } | Address::Unix(_) => Ok(None),
        }
    }

    pub(crate) fn client_keys(&self) -> Result<TlsKeys, TlsConfigError> {
        self.keys("client")
    }

    /// With a directory and nothing to use it for, something else was meant.
    pub(crate) fn check(&self, is_tls: bool) -> Result<(), String> {
        match self.directory {
            Some(_) if !is_tls => Err("--pki goes with a tls:// address".into()),
            _ => Ok(()),
        }
    }

    fn keys(&self, role: &str) -> Result<TlsKeys, TlsConfigError> {
        let (certificate, key) = (format!("{role}cert.pem"), format!("{role}key.pem"));
        match &self.directory {
            Some(directory) => {
                TlsKeys::read(&directory.join("cacert.pem"), &directory.join(certificate), &directory.join(key))
            }
            None => {
                let libvirt = Path::new("/etc/pki/libvirt");
                let authority = Path::new("/etc/pki/CA/cacert.pem");
                TlsKeys::read(authority, &libvirt.join(certificate), &libvirt.join("private").join(key))
            }
        }
    }
}
