//! One connection to Nacos: what is subscribed and registered belongs to it and ends with it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::{TryStreamExt as _, stream};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, sleep},
};
use tonic::transport::{Channel, Endpoint};

use super::{
    login::Login,
    proto::{self, Payload, Refused},
    shape::{Names, ServiceInfo},
};
use crate::pause::Pause;

/// How often the server is asked whether it still knows us. Nacos itself drops who is silent for 20 s.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long the server may need to take note of a new connection.
const SETTLE: Duration = Duration::from_secs(5);
/// Pushes that a reader may be behind; after that it asks for everything.
const PUSHES: usize = 256;

/// What the server said by itself.
#[derive(Clone, Debug)]
pub(super) enum Push {
    Service(Arc<ServiceInfo>),
    /// The configuration of this name and group changed.
    Config(Arc<(String, String)>),
}

/// A connection that works.
pub(super) struct Conn {
    /// Tells connections apart.
    pub number: u64,
    channel: Channel,
    login: Arc<Login>,
    pushes: broadcast::Sender<Push>,
}

/// How things stand with the server.
#[derive(Clone)]
pub(super) enum State {
    /// Not reached; why, once that is known.
    Down(Option<Arc<str>>),
    Up(Arc<Conn>),
}

/// Servers and how to come in.
pub(super) struct Servers {
    pub endpoints: Vec<Endpoint>,
    pub names: Names,
    pub login: Arc<Login>,
}

impl Conn {
    /// Asks the server.
    pub async fn call<T: DeserializeOwned>(&self, kind: &str, body: &Value) -> anyhow::Result<T> {
        let token = self.login.token().await?;
        let answer = proto::call(&self.channel, Payload::new(kind, body, token.as_deref())).await;
        if let Err(error) = &answer
            && error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 403)
        {
            self.login.refused().await;
        }
        answer
    }

    /// What is pushed from now on.
    pub fn pushes(&self) -> broadcast::Receiver<Push> {
        self.pushes.subscribe()
    }
}

/// Keeps a connection to one of the servers for ever.
pub(super) async fn run(servers: Arc<Servers>, to: watch::Sender<State>) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut pause = Pause::default();
    let mut failing = false;
    for endpoint in servers.endpoints.iter().cycle() {
        let began = Instant::now();
        let number = NUMBER.fetch_add(1, Relaxed);
        let Err(error) = serve(&servers, endpoint, number, &to).await;
        let was_up = matches!(&*to.borrow(), State::Up(_));
        let error = format!("{:#}", error.context(format!("nacos {}", endpoint.uri())));
        if was_up || !std::mem::replace(&mut failing, true) {
            tracing::warn!(error, "no connection to Nacos, trying on");
        }
        to.send_replace(State::Down(Some(error.into())));
        if was_up {
            failing = true;
            // One that is dropped as soon as it stands must not make us storm the server.
            if began.elapsed() > SETTLE {
                pause.reset();
            }
        }
        sleep(pause.next()).await;
    }
}

/// Connects, and returns when that is no more.
async fn serve(
    servers: &Servers,
    endpoint: &Endpoint,
    number: u64,
    to: &watch::Sender<State>,
) -> anyhow::Result<std::convert::Infallible> {
    let channel = endpoint.connect().await.context("cannot connect")?;
    let token = servers.login.token().await?;
    let hello = Payload::new("ServerCheckRequest", &json!({"module": "internal"}), token.as_deref());
    proto::call::<Value>(&channel, hello).await?;

    let (say, said) = mpsc::channel::<Payload>(16);
    let setup = json!({
        "module": "internal",
        "clientVersion": concat!("Sockmesh:v", env!("CARGO_PKG_VERSION")),
        "tenant": servers.names.tenant,
        "labels": {"source": "sdk", "module": "naming", "AppName": "sockmesh"},
        "abilities": {},
        "abilityTable": {},
    });
    say.send(Payload::new("ConnectionSetupRequest", &setup, token.as_deref())).await?;
    let outgoing = stream::unfold(said, |mut said| async { said.recv().await.map(|payload| (payload, said)) });
    let incoming = stream::once(proto::stream(channel.clone(), outgoing)).try_flatten();
    tokio::pin!(incoming);

    let (pushes, _) = broadcast::channel(PUSHES);
    let conn = Arc::new(Conn { number, channel, login: servers.login.clone(), pushes });
    let checks = check(&conn, to);
    tokio::pin!(checks);
    loop {
        tokio::select! {
            message = incoming.try_next() => match message? {
                Some(push) => take(&conn, &push, &say).await?,
                None => bail!("the server ended the stream"),
            },
            Err(error) = &mut checks => return Err(error),
        }
    }
}

/// Declares the connection to be up as soon as the server knows it, and returns when it does not any more.
async fn check(conn: &Arc<Conn>, to: &watch::Sender<State>) -> anyhow::Result<std::convert::Infallible> {
    let asked = json!({"module": "internal"});
    let until = Instant::now() + SETTLE;
    loop {
        match conn.call::<Value>("HealthCheckRequest", &asked).await {
            Ok(_) => break,
            // The stream that makes us known and this request travel side by side.
            Err(error) if error.downcast_ref::<Refused>().is_some() && Instant::now() < until => {
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
    tracing::info!(connection = conn.number, "connected to Nacos");
    to.send_replace(State::Up(conn.clone()));
    loop {
        sleep(CHECK_EVERY).await;
        conn.call::<Value>("HealthCheckRequest", &asked).await?;
    }
}

async fn take(conn: &Conn, push: &Payload, say: &mpsc::Sender<Payload>) -> anyhow::Result<()> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Told {
        service_info: Option<ServiceInfo>,
        service_name: Option<String>,
        group_name: Option<String>,
        data_id: String,
        group: String,
    }
    let reset = push.kind() == "ConnectResetRequest";
    match push.kind() {
        "NotifySubscriberRequest" => {
            let told: Told = push.json()?;
            if let Some(mut info) = told.service_info {
                if info.name.is_empty() {
                    info.name = told.service_name.unwrap_or_default();
                    info.group_name = told.group_name;
                }
                // Nobody listens: nobody wants it.
                let _ = conn.pushes.send(Push::Service(Arc::new(info)));
            }
        }
        "ConfigChangeNotifyRequest" => {
            let told: Told = push.json()?;
            let _ = conn.pushes.send(Push::Config(Arc::new((told.data_id, told.group))));
        }
        // Detections and whatever comes to be: the answer is all.
        _ => {}
    }
    say.send(Payload::answer_to(push)).await.context("the stream does not take answers")?;
    if reset {
        bail!("the server asks to connect anew");
    }
    Ok(())
}
