//! How pools grow and shrink: drivers that start and stop instances.

use std::sync::Arc;

use crate::{audit::Audit, error::Error, registry::Registry};
use futures_util::future::BoxFuture;
use model::{
    center::PoolPolicy,
    kind::{self, Value},
};
use serde::Deserialize;

/// A row of [`KINDS`].
pub type Kind = kind::Kind<dyn Driver, BuildCx>;

/// Drivers by name.
pub const KINDS: &[Kind] = &[];

/// What a driver may need while it is built.
#[derive(Clone, Debug, Default)]
pub struct BuildCx {
    /// The service whose pool it scales.
    pub service: String,
    /// Its group.
    pub group: String,
    /// Directory of the centre's data.
    pub data: std::path::PathBuf,
}

/// Starts and stops instances of one pool.
pub trait Driver: Send + Sync + 'static {
    /// How many instances it runs or was last asked for.
    fn size(&self) -> BoxFuture<'_, anyhow::Result<u32>>;

    /// Makes it `size` instances. Resolves when the request is accepted, not when they serve; `key` names the request,
    /// so that a repeated one does nothing more.
    fn scale<'a>(&'a self, size: u32, key: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
}

use utoipa_axum::router::OpenApiRouter;

/// `scale:` of the centre's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// The drivers.
pub struct Scalers {
    registry: Arc<Registry>,
    audit: Arc<Audit>,
}

impl Scalers {
    /// From what it builds on.
    pub fn new(config: Config, registry: Arc<Registry>, audit: Arc<Audit>) -> Arc<Self> {
        let Config {} = config;
        Arc::new(Self { registry, audit })
    }

    /// Sets the size of a pool by its policy's driver.
    ///
    /// # Errors
    /// The policy names no driver, the size is out of its bounds, or the driver failed.
    pub async fn set(&self, policy: &PoolPolicy, _size: u32, _key: &str) -> Result<(), Error> {
        let _ = (&self.registry, &self.audit, None::<&Value>);
        Err(Error::not_found(format!("no driver `{}`", policy.driver), ""))
    }

    /// The present size of a pool as its driver says.
    ///
    /// # Errors
    /// As [`Scalers::set`].
    pub async fn size(&self, policy: &PoolPolicy) -> Result<u32, Error> {
        Err(Error::not_found(format!("no driver `{}`", policy.driver), ""))
    }

    /// Stops what drivers of this process run, before it ends.
    pub async fn stop(&self) {}
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<crate::api::Cx> {
    OpenApiRouter::new()
}
