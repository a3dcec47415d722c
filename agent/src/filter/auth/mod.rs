//! `auth`: proves to the providing agent which application calls, and lets only those in that may.

mod peers;
mod token;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use self::{
    peers::{Peer, Peers},
    token::{Key, Unproven},
};
use super::{CallCx, Filter, Shows, Verdict, options::Time};
use crate::{
    call::{CallError, ErrorKind, Head, Request, Text},
    kind::{self, BuildCx, Value},
};

/// Metadata key of Motan2 that carries the proof.
const KEY: Text = Text::from_static("M_auth");
/// Metadata key of Motan2 with the caller's application.
const SOURCE: Text = Text::from_static("M_s");
/// HTTP header that carries the proof.
const HEADER: HeaderName = HeaderName::from_static("x-sockmesh-auth");

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    application: Option<String>,
    secret: Option<String>,
    secret_file: Option<String>,
    secrets: BTreeMap<String, Secrets>,
    secrets_file: Option<String>,
    max_age: Time,
    peers: Vec<Peer>,
    allow: Vec<String>,
    deny: Vec<String>,
    required: bool,
}

/// One, or several while they are changed.
#[derive(Deserialize)]
#[serde(untagged)]
enum Secrets {
    One(String),
    Several(Vec<String>),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            application: None,
            secret: None,
            secret_file: None,
            secrets: BTreeMap::new(),
            secrets_file: None,
            max_age: Time(Duration::from_secs(30)),
            peers: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            required: true,
        }
    }
}

struct Auth {
    /// As whom calls are signed, and with what.
    sign: Option<(String, Key)>,
    /// By application.
    keys: BTreeMap<String, Vec<Key>>,
    max_age: Duration,
    peers: Peers,
    allow: Vec<String>,
    deny: Vec<String>,
    required: bool,
    signed: AtomicU64,
    proven: AtomicU64,
    unproven: AtomicU64,
    denied: AtomicU64,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let o: Options = kind::options(options)?;
    let read = |key: &str, file: &str| {
        let path = cx.base_dir.join(Path::new(file));
        let text = std::fs::read_to_string(&path);
        text.with_context(|| format!("{key}: cannot read {}; give the agent leave to read it", path.display()))
    };
    let secret = match (o.secret, o.secret_file) {
        (Some(_), Some(_)) => anyhow::bail!("secret: stands beside `secret_file`; write one of them"),
        (Some(secret), None) => Some(secret),
        (None, Some(file)) => Some(read("secret_file", &file)?.trim().to_owned()),
        (None, None) => None,
    };
    let mut secrets = o.secrets;
    if let Some(file) = o.secrets_file {
        let more: BTreeMap<String, Secrets> = serde_yaml::from_str(&read("secrets_file", &file)?)
            .map_err(|e| anyhow::anyhow!("secrets_file: {e}; write one line `APPLICATION: SECRET` each"))?;
        secrets.extend(more);
    }
    let lists = o.allow.is_empty() && o.deny.is_empty();
    anyhow::ensure!(
        secret.is_some() || !secrets.is_empty() || !o.peers.is_empty() || !lists,
        "nothing to do; write `secret` to sign calls, `secrets` or `peers` to check them, `allow` or `deny`"
    );
    let sign = secret.map(|secret| {
        let application = o.application.unwrap_or_else(|| cx.application.to_string());
        let plain = !application.is_empty() && application.bytes().all(|b| b.is_ascii_graphic() && b != b';');
        anyhow::ensure!(plain, "application: `{application}` cannot be signed; write letters, digits, `-`, `_`, `.`");
        Ok((application, Key::new("secret", &secret)?))
    });
    let keys = secrets.into_iter().map(|(application, secrets)| {
        let secrets = match secrets {
            Secrets::One(secret) => vec![secret],
            Secrets::Several(secrets) => secrets,
        };
        let what = format!("secrets.{application}");
        let keys: anyhow::Result<Vec<_>> = secrets.iter().map(|secret| Key::new(&what, secret)).collect();
        anyhow::Ok((application, keys?))
    });
    Ok(Arc::new(Auth {
        sign: sign.transpose()?,
        keys: keys.collect::<Result<_, _>>()?,
        max_age: o.max_age.0,
        peers: Peers::new(o.peers)?,
        allow: o.allow,
        deny: o.deny,
        required: o.required,
        signed: AtomicU64::new(0),
        proven: AtomicU64::new(0),
        unproven: AtomicU64::new(0),
        denied: AtomicU64::new(0),
    }))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Auth {
    fn checks(&self) -> bool {
        !self.keys.is_empty() || !self.peers.is_empty()
    }

    /// Which application calls, proven by its signature or by where it calls from.
    fn prove(&self, req: &Request) -> Result<Text, Unproven> {
        let token = match &req.head {
            _ if self.keys.is_empty() => None,
            Head::Motan2(head) => head.meta.get(&KEY),
            Head::Http(head) => head.headers.get(HEADER).and_then(|v| v.to_str().ok()).map(Text::from),
            Head::None => None,
        };
        match token {
            Some(token) => token::verify(&token, &req.call, &self.keys, now(), self.max_age),
            None => self.peers.application(&req.call).ok_or(Unproven::Missing),
        }
    }

    fn check(&self, req: &mut Request) -> Result<(), CallError> {
        if self.checks() {
            match self.prove(req) {
                Ok(application) => {
                    self.proven.fetch_add(1, Relaxed);
                    adopt(req, application);
                }
                Err(why) => {
                    self.unproven.fetch_add(1, Relaxed);
                    if self.required {
                        let service = &req.call.service;
                        let text = format!("auth: the caller of {service} did not prove who it is: {why}");
                        return Err(CallError::mesh(ErrorKind::Unauthorized, text));
                    }
                    // What it merely says of itself must not pass as proven.
                    adopt(req, Text::default());
                }
            }
        }
        let application = &*req.call.application;
        let listed = |list: &[String]| list.iter().any(|a| a == application);
        if listed(&self.deny) || !(self.allow.is_empty() || listed(&self.allow)) {
            self.denied.fetch_add(1, Relaxed);
            let text = format!("auth: application `{application}` may not call {}", req.call.service);
            return Err(CallError::mesh(ErrorKind::Rejected, text));
        }
        Ok(())
    }
}

/// The call is one of `application`; a proof ends here.
fn adopt(req: &mut Request, application: Text) {
    match &mut req.head {
        Head::Motan2(head) => {
            head.meta.set(KEY, Text::default());
            if head.meta.get(&SOURCE).unwrap_or_default() != application {
                head.meta.set(SOURCE, application.clone());
            }
        }
        Head::Http(head) => drop(head.headers.remove(HEADER)),
        Head::None => {}
    }
    req.call.application = application;
}

impl Filter for Auth {
    fn on_request(&self, _: &mut CallCx, req: &mut Request) -> Verdict {
        if let Err(error) = self.check(req) {
            return Verdict::fail(error);
        }
        if let Some((application, key)) = &self.sign {
            let token = token::sign(application, &req.call, key, now());
            match &mut req.head {
                Head::Motan2(head) => head.meta.set(KEY, token.into()),
                Head::Http(head) => {
                    let value = HeaderValue::try_from(token).expect("application, digits and `;` only");
                    head.headers.insert(HEADER, value);
                }
                Head::None => return Verdict::Continue,
            }
            self.signed.fetch_add(1, Relaxed);
        }
        Verdict::Continue
    }

    fn figures(&self, show: &mut Shows<'_>) {
        let checked = self.checks() || !self.allow.is_empty() || !self.deny.is_empty();
        for (name, count, shown) in [
            ("signed", &self.signed, self.sign.is_some()),
            ("proven", &self.proven, self.checks()),
            ("unproven", &self.unproven, self.checks()),
            ("denied", &self.denied, checked),
        ] {
            if shown {
                show.event(name, "", count.load(Relaxed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{Bench, http, motan};

    const SIGN: &str = "{application: shop, secret: a-long-shared-secret}";
    const VERIFY: &str =
        "{secrets: {shop: [an-older-shared-secret, a-long-shared-secret], blog: another-shared-secret}}";

    /// What the first agent makes of a request.
    fn signed(options: &str, req: Request) -> Request {
        let b = Bench::new(build, options);
        let mut begun = b.enter(req);
        assert!(matches!(b.filter.on_request(&mut begun.cx, &mut begun.req), Verdict::Continue));
        assert_eq!(b.event("signed", ""), 1);
        begun.req.replay().unwrap()
    }

    /// What the second one makes of it.
    fn verified(b: &Bench, req: Request) -> Result<Request, CallError> {
        let mut begun = b.enter(req);
        match b.filter.on_request(&mut begun.cx, &mut begun.req) {
            Verdict::Continue => Ok(begun.req.replay().unwrap()),
            Verdict::Stop(answer) => Err(answer.unwrap_err()),
            Verdict::Wait(_) => panic!("waits"),
        }
    }

    #[test]
    fn a_signed_call_is_known_by_both_protocols_and_the_proof_ends_there() {
        let b = Bench::new(build, VERIFY);
        let mut req = signed(SIGN, motan("echo"));
        let Head::Motan2(head) = &mut req.head else { panic!() };
        assert!(head.meta.get("M_auth").unwrap().starts_with("v1;shop;"));
        head.meta.set(SOURCE, "boss".into());
        req.call.application = "boss".into();
        let got = verified(&b, req).unwrap();
        assert_eq!(got.call.application, "shop");
        let Head::Motan2(head) = &got.head else { panic!() };
        assert_eq!((head.meta.get("M_auth"), head.meta.get("M_s").unwrap()), (None, "shop".into()));

        let got = verified(&b, signed(SIGN, http("GET"))).unwrap();
        let Head::Http(head) = &got.head else { panic!() };
        assert!(got.call.application == "shop" && head.headers.is_empty());
        assert_eq!((b.event("proven", ""), b.event("unproven", ""), b.event("denied", "")), (2, 0, 0));
    }

    #[test]
    fn what_is_missing_wrong_or_of_another_call_is_told() {
        let b = Bench::new(build, VERIFY);
        let error = |req: Request| {
            let error = verified(&b, req).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unauthorized);
            error.message.rsplit(": ").next().unwrap().to_owned()
        };
        assert_eq!(error(motan("echo")), "no proof came with the call");
        let token = |text: &str| {
            let mut req = motan("echo");
            let Head::Motan2(head) = &mut req.head else { panic!() };
            head.meta.set(KEY, text.into());
            error(req)
        };
        for odd in ["x", "v1;shop", "v1;shop;z;00", "v2;shop;1;00", "v1;shop;1;0g", "v1;shop;1;00;"] {
            assert_eq!(token(odd), "the proof is malformed", "{odd}");
        }
        assert!(token("v1;unknown;1;00").contains("no secret of application `unknown`"));
        let mut other = signed(SIGN, motan("echo"));
        other.call.method = "delete".into();
        assert_eq!(error(other), "the signature is wrong");
        let wrong = signed("{application: shop, secret: not-the-shared-secret}", motan("echo"));
        assert_eq!(error(wrong), "the signature is wrong");
        let mut cut = signed(SIGN, motan("echo"));
        let Head::Motan2(head) = &mut cut.head else { panic!() };
        let text = head.meta.get("M_auth").unwrap();
        head.meta.set(KEY, text[..text.len() - 2].into());
        assert_eq!(error(cut), "the signature is wrong");
    }

    #[test]
    fn lists_decide_by_the_proven_name() {
        let with = |more: &str| Bench::new(build, &VERIFY.replace("}}", &format!("}}, {more}}}")));
        let denied = |b: &Bench, options: &str| verified(b, signed(options, motan("echo"))).err().map(|e| e.kind);
        let blog = "{application: blog, secret: another-shared-secret}";
        let b = with("allow: [shop]");
        assert_eq!((denied(&b, SIGN), denied(&b, blog)), (None, Some(ErrorKind::Rejected)));
        let b = with("deny: [shop]");
        assert_eq!((denied(&b, SIGN), denied(&b, blog)), (Some(ErrorKind::Rejected), None));
        assert_eq!(b.event("denied", ""), 1);
        // Without proof a name counts for nothing, though the call may pass.
        let b = with("required: false, allow: [shop, '']");
        let mut liar = motan("echo");
        liar.call.application = "shop".into();
        assert_eq!(verified(&b, liar).unwrap().call.application, "");
        // Nothing is proven where nothing can be: the lists go by what callers say.
        let b = Bench::new(build, "{deny: [shop]}");
        let mut req = motan("echo");
        req.call.application = "shop".into();
        assert_eq!(verified(&b, req).unwrap_err().kind, ErrorKind::Rejected);
        assert!(verified(&b, Request { head: Head::None, ..motan("echo") }).is_ok());
    }

    #[test]
    fn peers_are_known_by_their_address() {
        let b = Bench::new(build, "{peers: [{address: 10.0.0.0/8, application: shop}]}");
        let from = |ip: [u8; 4]| {
            let mut req = motan("echo");
            req.call.peer = Some((ip, 4000).into());
            verified(&b, req).map(|req| req.call.application).map_err(|e| e.kind)
        };
        assert_eq!(from([10, 1, 2, 3]), Ok("shop".into()));
        assert_eq!(from([11, 1, 2, 3]), Err(ErrorKind::Unauthorized));
    }

    #[test]
    fn secrets_are_read_from_files_and_options_checked() {
        let dir = std::env::temp_dir().join(format!("sockmesh-auth-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("one"), "a-long-shared-secret\n").unwrap();
        std::fs::write(dir.join("all.yaml"), "shop: a-long-shared-secret\n").unwrap();
        let cx = BuildCx { base_dir: dir.clone(), application: "shop".into(), ..BuildCx::default() };
        let b = Bench::with(build, "{secret_file: one, secrets_file: all.yaml}", &cx);
        let mut begun = b.enter(signed(SIGN, motan("echo")));
        assert!(matches!(b.filter.on_request(&mut begun.cx, &mut begun.req), Verdict::Continue));
        let _ = std::fs::remove_dir_all(&dir);
        for (wrong, says) in [
            ("{}", "nothing to do"),
            ("{secret: short}", "secret: has 5 bytes"),
            ("{application: 'a;b', secret: a-long-shared-secret}", "application: `a;b`"),
            ("{secret: x, secret_file: y}", "secret_file"),
            ("{secret_file: gone}", "cannot read"),
            ("{peers: [{application: x}]}", "peers[0]"),
            ("{peers: [{application: x, address: 10.0.0.1/8}]}", "peers[0].address"),
            ("{peers: [{application: x, address: 10.0.0.0/8, uid: 5}]}", "peers[0]"),
        ] {
            let options: Value = serde_yaml::from_str(wrong).unwrap();
            let error = build(&options, &cx).err().unwrap().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
