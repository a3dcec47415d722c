//! Where things lie: Motan's layout for ZooKeeper, as keys.

use model::ServiceKey;

use super::super::{Scope, url::group_of};

/// Providers that may be called.
pub(super) const SERVER: &str = "server";
/// Providers that are known but must not be called.
pub(super) const UNAVAILABLE: &str = "unavailableServer";

/// What all keys of `kind` of a service begin with.
pub(super) fn folder(prefix: &str, service: &ServiceKey, kind: &str) -> String {
    format!("{prefix}/{}/{}/{kind}/", group_of(service), service.service)
}

/// The key of the command text of `scope`.
pub(super) fn command(prefix: &str, scope: &Scope) -> String {
    match scope {
        Scope::Group(group) => format!("{prefix}/{group}/command"),
        Scope::Agent(application) => format!("{prefix}/agent/{application}/command"),
    }
}
