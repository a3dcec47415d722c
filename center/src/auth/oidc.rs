//! Logging in at an identity provider: OpenID Connect, authorization code with PKCE. People of a provider have no
//! account here; what they may follows from a claim, as it was at their login.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::Full;
use model::center::Role;
use openidconnect::{
    AccessTokenHash, AsyncHttpClient, AuthorizationCode, ClientId, ClientSecret, CsrfToken, HttpRequest, HttpResponse,
    IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, TokenResponse,
    core::{CoreAuthenticationFlow, CoreClient, CoreProviderMetadata},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    OIDC_PREFIX,
    accounts::check_name,
    secret::{digest, random, same},
};
use crate::{
    error::{Code, Error},
    fetch::Fetch,
};

/// Time for one answer of the provider.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the provider says of itself, its keys included, is asked for again after this.
const FRESH: Duration = Duration::from_secs(300);
/// A login must be done within this.
const LOGIN_TIME: Duration = Duration::from_secs(600);
/// Logins that are under way at a time; the oldest make room.
const LOGINS: usize = 1000;

/// `auth: oidc:` of the centre's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the console calls it.
    #[serde(default = "usual_name")]
    pub name: String,
    /// URL of the provider, as it calls itself.
    pub issuer: String,
    /// Name of this centre there.
    pub client: String,
    /// File with the secret of this centre there; none for public clients.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// Certificates to trust the provider by (PEM), instead of public ones.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What is asked for besides `openid`.
    #[serde(default = "usual_scopes")]
    pub scopes: Vec<String>,
    /// Claim with the person's name.
    #[serde(default = "usual_name_claim")]
    pub name_claim: String,
    /// Claim with what roles follow from: text or a list; `a.b` is `b` within `a`.
    #[serde(default = "usual_roles_claim")]
    pub roles_claim: String,
    /// Which role follows from what.
    #[serde(default)]
    pub roles: Vec<RoleOf>,
}

/// A role that follows from a claim.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleOf {
    /// Value of the claim; `*`: everyone who can log in there.
    pub value: String,
    /// For which groups of services.
    #[serde(default = "all_groups")]
    pub group: String,
    /// The role.
    pub role: Role,
}

fn usual_name() -> String {
    "OpenID Connect".to_owned()
}

fn usual_scopes() -> Vec<String> {
    vec!["profile".to_owned(), "email".to_owned()]
}

fn usual_name_claim() -> String {
    "preferred_username".to_owned()
}

fn usual_roles_claim() -> String {
    "groups".to_owned()
}

fn all_groups() -> String {
    "*".to_owned()
}

/// A provider, and logins that are under way there.
pub(super) struct Oidc {
    pub(super) config: Config,
    secret: Option<String>,
    http: Http,
    provider: Mutex<Option<(Instant, Arc<CoreProviderMetadata>)>>,
    logins: Mutex<HashMap<String, Begun>>,
}

struct Begun {
    at: Instant,
    nonce: Nonce,
    verifier: PkceCodeVerifier,
    redirect: RedirectUrl,
    next: String,
}

/// Who came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Person {
    /// Begins with [`OIDC_PREFIX`].
    pub(super) name: String,
    pub(super) roles: Vec<(String, Role)>,
    /// Path on this centre where the login was begun.
    pub(super) next: String,
}

/// As the crate wants errors to be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

/// What the crate asks the provider through.
struct Http(Fetch);

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = Failed;
    type Future = BoxFuture<'c, Result<HttpResponse, Failed>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let request: Request<Full<bytes::Bytes>> = request.map(|body| Full::new(body.into()));
            let answer = self.0.send(request, PATIENCE).await;
            answer.map(|answer| answer.map(|body| body.to_vec())).map_err(|error| Failed(format!("{error:#}")))
        })
    }
}

impl Oidc {
    /// Settles the configuration; asks nobody.
    ///
    /// # Errors
    /// Names the option that is wrong.
    pub(super) fn new(config: Config) -> anyhow::Result<Self> {
        let url = IssuerUrl::new(config.issuer.clone())
            .with_context(|| format!("`auth: oidc: issuer: {}`", config.issuer))?;
        let host = url.url().host_str().unwrap_or_default();
        let local = host == "localhost"
            || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if url.url().scheme() != "https" && !local {
            bail!("`auth: oidc: issuer: {}`: whoever stands between could log in as anyone; use https", config.issuer);
        }
        let secret = match &config.secret_file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("`auth: oidc: secret_file: {}`", file.display()))?;
                ensure!(!text.trim().is_empty(), "`auth: oidc: secret_file: {}` is empty", file.display());
                Some(text.trim().to_owned())
            }
        };
        let fetch = match &config.ca_file {
            None => Fetch::default(),
            Some(file) => Fetch::trusting(file).context("`auth: oidc: ca_file`")?,
        };
        Ok(Self { config, secret, http: Http(fetch), provider: Mutex::default(), logins: Mutex::default() })
    }

    /// Whether someone of this provider can change accounts.
    pub(super) fn has_admins(&self) -> bool {
        self.config.roles.iter().any(|of| of.group == "*" && of.role == Role::Admin)
    }

    /// Begins a login: answers the page of the provider, and what the browser must bring back as a cookie.
    ///
    /// # Errors
    /// The provider does not answer as one.
    pub(super) async fn begin(&self, base: &str, next: &str) -> Result<(String, String), Error> {
        let provider = self.provider().await?;
        let redirect = RedirectUrl::new(format!("{}/v1/oidc/callback", base.trim_end_matches('/')))
            .map_err(|error| Error::bad(format!("`{base}`: {error}"), "set `api: url` of the centre's file"))?;
        let client = CoreClient::from_provider_metadata((*provider).clone(), self.client_id(), self.client_secret())
            .set_redirect_uri(redirect.clone());
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let state = random(32);
        let said = CsrfToken::new(state.clone());
        let asked = client.authorize_url(CoreAuthenticationFlow::AuthorizationCode, || said, Nonce::new_random);
        let scopes = self.config.scopes.iter().map(|scope| Scope::new(scope.clone()));
        let (url, _, nonce) = asked.add_scopes(scopes).set_pkce_challenge(challenge).url();
        let begun = Begun { at: Instant::now(), nonce, verifier, redirect, next: local_path(next) };
        let mut logins = self.logins.lock();
        logins.retain(|_, begun| begun.at.elapsed() < LOGIN_TIME);
        if logins.len() >= LOGINS
            && let Some(oldest) = logins.iter().min_by_key(|(_, begun)| begun.at).map(|(key, _)| key.clone())
        {
            logins.remove(&oldest);
        }
        logins.insert(digest(&state), begun);
        Ok((url.into(), state))
    }

    /// Ends a login with what the provider sent the browser back with. Every login ends once.
    ///
    /// # Errors
    /// This browser has begun no such login; the provider does not vouch for it; nothing follows from its claims.
    pub(super) async fn end(&self, code: &str, state: &str, cookie: &str) -> Result<Person, Error> {
        let again = "log in again";
        let strange = || Error::new(Code::Forbidden, "this browser has not begun this login, or long ago", again);
        if !same(state.as_bytes(), cookie.as_bytes()) {
            return Err(strange());
        }
        let begun = self.logins.lock().remove(&digest(state)).filter(|begun| begun.at.elapsed() < LOGIN_TIME);
        let Begun { nonce, verifier, redirect, next, .. } = begun.ok_or_else(strange)?;
        let provider = self.provider().await?;
        let claims = self.vouched(&provider, code, &nonce, verifier, redirect).await.map_err(|error| {
            tracing::warn!(issuer = %self.config.issuer, error = %format!("{error:#}"), "a login failed");
            Error::new(Code::Forbidden, format!("`{}` does not vouch for this login", self.config.issuer), again)
        })?;
        let name = text_at(&claims, &self.config.name_claim).or_else(|| text_at(&claims, "sub")).unwrap_or_default();
        if check_name(&name).is_err() {
            return Err(Error::new(
                Code::Forbidden,
                format!("claim `{}` holds no name that can stand in records", self.config.name_claim),
                "an admin chooses another claim by `auth: oidc: name_claim`",
            ));
        }
        let values = texts_at(&claims, &self.config.roles_claim);
        let of = self.config.roles.iter().filter(|of| of.value == "*" || values.contains(&of.value));
        let roles = of.map(|of| (of.group.clone(), of.role)).collect();
        Ok(Person { name: format!("{OIDC_PREFIX}{name}"), roles, next })
    }

    /// The claims of an identity token, after all checks.
    async fn vouched(
        &self,
        provider: &CoreProviderMetadata,
        code: &str,
        nonce: &Nonce,
        verifier: PkceCodeVerifier,
        redirect: RedirectUrl,
    ) -> anyhow::Result<Value> {
        let client = CoreClient::from_provider_metadata(provider.clone(), self.client_id(), self.client_secret())
            .set_redirect_uri(redirect);
        let http = &self.http;
        let asked =
            client.exchange_code(AuthorizationCode::new(code.to_owned())).context("it has no token endpoint")?;
        let answer = asked.set_pkce_verifier(verifier).request_async(http).await.context("exchanging the code")?;
        let token = answer.id_token().context("no identity token")?;
        let checker = client.id_token_verifier();
        let claims = token.claims(&checker, nonce).context("the identity token")?;
        if let Some(expected) = claims.access_token_hash() {
            let (alg, key) = (token.signing_alg()?, token.signing_key(&checker)?);
            let is = AccessTokenHash::from_token(answer.access_token(), alg, key)?;
            ensure!(is == *expected, "the access token is another one than the identity token is for");
        }
        // Checked above; read again for claims that the crate does not know.
        let text = token.to_string();
        let payload = text.split('.').nth(1).context("the identity token has no payload")?;
        Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?)
    }

    async fn provider(&self) -> Result<Arc<CoreProviderMetadata>, Error> {
        if let Some((at, provider)) = &*self.provider.lock()
            && at.elapsed() < FRESH
        {
            return Ok(provider.clone());
        }
        let issuer = IssuerUrl::new(self.config.issuer.clone()).expect("it was read at the start");
        let found = CoreProviderMetadata::discover_async(issuer, &self.http).await.map_err(|error| {
            let error = anyhow::Error::new(error);
            tracing::warn!(issuer = %self.config.issuer, error = %format!("{error:#}"), "no identity provider");
            Error::new(
                Code::Unavailable,
                format!("`{}` does not answer as an identity provider", self.config.issuer),
                "look at the centre's log, or log in with a password",
            )
        })?;
        let found = Arc::new(found);
        *self.provider.lock() = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    fn client_id(&self) -> ClientId {
        ClientId::new(self.config.client.clone())
    }

    fn client_secret(&self) -> Option<ClientSecret> {
        self.secret.clone().map(ClientSecret::new)
    }
}

/// A path of this centre: whoever makes a link for logging in must not choose where people end up.
fn local_path(next: &str) -> String {
    let fine = next.starts_with('/')
        && !next.starts_with("//")
        && next.len() <= 1000
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if fine { next.to_owned() } else { "/".to_owned() }
}

fn at<'a>(claims: &'a Value, path: &str) -> &'a Value {
    // A claim's own name may have dots (`https://example.com/roles`).
    match claims.get(path) {
        Some(value) => value,
        None => path.split('.').fold(claims, |value, part| &value[part]),
    }
}

fn text_at(claims: &Value, path: &str) -> Option<String> {
    at(claims, path).as_str().map(str::to_owned)
}

fn texts_at(claims: &Value, path: &str) -> Vec<String> {
    match at(claims, path) {
        Value::String(text) => vec![text.clone()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere() {
        for (next, is) in [
            ("/", "/"),
            ("/service?name=a#b", "/service?name=a#b"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("https://evil.example", "/"),
            ("/a\r\nX: y", "/"),
            ("", "/"),
        ] {
            assert_eq!(local_path(next), is, "{next:?}");
        }
    }

    #[test]
    fn claims_are_found_at_any_depth() {
        let claims = json!({ "groups": ["a", 1, "b"], "realm_access": { "roles": ["c"] }, "x.y": "d" });
        assert_eq!(texts_at(&claims, "groups"), ["a", "b"]);
        assert_eq!(texts_at(&claims, "realm_access.roles"), ["c"]);
        assert_eq!(texts_at(&claims, "x.y"), ["d"]);
        assert!(texts_at(&claims, "realm_access.roles.none").is_empty());
    }

    #[test]
    fn a_provider_is_asked_by_https_only() {
        let config = |issuer: &str| Config {
            issuer: issuer.to_owned(),
            ..serde_yaml::from_str("{issuer: x, client: sockmesh}").unwrap()
        };
        for issuer in ["https://id.example.com", "http://127.0.0.1:1", "http://localhost:1/realm", "http://[::1]:1"] {
            Oidc::new(config(issuer)).map(drop).unwrap();
        }
        for issuer in ["http://id.example.com", "nonsense", "http://127.0.0.1.evil.example"] {
            let told = Oidc::new(config(issuer)).map(drop).unwrap_err();
            assert!(format!("{told:#}").contains(issuer), "{told:#}");
        }
    }
}
