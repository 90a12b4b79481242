//! Who a certificate is of.

use std::fmt::Write;
use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, GeneralName, X509Certificate, X509Name};

use super::error::TlsError;
use crate::io::identity::Identity;

/// Attributes that GnuTLS, and so libvirt, has names for; others are written by their number.
const NAMES: [(&str, &str); 30] = [
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
    Ok(Identity::Certificate { dn: dn(certificate.subject()), names })
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
    match (known, text(attribute)) {
        (Some(name), Some(text)) => format!("{name}={}", escaped(&text)),
        (name, _) => format!("{}={}", name.unwrap_or(&oid), hexadecimal(attribute)),
    }
}

/// The value's text, in whichever of ASN.1's strings it is.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    const UTF8: u32 = 12;
    const PLAIN: [u32; 4] = [18, 19, 22, 26];
    const TELETEX: u32 = 20;
    const BMP: u32 = 30;
    let (tag, bytes) = (attribute.attr_value().header.tag().0, attribute.attr_value().data);
    match tag {
        UTF8 => std::str::from_utf8(bytes).ok().map(str::to_owned),
        tag if PLAIN.contains(&tag) || tag == TELETEX => {
            bytes.is_ascii().then(|| bytes.iter().map(|byte| char::from(*byte)).collect())
        }
        BMP if bytes.len().is_multiple_of(2) => {
            let units: Vec<u16> =
                bytes.chunks_exact(2).map(|unit| u16::from(unit[0]) << 8 | u16::from(unit[1])).collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
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
