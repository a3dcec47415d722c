//! Against a real etcd that speaks TLS only to holders of a certificate, and asks who they are.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    fetch::Fetch,
    store::tests::{put, texts},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A member with a way in by TLS, and a plain one for its administrator; ended with the test.
struct Member {
    child: Child,
    tls: SocketAddr,
    plain: SocketAddr,
    dir: PathBuf,
    token: String,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Writes an authority, a certificate of the member, and one of a client whose name is `holder`.
fn certificates(dir: &std::path::Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let ca = authority("authority");
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(dir.join("stranger.pem"), authority("stranger").pem()).unwrap();
    for name in ["member", "holder"] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

impl Member {
    /// Starts one with the users `root`, `centre` (password `secret`) and `holder` (none: its certificate), of which the
    /// last two may use the prefix of centres; `None` where etcd is not installed.
    async fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            let line = "SKIPPED: etcd is not installed";
            assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{line} (REQUIRE_ALL=1)");
            println!("{line}");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("sockmesh-etcd-tls-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        certificates(&dir);
        let (tls, plain, peer) = (free(), free(), format!("http://{}", free()));
        let urls = format!("https://{tls},http://{plain}");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(dir.join("data")).args(["--unsafe-no-fsync", "--log-level", "panic"]);
        command.args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth"]);
        command.arg("--trusted-ca-file").arg(dir.join("ca.pem"));
        command.arg("--cert-file").arg(dir.join("member.pem")).arg("--key-file").arg(dir.join("member.key"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut member = Self { child, tls, plain, dir, token: String::new() };
        let begun = tokio::time::Instant::now();
        while member.ask("kv/range", json!({"key": "eA=="})).await.is_none() {
            assert!(begun.elapsed() < PATIENCE, "etcd does not answer");
            tokio::task::yield_now().await;
        }
        let key = |text: &str| STANDARD.encode(text);
        for (call, body) in [
            ("user/add", json!({"name": "root", "password": "root"})),
            ("user/add", json!({"name": "centre", "password": "secret"})),
            ("user/add", json!({"name": "holder", "options": {"no_password": true}})),
            ("role/add", json!({"name": "root"})),
            ("role/add", json!({"name": "centres"})),
            (
                "role/grant",
                json!({"name": "centres", "perm": {"permType": "READWRITE",
                    "key": key("/sockmesh/center/"), "range_end": key("/sockmesh/center0")}}),
            ),
            ("user/grant", json!({"user": "root", "role": "root"})),
            ("user/grant", json!({"user": "centre", "role": "centres"})),
            ("user/grant", json!({"user": "holder", "role": "centres"})),
            ("enable", json!({})),
        ] {
            assert!(member.ask(&format!("auth/{call}"), body.clone()).await.is_some(), "{call} {body}");
        }
        let told = member.ask("auth/authenticate", json!({"name": "root", "password": "root"})).await.unwrap();
        member.token = told["token"].as_str().unwrap().to_owned();
        Some(member)
    }

    /// Asks its gateway; `None`: it refuses.
    async fn ask(&self, call: &str, body: Json) -> Option<Json> {
        let mut request = Request::post(format!("http://{}/v3/{call}", self.plain));
        if !self.token.is_empty() {
            request = request.header(header::AUTHORIZATION, &self.token);
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let answer = Fetch::default().send(request, PATIENCE).await.ok()?;
        answer.status().is_success().then(|| serde_json::from_slice(answer.body()).unwrap())
    }

    /// The option `tls`, with the certificate of `own` unless that is empty.
    fn files(&self, ca: &str, own: &str) -> Option<Value> {
        let dir = self.dir.display();
        let own = match own {
            "" => String::new(),
            own => format!(", cert_file: '{dir}/{own}.pem', key_file: '{dir}/{own}.key'"),
        };
        serde_yaml::from_str(&format!("{{ca_file: '{dir}/{ca}.pem'{own}}}")).unwrap()
    }

    fn options(&self) -> Written {
        Written {
            address: vec![self.tls.to_string()],
            lease: Duration::from_secs(2),
            tls: self.files("ca", "member"),
            username: Some("centre".to_owned()),
            password: Some("secret".to_owned()),
            ..Written::default()
        }
    }
}

/// Why a centre with these options does not come up.
async fn trouble(options: Written) -> String {
    let store = Etcd::new(options, "ill").unwrap();
    let mut trouble = store.trouble();
    let told = timeout(PATIENCE, trouble.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(store.commit(put(&[("a", "1")])).await.is_err());
    told
}

async fn lead(store: &Etcd) -> Leadership {
    let mut leadership = store.leadership();
    let found = timeout(PATIENCE, leadership.wait_for(|now| now.leads)).await;
    found.unwrap_or_else(|_| panic!("{:?}", store.shared.trouble.borrow())).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_asks_for_certificates_and_names_is_used() {
    let Some(member) = Member::start().await else { return };
    let good = || member.options();

    let told = trouble(Written { tls: member.files("stranger", "member"), ..good() }).await;
    assert!(told.contains("invalid peer certificate"), "{told}");
    let told = trouble(Written { password: Some("wrong".to_owned()), ..good() }).await;
    assert!(told.contains("invalid user ID or password") && !told.contains("wrong"), "{told}");
    trouble(Written { tls: member.files("ca", ""), ..good() }).await;
    trouble(Written { tls: None, ..good() }).await;

    let one = Etcd::new(good(), "one").unwrap();
    let first = lead(&one).await;
    one.commit(put(&[("a", "1")])).await.unwrap();
    assert_eq!(texts(&one, "", None, 9).await, ["a=1"]);

    // Another one follows, who has no password: its certificate says who it is.
    let options = Written { tls: member.files("ca", "holder"), username: None, password: None, ..good() };
    let two = Etcd::new(options, "two").unwrap();
    two.shared.ready().await.unwrap();
    let mut changes = two.changes().unwrap();
    one.commit(put(&[("a", "2")])).await.unwrap();
    let told = timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    assert_eq!(told.put[0].value, b"2");
    two.commit(put(&[("b", "1")])).await.unwrap();

    // The member forgets whom it knew: nobody notices.
    let again = json!({"name": "centre", "password": "secret"});
    member.ask("auth/user/changepw", again).await.expect("root may");
    one.commit(put(&[("c", "1")])).await.unwrap();
    let mut changes = one.changes().unwrap();
    two.commit(put(&[("a", "3")])).await.unwrap();
    let told = timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    assert_eq!(told.put[0].value, b"3");
    assert_eq!(one.leadership().borrow().epoch, first.epoch, "it led all the time");
}
