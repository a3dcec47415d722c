//! Names that an agent leaves for people who look: nothing depends on them.

use std::{collections::BTreeMap, net::IpAddr};

use model::ServiceKey;

use super::{
    Zookeeper,
    conn::{Conn, Failure},
    paths,
    wire::Code,
};
use crate::url::{Url, group_of};

/// Among the callers of `service`, as motan-go does: without a port.
pub(super) async fn caller(registry: &Zookeeper, conn: &Conn, service: &ServiceKey) {
    let Ok(folder) = paths::folder(&registry.options.root, service, paths::CLIENT) else { return };
    let more = [("version", service.version.as_str()), ("application", &registry.application)];
    let url = Url {
        protocol: "motan2".to_owned(),
        address: at(conn, 0),
        path: service.service.clone(),
        parameters: parameters("referer", group_of(service), &more),
    };
    write(registry, conn, &folder, &url).await;
}

/// Among the agents of `application`, with the port of its management.
pub(super) async fn agent(registry: &Zookeeper, conn: &Conn, application: &str) {
    let Ok(folder) = paths::agents(&registry.options.root, application) else { return };
    let url = Url {
        protocol: "motan2".to_owned(),
        address: at(conn, registry.management),
        path: application.to_owned(),
        parameters: parameters("agent", application, &[("application", application)]),
    };
    write(registry, conn, &folder, &url).await;
}

/// The address towards the registry, which is one that others in its network know this host by.
fn at(conn: &Conn, port: u16) -> String {
    match conn.local.to_canonical() {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

fn parameters(kind: &str, group: &str, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let usual = [("nodeType", kind), ("group", group)];
    let all = usual.iter().chain(more).filter(|(_, value)| !value.is_empty());
    all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn write(registry: &Zookeeper, conn: &Conn, folder: &str, url: &Url) {
    let (path, data) = (format!("{folder}/{}", url.address), registry.options.written(url));
    let mut result = conn.create(&path, &data, true).await;
    if result == Err(Failure::Refused(Code::NODE_EXISTS)) {
        // Of a former session, or of another one on this host: the latest counts.
        result = conn.delete(&path).await;
        if result.is_ok() {
            result = conn.create(&path, &data, true).await;
        }
    }
    if let Err(failure) = result {
        tracing::debug!(%path, %failure, "zookeeper: cannot leave a name");
    }
}
