//! One registration at a Consul agent, kept by its TTL check.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Inner, Layout, api, nodes};
use crate::{Provided, keep::Hold, url::group_of};

/// When a registration whose agent is gone leaves the catalog; until then it is there as critical.
const FORGOTTEN_AFTER: &str = "24h";

/// What is told of one provided service.
pub(super) struct Registration {
    inner: Arc<Inner>,
    id: String,
    body: Value,
}

impl Registration {
    pub fn new(inner: Arc<Inner>, provided: &Provided) -> Self {
        let id = nodes::id(provided);
        let mut body = match inner.layout {
            Layout::Motan => nodes::motan_registration(provided, group_of(&provided.key)),
            Layout::Plain => nodes::plain_registration(provided),
        };
        body["ID"] = id.clone().into();
        // The address was checked when the configuration was read.
        if let Ok(at) = provided.instance.address.parse::<SocketAddr>() {
            body["Address"] = at.ip().to_string().into();
            body["Port"] = at.port().into();
        }
        Self { inner, id, body }
    }

    async fn put_to(&self, path: &str, body: Vec<u8>) -> anyhow::Result<()> {
        self.inner.api.ask(Method::PUT, path, body).await?.success().map(drop)
    }
}

impl Hold for Registration {
    /// A new check begins in the state that is wanted, so that nobody sees another one in between. One that is
    /// known keeps its state, whatever the registration says, and is told apart.
    async fn put(&self, available: bool) -> anyhow::Result<()> {
        let mut body = self.body.clone();
        body["Check"] = json!({
            "CheckID": format!("service:{}", self.id),
            "TTL": format!("{}ms", self.inner.ttl.as_millis()),
            "Status": if available { "passing" } else { "critical" },
            "DeregisterCriticalServiceAfter": FORGOTTEN_AFTER,
        });
        self.put_to("/v1/agent/service/register?replace-existing-checks=true", body.to_string().into_bytes()).await?;
        self.renew(available).await
    }

    /// Consul answers an error for a check that it does not know: it was restarted, or someone took it out.
    async fn renew(&self, available: bool) -> anyhow::Result<()> {
        let word = if available { "pass" } else { "fail" };
        self.put_to(&format!("/v1/agent/check/{word}/service:{}", api::segment(&self.id)), Vec::new()).await
    }

    async fn take(&self) -> anyhow::Result<()> {
        let path = format!("/v1/agent/service/deregister/{}", api::segment(&self.id));
        let answer = self.inner.api.ask(Method::PUT, &path, Vec::new()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        answer.success().map(drop)
    }

    /// Two may be lost before the third comes too late.
    fn every(&self) -> Duration {
        self.inner.ttl / 3
    }

    fn name(&self) -> String {
        format!("consul {}", self.id)
    }
}
