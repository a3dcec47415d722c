//! What deciding keeps in the store: policies (`pool/SERVICE/GROUP`), and when each pool was changed last
//! (`decision/SERVICE/GROUP`), so that another centre that takes over keeps the period, too.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use model::center::PoolPolicy;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{
    capacity::policy,
    clock,
    error::Error,
    store::{Batch, Entry, Store},
};

/// Where policies are kept.
pub(super) const POLICIES: &str = "pool/";

const DECISIONS: &str = "decision/";

/// Rows that are read at once.
const PAGE: usize = 1000;

/// A pool was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Decision {
    pub service: String,
    pub group: String,
    /// When.
    pub at_ms: u64,
    /// How often it was.
    pub changes: u64,
    /// What was done, for people.
    pub what: String,
    /// Load that its callers wanted then, where it was known.
    #[serde(default)]
    pub demand: Option<f64>,
}

impl Decision {
    /// The moment, by a clock that nobody sets; `None`: too long ago to count.
    pub fn moment(&self) -> Option<Instant> {
        let ago = Duration::from_millis(clock::now_ms().saturating_sub(self.at_ms));
        Instant::now().checked_sub(ago)
    }
}

/// Names may hold what separates them.
fn key(prefix: &str, service: &str, group: &str) -> String {
    let part = |name: &str| name.replace('%', "%25").replace('/', "%2F");
    format!("{prefix}{}/{}", part(service), part(group))
}

async fn all<T: DeserializeOwned>(store: &Arc<dyn Store>, prefix: &str) -> Result<Vec<T>, Error> {
    let mut rows = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.scan(prefix, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        rows.extend(page.iter().filter_map(read));
    }
    Ok(rows)
}

/// One that cannot be read is left out: a newer centre may have written it.
fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let read = serde_json::from_slice(&entry.value);
    read.map_err(|error| tracing::warn!(key = entry.key, %error, "kept value left out")).ok()
}

/// All policies that are kept and can be obeyed.
pub(super) async fn policies(store: &Arc<dyn Store>) -> Result<BTreeMap<(String, String), PoolPolicy>, Error> {
    let kept: Vec<PoolPolicy> = all(store, POLICIES).await?;
    let good = kept.into_iter().filter(|one| match policy::check(one) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(service = one.service, group = one.group, %error, "policy left out");
            false
        }
    });
    Ok(good.map(|one| ((one.service.clone(), one.group.clone()), one)).collect())
}

/// Keeps a policy, or forgets it.
pub(super) async fn put_policy(
    store: &Arc<dyn Store>,
    service: &str,
    group: &str,
    policy: Option<&PoolPolicy>,
) -> Result<(), Error> {
    let key = key(POLICIES, service, group);
    let batch = match policy {
        Some(policy) => Batch { put: vec![(key, json(policy)?)], ..Batch::default() },
        None => Batch { delete: vec![key], ..Batch::default() },
    };
    store.commit(batch).await?;
    Ok(())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::internal(format!("cannot write it as JSON: {error}"), ""))
}

/// When pools were changed last.
pub(super) async fn decisions(store: &Arc<dyn Store>) -> Result<Vec<Decision>, Error> {
    all(store, DECISIONS).await
}

/// Keeps that pools are changed, as long as this centre leads in `epoch`.
pub(super) async fn put_decisions(store: &Arc<dyn Store>, epoch: u64, made: &[Decision]) -> Result<(), Error> {
    let row = |one: &Decision| Ok((key(DECISIONS, &one.service, &one.group), json(one)?));
    let put = made.iter().map(row).collect::<Result<Vec<_>, Error>>()?;
    store.commit(Batch { put, fenced: Some(epoch), ..Batch::default() }).await?;
    Ok(())
}
