//! What `sockmesh explain` asks: recent calls of a service, and the recording of the next one.

use std::sync::Arc;

use super::{Handles, stat, view};
use crate::cluster::Cluster;

/// `GET /explain?service=`.
pub(super) fn page(handles: &Handles, query: Option<&str>) -> Result<view::Explained, String> {
    let clusters = asked(handles, query)?;
    let mut stories: Vec<_> = clusters.iter().flat_map(|c| c.info.stats.recent.stories()).collect();
    stories.sort_by_key(|story| story.id);
    let mut connections = stat::sockets(handles).sockets;
    connections.retain(|row| clusters.iter().any(|c| row.service == c.info.key.service));
    let mut troubles = Vec::new();
    for cluster in &clusters {
        let set = cluster.endpoints();
        if set.endpoints.is_empty() {
            troubles.push(format!("no endpoint of {} is known", cluster.info.key));
        } else if set.endpoints.iter().all(|e| e.weight == 0) {
            troubles.push(format!("every endpoint of {} has weight 0", cluster.info.key));
        }
        troubles.extend(handles.stale.get(&cluster.info.key).map(|why| format!("the list is old: {why}")));
        troubles.extend(cluster.steering().troubles.iter().cloned());
    }
    // A service whose protocol is detected has a cluster for each.
    troubles.dedup();
    let stories = stories.iter().map(|story| (**story).clone()).collect();
    Ok(view::Explained { stories, connections, troubles })
}

/// `POST /explain/next?service=`.
pub(super) fn ask(handles: &Handles, query: Option<&str>) -> Result<String, String> {
    let clusters = asked(handles, query)?;
    clusters.iter().for_each(|cluster| cluster.info.stats.recent.ask());
    Ok(format!("the next call of {} will be recorded", clusters[0].info.key))
}

/// The clusters of the service that is asked for; never none.
fn asked(handles: &Handles, query: Option<&str>) -> Result<Vec<Arc<Cluster>>, String> {
    let mut wanted = None;
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "service" => wanted = Some(value.into_owned()),
            other => return Err(format!("no parameter `{other}`; there is `service`")),
        }
    }
    let wanted = wanted.ok_or("add ?service= with the name of a service")?;
    let clusters = handles.clusters.load();
    let is_wanted = |c: &&Arc<Cluster>| c.info.key.service == wanted || c.info.key.to_string() == wanted;
    let found: Vec<_> = clusters.iter().filter(is_wanted).cloned().collect();
    if found.is_empty() {
        let mut names: Vec<_> = clusters.iter().map(|c| c.info.key.to_string()).collect();
        names.sort();
        names.dedup();
        let there = if names.is_empty() {
            "there is none at all".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        };
        return Err(format!(
            "no service `{wanted}` is configured, so its calls are refused (Motan2), answered by another service of \
             the same address, or never come here; {there}"
        ));
    }
    Ok(found)
}
