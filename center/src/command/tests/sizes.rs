//! Proposed sizes of pools: accepted, turned down, expired, and who may.

use super::*;

fn sized(from: u32, to: u32) -> NewCommand {
    order(Action::Scale { service: "web".into(), group: "idc-a".into(), from, to })
}

/// A site whose driver runs two instances of `web` in idc-a.
async fn with_driver() -> Bench {
    let it = bench().await;
    it.site.inner.lock().sizes.insert(("web".into(), "idc-a".into()), 2);
    it
}

impl Bench {
    async fn propose(&self, wanted: NewCommand) -> CommandRecord {
        self.commands.give(&Actor::center(), wanted, true).await.unwrap()
    }

    fn scaled(&self) -> Vec<(String, u32, String)> {
        self.site.inner.lock().scaled.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_accepts_a_size_and_the_driver_is_asked_in_that_name() {
    let it = with_driver().await;
    let proposed = it.propose(sized(2, 4)).await;
    assert_eq!((proposed.state, proposed.until_ms), (CommandState::Proposed, Some(proposed.at_ms + 3_600_000)));
    assert_eq!(it.scaled(), []);
    let done = it.commands.confirm(&actor("anna"), proposed.id).await.unwrap();
    assert_eq!((done.state, done.until_ms), (CommandState::Done, None));
    let key = format!("proposal-{}-{}", proposed.id, proposed.at_ms);
    assert_eq!(it.scaled(), [("anna".to_owned(), 4, key)]);
    let (_, by, why) = done.ended.clone().unwrap();
    assert_eq!((by.as_str(), why.as_str()), ("anna", "the driver was asked for 4 instances"));
    // Nothing of it is in force: there is nothing to take back, and others may give commands.
    assert_eq!(it.commands.active(""), []);
    assert_eq!(it.commands.one(done.id).await.unwrap(), done);
    for again in
        [it.commands.undo(&actor("anna"), done.id, "").await, it.commands.confirm(&actor("anna"), done.id).await]
    {
        assert_eq!(again.unwrap_err().code, Code::Conflict);
    }
    it.give(moved("idc-a", "idc-b", 20)).await.unwrap();
    let audit = Audit::new(it.store.clone()).page(None, 50).await.unwrap();
    let told = audit.iter().find(|entry| entry.what == "command.confirm" && entry.outcome == "ok").unwrap();
    assert_eq!((told.actor.as_str(), told.target.as_str()), ("anna", "web in idc-a from 2 to 4 instances"));
    // After a restart it is history.
    let again = started(&it.site, &it.store).await;
    assert_eq!(again.one(done.id).await.unwrap().state, CommandState::Done);
    assert!(again.active("").iter().all(|open| open.id != done.id));
}

#[tokio::test(start_paused = true)]
async fn a_size_is_turned_down_expires_or_is_replaced_and_no_driver_hears_of_it() {
    let it = with_driver().await;
    let first = it.propose(sized(2, 4)).await;
    let second = it.propose(sized(2, 6)).await;
    assert_eq!(it.state(first.id), CommandState::Undone, "the newer one takes its place");
    let other = it.propose(moved("idc-a", "idc-b", 20)).await;
    assert_eq!(it.state(second.id), CommandState::Proposed, "a switch of the same pool is something else");
    let declined = async |wanted: NewCommand| it.commands.declined("centre", &wanted.action).await.unwrap();
    assert!(declined(sized(2, 5)).await.is_none(), "what the centre replaced nobody turned down");
    it.commands.undo(&actor("anna"), second.id, "not today").await.unwrap();
    let (record, left) = declined(sized(2, 5)).await.unwrap();
    assert_eq!((record.id, left.as_secs().div_ceil(60)), (second.id, 60));
    assert!(declined(moved("idc-a", "idc-c", 5)).await.is_none());
    it.commands.undo(&actor("anna"), other.id, "").await.unwrap();
    assert!(declined(moved("idc-a", "idc-c", 5)).await.is_some(), "switches are left alone the same way");
    let third = it.propose(sized(2, 3)).await;
    sleep(Duration::from_secs(3610)).await;
    let expired = it.commands.one(third.id).await.unwrap();
    assert_eq!(expired.state, CommandState::Expired);
    assert_eq!(it.commands.confirm(&actor("anna"), third.id).await.unwrap_err().code, Code::Conflict);
    assert_eq!(it.scaled(), []);
}

#[tokio::test]
async fn only_operators_of_the_group_answer_and_nobody_gives_sizes_as_commands() {
    let it = with_driver().await;
    let proposed = it.propose(sized(2, 4)).await;
    let viewer = Actor { name: "vic".into(), roles: vec![("*".into(), Role::Viewer)], ..Actor::default() };
    let elsewhere = Actor { name: "bob".into(), roles: vec![("idc-b".into(), Role::Operator)], ..Actor::default() };
    for who in [&viewer, &elsewhere] {
        assert_eq!(it.commands.confirm(who, proposed.id).await.unwrap_err().code, Code::Forbidden);
        assert_eq!(it.commands.undo(who, proposed.id, "").await.unwrap_err().code, Code::Forbidden);
    }
    assert_eq!((it.scaled(), it.state(proposed.id)), (Vec::new(), CommandState::Proposed));
    let said = it.refused(sized(2, 4)).await;
    assert!(said.contains("POST /v1/scale"), "{said}");
    let previewed = it.commands.preview(&actor("anna"), &sized(2, 4)).await.unwrap_err();
    assert!(previewed.remedy.contains("/v1/scale"), "{previewed}");
    for wrong in [sized(3, 3), NewCommand { for_ms: Some(1000), ..sized(2, 4) }] {
        let refused = it.commands.give(&Actor::center(), wrong, true).await.unwrap_err();
        assert_eq!(refused.code, Code::BadRequest, "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_fails_or_has_another_size_leaves_the_proposal_waiting() {
    let it = with_driver().await;
    let proposed = it.propose(sized(2, 4)).await;
    it.site.inner.lock().driver = Some(Error::new(Code::Unavailable, "no answer within 60s", ""));
    let failed = it.commands.confirm(&actor("anna"), proposed.id).await.unwrap_err();
    assert_eq!((failed.code, it.state(proposed.id)), (Code::Unavailable, CommandState::Proposed));
    it.site.inner.lock().driver = None;
    // Somebody gave it another size by hand.
    it.site.inner.lock().sizes.insert(("web".into(), "idc-a".into()), 7);
    let stale = it.commands.confirm(&actor("anna"), proposed.id).await.unwrap_err();
    assert!(stale.message.contains("runs 7 instances by now, not 2"), "{stale}");
    assert_eq!(it.scaled().len(), 1);
    // The answer was lost, and it was done.
    it.site.inner.lock().sizes.insert(("web".into(), "idc-a".into()), 4);
    it.commands.confirm(&actor("anna"), proposed.id).await.unwrap();
    let keys: BTreeSet<String> = it.scaled().into_iter().map(|(_, _, key)| key).collect();
    assert_eq!((keys.len(), it.scaled().len()), (1, 2), "the same request under the same name");
    let audit = Audit::new(it.store.clone()).page(None, 50).await.unwrap();
    let outcomes: Vec<_> = audit.iter().filter(|e| e.what == "command.confirm").map(|e| e.outcome.as_str()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome != "ok").count(), 2, "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_driver_holds_nobody_up_and_is_asked_once() {
    let it = with_driver().await;
    let proposed = it.propose(sized(2, 4)).await;
    it.site.inner.lock().slow = Duration::from_secs(50);
    let (commands, id) = (it.commands.clone(), proposed.id);
    let accepting = tokio::spawn(async move { commands.confirm(&actor("anna"), id).await });
    sleep(Duration::from_secs(1)).await;
    let began = tokio::time::Instant::now();
    let moved = it.give(moved("idc-a", "idc-b", 20)).await.unwrap();
    assert!(moved.id > id && began.elapsed() < Duration::from_secs(5), "others give commands meanwhile");
    for busy in [it.commands.confirm(&actor("bob"), id).await, it.commands.undo(&actor("bob"), id, "").await] {
        let busy = busy.unwrap_err();
        assert!(busy.message.contains("is being carried out"), "{busy}");
    }
    assert_eq!(accepting.await.unwrap().unwrap().state, CommandState::Done);
    assert_eq!(it.scaled().len(), 1);
}
