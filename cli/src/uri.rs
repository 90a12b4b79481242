//! The peer of a command, as libvirt's URIs name it, and as ours do.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use virbistream::io::{Address, TlsClient, TlsConfigError, UNIX_PATH_MAX};

use crate::pki::Pki;

/// Where the system's libvirtd listens.
const SYSTEM_SOCKET: &str = "/run/libvirt/libvirt-sock";

/// libvirt's port for TCP without TLS.
const TCP_PORT: u16 = 16509;

/// The same with TLS.
const TLS_PORT: u16 = 16514;

const FORMS: &str = "write qemu+unix:///system?socket=PATH, qemu+tcp://HOST[:PORT]/system, \
                     qemu+tls://HOST[:PORT]/system[?pkipath=DIR], tcp://HOST:PORT, tls://HOST:PORT[?pkipath=DIR] or unix:///PATH";

/// `qemu+unix:///system?socket=PATH`, `qemu+tcp://HOST[:PORT]/system`, `qemu+tls://HOST[:PORT]/system`, `tcp://HOST:PORT`,
/// `tls://HOST:PORT` or `unix:///PATH`; TLS with `?pkipath=DIR&no_verify=1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uri {
    text: String,
    /// Where to connect.
    pub(crate) address: Address,
    /// What a client asks the daemon to open: `qemu:///system`.
    pub(crate) connection: String,
    pki: Pki,
    no_verify: bool,
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Uri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri = |address, connection, parameters: Parameters| {
            let pki = Pki { directory: parameters.pkipath };
            Self { text: text.into(), address, connection, pki, no_verify: parameters.no_verify }
        };
        if text.starts_with("tcp://") || text.starts_with("tls://") || text.starts_with("unix:") {
            let (address, parameters) = match text.split_once('?') {
                Some((address, parameters)) if address.starts_with("tls://") => (address, Parameters::of(parameters)?),
                _ => (text, Parameters::default()),
            };
            if parameters.socket.is_some() {
                return Err("the parameter `socket` goes with +unix".into());
            }
            let address = address.parse().map_err(|error| format!("{error}"))?;
            return Ok(uri(address, "qemu:///system".into(), parameters));
        }
        let parts = Parts::of(text)?;
        let address = match parts.transport {
            "unix" => parts.unix()?,
            "tcp" | "tls" => parts.network()?,
            other => return Err(format!("the transport `{other}` is not known here: use +unix, +tcp or +tls")),
        };
        Ok(uri(address, format!("{}://{}", parts.driver, parts.path), parts.parameters))
    }
}

impl Uri {
    /// Whether it has to prove who it is, where it can.
    pub(crate) fn is_verified(&self) -> bool {
        !self.no_verify
    }

    /// What we show the peer, if the address has TLS.
    pub(crate) fn tls(&self) -> Result<Option<TlsClient>, TlsConfigError> {
        match self.address {
            Address::Tls { .. } if self.no_verify => {
                self.pki.client_keys().and_then(TlsClient::without_verification).map(Some)
            }
            _ => self.pki.client(&self.address),
        }
    }
}

/// `DRIVER[+TRANSPORT]://[HOST][:PORT]/PATH[?PARAMETERS]`
struct Parts<'a> {
    driver: &'a str,
    transport: &'a str,
    authority: &'a str,
    path: &'a str,
    parameters: Parameters,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(FORMS)?;
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // As libvirt has it: without a host it is the local socket, with one TLS.
        let (driver, transport) =
            scheme.split_once('+').unwrap_or((scheme, if authority.is_empty() { "unix" } else { "tls" }));
        if driver.is_empty() || !driver.chars().all(|letter| letter.is_ascii_alphanumeric()) {
            return Err(FORMS.into());
        }
        if path.len() < 2 {
            return Err(format!("`{text}` does not say what to open: add /system"));
        }
        let parameters = Parameters::of(parameters)?;
        if transport != "tls" && (parameters.pkipath.is_some() || parameters.no_verify) {
            return Err("the parameters `pkipath` and `no_verify` go with +tls".into());
        }
        Ok(Self { driver, transport, authority, path, parameters })
    }

    fn unix(&self) -> Result<Address, String> {
        if !self.authority.is_empty() {
            return Err(format!("a UNIX socket has no host, and `{}` is one: use +tls or +tcp", self.authority));
        }
        match &self.parameters.socket {
            Some(path) => Ok(Address::Unix(path.clone())),
            None if (self.driver, self.path) == ("qemu", "/system") => Ok(Address::Unix(SYSTEM_SOCKET.into())),
            None => Err(format!("where {}://{} listens is not known: add ?socket=PATH", self.driver, self.path)),
        }
    }

    fn network(&self) -> Result<Address, String> {
        let transport = self.transport;
        if self.parameters.socket.is_some() {
            return Err(format!("the parameter `socket` goes with +unix, not with +{transport}"));
        }
        if self.authority.is_empty() {
            return Err(format!("+{transport} needs a host"));
        }
        if self.authority.contains('@') {
            return Err(format!("+{transport} takes no user"));
        }
        let has_port = self.authority.rfind(':') > self.authority.rfind(']');
        let default = if transport == "tls" { TLS_PORT } else { TCP_PORT };
        let port = if has_port { String::new() } else { format!(":{default}") };
        format!("{transport}://{}{port}", self.authority).parse().map_err(|error| format!("{error}"))
    }
}

/// Behind the question mark.
#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    pkipath: Option<PathBuf>,
    no_verify: bool,
}

impl Parameters {
    fn of(text: &str) -> Result<Self, String> {
        let mut parameters = Self::default();
        let mut seen = Vec::new();
        for parameter in text.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "socket" => parameters.socket = Some(socket_path(value)?),
                "pkipath" => parameters.pkipath = Some(path(name, value)?),
                "no_verify" => {
                    parameters.no_verify = match value {
                        "0" => false,
                        "1" => true,
                        _ => return Err("the parameter `no_verify` is 0 or 1".into()),
                    }
                }
                _ => return Err(format!("the parameter `{name}` is not known here")),
            }
            if seen.contains(&name) {
                return Err(format!("the parameter `{name}` is given twice"));
            }
            seen.push(name);
        }
        Ok(parameters)
    }
}

fn path(name: &str, value: &str) -> Result<PathBuf, String> {
    let path = percent_decoded(value).ok_or_else(|| format!("`{value}` has a % without two hexadecimal digits"))?;
    if path.as_bytes().first() != Some(&b'/') {
        return Err(format!("the parameter `{name}` is a path that begins with /"));
    }
    if path.as_bytes().contains(&0) {
        return Err(format!("the parameter `{name}` has a NUL byte"));
    }
    Ok(path.into())
}

fn socket_path(value: &str) -> Result<PathBuf, String> {
    let path = path("socket", value)?.into_os_string();
    if path.len() > UNIX_PATH_MAX {
        return Err(format!("the socket's path has {} bytes; at most {UNIX_PATH_MAX} are possible", path.len()));
    }
    Ok(path.into())
}

fn percent_decoded(text: &str) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        let value = |digit: u8| (digit as char).to_digit(16);
        bytes.push(u8::try_from(value(digits[0])? * 16 + value(digits[1])?).ok()?);
        rest = after;
    }
    Some(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parsed(text: &str) -> (String, String) {
        let uri: Uri = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(uri.to_string(), text);
        (uri.address.to_string(), uri.connection)
    }

    #[test]
    fn uris_as_libvirt_writes_them_and_as_we_do() {
        for (text, address, connection) in [
            ("qemu+unix:///system", "unix:/run/libvirt/libvirt-sock", "qemu:///system"),
            ("qemu:///system", "unix:/run/libvirt/libvirt-sock", "qemu:///system"),
            ("qemu+unix:///system?", "unix:/run/libvirt/libvirt-sock", "qemu:///system"),
            ("qemu+unix:///system?socket=/a/b", "unix:/a/b", "qemu:///system"),
            ("qemu+unix:///session?socket=/a/b", "unix:/a/b", "qemu:///session"),
            ("test+unix:///default?socket=/a/b&", "unix:/a/b", "test:///default"),
            ("qemu+unix:///system?socket=/a%20b%2f%25%3D", "unix:/a b/%=", "qemu:///system"),
            ("qemu+unix:///system?socket=/%c3%A9", "unix:/é", "qemu:///system"),
            ("qemu+tcp://host/system", "tcp://host:16509", "qemu:///system"),
            ("qemu+tcp://host:1/system", "tcp://host:1", "qemu:///system"),
            ("qemu+tcp://[::1]/system", "tcp://[::1]:16509", "qemu:///system"),
            ("qemu+tcp://[::1]:2/session", "tcp://[::1]:2", "qemu:///session"),
            ("test+tcp://192.0.2.2/default", "tcp://192.0.2.2:16509", "test:///default"),
            ("qemu+tls://host/system", "tls://host:16514", "qemu:///system"),
            ("qemu://host/system", "tls://host:16514", "qemu:///system"),
            ("qemu+tls://[::1]:2/system?pkipath=/a%20b&no_verify=1", "tls://[::1]:2", "qemu:///system"),
            ("tls://host:16514", "tls://host:16514", "qemu:///system"),
            ("tls://host:16514?pkipath=/a&no_verify=0", "tls://host:16514", "qemu:///system"),
            ("tcp://host:16599", "tcp://host:16599", "qemu:///system"),
            ("unix:///a/b", "unix:/a/b", "qemu:///system"),
            ("unix:/a/b", "unix:/a/b", "qemu:///system"),
        ] {
            assert_eq!(parsed(text), (address.into(), connection.into()), "{text}");
        }
    }

    #[test]
    fn what_is_no_uri_of_ours_is_refused_and_named() {
        let long = format!("qemu+unix:///system?socket=/{}", "x".repeat(107));
        for (text, word) in [
            ("", "qemu+unix:///system"),
            ("/run/libvirt/libvirt-sock", "qemu+unix:///system"),
            ("://host/system", "qemu+unix:///system"),
            ("+tcp://host/system", "qemu+unix:///system"),
            ("qemu+tls:///system", "host"),
            ("qemu+tls://host/system?socket=/a", "`socket`"),
            ("qemu+tls://host/system?no_verify=yes", "0 or 1"),
            ("qemu+tls://host/system?pkipath=a", "begins with /"),
            ("qemu+tls://host/system?pkipath=/a&pkipath=/b", "twice"),
            ("qemu+tcp://host/system?pkipath=/a", "+tls"),
            ("tls://host", "port"),
            ("tls://host:1?socket=/a", "`socket`"),
            ("qemu+ssh://host/system", "`ssh`"),
            ("qemu+://host/system", "``"),
            ("qemu+unix:///session", "add ?socket=PATH"),
            ("test+unix:///default", "test:///default"),
            ("xen:///system", "xen:///system"),
            ("qemu+unix://host/system", "`host`"),
            ("qemu+unix:///", "/system"),
            ("qemu+tcp://host", "/system"),
            ("qemu+tcp:///system", "host"),
            ("qemu+tcp://me@host/system", "user"),
            ("qemu+tcp://host:70000/system", "70000"),
            ("qemu+tcp://host:/system", "port"),
            ("qemu+tcp://host/system?socket=/a", "`socket`"),
            ("qemu+unix:///system?mode=direct", "`mode`"),
            ("qemu+unix:///system?socket=/a&no_verify=1", "`no_verify`"),
            ("qemu+unix:///system?socket", "begins with /"),
            ("qemu+unix:///system?socket=", "begins with /"),
            ("qemu+unix:///system?socket=a", "begins with /"),
            ("qemu+unix:///system?socket=/a&socket=/b", "twice"),
            ("qemu+unix:///system?socket=/a%2", "`/a%2`"),
            ("qemu+unix:///system?socket=/a%g0", "`/a%g0`"),
            ("qemu+unix:///system?socket=/a%+1", "`/a%+1`"),
            ("qemu+unix:///system?socket=/a%00", "NUL"),
            (&long, "108 bytes"),
            ("tcp://host", "port"),
            ("unix:", "path"),
        ] {
            let error = text.parse::<Uri>().expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
