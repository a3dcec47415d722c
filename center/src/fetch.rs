//! One client for what the centre asks of others over HTTP or HTTPS: Graphite, Prometheus, webhooks, identity providers.
//!
//! It keeps connections, for some are asked every few seconds and TLS would be most of that, and it can hand over a body
//! piece by piece, as backups need. Registries of the site are asked by clients of their own
//! ([`registries::fetch::Peer`]), as agents ask them: with a connection for each question, which ends with its future.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use sha2::Sha256;

use crate::hex::hex;

/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 << 20;

/// Keeps connections. Cheap to clone. Redirects are not followed.
#[derive(Clone, Debug)]
pub struct Fetch {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Default for Fetch {
    fn default() -> Self {
        let connector = HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().build();
        Self { client: Client::builder(TokioExecutor::new()).build(connector) }
    }
}

impl Fetch {
    /// Asks for something large: the body is read by the caller, piece by piece. An error names the URL; the head has to
    /// come within `patience`.
    pub async fn begin(&self, request: Request<Full<Bytes>>, patience: Duration) -> anyhow::Result<Response<Incoming>> {
        let url = request.uri().to_string();
        let answer = tokio::time::timeout(patience, self.client.request(request)).await;
        let answer = answer.map_err(|_| anyhow::anyhow!("no answer within {patience:?}")).and_then(|a| Ok(a?));
        answer.with_context(|| url)
    }

    /// Trusts the certificates of this PEM file and no others.
    ///
    /// # Errors
    /// It cannot be read, or holds none: names the file.
    pub fn trusting(file: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(file).with_context(|| file.display().to_string())?;
        let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
        anyhow::ensure!(added > 0, "{}: no certificate in it; PEM was expected", file.display());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Asks, and reads all of the answer within `patience`; an error names the URL. Any status is an answer.
    pub async fn send(&self, request: Request<Full<Bytes>>, patience: Duration) -> anyhow::Result<Response<Bytes>> {
        let url = request.uri().to_string();
        let asking = async {
            let (parts, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|e| anyhow::anyhow!(e))?;
            Ok::<_, anyhow::Error>(Response::from_parts(parts, body.to_bytes()))
        };
        let answer = tokio::time::timeout(patience, asking).await;
        answer.map_err(|_| anyhow::anyhow!("no answer within {patience:?}")).and_then(|a| a).with_context(|| url)
    }
}

/// `t=SECONDS,v1=HEX`, where HEX is HMAC-SHA256 of `SECONDS.BODY`.
pub fn signature(secret: &[u8], seconds: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    format!("t={seconds},v1={}", hex(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_hmac_sha256_over_time_and_body() {
        // Made with: printf '1700000000.{}' | openssl dgst -sha256 -hmac key
        let wanted = "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae";
        assert_eq!(signature(b"key", 1_700_000_000, b"{}"), wanted);
    }
}
