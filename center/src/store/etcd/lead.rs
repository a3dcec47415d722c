//! Who leads: the one that holds the leader key under its lease.

use std::{sync::Arc, time::Duration};

use registries::etcd::client::{Error, Step};
use tokio::time::{Instant, sleep, timeout};

use super::{Epoch, Leadership, Shared};

/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a centre that stops waits until its lead is given up.
const FAREWELL: Duration = Duration::from_secs(2);

/// Leads whenever nobody else does, until told to stop.
pub(super) async fn lead(shared: Arc<Shared>) {
    let mut stop = shared.stop.subscribe();
    let mut leader = shared.leader.subscribe();
    let mut lease = None;
    tokio::select! {
        () = async {
            loop {
                // What is known of epoch and leader comes from there.
                let mut ready = shared.ready.subscribe();
                if ready.wait_for(|ready| *ready).await.is_err() {
                    return;
                }
                let now = leader.borrow_and_update().clone();
                tell(&shared, |leadership| leadership.leader.clone_from(&now.name));
                if now.revision == 0 {
                    match reign(&shared, &mut lease).await {
                        Ok(()) => {}
                        Err(error) => tracing::debug!(%error, "etcd: not leading"),
                    }
                    sleep(PAUSE).await;
                } else {
                    // Told when it goes; looked after now and then, should that be missed.
                    let _ = timeout(shared.lease, leader.changed()).await;
                }
            }
        } => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    step_down(&shared, "");
    if let Some(lease) = lease {
        // Without an answer the others wait until the lease is over.
        let _ = timeout(FAREWELL, shared.client.revoke(lease)).await;
    }
    shared.stop.send_replace(false);
}

/// Gives the lead up at once, so that nobody waits for the end of a lease.
pub(super) async fn give_up(shared: &Shared) {
    shared.stop.send_replace(true);
    let mut stop = shared.stop.subscribe();
    let _ = timeout(FAREWELL, stop.wait_for(|stop| !*stop)).await;
}

fn tell(shared: &Shared, change: impl FnOnce(&mut Leadership)) {
    shared.leadership.send_if_modified(|leadership| {
        let before = leadership.clone();
        change(leadership);
        before != *leadership
    });
}

fn step_down(shared: &Shared, why: &str) {
    shared.state.lock().fence = 0;
    if shared.leadership.borrow().leads {
        tracing::warn!(why, "this centre leads no more");
    }
    tell(shared, |leadership| leadership.leads = false);
}

/// Takes the lead if nobody has it, and holds it as long as the lease can be renewed.
async fn reign(shared: &Arc<Shared>, lease: &mut Option<i64>) -> Result<(), Error> {
    let granted = Instant::now();
    let id = shared.client.grant(shared.lease).await?;
    *lease = Some(id);
    let (epoch, at) = {
        let state = shared.state.lock();
        (Epoch { epoch: state.epoch.epoch + 1, ..state.epoch }, state.epoch_at)
    };
    let put = |name: &str, value: Vec<u8>, lease| Step::Put { key: shared.key(name), value, lease };
    let steps = vec![
        put("leader", shared.name.clone().into_bytes(), id),
        put("epoch", serde_json::to_vec(&epoch).unwrap_or_default(), 0),
        put("by", shared.id.clone().into_bytes(), 0),
    ];
    let conditions = vec![(shared.key("leader"), 0), (shared.key("epoch"), at), (shared.key("restoring"), 0)];
    let taken = shared.client.transact(conditions, steps).await;
    let Ok(Some(fence)) = taken else {
        *lease = None;
        // Whether it was taken or not: it ends with the lease, and a lost answer must not lead.
        let _ = timeout(FAREWELL, shared.client.revoke(id)).await;
        return taken.map(|_| ());
    };
    {
        let mut state = shared.state.lock();
        state.fence = fence;
        state.epoch = epoch;
        state.epoch_at = state.epoch_at.max(fence);
        state.revision = state.revision.max(fence);
    }
    let name = shared.name.clone();
    shared.leadership.send_replace(Leadership { leads: true, leader: name, epoch: epoch.epoch });
    tracing::info!(epoch = epoch.epoch, "this centre leads");
    let mut leader = shared.leader.subscribe();
    let mut renewed = granted;
    let why = loop {
        let end = renewed + shared.lease * 2 / 3;
        let beat = async {
            sleep(shared.lease / 5).await;
            let asked = Instant::now();
            (asked, shared.client.renew(id).await)
        };
        tokio::select! {
            () = tokio::time::sleep_until(end) => break "the lease could not be renewed in time",
            (asked, answer) = beat => match answer {
                Ok(true) => renewed = asked,
                Ok(false) => break "the lease is over",
                Err(error) => tracing::debug!(%error, "etcd: the lease was not renewed"),
            },
            // Somebody took the key away, or has it.
            _ = leader.wait_for(|leader| leader.revision > fence) => break "another one leads",
        }
    };
    step_down(shared, why);
    *lease = None;
    // It must not be held by one that does not use it.
    let _ = timeout(FAREWELL, shared.client.revoke(id)).await;
    Ok(())
}
