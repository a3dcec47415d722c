//! TLS towards what the agent itself asks: whose certificates are believed, and with which one it shows who it is.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, bail, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde::Deserialize;
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
/// What is spoken over it, as TLS calls it (RFC 7301).
const HTTP: &[u8] = b"http/1.1";

/// The option `tls` of a registry. Paths are relative to the configuration's folder.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    /// PEM file of the certificates that are believed; those that the host trusts when absent.
    pub(crate) ca_file: Option<PathBuf>,
    /// PEM file of the certificate that is shown, with those that signed it.
    pub(crate) cert_file: Option<PathBuf>,
    /// PEM file of its key.
    pub(crate) key_file: Option<PathBuf>,
}

impl Written {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them cannot be read or is not what it should be: names the file and the option.
    pub(crate) fn build(&self, base: &Path, protocol: Option<&[u8]>) -> anyhow::Result<Tls> {
        let at = |path: &PathBuf| base.join(path);
        let own = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some((at(cert), at(key))),
            (None, None) => None,
            (Some(_), None) => bail!("`cert_file` without its key; write `key_file` as well"),
            (None, Some(_)) => bail!("`key_file` without a certificate; write `cert_file` as well"),
        };
        let roots = match &self.ca_file {
            Some(file) => Arc::new(roots(&at(file))?),
            None => host_roots()?,
        };
        Tls::new(roots, own.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path())), protocol)
    }

    /// [`Written::build`] for HTTP/1.1.
    pub(crate) fn http(&self, base: &Path) -> anyhow::Result<Tls> {
        self.build(base, Some(HTTP))
    }
}

/// Who is believed, and who we are. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tls(Arc<ClientConfig>);

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

impl Tls {
    /// HTTP/1.1 with those that this host trusts. The files are read once.
    pub(crate) fn host() -> anyhow::Result<Self> {
        static HOST: OnceLock<Tls> = OnceLock::new();
        if let Some(tls) = HOST.get() {
            return Ok(tls.clone());
        }
        let tls = Self::new(host_roots()?, None, Some(HTTP))?;
        Ok(HOST.get_or_init(|| tls).clone())
    }

    /// HTTP/1.1 with those of a PEM file and no others.
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        Self::new(Arc::new(roots(path)?), None, Some(HTTP))
    }

    fn new(roots: Arc<RootCertStore>, own: Option<(&Path, &Path)>, protocol: Option<&[u8]>) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = || -> anyhow::Result<Vec<CertificateDer<'static>>> {
                    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
                    ensure!(!chain.is_empty(), "no certificate in it; PEM was expected");
                    Ok(chain)
                };
                let chain = chain().with_context(|| format!("cert_file {}", cert.display()))?;
                let read = PrivateKeyDer::from_pem_file(key).with_context(|| format!("key_file {}", key.display()))?;
                config.with_client_auth_cert(chain, read).with_context(|| {
                    format!("cert_file {} and key_file {} do not fit", cert.display(), key.display())
                })?
            }
        };
        config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
        Ok(Self(Arc::new(config)))
    }

    /// Makes sure that the other end is `host`.
    pub(crate) async fn connect(&self, host: &str, io: TcpStream) -> anyhow::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("`{host}` is no name for TLS"))?;
        TlsConnector::from(self.0.clone()).connect(name, io).await.context("TLS")
    }
}

/// Those that this host trusts, read once.
fn host_roots() -> anyhow::Result<Arc<RootCertStore>> {
    static HOST: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(known) = HOST.get() {
        return Ok(known.clone());
    }
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let found = named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()));
    let path = found.with_context(|| {
        format!("this host has no list of trusted certificates; install ca-certificates, or name one by {VARIABLE}")
    })?;
    let read = Arc::new(roots(&path)?);
    Ok(HOST.get_or_init(|| read).clone())
}

fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let read = || -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        // One of many that is odd does not make the others worthless.
        let certificates = CertificateDer::pem_file_iter(path)?.filter_map(Result::ok);
        let (added, _) = roots.add_parsable_certificates(certificates);
        ensure!(added > 0, "no certificate in it; PEM was expected");
        Ok(roots)
    };
    read().with_context(|| format!("trusted certificates {}", path.display()))
}
