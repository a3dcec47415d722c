//! The certificate: read from files, and read again when they change, so that renewing it needs no restart.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::api::Tls;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// A certificate and its key, the newest that could be read.
#[derive(Debug)]
pub struct Certificate {
    files: Tls,
    held: ArcSwap<CertifiedKey>,
    /// Times of change of both files when they were last read, whatever became of it.
    read: Mutex<Times>,
}

type Times = [Option<SystemTime>; 2];

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    /// One cannot be read, or they do not fit each other: names the file.
    pub fn load(files: Tls) -> anyhow::Result<Arc<Self>> {
        let times = times(&files);
        let held = ArcSwap::from_pointee(read(&files)?);
        Ok(Arc::new(Self { files, held, read: Mutex::new(times) }))
    }

    /// Reads the files again if they have changed; says whether. With what cannot be read the old one goes on.
    ///
    /// # Errors
    /// As [`Certificate::load`]; told once for each change.
    pub fn reload(&self) -> anyhow::Result<bool> {
        let times = times(&self.files);
        if std::mem::replace(&mut *self.read.lock(), times) == times {
            return Ok(false);
        }
        self.held.store(Arc::new(read(&self.files)?));
        Ok(true)
    }

    /// Reloads for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let certificate = self.clone();
            match tokio::task::spawn_blocking(move || certificate.reload()).await {
                Ok(Ok(true)) => tracing::info!(file = %self.files.cert.display(), "took the new certificate"),
                Ok(Err(error)) => {
                    tracing::error!(error = %format!("{error:#}"), "the new certificate cannot be used; the old one goes on");
                }
                Ok(Ok(false)) | Err(_) => {}
            }
        }
    }

    pub(super) fn server(self: &Arc<Self>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

#[derive(Debug)]
struct Resolver(Arc<Certificate>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.held.load_full())
    }
}

fn times(files: &Tls) -> Times {
    [&files.cert, &files.key].map(|file| std::fs::metadata(file).and_then(|meta| meta.modified()).ok())
}

fn read(files: &Tls) -> anyhow::Result<CertifiedKey> {
    let named = |path: &Path| format!("`tls` of the centre's file: {}", path.display());
    let chain = CertificateDer::pem_file_iter(&files.cert).with_context(|| named(&files.cert))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().with_context(|| named(&files.cert))?;
    ensure!(!chain.is_empty(), "{}: no certificate in it; PEM was expected", named(&files.cert));
    let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| named(&files.key))?;
    let provider = rustls::crypto::ring::default_provider();
    let held = CertifiedKey::from_der(chain, key, &provider);
    held.with_context(|| format!("{} and {} do not fit", files.cert.display(), files.key.display()))
}
