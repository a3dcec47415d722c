//! How members are reached: through TLS or not, and as whom.

use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context as Turn, Poll},
};

use anyhow::{Context, bail};
use http::Uri;
use hyper_util::rt::TokioIo;
use model::kind::{self, Value};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::{
    codegen::Service,
    transport::{Channel, Endpoint},
};

use crate::fetch::tls::{self, Tls};

/// What etcd speaks.
const HTTP2: &[u8] = b"h2";
/// Environment variable with the password, where neither it nor its file is configured.
const PASSWORD_VARIABLE: &str = "SOCKMESH_ETCD_PASSWORD";

/// The options about it, as they are written.
#[derive(Clone, Default, PartialEq)]
pub struct Written {
    /// Speaks TLS: `ca_file`, `cert_file`, `key_file`, or `true` for none of them.
    pub tls: Option<Value>,
    /// Who asks.
    pub username: Option<String>,
    /// That one's password.
    pub password: Option<String>,
    /// A file with it, instead.
    pub password_file: Option<PathBuf>,
}

/// As whom members are asked.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub user: String,
    pub password: String,
}

/// How members are reached.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Access {
    tls: Option<Tls>,
    pub login: Option<Login>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.login.as_ref().map(|login| &login.user);
        f.debug_struct("Access").field("tls", &self.tls.is_some()).field("user", &user).finish()
    }
}

impl Access {
    /// Reads the files that `written` names, which are relative to `base_dir`.
    ///
    /// # Errors
    /// A file cannot be read, or something is missing: names the option.
    pub(super) fn read(written: Written, base_dir: &Path) -> anyhow::Result<Self> {
        let files = match written.tls {
            None | Some(Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(tls::Written::default()),
            Some(files) => Some(kind::options::<tls::Written>(&files).context("option `tls`")?),
        };
        let tls = files.map(|files| files.build(base_dir, Some(HTTP2))).transpose().context("option `tls`")?;
        let file = written.password_file.map(|file| base_dir.join(file));
        let login = match written.username {
            Some(user) => Some(Login { user, password: password(written.password, file)? }),
            None if written.password.is_some() || file.is_some() => {
                bail!("the option `username` is missing; a password has use only with it")
            }
            None => None,
        };
        Ok(Self { tls, login })
    }

    /// Connects to a member.
    pub(super) async fn connect(
        &self,
        server: &str,
        settings: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, String> {
        let endpoint = settings(Endpoint::from_shared(format!("http://{server}")).map_err(|e| e.to_string())?);
        let connected = match &self.tls {
            None => endpoint.connect().await,
            Some(tls) => {
                // What is asked inside says that it is; the member looks for the certificate of whoever asks then.
                let origin = format!("https://{server}").parse::<Uri>().map_err(|e| e.to_string())?;
                let through = Through { server: server.to_owned(), tls: tls.clone() };
                endpoint.origin(origin).connect_with_connector(through).await
            }
        };
        connected.map_err(|e| {
            let cause = std::error::Error::source(&e).map(ToString::to_string);
            format!("cannot connect: {}", cause.unwrap_or_else(|| e.to_string()))
        })
    }
}

/// The password, from wherever it stands.
fn password(written: Option<String>, file: Option<PathBuf>) -> anyhow::Result<String> {
    match (written, file) {
        (Some(_), Some(_)) => bail!("`password` and `password_file` are both there; take one away"),
        (Some(password), None) => Ok(password),
        (None, Some(file)) => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("password_file {}", file.display()))?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        (None, None) => std::env::var(PASSWORD_VARIABLE).ok().filter(|text| !text.is_empty()).with_context(|| {
            format!("no password for `username`; write `password` or `password_file`, or set {PASSWORD_VARIABLE}")
        }),
    }
}

/// Opens connections to one member through TLS.
struct Through {
    server: String,
    tls: Tls,
}

impl Service<Uri> for Through {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Turn<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (server, tls) = (self.server.clone(), self.tls.clone());
        Box::pin(async move {
            let io = TcpStream::connect(&server).await?;
            io.set_nodelay(true)?;
            let host = server.rsplit_once(':').map_or(server.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            match tls.connect(host, io).await {
                Ok(io) => Ok(TokioIo::new(io)),
                // All of it: whoever reads must know whose certificate was not believed.
                Err(error) => Err(format!("{error:#}").into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(written: Written) -> String {
        Access::read(written, Path::new("/nowhere")).map_or_else(|e| format!("{e:#}"), |access| format!("{access:?}"))
    }

    #[test]
    fn what_is_missing_is_named_and_secrets_are_not_shown() {
        let text = |text: &str| Some(text.to_owned());
        let tls = |text: &str| Written { tls: serde_yaml::from_str(text).unwrap(), ..Written::default() };
        let none = Written::default;
        assert_eq!(told(none()), "Access { tls: false, user: None }");
        assert_eq!(told(tls("false")), "Access { tls: false, user: None }");
        assert!(told(tls("{cert_file: c}")).contains("write `key_file` as well"));
        assert!(told(tls("{ca: c}")).contains("unknown field `ca`"));
        assert!(told(tls("{ca_file: ca.pem}")).contains("trusted certificates /nowhere/ca.pem"));
        assert!(told(Written { password: text("p"), ..none() }).contains("`username` is missing"));
        assert!(told(Written { username: text("u"), ..none() }).contains(PASSWORD_VARIABLE));
        let password_file = Some(PathBuf::from("f"));
        let both = Written { password: text("p"), password_file: password_file.clone(), ..none() };
        assert!(told(Written { username: text("u"), ..both }).contains("take one away"));
        let file = Written { username: text("u"), password_file, ..none() };
        assert!(told(file).contains("password_file /nowhere/f"));
        let good = Written { username: text("u"), password: text("secret"), ..none() };
        assert_eq!(told(good), r#"Access { tls: false, user: Some("u") }"#);
    }
}
