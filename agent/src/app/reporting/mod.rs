//! Tells governance centres what this agent counts and how it is: `counted` takes differences, `status` describes.
//!
//! Every centre is told by a task of its own, so that one that hangs holds up nobody. What a centre did not take is in
//! the next report to it, for a minute at most: figures may be lost, and nothing waits.

mod counted;
mod post;
mod status;

use std::{sync::Arc, time::Duration};

use model::center::Report;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::{
    counted::Counted,
    post::{Post, Told},
};
use crate::{admin::Handles, config};

/// What a centre takes for one window at most.
const LONGEST: Duration = Duration::from_secs(60);

/// Begins to report, if there is a centre and it shall be told. Must be called on the control runtime; ends with it.
pub(super) fn start(center: Option<&config::Center>, agent: &str, handles: &Arc<Handles>) {
    let Some(center) = center.filter(|center| !center.report.is_zero()) else { return };
    for address in &center.access.addresses {
        match Post::new(address, &center.access) {
            Ok(post) => drop(tokio::spawn(report(post, center.report, agent.to_owned(), handles.clone()))),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(center = address, error, "the centre is not told what is counted");
            }
        }
    }
}

async fn report(mut post: Post, every: Duration, agent: String, handles: Arc<Handles>) {
    let status = status::Source::new(handles.clone());
    let mut counted = Counted::new(handles);
    // Many agents that start together do not report together.
    let first = every.mul_f64(0.5 + fastrand::f64() / 2.0);
    let mut tick = interval_at(Instant::now() + first, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since = Instant::now();
    let mut sequence = 1;
    let mut well = None;
    loop {
        tick.tick().await;
        let now = Instant::now();
        let seen = counted.look();
        if now - since > LONGEST {
            // What happened longer ago belongs to no window.
            counted.took(seen);
            since = now;
            continue;
        }
        let report = Report {
            agent: agent.clone(),
            window_seconds: (now - since).as_secs_f64(),
            sequence,
            status: status.now(registries::center::seen()),
            samples: seen.samples.clone(),
            edges: seen.edges.clone(),
        };
        let told = post.send(&report).await;
        if matches!(told, Told::Taken | Told::Refused(_)) {
            counted.took(seen);
            since = now;
            sequence += 1;
        }
        let why = match told {
            Told::Taken => None,
            Told::Refused(why) | Told::Failed(why) => Some(why),
        };
        let center = post.address();
        match &why {
            None if well != Some(true) => tracing::info!(center, "the centre is told what is counted"),
            Some(error) if well != Some(false) => {
                tracing::warn!(center, error, "the centre is not told what is counted: it is tried again");
            }
            Some(error) => tracing::debug!(center, error, "the centre is still not told"),
            None => {}
        }
        well = Some(why.is_none());
    }
}
