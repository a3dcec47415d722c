//! What was done, by whom: every call that changes anything, granted or refused, durable before it is answered.
//!
//! Entries are numbered, and their keys count down, so that the newest stand first in the store and every page is read
//! from where the one before ended, however many there are. Their order is the order of numbers: a clock that was set
//! back moves nothing.

mod keep;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use axum::extract::State;
use model::center::{AuditEntry, Page, Role};
use serde::Deserialize;
use tokio::sync::OnceCell;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{Cx, Json, Paging, Query},
    auth::Actor,
    clock::now_ms,
    error::Error,
    store::{Batch, Store, StoreError},
};

pub use self::keep::Config;

/// What keys begin with.
const PREFIX: &str = "audit/";
/// Longest `detail` that is kept whole.
const DETAIL_BYTES: usize = 8 << 10;
/// Longest name, target or outcome that is kept whole.
const TEXT_CHARS: usize = 500;
/// Entries read at once.
const PIECE: usize = 1000;
/// Entries that one question with conditions looks at; its page says where to go on.
const LOOKED_AT: usize = 20_000;
/// How often a number is tried that another centre on the same store was faster with.
const TRIES: usize = 100;

/// The record, read by pages. Grows for ever, unless [`Config`] says how long it reaches back.
pub struct Audit {
    store: Arc<dyn Store>,
    /// The next number; read from the store by whoever needs it first.
    next: OnceCell<AtomicU64>,
}

/// Which entries are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct Wanted {
    /// Only what this one did.
    pub actor: Option<String>,
    /// Only what begins so: `command.`, `instance.out`.
    pub what: Option<String>,
    /// Only on things whose name contains this.
    pub target: Option<String>,
}

impl Wanted {
    fn fits(&self, entry: &AuditEntry) -> bool {
        self.actor.as_ref().is_none_or(|actor| entry.actor == *actor)
            && self.what.as_ref().is_none_or(|what| entry.what.starts_with(what))
            && self.target.as_ref().is_none_or(|target| entry.target.contains(target))
    }
}

/// The key of an entry; those of later ones come before it.
fn key(id: u64) -> String {
    format!("{PREFIX}{:020}", u64::MAX - id)
}

/// The number in a key.
fn id(key: &str) -> Option<u64> {
    key.strip_prefix(PREFIX)?.parse().ok().map(|down: u64| u64::MAX - down)
}

/// The beginning of a text that somebody else chose the length of.
fn short(text: &str) -> String {
    text.chars().take(TEXT_CHARS).collect()
}

/// A detail that is too long as a text of its beginning.
fn bounded(detail: serde_json::Value) -> serde_json::Value {
    let text = detail.to_string();
    if text.len() <= DETAIL_BYTES {
        return detail;
    }
    let end = (0..=DETAIL_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    serde_json::json!({ "bytes": text.len(), "begins": &text[..end] })
}

impl Audit {
    /// Kept in `store`.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, next: OnceCell::new() })
    }

    /// Removes entries as `config` says from now on, while this centre leads. Must be called within a runtime.
    ///
    /// # Errors
    /// It makes no sense: names the key and the value.
    pub fn keep(self: &Arc<Self>, config: &Config) -> anyhow::Result<()> {
        config.check()?;
        keep::start(self, config.clone());
        Ok(())
    }

    /// Adds an entry. `detail` must not hold secrets.
    ///
    /// # Errors
    /// The store did not take it; whoever asked for the change is told, and the change is not made.
    pub async fn record(
        &self,
        actor: &Actor,
        what: &str,
        target: &str,
        outcome: &str,
        detail: serde_json::Value,
    ) -> Result<(), Error> {
        let mut entry = AuditEntry {
            id: 0,
            at_ms: now_ms(),
            actor: short(&actor.name),
            from: short(&actor.from),
            what: short(what),
            target: short(target),
            outcome: short(outcome),
            detail: bounded(detail),
        };
        let next = self.next.get_or_try_init(async || self.newest().await.map(|id| AtomicU64::new(id + 1))).await?;
        for _ in 0..TRIES {
            entry.id = next.fetch_add(1, Relaxed);
            let value = serde_json::to_vec(&entry).map_err(|error| StoreError::Failed(error.to_string()))?;
            let key = key(entry.id);
            let batch = Batch { expect: vec![(key.clone(), 0)], put: vec![(key, value)], ..Batch::default() };
            match self.store.commit(batch).await {
                Ok(_) => return Ok(()),
                // Another centre on the same store has that number.
                Err(StoreError::Conflict { .. }) => {
                    next.fetch_max(self.newest().await? + 1, Relaxed);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Failed(format!("no number is free for an entry of the audit after {TRIES} tries")).into())
    }

    /// The highest number in the store; 0 when there is none.
    async fn newest(&self) -> Result<u64, StoreError> {
        let first = self.store.scan(PREFIX, None, 1).await?;
        Ok(first.first().and_then(|entry| id(&entry.key)).unwrap_or(0))
    }

    /// Entries before `before` (none: the newest), newest first.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn page(&self, before: Option<u64>, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        Ok(self.find(&Wanted::default(), before, limit).await?.items)
    }

    /// Entries before `before` (none: the newest) that are `wanted`, newest first. A page may be short although more
    /// follow: when few of very many entries fit.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn find(&self, wanted: &Wanted, before: Option<u64>, limit: usize) -> Result<Page<AuditEntry>, Error> {
        let mut page = Page { items: Vec::new(), next: None, total: None };
        let (mut after, mut looked_at) = (before.map(key), 0);
        loop {
            let piece = if *wanted == Wanted::default() { limit.saturating_sub(page.items.len()) } else { PIECE };
            let entries = self.store.scan(PREFIX, after.as_deref(), piece.clamp(1, PIECE)).await?;
            let all = entries.len() < piece.clamp(1, PIECE);
            for entry in &entries {
                if page.items.len() >= limit {
                    return Ok(page);
                }
                looked_at += 1;
                page.next = id(&entry.key).map(|id| id.to_string());
                // One that cannot be read (of a later version) is left out.
                page.items.extend(serde_json::from_slice(&entry.value).ok().filter(|entry| wanted.fits(entry)));
            }
            if all {
                page.next = None;
                return Ok(page);
            }
            if looked_at >= LOOKED_AT || page.items.len() >= limit {
                return Ok(page);
            }
            after = entries.last().map(|entry| entry.key.clone());
        }
    }
}

/// What was done and refused, newest first: who, from where, what, on which thing, what became of it.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Paging, Wanted),
    responses((status = 200, body = Page<AuditEntry>)))]
async fn audit(
    State(center): State<Cx>,
    actor: Actor,
    Query(paging): Query<Paging>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Page<AuditEntry>>, Error> {
    actor.may(Role::Operator, "*")?;
    let before = paging.after.as_deref().map(|after| {
        after.parse().map_err(|_| Error::bad(format!("after `{after}` is no number"), "take it from `next` of a page"))
    });
    Ok(Json(center.audit.find(&wanted, before.transpose()?, paging.limit()).await?))
}

/// Its part of the API.
pub fn routes() -> OpenApiRouter<Cx> {
    OpenApiRouter::new().routes(routes!(audit))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Memory;

    fn by(name: &str) -> Actor {
        Actor { name: name.to_owned(), ..Actor::default() }
    }

    async fn ids(audit: &Audit, wanted: &Wanted, before: Option<u64>, limit: usize) -> (Vec<u64>, Option<String>) {
        let page = audit.find(wanted, before, limit).await.unwrap();
        (page.items.iter().map(|entry| entry.id).collect(), page.next)
    }

    #[tokio::test]
    async fn pages_follow_each_other_from_the_newest() {
        let store = Arc::new(Memory::new("me"));
        let audit = Audit::new(store.clone());
        let all = Wanted::default();
        assert_eq!(ids(&audit, &all, None, 5).await, (vec![], None));
        for i in 1..=7 {
            audit.record(&by("ann"), "instance.out", &format!("echo/{i}"), "ok", json!({ "n": i })).await.unwrap();
        }
        assert_eq!(ids(&audit, &all, None, 3).await, (vec![7, 6, 5], Some("5".into())));
        assert_eq!(ids(&audit, &all, Some(5), 3).await, (vec![4, 3, 2], Some("2".into())));
        assert_eq!(ids(&audit, &all, Some(2), 3).await, (vec![1], None));
        // After a restart numbers go on.
        let audit = Audit::new(store);
        audit.record(&by("bob"), "login", "bob", "refused: wrong password", json!(null)).await.unwrap();
        let newest = &audit.page(None, 1).await.unwrap()[0];
        assert_eq!((newest.id, newest.actor.as_str(), newest.target.as_str()), (8, "bob", "bob"));
    }

    #[tokio::test]
    async fn conditions_choose_and_a_long_search_says_where_to_go_on() {
        let store: Arc<dyn Store> = Arc::new(Memory::new("me"));
        let audit = Audit::new(store.clone());
        let entry = |id: u64| AuditEntry {
            id,
            at_ms: 1,
            actor: if id == 1 { "ann" } else { "bob" }.into(),
            from: String::new(),
            what: if id.is_multiple_of(2) { "command.create" } else { "instance.out" }.into(),
            target: format!("echo/{id}"),
            outcome: "ok".into(),
            detail: json!(null),
        };
        let most = LOOKED_AT as u64 + 3000;
        let put = (1..=most).map(|id| (key(id), serde_json::to_vec(&entry(id)).unwrap())).collect();
        store.commit(Batch { put, ..Batch::default() }).await.unwrap();
        let wanted = Wanted { what: Some("command.".into()), target: Some("/22".into()), ..Wanted::default() };
        let page = audit.find(&wanted, None, 2).await.unwrap();
        let found: Vec<_> = page.items.iter().map(|entry| entry.target.as_str()).collect();
        assert_eq!(found, ["echo/22998", "echo/22996"]);
        let ann = Wanted { actor: Some("ann".into()), ..Wanted::default() };
        assert_eq!(ids(&audit, &ann, None, 5).await, (vec![], Some("3001".into())));
        assert_eq!(ids(&audit, &ann, Some(3001), 5).await, (vec![1], None));
    }

    #[tokio::test]
    async fn two_centres_on_one_store_share_the_numbers() {
        let store: Arc<dyn Store> = Arc::new(Memory::new("me"));
        let (one, two) = (Audit::new(store.clone()), Audit::new(store));
        for i in 0..20 {
            let audit = if i % 3 == 0 { &one } else { &two };
            audit.record(&by("ann"), "x", "y", "ok", json!(i)).await.unwrap();
        }
        let all = one.page(None, 100).await.unwrap();
        let order: Vec<_> = all.iter().map(|entry| entry.detail.as_u64().unwrap()).collect();
        assert_eq!(order, (0..20).rev().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_somebody_sends_is_not_kept_in_any_length() {
        let audit = Audit::new(Arc::new(Memory::new("me")));
        let long = "é".repeat(100_000);
        audit.record(&by(&long), "x", &long, &long, json!({ "long": long })).await.unwrap();
        let entry = audit.page(None, 1).await.unwrap().remove(0);
        assert!(serde_json::to_vec(&entry).unwrap().len() < 16_000);
        assert_eq!(entry.target.chars().count(), TEXT_CHARS);
        assert_eq!(entry.detail["bytes"], 200_011);
    }
}
