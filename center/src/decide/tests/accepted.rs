//! A size that the centre proposes, accepted by an operator: from the policy to a process that runs.

use model::center::{CommandState, Role};

use super::super::*;
use crate::{
    app::Center,
    config::{self, StoreChoice},
    error::Code,
};

const POLICY: &str = "{service: com.shop.Cart, group: idc-a, driver: local, min: 2, max: 4, hold_ms: 200}";
const DRIVER: &str = "drivers: {local: {kind: process, options: {command: [sleep, '1000'], stop_after: 5s}}}";

fn person(name: &str, role: Role) -> Actor {
    Actor { name: name.to_owned(), roles: vec![("idc-*".to_owned(), role)], ..Actor::default() }
}

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = found().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn an_accepted_size_is_processes_that_run_under_the_operators_name() {
    let name = format!("center-accepted-{}-{}", std::process::id(), fastrand::u64(..));
    let data = std::env::temp_dir().join(name);
    let config = config::Config {
        data: data.clone(),
        store: StoreChoice { kind: "memory".into(), options: model::kind::Value::Null },
        scale: serde_yaml::from_str(DRIVER).unwrap(),
        pools: Config { policies: vec![serde_yaml::from_str(POLICY).unwrap()], every: Duration::from_millis(50) },
        ..config::Config::default()
    };
    let center = Center::build(config).await.unwrap();
    let (service, group) = ("com.shop.Cart", "idc-a");
    let proposed = until("it is proposed", async || center.commands.active(service).into_iter().next()).await;
    assert_eq!(proposed.state, CommandState::Proposed);
    let size = Action::Scale { service: service.into(), group: group.into(), from: 0, to: 2 };
    assert_eq!(proposed.asked.action, size);
    assert_eq!(center.scalers.instances(service, group), [], "nothing runs before somebody says so");

    let refused = center.commands.confirm(&person("vic", Role::Viewer), proposed.id).await.unwrap_err();
    assert_eq!(refused.code, Code::Forbidden);
    let done = center.commands.confirm(&person("anna", Role::Operator), proposed.id).await.unwrap();
    assert_eq!(done.state, CommandState::Done);
    until("two processes run", async || {
        let all = center.scalers.instances(service, group);
        (all.iter().filter(|one| one.state == "running" && one.pid.is_some()).count() == 2).then_some(())
    })
    .await;
    let event = center.scalers.events(service, group, 1).remove(0);
    assert_eq!((event.by.as_str(), event.from, event.to, event.outcome.as_str()), ("anna", Some(0), 2, "ok"));
    assert!(event.reason.starts_with(&format!("proposal {}: there shall be 2", proposed.id)), "{event:?}");
    let audit = center.audit.page(None, 100).await.unwrap();
    let scaled: Vec<_> = audit.iter().filter(|entry| entry.what == "pool.scale").collect();
    assert_eq!((scaled.len(), scaled[0].actor.as_str()), (1, "anna"));
    // They have not registered yet: nobody is asked for more of them.
    until("the centre waits for them", async || {
        let policy = center.decider.policy(service, group);
        (center.scalers.size(&policy).await.unwrap() == 2 && center.commands.active(service).is_empty()).then_some(())
    })
    .await;
    center.scalers.stop().await;
    drop(center);
    // There may be nothing.
    let _ = std::fs::remove_dir_all(&data);
}
