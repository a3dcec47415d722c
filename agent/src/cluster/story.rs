//! What is kept of a call for `sockmesh explain`.

use std::time::SystemTime;

use super::Cluster;
use crate::{
    call::Status,
    filter::{Outcome, Record},
    metrics::{Kept, Step, Story, Trail, micros},
};

/// The story of a call that is over.
pub(super) fn of(record: &Record, cluster: &Cluster, trail: &Trail, kept: Kept) -> Story {
    let Record { call, cluster: info, .. } = record;
    let steering = cluster.steering();
    let group = |g: &model::command::GroupShare| match g.weight {
        Some(weight) => format!("{}={weight}", g.group),
        None => g.group.clone(),
    };
    let mut steps = trail.take();
    for step in &mut steps {
        if let Step::Filter { index, name, .. } = step {
            *name = cluster.config.filters.get(*index).map_or_else(|| format!("filter {index}"), |f| f.name.clone());
        }
    }
    let outcome = match &record.outcome {
        Outcome::Answered(Status::Ok) => "answered".to_owned(),
        Outcome::Answered(Status::Refused(code)) => format!("answered {code}, the service's own error"),
        Outcome::Answered(Status::Failed(code)) => format!("failed with {code}"),
        Outcome::Failed(error) => format!("{}: {error}", error.kind.name()),
    };
    Story {
        id: 0,
        at: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        kept,
        direction: info.direction.name().to_owned(),
        service: info.key.to_string(),
        protocol: info.protocol.to_owned(),
        method: call.method.to_string(),
        path: call.path.to_string(),
        application: call.application.to_string(),
        request_id: call.request_id,
        peer: call.peer,
        dialed: call.local,
        command: steering.by.clone().or_else(|| steering.degraded.clone()),
        groups: steering.groups.iter().map(group).collect(),
        lb: cluster.config.lb.name.clone(),
        ha: cluster.config.ha.name.clone(),
        timeout_micros: micros(cluster.timeout(&call.method, call.wire_timeout)),
        steps,
        outcome,
        attempts: record.attempts,
        endpoint: record.endpoint,
        total_micros: micros(record.total),
    }
}
