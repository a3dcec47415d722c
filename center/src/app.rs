//! Wiring: builds every part from the configuration, joins them, serves until it is told to stop.

use std::sync::Arc;

use anyhow::Context;
use model::{center::PoolPolicy, kind};
use tokio::net::TcpListener;

use crate::{
    alert::Alerts,
    api,
    audit::Audit,
    auth::Auth,
    capacity::Capacities,
    command::Commands,
    config::Config,
    decide::Decider,
    monitor::Monitor,
    registry::{self, Registry},
    scale::{self, Scalers},
    serve, store,
};

/// One governance centre: all of its parts.
pub struct Center {
    /// Its configuration.
    pub config: Config,
    /// What it keeps.
    pub store: Arc<dyn store::Store>,
    /// What was done.
    pub audit: Arc<Audit>,
    /// Who may.
    pub auth: Arc<Auth>,
    /// What is registered.
    pub registry: Arc<Registry>,
    /// What is seen.
    pub monitor: Arc<Monitor>,
    /// What pools can take.
    pub capacity: Arc<Capacities>,
    /// What is ordered.
    pub commands: Arc<Commands>,
    /// How pools grow.
    pub scalers: Arc<Scalers>,
    /// What policy decides.
    pub decider: Arc<Decider>,
    /// What is told.
    pub alerts: Arc<Alerts>,
}

impl Center {
    /// Builds all parts and reads what is kept. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The store cannot be opened or read; an option is wrong.
    pub async fn build(config: Config) -> anyhow::Result<Arc<Self>> {
        let cx = store::BuildCx { data: config.data.clone(), name: config.name.clone(), passing: false };
        let store = kind::build("store", store::KINDS, &config.store.kind, &config.store.options, &cx)?;
        let audit = Audit::new(store.clone());
        let auth = Auth::new(&config.api, config.auth.clone(), store.clone(), audit.clone());
        let registering = registry::Config { center: config.name.clone(), ..config.registry.clone() };
        let registry = Registry::new(registering, store.clone(), audit.clone());
        let monitor = Monitor::new(config.monitor.clone(), store.clone(), registry.clone());
        let capacity = Capacities::new(registry.clone(), monitor.clone());
        let directory = config.scale.directory.clone().unwrap_or_else(|| config.data.join("scale"));
        let scale = scale::Config { directory: Some(directory), ..config.scale.clone() };
        let scalers = Scalers::new(scale, registry.clone(), audit.clone());
        let commands = Commands::new(
            config.commands.clone(),
            store.clone(),
            registry.clone(),
            monitor.clone(),
            capacity.clone(),
            scalers.clone(),
            audit.clone(),
        );
        let decider = Decider::new(
            config.pools.clone(),
            store.clone(),
            capacity.clone(),
            commands.clone(),
            scalers.clone(),
            audit.clone(),
        );
        let alerts = Alerts::new(
            config.alerts.clone(),
            store.clone(),
            registry.clone(),
            monitor.clone(),
            decider.clone(),
            audit.clone(),
        );
        audit.keep(&config.audit)?;
        auth.load().await.context("accounts")?;
        registry.load().await.context("registrations")?;
        monitor.load(&config.data, &config.store.kind).await.context("figures")?;
        commands.load().await.context("commands")?;
        decider.load().await.context("policies")?;
        alerts.load().await.context("alerts")?;
        let policies = Arc::downgrade(&decider);
        scalers.run(store.clone(), move || {
            let of_a_pool = |one: &&PoolPolicy| !one.service.is_empty() && !one.group.is_empty();
            policies.upgrade().map_or_else(Vec::new, |all| all.policies().iter().filter(of_a_pool).cloned().collect())
        });
        let center =
            Self { config, store, audit, auth, registry, monitor, capacity, commands, scalers, decider, alerts };
        Ok(Arc::new(center))
    }

    /// Serves on `listener` until `stop` resolves; requests that were begun are answered.
    ///
    /// # Errors
    /// Listening failed, or others than this host could listen in although no credentials are configured.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send,
    ) -> anyhow::Result<()> {
        let at = listener.local_addr().context("serving failed")?;
        self.auth.may_listen(at)?;
        let (registry, monitor) = (self.registry.clone(), self.monitor.clone());
        let stop = async move {
            stop.await;
            // Else agents' long polls would hold the end up.
            registry.close();
            monitor.close();
        };
        if !at.ip().is_loopback() && !self.config.api.secure() {
            tracing::warn!(address = %at, "passwords and tokens travel unencrypted; set `api: tls`, or `api: url` when \
                something in front speaks HTTPS");
        }
        let certificate = self.config.api.tls.clone().map(serve::Certificate::load).transpose()?;
        tracing::info!(address = %at, "serving");
        serve::serve(api::router(self.clone()), listener, certificate, serve::Patience::default(), stop).await?;
        self.scalers.stop().await;
        self.store.stop().await;
        Ok(())
    }
}
