//! HTTPS: whose certificates are believed.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Where distributions keep the certificates that hosts trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Names another file instead of those, as for OpenSSL.
const VARIABLE: &str = "SSL_CERT_FILE";

/// Who is believed. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Tls(Arc<ClientConfig>);

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

impl Tls {
    /// Those that this host trusts. The files are read once.
    pub(super) fn host() -> anyhow::Result<Self> {
        static HOST: OnceLock<Tls> = OnceLock::new();
        if let Some(tls) = HOST.get() {
            return Ok(tls.clone());
        }
        let named = std::env::var_os(VARIABLE).map(PathBuf::from);
        let found = named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()));
        let path = found.with_context(|| {
            format!("this host has no list of trusted certificates; install ca-certificates, or name one by {VARIABLE}")
        })?;
        let tls = Self::of(&path)?;
        Ok(HOST.get_or_init(|| tls).clone())
    }

    /// Those of a PEM file and no others.
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<RootCertStore> {
            let mut roots = RootCertStore::empty();
            // One of many that is odd does not make the others worthless.
            let certificates = CertificateDer::pem_file_iter(path)?.filter_map(Result::ok);
            let (added, _) = roots.add_parsable_certificates(certificates);
            ensure!(added > 0, "no certificate in it; PEM was expected");
            Ok(roots)
        };
        let roots = read().with_context(|| format!("trusted certificates {}", path.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3");
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Makes sure that the other end is `host`.
    pub(super) async fn connect(&self, host: &str, io: TcpStream) -> anyhow::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("`{host}` is no name for TLS"))?;
        TlsConnector::from(self.0.clone()).connect(name, io).await.context("TLS")
    }
}
