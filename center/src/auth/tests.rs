//! Accounts as methods; by HTTP they are tried in `center/tests/access.rs`.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use model::center::{NewToken, NewUser, Role, UserChange};

use super::{Actor, Auth, Config, Identity, Proof};
use crate::{audit::Audit, error::Code, store::Memory};

struct Site {
    store: Arc<Memory>,
    auth: Arc<Auth>,
    admin: Actor,
}

async fn site() -> Site {
    let store = Arc::new(Memory::new("x"));
    let auth = on(&store).await;
    let admin = Actor::anyone(String::new());
    let new = NewUser { name: "root".into(), password: "root's password".into(), roles: all(Role::Admin) };
    auth.add_user(&admin, new).await.unwrap();
    Site { store, auth, admin }
}

/// A centre on this store.
async fn on(store: &Arc<Memory>) -> Arc<Auth> {
    let auth = Auth::new(&Default::default(), Config::default(), store.clone(), Audit::new(store.clone()));
    auth.load().await.unwrap();
    auth
}

fn all(role: Role) -> Vec<(String, Role)> {
    vec![("*".to_owned(), role)]
}

fn user(name: &str, roles: Vec<(String, Role)>) -> NewUser {
    NewUser { name: name.to_owned(), password: format!("{name}'s password"), roles }
}

fn headers(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())])
}

fn by_token(auth: &Auth, token: &str) -> Identity {
    auth.identify(&headers("authorization", &format!("Bearer {token}")), None)
}

fn by_cookie(auth: &Auth, cookie: &str) -> Identity {
    auth.identify(&headers("cookie", &format!("a=b; sockmesh={cookie}; c=d")), None)
}

#[tokio::test]
async fn without_accounts_anyone_may_and_the_first_account_is_an_admin() {
    let store = Arc::new(Memory::new("x"));
    let auth = on(&store).await;
    let anyone = auth.identify(&HeaderMap::new(), None).actor.unwrap();
    assert!(auth.open() && anyone.may(Role::Admin, "*").is_ok());
    auth.may_listen("127.0.0.1:1".parse().unwrap()).unwrap();
    auth.may_listen("0.0.0.0:1".parse().unwrap()).unwrap_err();
    // Neither a token nor a mere viewer may be the first: nobody could change anything any more.
    let token = NewToken { agents: vec!["*".into()], ..NewToken::default() };
    assert_eq!(auth.add_token(&anyone, token).await.unwrap_err().code, Code::Conflict);
    for roles in [all(Role::Viewer), vec![("idc-a".to_owned(), Role::Admin)], Vec::new()] {
        assert_eq!(auth.add_user(&anyone, user("ann", roles)).await.unwrap_err().code, Code::Conflict);
    }
    auth.add_user(&anyone, user("ann", all(Role::Admin))).await.unwrap();
    assert!(!auth.open() && auth.identify(&HeaderMap::new(), None).actor.is_none());
    auth.may_listen("0.0.0.0:1".parse().unwrap()).unwrap();
    assert!(!on(&store).await.open(), "what was added is kept");
    assert_eq!(auth.remove_user(&anyone, "ann").await.unwrap_err().code, Code::Conflict);
    let demoted = UserChange { roles: Some(all(Role::Operator)), password: None };
    assert_eq!(auth.change_user(&anyone, "ann", demoted).await.unwrap_err().code, Code::Conflict);
}

#[tokio::test]
async fn a_session_is_its_cookie_and_ends_with_logout_password_and_account() {
    let Site { store, auth, admin } = site().await;
    auth.add_user(&admin, user("ann", vec![("idc-a".to_owned(), Role::Operator)])).await.unwrap();
    let login = async || auth.login("ann", "ann's password", None).await.unwrap();
    let (cookie, session) = login().await;
    let identity = by_cookie(&auth, &cookie);
    assert_eq!((identity.proof, identity.csrf.as_ref()), (Proof::Session, Some(&session.csrf)));
    let actor = identity.actor.clone().unwrap();
    assert!(actor.name == "ann" && actor.may(Role::Operator, "idc-a").is_ok() && actor.agents.is_none());
    assert!(by_cookie(&*on(&store).await, &cookie).actor.is_some(), "a restarted centre knows the session");
    assert!(by_cookie(&auth, "x").actor.is_none() && by_cookie(&auth, "").actor.is_none());
    // A role is taken away at once.
    let change = UserChange { roles: Some(all(Role::Viewer)), password: None };
    auth.change_user(&admin, "ann", change).await.unwrap();
    assert!(by_cookie(&auth, &cookie).actor.unwrap().may(Role::Operator, "idc-a").is_err());
    auth.logout(&actor, &identity.session.unwrap()).await.unwrap();
    assert!(by_cookie(&auth, &cookie).actor.is_none());
    let (cookie, _) = login().await;
    let change = UserChange { password: Some("another password".into()), roles: None };
    auth.change_user(&admin, "ann", change).await.unwrap();
    assert!(by_cookie(&auth, &cookie).actor.is_none());
    assert_eq!(auth.login("ann", "ann's password", None).await.unwrap_err().code, Code::Unauthenticated);
    let (cookie, _) = auth.login("ann", "another password", None).await.unwrap();
    auth.remove_user(&admin, "ann").await.unwrap();
    assert!(by_cookie(&auth, &cookie).actor.is_none());
    assert!(by_cookie(&*on(&store).await, &cookie).actor.is_none());
}

#[tokio::test]
async fn guessing_is_slowed_and_says_the_same_for_all_names() {
    let Site { auth, .. } = site().await;
    let from = |n: u8| Some([192, 0, 2, n].into());
    let unknown = auth.login("nobody", "root's password", from(1)).await.unwrap_err();
    let wrong = auth.login("root", "not the password", from(2)).await.unwrap_err();
    assert_eq!(unknown, wrong);
    let mut last = wrong;
    for _ in 0..super::LOGIN_BURST {
        last = auth.login("root", "not the password", from(2)).await.unwrap_err();
    }
    assert_eq!(last.code, Code::TooMany);
    assert!(last.remedy.contains("wait"), "{last}");
    // The right password does not help there, and does elsewhere, as often as one likes.
    assert_eq!(auth.login("root", "root's password", from(2)).await.unwrap_err().code, Code::TooMany);
    for _ in 0..super::LOGIN_BURST + 1 {
        auth.login("root", "root's password", from(3)).await.unwrap();
    }
    assert!(auth.accounts.read().sessions.len() <= 20, "old sessions make room");
}

#[tokio::test]
async fn tokens_do_what_they_are_for_until_they_end() {
    let Site { store, auth, admin } = site().await;
    let new = NewToken {
        remark: "web hosts".into(),
        agents: vec!["web-*/*".into()],
        services: vec!["com.shop.*".into()],
        ..NewToken::default()
    };
    let made = auth.add_token(&admin, new).await.unwrap();
    for auth in [&auth, &on(&store).await] {
        let actor = by_token(auth, &made.token).actor.unwrap();
        assert_eq!(actor.name, format!("token {}", made.row.id));
        assert!(actor.may_speak_for("web-1/shop").is_ok() && actor.may_speak_for("db-1/shop").is_err());
        assert!(actor.may_register("com.shop.A").is_ok() && actor.may_register("com.bank.A").is_err());
        assert!(actor.may(Role::Viewer, "idc-a").is_err());
    }
    let kept = store_text(&store).await;
    let secret = made.token.rsplit_once('_').unwrap().1;
    assert!(!kept.contains(secret) && !kept.contains("root's password"), "secrets are not kept");
    let (head, _) = made.token.split_at(made.token.len() - 1);
    for wrong in [head, "", "smc_", "smc__", "smc_x_y", &made.row.id, &made.token.replace("smc_", "")] {
        let identity = by_token(&auth, wrong);
        assert!(identity.actor.is_none() && identity.proof == Proof::Nothing, "{wrong}");
    }
    assert!(auth.identify(&headers("authorization", &made.token), None).actor.is_none());
    auth.remove_token(&admin, &made.row.id).await.unwrap();
    assert!(by_token(&auth, &made.token).actor.is_none());
    let soon = crate::clock::now_ms() + 60_000;
    let new = NewToken { roles: all(Role::Viewer), until_ms: Some(soon), ..NewToken::default() };
    let made = auth.add_token(&admin, new).await.unwrap();
    assert!(by_token(&auth, &made.token).actor.is_some());
    auth.accounts.write().tokens.get_mut(&made.row.id).unwrap().value.row.until_ms = Some(1);
    assert!(by_token(&auth, &made.token).actor.is_none());
}

#[tokio::test]
async fn ones_own_token_can_do_no_more_than_oneself() {
    let Site { auth, admin, .. } = site().await;
    auth.add_user(&admin, user("ann", vec![("idc-*".to_owned(), Role::Operator)])).await.unwrap();
    let (cookie, _) = auth.login("ann", "ann's password", None).await.unwrap();
    let ann = by_cookie(&auth, &cookie).actor.unwrap();
    let new = |pattern: &str, role| NewToken { roles: vec![(pattern.to_owned(), role)], ..NewToken::default() };
    for (pattern, role) in [("*", Role::Viewer), ("idc-a", Role::Admin), ("i*", Role::Operator)] {
        assert_eq!(auth.add_token(&ann, new(pattern, role)).await.unwrap_err().code, Code::Forbidden);
    }
    let agents = NewToken { agents: vec!["*".into()], ..NewToken::default() };
    assert_eq!(auth.add_token(&ann, agents).await.unwrap_err().code, Code::Forbidden);
    let made = auth.add_token(&ann, new("idc-a", Role::Operator)).await.unwrap();
    assert!(made.row.until_ms.is_some() && made.row.owner == "ann");
    let actor = by_token(&auth, &made.token).actor.unwrap();
    assert!(actor.may(Role::Operator, "idc-a").is_ok() && actor.name.starts_with("ann (token "));
    assert_eq!(auth.add_token(&actor, new("idc-a", Role::Viewer)).await.unwrap_err().code, Code::Forbidden);
    // Others do not see it, nor may they remove it.
    auth.add_user(&admin, user("bob", all(Role::Operator))).await.unwrap();
    let bob = Actor { name: "bob".into(), roles: all(Role::Operator), ..Actor::default() };
    assert!(auth.tokens(&bob).is_empty() && auth.tokens(&ann).len() == 1 && auth.tokens(&admin).len() == 1);
    assert_eq!(auth.remove_token(&bob, &made.row.id).await.unwrap_err().code, Code::Forbidden);
    let change = UserChange { roles: Some(all(Role::Viewer)), password: None };
    auth.change_user(&admin, "ann", change).await.unwrap();
    assert!(by_token(&auth, &made.token).actor.unwrap().may(Role::Operator, "idc-a").is_err());
    auth.remove_user(&admin, "ann").await.unwrap();
    assert!(by_token(&auth, &made.token).actor.is_none());
}

#[tokio::test]
async fn only_admins_of_all_groups_change_accounts() {
    let Site { auth, admin, .. } = site().await;
    for roles in [all(Role::Operator), vec![("idc-a".to_owned(), Role::Admin)], Vec::new()] {
        let actor = Actor { name: "x".into(), roles, ..Actor::default() };
        let refused = |result: Result<(), crate::error::Error>| assert_eq!(result.unwrap_err().code, Code::Forbidden);
        refused(auth.users(&actor).map(drop));
        refused(auth.add_user(&actor, user("new", all(Role::Viewer))).await.map(drop));
        refused(auth.change_user(&actor, "root", UserChange::default()).await.map(drop));
        refused(auth.remove_user(&actor, "root").await);
    }
    assert_eq!(auth.add_user(&admin, user("root", all(Role::Admin))).await.unwrap_err().code, Code::Conflict);
    assert_eq!(auth.remove_user(&admin, "nobody").await.unwrap_err().code, Code::NotFound);
    assert_eq!(auth.users(&admin).unwrap().len(), 1);
}

async fn store_text(store: &Arc<Memory>) -> String {
    use crate::store::Store;
    let entries = store.scan("", None, 1000).await.unwrap();
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.value).into_owned() + "\n").collect()
}
