//! `sockmesh-center backup` and `restore`.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::{Request, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use model::{center::Problem, kind};

use crate::{
    clock::now_ms,
    config::Config,
    fetch::Fetch,
    store::{
        self, Restored,
        backup::{Backup, Saving, pieces},
    },
};

/// How long a running centre may take for its first word, and between two pieces.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `backup`.
#[derive(Clone, Debug, Args)]
pub struct BackupArgs {
    /// Where to; an older file of this name is replaced when the new one is whole
    pub file: PathBuf,
    /// Ask a running centre there, as its admin by SOCKMESH_TOKEN [default: SOCKMESH_CENTER, else the store itself, and
    /// the centre at `listen` while it uses the store]
    #[arg(long, value_name = "URL")]
    pub center: Option<String>,
}

/// Arguments of `restore`.
#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// What `backup` wrote
    pub file: PathBuf,
    /// Replace a store that is there, and go above everything that agents have seen, so that they follow
    #[arg(long)]
    pub force: bool,
}

/// Writes a backup; answers what to tell.
///
/// # Errors
/// There is no store and no centre, the token is not enough, the file cannot be written.
pub async fn backup(config: &Config, args: &BackupArgs) -> anyhow::Result<String> {
    let asked = args.center.clone().or_else(|| std::env::var("SOCKMESH_CENTER").ok().filter(|url| !url.is_empty()));
    let running = config.store.kind == "embedded" && store::in_use(&config.data);
    ensure!(
        asked.is_some() || running || config.store.kind != "embedded" || store::exists(&config.data),
        "there is no store in {}; name its directory with --data, or a running centre with --center",
        config.data.display()
    );
    let mut saving = Saving::begin(&args.file)?;
    let url = match asked {
        Some(url) => Some(url),
        None if running || config.store.kind == "memory" => Some(local(config)),
        None => None,
    };
    match url {
        Some(url) => ask(&url, &mut saving).await?,
        None => read(config, &mut saving).await?,
    }
    let Backup { entries, stamp, .. } = saving.finish()?;
    let file = args.file.display();
    Ok(format!("{entries} entries at epoch {}, revision {} in {file}\n", stamp.epoch, stamp.revision))
}

/// Where the centre of this configuration answers on this host.
fn local(config: &Config) -> String {
    let mut at = config.listen;
    if at.ip().is_unspecified() {
        at.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    format!("http://{at}")
}

/// From the store itself.
async fn read(config: &Config, saving: &mut Saving) -> anyhow::Result<()> {
    let cx = store::BuildCx { data: config.data.clone(), name: format!("{}-backup", config.name), passing: true };
    let store = kind::build("store", store::KINDS, &config.store.kind, &config.store.options, &cx)?;
    let mut pieces = pieces(Arc::clone(&store));
    while let Some(piece) = pieces.recv().await {
        saving.write(&piece?)?;
    }
    Ok(())
}

/// From a running centre.
async fn ask(url: &str, saving: &mut Saving) -> anyhow::Result<()> {
    let mut request = Request::get(format!("{}/v1/backup", url.trim_end_matches('/')));
    if let Ok(token) = std::env::var("SOCKMESH_TOKEN") {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::<Bytes>::default()).with_context(|| format!("`{url}` is no address"))?;
    let answer = Fetch::default().begin(request, PATIENCE).await?;
    let status = answer.status();
    let mut body = answer.into_body();
    let mut problem = Vec::new();
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
        let frame = frame.with_context(|| format!("{url} sent nothing for {PATIENCE:?}"))?;
        let Some(frame) = frame else { break };
        let frame = frame.with_context(|| format!("{url} broke off; its log says why"))?;
        match frame.into_data() {
            Ok(data) if status.is_success() => saving.write(&data)?,
            Ok(data) if problem.len() < 64 << 10 => problem.extend_from_slice(&data),
            _ => {}
        }
    }
    if !status.is_success() {
        match serde_json::from_slice::<Problem>(&problem) {
            Ok(Problem { message, remedy, .. }) => bail!("{url}: {message}; {remedy}; the token is SOCKMESH_TOKEN"),
            Err(_) => bail!("{url} answers {status}; is a sockmesh-center there?"),
        }
    }
    Ok(())
}

/// Makes the store from a backup; answers what to tell.
///
/// # Errors
/// The file is no whole backup, a centre runs, there is a store and no `--force`.
pub async fn restore(config: &Config, args: &RestoreArgs) -> anyhow::Result<String> {
    let backup = Backup::open(&args.file)?;
    let entries = backup.entries()?;
    let Restored { entries, stamp, kept } = match config.store.kind.as_str() {
        "embedded" => store::restore(&config.data, backup.stamp, entries, args.force)?,
        "etcd" => store::restore_etcd(&config.store.options, backup.stamp, entries, args.force).await?,
        other => bail!("a store of kind `{other}` cannot be restored into; choose with --store"),
    };
    let minutes = now_ms().saturating_sub(backup.at_ms) / 60_000;
    let (epoch, revision) = (stamp.epoch, stamp.revision);
    let mut told =
        format!("{entries} entries, {minutes} minutes old, restored at epoch {epoch}, revision {revision}\n");
    if let Some(kept) = kept {
        told += &format!("the store that was there is kept as {}\n", kept.display());
    }
    told += match args.force {
        true => "agents follow it, whatever they saw before\n",
        false => "agents that saw what came after the backup keep what they have; --force makes them follow\n",
    };
    Ok(told)
}
