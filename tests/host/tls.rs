//! Certificates of a site's own authority.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::Temp;

/// An authority, and all that it has issued, in a folder of its own.
pub struct Authority {
    dir: Temp,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a test's authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = Temp::new();
        dir.write("ca.pem", issuer.pem());
        Self { dir, issuer }
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.file("ca.pem")
    }

    /// A certificate for `name` on this host and its key, for servers and clients.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = self.dir.write(&format!("{name}.pem"), certificate.pem());
        (file, self.dir.write(&format!("{name}.key"), key.serialize_pem()))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
