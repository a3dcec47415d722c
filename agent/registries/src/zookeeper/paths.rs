//! Where things lie: Motan's layout below the root that the configuration names.

use model::ServiceKey;

use super::super::{Scope, url::group_of};

/// Folder of providers that may be called.
pub(super) const SERVER: &str = "server";
/// Folder of providers that are known but must not be called.
pub(super) const UNAVAILABLE: &str = "unavailableServer";
/// Folder of callers.
pub(super) const CLIENT: &str = "client";

/// The folder of `kind` of a service.
pub(super) fn folder(root: &str, service: &ServiceKey, kind: &str) -> Result<String, String> {
    checked(format!("{root}/motan/{}/{}/{kind}", group_of(service), service.service))
}

/// The node with the command text of `scope`.
pub(super) fn command(root: &str, scope: &Scope) -> Result<String, String> {
    checked(match scope {
        Scope::Group(group) => format!("{root}/motan/{group}/command"),
        Scope::Agent(application) => format!("{root}/motan/agent/{application}/command"),
    })
}

/// The folder with the agents of `application`.
pub(super) fn agents(root: &str, application: &str) -> Result<String, String> {
    checked(format!("{root}/motan/agent/{application}/node"))
}

/// The server refuses such paths by closing the connection, which would cost everybody.
fn checked(path: String) -> Result<String, String> {
    let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
    if path.split('/').skip(1).all(good) {
        return Ok(path);
    }
    Err(format!("`{path}` cannot be a path in ZooKeeper; give the service another name or group"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_as_they_are() {
        let key = |group: &str, service: &str| ServiceKey {
            service: service.into(),
            group: group.into(),
            version: "9".into(),
        };
        assert_eq!(folder("", &key("un grp", "a.B"), SERVER).unwrap(), "/motan/un grp/a.B/server");
        assert_eq!(folder("/x", &key("", "a"), CLIENT).unwrap(), "/x/motan/default_rpc/a/client");
        assert_eq!(command("", &Scope::Group("g".into())).unwrap(), "/motan/g/command");
        assert_eq!(command("", &Scope::Agent("app".into())).unwrap(), "/motan/agent/app/command");
        for bad in ["", ".", "a//b", "a/", "a\u{1}"] {
            assert!(folder("", &key("g", bad), SERVER).is_err(), "{bad:?}");
        }
    }
}
