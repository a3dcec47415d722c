//! Sizes that are proposed where the policy gives no leave to scale.

use super::*;

impl Town {
    /// Proposals of sizes that were ever made, and where they stand.
    fn sizes(&self) -> Vec<(u32, u32, CommandState)> {
        let size = |c: &CommandRecord| match c.asked.action {
            Action::Scale { from, to, .. } => Some((from, to, c.state)),
            _ => None,
        };
        self.now().commands.iter().filter_map(size).collect()
    }

    /// An operator accepts the newest proposal: the driver is asked, and instances come.
    fn accept(&self, group: &str) {
        let mut now = self.now();
        let command = now.commands.last_mut().unwrap();
        assert_eq!(command.state, CommandState::Proposed);
        let Action::Scale { to, .. } = command.asked.action else { panic!("{command:?}") };
        command.state = CommandState::Done;
        let prompt = now.prompt;
        let site = now.sites.get_mut(group).unwrap();
        site.size = to;
        if prompt {
            site.instances = to;
        }
    }
}

fn unasked() -> PoolPolicy {
    PoolPolicy { driver: "any".into(), min: 2, max: 14, ..PoolPolicy::default() }
}

#[tokio::test(start_paused = true)]
async fn without_leave_another_size_is_proposed_once_and_again_when_it_is_another() {
    use CommandState::{Done, Proposed, Undone};
    let (town, decider) = town(unasked(), &[("a", 80.0)]).await;
    seconds(20).await;
    assert_eq!(town.sizes(), [], "not before it has lasted");
    assert!(advice(&decider, "a").contains("watched"), "{}", advice(&decider, "a"));
    seconds(600).await;
    assert_eq!(town.sizes(), [(10, 12, Proposed)], "one proposal, not one for each look");
    let said = advice(&decider, "a");
    assert!(said.contains("proposal 1 to scale from 10 to 12 instances waits for an operator"), "{said}");
    let reason = town.now().commands[0].asked.reason.clone();
    assert_eq!(reason, "12 instances keep 30 % to lose; there are 10");
    // A little more load is the same proposal; much more is another one.
    town.demand("a", 85.0);
    seconds(300).await;
    assert_eq!(town.sizes(), [(10, 12, Proposed)]);
    town.demand("a", 120.0);
    seconds(300).await;
    assert_eq!(town.sizes(), [(10, 12, Undone), (10, 14, Proposed)]);
    // A person takes it. Those that come are waited for, however long that takes.
    town.now().prompt = false;
    town.accept("a");
    seconds(600).await;
    assert_eq!(town.sizes().len(), 2, "{:?}", town.sizes());
    assert!(advice(&decider, "a").contains("not there yet"), "{}", advice(&decider, "a"));
    town.now().sites.get_mut("a").unwrap().instances = 14;
    town.demand("a", 50.0);
    seconds(290).await;
    assert_eq!(town.sizes().len(), 2, "not before there were too many for long");
    seconds(120).await;
    assert_eq!(town.sizes()[1..], [(10, 14, Done), (14, 12, Proposed)]);
    // It is over before anybody looked.
    town.demand("a", 100.0);
    seconds(60).await;
    assert_eq!(town.sizes()[2], (14, 12, Undone));
    assert!(town.now().log.is_empty() && town.now().keys.is_empty(), "{:?}", town.now().done());
}

#[tokio::test(start_paused = true)]
async fn a_size_that_was_turned_down_is_not_proposed_again_within_the_hour() {
    let (town, decider) = town(unasked(), &[("a", 80.0)]).await;
    seconds(60).await;
    town.now().commands[0].state = CommandState::Undone;
    town.now().declined = Some(Instant::now());
    seconds(3000).await;
    assert_eq!(town.sizes().len(), 1);
    let said = advice(&decider, "a");
    assert!(said.contains("proposal 1 was turned down by anna; the centre proposes it again in"), "{said}");
    // Leave is no proposal.
    let scaled = PoolPolicy { scale: true, ..unasked() };
    decider.set_policy(&Actor::center(), scaled).await.unwrap();
    seconds(10).await;
    assert_eq!(town.now().done(), ["a from 10 to 12"]);
    decider.set_policy(&Actor::center(), unasked()).await.unwrap();
    town.demand("a", 95.0);
    seconds(900).await;
    assert_eq!(town.sizes()[1..], [(12, 14, CommandState::Proposed)], "an hour later");
}

#[tokio::test(start_paused = true)]
async fn a_proposed_size_gives_way_to_leave_and_one_that_takes_over_knows_it() {
    use CommandState::{Proposed, Undone};
    let store: Arc<dyn Store> = Arc::new(Memory::new("one"));
    let (town, first) = town(unasked(), &[("a", 80.0)]).await;
    seconds(60).await;
    assert_eq!(town.sizes(), [(10, 12, Proposed)]);
    drop(first);
    seconds(5).await;
    let second = decider(&town, store, unasked()).await;
    seconds(600).await;
    assert_eq!(town.sizes(), [(10, 12, Proposed)], "{}", advice(&second, "a"));
    let scaled = PoolPolicy { scale: true, ..unasked() };
    second.set_policy(&Actor::center(), scaled).await.unwrap();
    seconds(20).await;
    assert_eq!(town.sizes(), [(10, 12, Proposed)], "one change of a policy may be followed by another");
    seconds(100).await;
    assert_eq!(town.sizes(), [(10, 12, Undone)]);
    assert_eq!(town.now().done(), ["a from 10 to 12"]);
    // Without a driver nothing is proposed.
    second.set_policy(&Actor::center(), PoolPolicy::default()).await.unwrap();
    town.demand("a", 130.0);
    seconds(300).await;
    assert_eq!(town.sizes().len(), 1);
    assert!(advice(&second, "a").contains("names no driver"), "{}", advice(&second, "a"));
}

#[tokio::test(start_paused = true)]
async fn the_first_instances_of_a_pool_are_proposed_too() {
    let town = Arc::new(Town::default());
    town.now().sites.insert("new".to_owned(), Site { demand: 5.0, ..Site::empty() });
    town.now().prompt = true;
    let policy = PoolPolicy { service: SERVICE.into(), group: "new".into(), ..unasked() };
    let _decider = decider(&town, Arc::new(Memory::new("one")), policy).await;
    seconds(20).await;
    assert_eq!(town.sizes(), []);
    seconds(60).await;
    assert_eq!(town.sizes(), [(0, 2, CommandState::Proposed)]);
    town.accept("new");
    seconds(300).await;
    assert_eq!(town.sizes(), [(0, 2, CommandState::Done)]);
}
