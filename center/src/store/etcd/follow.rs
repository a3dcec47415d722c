//! What everybody changes: read once, then followed; read again when something was missed.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use model::center::Stamp;
use registries::etcd::client::{Changed, Error, Found, Pair, Range};
use tokio::time::sleep;

use super::{Changes, Entry, Epoch, Leader, PAGE, Shared};

/// Nobody follows it from memory, and it is by far the largest part.
const NOT_FOLLOWED: &str = "audit/";
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(300);

/// Follows until dropped.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        let followed = async {
            let revision = read(&shared).await?;
            let mut changes = shared.client.changes(&Range::prefix(&shared.key("")), revision + 1).await?;
            shared.tell_trouble(None);
            shared.ready.send_replace(true);
            while let Some(events) = changes.next().await {
                take(&shared, events);
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = followed.await {
            let members = shared.client.members();
            shared.tell_trouble(Some(format!(
                "etcd at {members}: {error}; what is known stays in force, writing goes on by itself when it answers"
            )));
        }
        sleep(PAUSE).await;
    }
}

/// Everything that differs from what is known, told as one change. Answers etcd's revision of it.
async fn read(shared: &Shared) -> Result<i64, Error> {
    let own = shared.client.range(Range::prefix(&shared.key("epoch"))).await?;
    let at = own.revision;
    let leader = Range { revision: at, from: shared.key("leader"), ..Range::default() };
    let leader = shared.client.range(leader).await?.pairs.into_iter().next();
    let restoring = Range { revision: at, from: shared.key("restoring"), ..Range::default() };
    if !shared.client.range(restoring).await?.pairs.is_empty() {
        let why = "a backup is being restored, or its restore was broken off: repeat `sockmesh-center restore`";
        return Err(Error::Refused(why.to_owned()));
    }
    let epoch = own.pairs.into_iter().find(|pair| pair.key == shared.key("epoch"));
    let since = {
        let mut state = shared.state.lock();
        let state = &mut *state;
        set_epoch(&mut state.epoch, &mut state.epoch_at, epoch.as_ref());
        // The first time nobody has anything to be told of, and values are read by those who need them.
        if *shared.ready.borrow() { state.revision + 1 } else { i64::MAX }
    };
    let (mut keys, mut changed) = (HashMap::new(), Vec::new());
    let audit = shared.data(NOT_FOLLOWED);
    let behind = Range::prefix(&audit).end;
    let all = Range::prefix(&shared.data(""));
    for (from, end) in [(all.from, audit), (behind, all.end)] {
        let range = Range { from, end, revision: at, ..Range::default() };
        for pair in pages(shared, Range { keys_only: true, ..range.clone() }).await? {
            if let Some(key) = shared.entry_key(&pair.key) {
                keys.insert(key.to_owned(), pair.revision);
            }
        }
        if since < i64::MAX {
            changed.extend(pages(shared, Range { changed_since: since, ..range }).await?);
        }
    }
    let put: Vec<Entry> = shared.entries(changed).collect();
    let (stamp, delete) = {
        let mut state = shared.state.lock();
        let kept: HashSet<_> = keys.keys().cloned().collect();
        let delete: Vec<_> = state.known.keys().filter(|key| !kept.contains(*key)).cloned().collect();
        state.known = keys;
        state.revision = state.revision.max(at);
        (Stamp { epoch: state.epoch.epoch, revision: state.epoch.revision(state.revision) }, delete)
    };
    if !put.is_empty() || !delete.is_empty() {
        tracing::info!(put = put.len(), delete = delete.len(), "etcd: caught up with what others changed");
        // Nobody may be following.
        let _ = shared.changes.send(Arc::new(Changes { stamp, put, delete }));
    }
    set_leader(shared, leader);
    Ok(at)
}

async fn pages(shared: &Shared, mut range: Range) -> Result<Vec<Pair>, Error> {
    let mut pairs = Vec::new();
    range.limit = PAGE;
    loop {
        let Found { pairs: page, more, .. } = shared.client.range(range.clone()).await?;
        let last = page.last().map(|pair| [&pair.key[..], &[0]].concat());
        pairs.extend(page);
        match last {
            Some(last) if more => range.from = last,
            _ => return Ok(pairs),
        }
    }
}

fn set_epoch(epoch: &mut Epoch, at: &mut i64, pair: Option<&Pair>) {
    if let Some(pair) = pair {
        match serde_json::from_slice(&pair.value) {
            Ok(read) => (*epoch, *at) = (read, pair.revision),
            Err(error) => tracing::error!(%error, "etcd: the key `epoch` holds no epoch"),
        }
    }
}

fn set_leader(shared: &Shared, pair: Option<Pair>) {
    let leader =
        pair.map(|pair| Leader { name: String::from_utf8_lossy(&pair.value).into_owned(), revision: pair.revision });
    let leader = leader.unwrap_or_default();
    shared.leader.send_if_modified(|now| {
        let new = *now != leader;
        *now = leader;
        new
    });
}

/// Takes in events, those of one revision as one change.
fn take(shared: &Shared, events: Vec<Changed>) {
    let mut events = events.into_iter().peekable();
    while let Some(first) = events.next() {
        let revision = first.pair.revision;
        let mut group = vec![first];
        while let Some(next) = events.next_if(|event| event.pair.revision == revision) {
            group.push(next);
        }
        take_one(shared, revision, group);
    }
}

fn take_one(shared: &Shared, revision: i64, group: Vec<Changed>) {
    let (epoch_key, leader_key, by_key) = (shared.key("epoch"), shared.key("leader"), shared.key("by"));
    let (mut own, mut put, mut delete, mut leader) = (false, Vec::new(), Vec::new(), None);
    {
        let mut state = shared.state.lock();
        let state = &mut *state;
        // First, because revisions of this very group are counted with it.
        for event in group.iter().filter(|event| event.pair.key == epoch_key && !event.deleted) {
            set_epoch(&mut state.epoch, &mut state.epoch_at, Some(&event.pair));
        }
        for Changed { pair, deleted } in group {
            if pair.key == by_key {
                own |= pair.value == shared.id.as_bytes();
            } else if pair.key == leader_key {
                leader = Some((!deleted).then_some(pair));
            } else if let Some(key) = shared.entry_key(&pair.key).filter(|key| !key.starts_with(NOT_FOLLOWED)) {
                if deleted {
                    state.known.remove(key);
                    delete.push(key.to_owned());
                } else {
                    state.known.insert(key.to_owned(), pair.revision);
                    let revision = state.epoch.revision(pair.revision);
                    put.push(Entry { key: key.to_owned(), value: pair.value, revision });
                }
            }
        }
        state.revision = state.revision.max(revision);
    }
    let followed = !put.is_empty() || !delete.is_empty();
    if followed && !own {
        let stamp = {
            let state = shared.state.lock();
            Stamp { epoch: state.epoch.epoch, revision: state.epoch.revision(revision) }
        };
        // Nobody may be following.
        let _ = shared.changes.send(Arc::new(Changes { stamp, put, delete }));
    }
    if let Some(leader) = leader {
        set_leader(shared, leader);
    }
}
