//! Who a certificate is of.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, GeneralName, X509Certificate, X509Name};

use super::error::TlsError;
use crate::io::identity::Identity;

/// Attributes that GnuTLS, and so libvirt, has names for; others are written by their number.
const NAMES: [(&str, &str); 31] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    // GnuTLS knows its name and not its kind of text.
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionOfIncorporationLocalityName"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionOfIncorporationStateOrProvinceName"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionOfIncorporationCountryName"),
    ("1.3.6.1.5.5.7.9.1", "dateOfBirth"),
    ("1.3.6.1.5.5.7.9.2", "placeOfBirth"),
    ("1.3.6.1.5.5.7.9.3", "gender"),
    ("1.3.6.1.5.5.7.9.4", "countryOfCitizenship"),
    ("1.3.6.1.5.5.7.9.5", "countryOfResidence"),
];

/// Of a certificate that was verified: nothing else may come here.
pub(super) fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, TlsError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(unreadable)?;
    let mut names = Vec::new();
    if let Some(extension) = certificate.subject_alternative_name().map_err(unreadable)? {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes).map(|address| address.to_string())),
                _ => {}
            }
        }
    }
    Ok(Identity::Certificate { dn: dn(certificate.subject()), names, expires: end(&certificate) })
}

/// Until when it is valid.
pub(super) fn expires(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    X509Certificate::from_der(certificate).ok().map(|(_, certificate)| end(&certificate))
}

fn end(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    // ASN.1 has no year after 9999.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn unreadable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Certificate(format!("cannot be read: {error}"))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// As GnuTLS writes it: in the order of the certificate, where RFC 4514 turns it round.
fn dn(name: &X509Name<'_>) -> String {
    let parts = name.iter_rdn().map(|part| {
        let attributes: Vec<String> = part.iter().map(attribute).collect();
        attributes.join("+")
    });
    parts.collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let known = NAMES.iter().find(|(number, _)| *number == oid).map(|(_, name)| *name);
    match known.and_then(|name| Some((name, text(name, attribute)?))) {
        Some((name, text)) => format!("{name}={}", escaped(&text)),
        None => format!("{}={}", known.unwrap_or(&oid), hexadecimal(attribute)),
    }
}

const UTF8: u32 = 12;
const PRINTABLE: u32 = 19;
const TELETEX: u32 = 20;
const IA5: u32 = 22;
const BMP: u32 = 30;

/// ASN.1's strings that an attribute may be of. GnuTLS takes one of another kind for no text.
fn kinds(name: &str) -> &'static [u32] {
    match name {
        "telephoneNumber" | "dateOfBirth" => &[],
        "C" | "serialNumber" | "dnQualifier" | "gender" => &[PRINTABLE],
        "jurisdictionOfIncorporationCountryName" | "countryOfCitizenship" | "countryOfResidence" => &[PRINTABLE],
        "DC" | "EMAIL" => &[IA5],
        _ => &[UTF8, PRINTABLE, TELETEX, BMP],
    }
}

fn text(name: &str, attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let (tag, bytes) = (attribute.attr_value().header.tag().0, attribute.attr_value().data);
    match tag {
        tag if !kinds(name).contains(&tag) => None,
        UTF8 => std::str::from_utf8(bytes).ok().map(str::to_owned),
        BMP if bytes.len().is_multiple_of(2) => {
            let unit = |unit: &[u8]| u16::from(unit[0]) << 8 | u16::from(unit[1]);
            let units: Vec<u16> = bytes.chunks_exact(2).map(unit).collect();
            String::from_utf16(&units).ok()
        }
        BMP => None,
        _ => bytes.is_ascii().then(|| bytes.iter().map(|byte| char::from(*byte)).collect()),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let last = text.chars().count().saturating_sub(1);
    for (n, letter) in text.chars().enumerate() {
        let anywhere = matches!(letter, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
        let at_the_edge = letter == ' ' && (n == 0 || n == last) || letter == '#' && n == 0;
        if anywhere || at_the_edge {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

/// The value as it is encoded.
fn hexadecimal(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    let mut text = String::from("#");
    let bytes = value.data;
    // Attributes of certificates are shorter than what a longer form of the length is for, or they are no names of people.
    let tag = u8::try_from(value.header.tag().0).unwrap_or(u8::MAX);
    let length = match u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes() {
        [0, length @ 0..=0x7f] => vec![length],
        [0, length] => vec![0x81, length],
        [high, low] => vec![0x82, high, low],
    };
    for byte in [tag].iter().chain(&length).chain(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    /// Made by openssl, with what names can have: odd letters, two attributes in one part, attributes that GnuTLS has no names for.
    const ODD: &str = "-----BEGIN CERTIFICATE-----
MIIDcTCCAxegAwIBAgIUBEUlU2Gi331K0HE4EE6d9kDAZSgwCgYIKoZIzj0EAwIw
gfAxCzAJBgNVBAYTAkRFMQowCAYDVQQIDAFCMQwwCgYDVQQJDANzIDExFDAIBgNV
BAMMAWIwCAYDVQQKDAFhMRYwFAYDVQQKDA0gbGVhZCwgdHJhaWwgMQswCQYDVQQM
DAIjdDEQMA4GA1UECwwHdW1sw6R1dDESMBAGCgmSJomT8ixkARkWAmV4MRIwEAYK
CZImiZPyLGQBAQwCbWUxFDASBgkqhkiG9w0BCQEWBWFAYi5jMQswCQYDVQQNDAJk
ZTEKMAgGA1UEFAwBMTELMAkGA1UEYQwCb2kxFjAUBgNVBAMMDWErYiJjPGQ+ZTtm
PWcwHhcNMjYxMTIzMTI1MzU1WhcNMjYxMTI0MTI1MzU1WjCB8DELMAkGA1UEBhMC
REUxCjAIBgNVBAgMAUIxDDAKBgNVBAkMA3MgMTEUMAgGA1UEAwwBYjAIBgNVBAoM
AWExFjAUBgNVBAoMDSBsZWFkLCB0cmFpbCAxCzAJBgNVBAwMAiN0MRAwDgYDVQQL
DAd1bWzDpHV0MRIwEAYKCZImiZPyLGQBGRYCZXgxEjAQBgoJkiaJk/IsZAEBDAJt
ZTEUMBIGCSqGSIb3DQEJARYFYUBiLmMxCzAJBgNVBA0MAmRlMQowCAYDVQQUDAEx
MQswCQYDVQRhDAJvaTEWMBQGA1UEAwwNYStiImM8ZD5lO2Y9ZzBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABMRnXEKToanMTNLfrh0jGllYqT1fNRmKYNilocpsmUUM
TQ+jUTrC6zIZVqVQ8fGvhp0uKAQ5ZX5uXluEJfe+Mc+jgYwwgYkwHQYDVR0OBBYE
FDwpUrK5zsiyWI5kGa4JLffqdouiMB8GA1UdIwQYMBaAFDwpUrK5zsiyWI5kGa4J
LffqdouiMA8GA1UdEwEB/wQFMAMBAf8wNgYDVR0RBC8wLYIMaG9zdC5leGFtcGxl
hwTAAAIBhxAgAQ24AAAAAAAAAAAAAAABgQVhQGIuYzAKBggqhkjOPQQDAgNIADBF
AiAgGEoNsmCuN4IIra40hHX7S0TRTJkyvjjbVTvSJY2KOwIhAPJondee++Pzd629
Oi30geK3MTxne3uDc4/2KjZIAhcH
-----END CERTIFICATE-----";

    #[test]
    fn a_name_is_written_as_gnutls_writes_it_and_what_the_certificate_is_for_is_found() {
        let certificate = CertificateDer::from_pem_slice(ODD.as_bytes()).unwrap();
        let Identity::Certificate { dn, names, expires: end } = identity(&certificate).unwrap() else { unreachable!() };
        // gnutls_x509_crt_get_dn of version 3.7 says this of it.
        let gnutls = concat!(
            r"C=DE,ST=B,street=s 1,CN=b+O=a,O=\ lead\, trail\ ,title=\#t,OU=umläut,DC=ex,UID=me,EMAIL=a@b.c,description=de,",
            r#"telephoneNumber=#0c0131,2.5.4.97=#0c026f69,CN=a\+b\"c\<d\>e\;f=g"#
        );
        assert_eq!(dn, gnutls);
        assert_eq!(names, ["host.example", "192.0.2.1", "2001:db8::1"]);
        // openssl x509 -enddate
        assert_eq!(end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_795_524_835);
        assert_eq!(expires(&certificate), Some(end));
    }

    #[test]
    fn a_country_that_is_no_printable_string_is_no_text_to_gnutls_nor_to_us() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CountryName, "GB");
        params.distinguished_name.remove(rcgen::DnType::CommonName);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let Identity::Certificate { dn, .. } = identity(certificate.der()).unwrap() else { unreachable!() };
        // As libvirtd 9.0 logged it.
        assert_eq!(dn, "C=#0c024742");
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        let certificate = CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01, 0x00]);
        assert!(identity(&certificate).is_err());
        assert_eq!(expires(&certificate), None);
    }
}
