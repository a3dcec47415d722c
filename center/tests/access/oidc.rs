//! Logging in at an identity provider: a small one, which can also lie.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::{get, post},
};
use model::center::{LoginWays, Me, Role};
use openidconnect::{
    AccessToken, Audience, EmptyAdditionalProviderMetadata, EndUserUsername, IdToken, IdTokenClaims, IssuerUrl,
    JsonWebKeyId, JsonWebKeySetUrl, Nonce, PrivateSigningKey, ResponseTypes, StandardClaims, SubjectIdentifier,
    TokenUrl,
    core::{
        CoreEdDsaPrivateSigningKey, CoreGenderClaim, CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreResponseType, CoreSubjectIdentifierType,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::served::{Answer, Served};

/// What the provider says of whom, and how it lies.
#[derive(Clone, Debug, Default)]
struct Knobs {
    groups: Vec<String>,
    name: String,
    nonce: String,
    /// Challenge of PKCE that the login began with.
    challenge: String,
    audience: Option<&'static str>,
    issuer: Option<&'static str>,
    expired: bool,
    foreign_key: bool,
    other_nonce: bool,
    /// Codes that were given in.
    used: Vec<String>,
}

#[derive(Clone)]
struct Provider {
    at: SocketAddr,
    keys: Arc<[CoreEdDsaPrivateSigningKey; 2]>,
    knobs: Arc<Mutex<Knobs>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Groups {
    groups: Vec<String>,
}

impl openidconnect::AdditionalClaims for Groups {}

type Token = IdToken<Groups, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;

fn key() -> CoreEdDsaPrivateSigningKey {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    CoreEdDsaPrivateSigningKey::from_ed25519_pem(&pair.serialize_pem(), Some(JsonWebKeyId::new("1".into()))).unwrap()
}

impl Provider {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let provider = Self { at, keys: Arc::new([key(), key()]), knobs: Arc::default() };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/keys", get(keys))
            .route("/token", post(token))
            .with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        provider
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }
}

async fn metadata(State(provider): State<Provider>) -> Json<CoreProviderMetadata> {
    let metadata = CoreProviderMetadata::new(
        IssuerUrl::new(provider.url("")).unwrap(),
        openidconnect::AuthUrl::new(provider.url("/authorize")).unwrap(),
        JsonWebKeySetUrl::new(provider.url("/keys")).unwrap(),
        vec![ResponseTypes::new(vec![CoreResponseType::Code])],
        vec![CoreSubjectIdentifierType::Public],
        vec![CoreJwsSigningAlgorithm::EdDsa],
        EmptyAdditionalProviderMetadata {},
    );
    Json(metadata.set_token_endpoint(Some(TokenUrl::new(provider.url("/token")).unwrap())))
}

async fn keys(State(provider): State<Provider>) -> Json<CoreJsonWebKeySet> {
    Json(CoreJsonWebKeySet::new(vec![provider.keys[0].as_verification_key()]))
}

#[derive(Deserialize)]
struct Exchange {
    code: String,
    code_verifier: String,
    redirect_uri: String,
}

async fn token(
    State(provider): State<Provider>,
    headers: http::HeaderMap,
    body: String,
) -> (http::StatusCode, Json<Value>) {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    // A form and a query are written alike.
    let uri = format!("/?{body}").parse().unwrap();
    let Query(asked) = Query::<Exchange>::try_from_uri(&uri).unwrap();
    let mut knobs = provider.knobs.lock().unwrap();
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(asked.code_verifier.as_bytes()));
    let fine = challenge == knobs.challenge
        && asked.redirect_uri.ends_with("/v1/oidc/callback")
        && headers.contains_key("authorization")
        && !knobs.used.contains(&asked.code);
    if !fine {
        return (http::StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" })));
    }
    knobs.used.push(asked.code);
    let now = SystemTime::now();
    let end = if knobs.expired { now - Duration::from_secs(3600) } else { now + Duration::from_secs(300) };
    let issuer = knobs.issuer.map_or_else(|| provider.url(""), str::to_owned);
    let standard = StandardClaims::new(SubjectIdentifier::new("4711".into()))
        .set_preferred_username(Some(EndUserUsername::new(knobs.name.clone())));
    let claims = IdTokenClaims::new(
        IssuerUrl::new(issuer).unwrap(),
        vec![Audience::new(knobs.audience.unwrap_or("sockmesh").into())],
        end.into(),
        now.into(),
        standard,
        Groups { groups: knobs.groups.clone() },
    );
    let nonce = if knobs.other_nonce { "another".to_owned() } else { knobs.nonce.clone() };
    let claims = claims.set_nonce(Some(Nonce::new(nonce)));
    let key = &provider.keys[usize::from(knobs.foreign_key)];
    let access = AccessToken::new("access".into());
    let token = Token::new(claims, key, CoreJwsSigningAlgorithm::EdDsa, Some(&access), None).unwrap();
    let answer = json!({ "access_token": "access", "token_type": "Bearer", "id_token": token.to_string() });
    (http::StatusCode::OK, Json(answer))
}

/// A parameter of a URL's query.
fn parameter<'a>(url: &'a str, name: &str) -> &'a str {
    let query = url.split_once('?').unwrap().1;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap()
}

/// Begins a login; answers the state and the cookie.
async fn begin(served: &Served, provider: &Provider, next: &str) -> (String, String) {
    let answer = served.ask("GET", &format!("/v1/oidc/start?next={next}"), &[], None).await;
    assert_eq!(answer.status, 303, "{answer}");
    let url = answer.header("location").unwrap();
    assert!(url.starts_with(&provider.url("/authorize")) && url.contains("code_challenge_method=S256"), "{url}");
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let mut knobs = provider.knobs.lock().unwrap();
    knobs.nonce = parameter(url, "nonce").to_owned();
    knobs.challenge = parameter(url, "code_challenge").to_owned();
    (parameter(url, "state").to_owned(), cookie.split(';').next().unwrap().to_owned())
}

async fn end(served: &Served, code: &str, state: &str, cookie: &str) -> Answer {
    let path = format!("/v1/oidc/callback?code={code}&state={state}");
    served.ask("GET", &path, &[("Cookie", cookie)], None).await
}

async fn served(provider: &Provider) -> Served {
    let secret = std::env::temp_dir().join(format!("sockmesh-oidc-{}-{}", std::process::id(), provider.at.port()));
    std::fs::write(&secret, "secret\n").unwrap();
    let config = format!(
        "auth:\n  oidc:\n    name: Company\n    issuer: {}\n    client: sockmesh\n    secret_file: {}\n    roles:\n      \
         - {{value: mesh-ops, group: idc-*, role: operator}}\n      - {{value: mesh-admins, role: admin}}\n",
        provider.url(""),
        secret.display()
    );
    let (served, _) = Served::closed(&config);
    std::fs::remove_file(&secret).unwrap();
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_of_an_identity_provider_log_in_with_the_roles_that_follow() {
    let provider = Provider::start().await;
    let served = served(&provider).await;
    let ways: LoginWays = served.ask("GET", "/v1/login", &[], None).await.ok();
    assert_eq!(ways, LoginWays { open: false, password: true, oidc: Some("Company".into()) });
    *provider.knobs.lock().unwrap() =
        Knobs { name: "ann".into(), groups: vec!["staff".into(), "mesh-ops".into()], ..Knobs::default() };
    let (state, cookie) = begin(&served, &provider, "/services").await;
    let answer = end(&served, "c1", &state, &cookie).await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/services")), "{answer}");
    let session = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let me: Me = served.ask("GET", "/v1/me", &[("Cookie", &session)], None).await.ok();
    assert_eq!(me.name, "oidc/ann");
    assert_eq!(me.roles, [("idc-*".to_owned(), Role::Operator)]);
    // Each login ends once, in the browser that began it.
    assert_eq!(end(&served, "c2", &state, &cookie).await.problem().code, "forbidden");
    let (state, cookie) = begin(&served, &provider, "//evil.example").await;
    assert_eq!(end(&served, "c3", &state, "sockmesh-login=other").await.status, 403);
    assert_eq!(end(&served, "c3", "other", &cookie).await.status, 403);
    assert_eq!(end(&served, "c3", "", "sockmesh-login=").await.status, 403);
    let answer = end(&served, "c3", &state, &cookie).await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/")), "no way out of the centre: {answer}");
    // Someone without any group that means something.
    provider.knobs.lock().unwrap().groups = vec!["staff".into()];
    let (state, cookie) = begin(&served, &provider, "/").await;
    let problem = end(&served, "c4", &state, &cookie).await.problem();
    assert!(problem.message.contains("oidc/ann") && problem.message.contains("no role"), "{problem:?}");
    let refused = served.ask("GET", "/v1/oidc/callback?error=access_denied&state=x", &[], None).await.problem();
    assert!(refused.message.contains("access_denied"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_not_for_this_login_are_refused() {
    let provider = Provider::start().await;
    let served = served(&provider).await;
    let fine = Knobs { name: "eve".into(), groups: vec!["mesh-admins".into()], ..Knobs::default() };
    type Lie = fn(&mut Knobs);
    let lies: [(&str, Lie); 7] = [
        ("for another client", |knobs| knobs.audience = Some("another")),
        ("of another issuer", |knobs| knobs.issuer = Some("https://evil.example")),
        ("that has ended", |knobs| knobs.expired = true),
        ("signed by a stranger", |knobs| knobs.foreign_key = true),
        ("of another login", |knobs| knobs.other_nonce = true),
        ("with a used code", |knobs| knobs.used.push("code".into())),
        ("with a name for somebody else's records", |knobs| knobs.name = "../root\n".into()),
    ];
    for (what, lie) in lies {
        *provider.knobs.lock().unwrap() = fine.clone();
        lie(&mut provider.knobs.lock().unwrap());
        let (state, cookie) = begin(&served, &provider, "/").await;
        let answer = end(&served, "code", &state, &cookie).await;
        assert_eq!(answer.problem().code, "forbidden", "{what}: {answer}");
        assert!(answer.header("set-cookie").is_none(), "{what}: {answer}");
    }
    // The limit of logins begun from one address is the same as for passwords.
    let mut last = 303;
    for _ in 0..10 {
        last = served.ask("GET", "/v1/oidc/start", &[], None).await.status;
    }
    assert_eq!(last, 429);
}
