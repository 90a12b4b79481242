//! Authorities and certificates of the test's own.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// What a certificate is to say.
pub(crate) struct Wanted<'a> {
    pub(crate) common_name: &'a str,
    /// DNS names and addresses.
    pub(crate) names: &'a [&'a str],
    pub(crate) purpose: ExtendedKeyUsagePurpose,
    /// The year whose beginning is its end.
    pub(crate) until: i32,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        Self { common_name: "host", names: &[], purpose, until: 2090 }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_after = date_time_ymd(2090, 1, 1);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn sign(&self, wanted: &Wanted<'_>) -> Leaf {
        let names: Vec<String> = wanted.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = distinguished(wanted.common_name);
        // libvirt wants both, where it is said at all what a key is for.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![wanted.purpose.clone()];
        params.not_after = date_time_ymd(wanted.until, 1, 1);
        let key = KeyPair::generate().unwrap();
        Leaf { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    /// For who connects.
    pub(crate) fn client(&self, common_name: &str) -> Leaf {
        self.sign(&Wanted { common_name, ..Wanted::default() })
    }

    /// For who listens on the loopback.
    pub(crate) fn server(&self) -> Leaf {
        let names = &["127.0.0.1", "localhost"];
        self.sign(&Wanted { names, purpose: ExtendedKeyUsagePurpose::ServerAuth, ..Wanted::default() })
    }

    /// A directory as libvirt's pkipath is, for both roles.
    pub(crate) fn fill(&self, directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("cacert.pem"), self.pem()).unwrap();
        self.server().write(directory, "server");
        self.client("somebody").write(directory, "client");
    }
}

impl Leaf {
    pub(crate) fn write(&self, directory: &Path, role: &str) {
        fs::write(directory.join(format!("{role}cert.pem")), &self.certificate).unwrap();
        fs::write(directory.join(format!("{role}key.pem")), &self.key).unwrap();
    }
}

fn distinguished(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // As standards want it; another kind of string is no text to GnuTLS.
    name.push(DnType::CountryName, DnValue::PrintableString("GB".try_into().unwrap()));
    name.push(DnType::OrganizationName, "Red, Hat");
    name.push(DnType::CommonName, common_name);
    name
}
