//! A backup becomes the data under a prefix of etcd.

use anyhow::{Context, bail, ensure};
use model::{
    center::Stamp,
    kind::{self, Value},
};
use registries::etcd::client::{Range, Step};

use super::{Epoch, PAGE, Shared, parts};
use crate::store::{Entry, Restored, above};

/// Makes the data under the prefix of `options` from `entries` taken at `stamp`. What is there already is only replaced
/// with `force`; then the new data stands above everything that agents may have seen. No centre may run on it, and none
/// serves before all of it is written: one that was broken off is repeated.
///
/// # Errors
/// A centre runs; there is data and no `force`; an entry is broken; etcd does not take it.
pub async fn restore(
    options: &Value,
    stamp: Stamp,
    entries: impl Iterator<Item = anyhow::Result<Entry>>,
    force: bool,
) -> anyhow::Result<Restored> {
    let shared = Shared::new(kind::options(options)?, "restore")?;
    let client = &shared.client;
    let at = client.members().to_owned();
    let etcd = |error| anyhow::anyhow!("etcd at {at}: {error}");
    let one = |name: &str| Range { from: shared.key(name), ..Range::default() };
    let leader = client.range(one("leader")).await.map_err(etcd)?;
    if let Some(leader) = leader.pairs.first() {
        let name = String::from_utf8_lossy(&leader.value);
        bail!("the centre `{name}` leads on this store; stop all centres first");
    }
    let data = Range { limit: PAGE, ..Range::prefix(&shared.data("")) };
    let there = client.range(Range { limit: 1, keys_only: true, ..data.clone() }).await.map_err(etcd)?;
    let broken_off = !client.range(one("restoring")).await.map_err(etcd)?.pairs.is_empty();
    ensure!(
        there.pairs.is_empty() || force || broken_off,
        "there is data under {} already; --force replaces it and makes agents follow",
        shared.prefix
    );
    let found = client.range(one("epoch")).await.map_err(etcd)?;
    let before: Epoch = match found.pairs.first() {
        Some(pair) => serde_json::from_slice(&pair.value).context("the key `epoch` holds no epoch")?,
        None => Epoch::default(),
    };
    let mut now = stamp;
    if force {
        now = above(stamp, Stamp { epoch: before.epoch, revision: before.revision(found.revision) });
    }
    let marker = Step::Put { key: shared.key("restoring"), value: Vec::new(), lease: 0 };
    client.transact(vec![(shared.key("leader"), 0)], vec![marker]).await.map_err(etcd)?.context("a centre leads")?;
    loop {
        let page = client.range(Range { keys_only: true, ..data.clone() }).await.map_err(etcd)?;
        for part in parts(page.pairs.into_iter().map(|pair| Step::Delete { key: pair.key })) {
            if !part.is_empty() {
                client.transact(Vec::new(), part).await.map_err(etcd)?;
            }
        }
        if !page.more {
            break;
        }
    }
    let (mut count, mut steps) = (0, Vec::new());
    let mut entries = entries.peekable();
    while let Some(entry) = entries.next() {
        let Entry { key, value, .. } = entry?;
        count += 1;
        steps.push(Step::Put { key: shared.data(&key), value, lease: 0 });
        if steps.len() >= super::STEPS || entries.peek().is_none() {
            for part in parts(std::mem::take(&mut steps).into_iter()) {
                client.transact(Vec::new(), part).await.map_err(etcd)?;
            }
        }
    }
    let last = client.range(one("epoch")).await.map_err(etcd)?.revision;
    // The transaction below is one revision more.
    let base = now.revision.saturating_sub(u64::try_from(last).unwrap_or(0).saturating_add(1));
    let epoch = Epoch { epoch: now.epoch, base };
    let steps = vec![
        Step::Put { key: shared.key("epoch"), value: serde_json::to_vec(&epoch)?, lease: 0 },
        Step::Delete { key: shared.key("restoring") },
    ];
    let end = client.transact(Vec::new(), steps).await.map_err(etcd)?.unwrap_or(last);
    let stamp = Stamp { epoch: now.epoch, revision: epoch.revision(end) };
    Ok(Restored { entries: count, stamp, kept: None })
}
