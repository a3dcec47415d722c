//! Makes known in registries what this agent provides, and takes it back before it stops.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use model::Instance;
use tokio::{sync::watch, time::timeout};

use super::mesh::Registries;
use crate::{
    admin::Registered,
    availability::Availability,
    config::{Config, Service},
    registry::{Provided, Registry, Standing, Wanted},
};

/// How long a registration that is not wanted any more is tried to be taken back.
const TAKE_BACK: Duration = Duration::from_secs(30);
/// How long a changed registration waits for the one before it to be taken back.
const REPLACE: Duration = Duration::from_secs(5);

/// Everything that this agent has registered.
pub(super) struct Registrar {
    availability: Availability,
    held: Vec<Held>,
    /// What is registered and how that stands, for admin.
    pub(super) view: Arc<ArcSwap<Vec<Registered>>>,
}

/// One service in one registry.
struct Held {
    registry: Arc<dyn Registry>,
    shown: Registered,
    /// Dropped, or true: taken back.
    gone: watch::Sender<bool>,
}

/// What shall be registered where; an error when it cannot be, for operators.
type Wish = (String, Provided, Option<String>);

impl Registrar {
    pub(super) fn new(availability: Availability) -> Self {
        Self { availability, held: Vec::new(), view: Arc::default() }
    }

    /// Registers what `config` says and takes back what it says no more. Registrations that did not change
    /// are left alone. Must be called within the control runtime, when callers are served.
    pub(super) fn apply(&mut self, config: &Config, registries: &Registries) {
        let mut before = std::mem::take(&mut self.held);
        for (name, provided, trouble) in wishes(config) {
            let Some((_, registry)) = registries.get(&name) else { continue };
            let same = |held: &Held| {
                Arc::ptr_eq(&held.registry, registry) && held.shown.registry == name && held.shown.provided == provided
            };
            match before.iter().position(same) {
                Some(at) => self.held.push(before.swap_remove(at)),
                None => self.held.push(self.hold(name, registry.clone(), provided, trouble, &before)),
            }
        }
        // Those that are left are dropped, and taken back by their tasks.
        self.view.store(Arc::new(self.held.iter().map(|held| held.shown.clone()).collect()));
    }

    fn hold(
        &self,
        name: String,
        registry: Arc<dyn Registry>,
        provided: Provided,
        trouble: Option<String>,
        before: &[Held],
    ) -> Held {
        let (tell, standing) = watch::channel(Standing::Pending(trouble.clone()));
        let (gone, taken_back) = watch::channel(false);
        // The same place in the same registry with other particulars: the old one must not delete the new one.
        let same_place = |held: &&Held| {
            held.shown.registry == name && held.shown.provided.instance.address == provided.instance.address
        };
        let former = before.iter().filter(same_place).map(|held| held.shown.standing.clone()).collect();
        if let Some(trouble) = trouble {
            tracing::error!(service = %provided.key, registry = name, trouble, "a service is not registered");
        } else {
            let keeper = Keeper {
                name: name.clone(),
                registry: registry.clone(),
                provided: provided.clone(),
                available: self.availability.watch(),
                gone: taken_back,
                tell,
            };
            tokio::spawn(keeper.keep(former));
        }
        Held { registry, shown: Registered { registry: name, provided, standing }, gone }
    }

    /// Takes everything back; returns when the registries have done so, or after `patience`.
    pub(super) async fn take_back(&mut self, patience: Duration) {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return;
        }
        for one in &held {
            one.gone.send_replace(true);
        }
        let all = async {
            for mut one in held {
                // A closed channel: nobody registers it any more.
                let _ = one.shown.standing.wait_for(|standing| *standing == Standing::Gone).await;
            }
        };
        match timeout(patience, all).await {
            Ok(()) => tracing::info!("registrations are taken back"),
            Err(_) => tracing::warn!(?patience, "not every registry has taken its registrations back"),
        }
    }
}

/// Keeps one registration.
struct Keeper {
    name: String,
    registry: Arc<dyn Registry>,
    provided: Provided,
    available: watch::Receiver<bool>,
    gone: watch::Receiver<bool>,
    tell: watch::Sender<Standing>,
}

impl Keeper {
    async fn keep(self, former: Vec<watch::Receiver<Standing>>) {
        let (mut available, mut gone) = (self.available.clone(), self.gone.clone());
        for mut one in former {
            let _ = timeout(REPLACE, one.wait_for(|standing| *standing == Standing::Gone)).await;
        }
        let (wanted, follows) = watch::channel(wanted(*available.borrow_and_update()));
        let service = self.provided.key.to_string();
        let Some(mut standing) = self.registry.register(&self.provided, follows) else {
            let why = format!("the registry `{}` takes no registrations; take another kind", self.name);
            tracing::warn!(service, registry = self.name, "{why}");
            self.tell.send_replace(Standing::Pending(Some(why)));
            // An error: the registration was dropped, which is as good.
            let _ = gone.wait_for(|gone| *gone).await;
            self.tell.send_replace(Standing::Gone);
            return;
        };
        let mut open = true;
        while open {
            tokio::select! {
                result = standing.changed() => {
                    let now = standing.borrow_and_update().clone();
                    self.say(&service, now);
                    open = result.is_ok();
                }
                Ok(()) = available.changed() => {
                    wanted.send_replace(self::wanted(*available.borrow_and_update()));
                }
                () = async { drop(gone.wait_for(|gone| *gone).await) } => {
                    wanted.send_replace(Wanted::Gone);
                    let taken = timeout(TAKE_BACK, standing.wait_for(|standing| *standing == Standing::Gone)).await;
                    if taken.is_err() {
                        tracing::warn!(service, registry = self.name, "a registration could not be taken back in time");
                    }
                    open = false;
                }
            }
        }
        self.say(&service, Standing::Gone);
    }

    fn say(&self, service: &str, standing: Standing) {
        if *self.tell.borrow() == standing {
            return;
        }
        let registry = &self.name;
        match &standing {
            Standing::Pending(Some(why)) => tracing::warn!(service, registry, why, "a service is not registered yet"),
            Standing::Pending(None) => {}
            Standing::Available => tracing::info!(service, registry, "registered, callers may come"),
            Standing::Unavailable => tracing::info!(service, registry, "registered, callers may not come"),
            Standing::Gone => tracing::info!(service, registry, "registration taken back"),
        }
        self.tell.send_replace(standing);
    }
}

const fn wanted(available: bool) -> Wanted {
    if available { Wanted::Available } else { Wanted::Unavailable }
}

/// What `config` wants to have registered.
fn wishes(config: &Config) -> Vec<Wish> {
    let mut wishes: Vec<Wish> = Vec::new();
    for service in &config.services {
        let Some(protocol) = &service.protocol else { continue };
        let (address, trouble) = match advertised(service, config) {
            Ok(address) => (address.to_string(), None),
            Err(trouble) => (String::new(), Some(trouble)),
        };
        let registration = &service.registration;
        let provided = Provided {
            key: service.key.clone(),
            protocol: protocol.clone(),
            instance: Instance {
                group: service.key.group.clone(),
                version: service.key.version.clone(),
                weight: registration.weight,
                zone: registration.zone.clone().unwrap_or_else(|| config.zone.to_string()),
                metadata: registration.metadata.clone().into(),
                ..Instance::at(address)
            },
            application: config.application.to_string(),
            parameters: BTreeMap::new(),
        };
        for name in &registration.registries {
            // The same service twice at one place would be taken back by whichever goes first.
            let twice = wishes.iter().any(|(other, p, _)| {
                other == name && p.key == provided.key && p.instance.address == provided.instance.address
            });
            if !twice {
                wishes.push((name.clone(), provided.clone(), trouble.clone()));
            }
        }
    }
    wishes
}

/// Where callers of `service` dial.
fn advertised(service: &Service, config: &Config) -> Result<SocketAddr, String> {
    let told = service.registration.advertise;
    let inbound = service.inbound.first();
    let listened = service.export.map(|at| at.ip()).or_else(|| inbound.map(|at| at.ip));
    let ip = match told.map(|told| told.ip).or(config.advertise) {
        Some(ip) => ip,
        None => match listened.filter(|ip| !ip.is_unspecified()) {
            Some(ip) => ip,
            None => own_ip().ok_or("the address of this host is not known: write `advertise: IP`")?,
        },
    };
    let port = told.and_then(|told| told.port).or_else(|| service.export.map(|at| at.port()));
    let port = port.or_else(|| inbound.and_then(|at| at.port)).unwrap_or(service.local.port());
    Ok(SocketAddr::new(ip, port))
}

/// The address that the default route leaves from.
pub(super) fn own_ip() -> Option<IpAddr> {
    // Addresses for documentation; connecting a UDP socket sends nothing.
    let ways: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let leaves_from = |(any, far): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
    };
    ways.into_iter().find_map(leaves_from)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::{ServiceKey, Snapshot};
    use parking_lot::Mutex;

    use super::*;

    /// Notes what it is told, and does it at once.
    #[derive(Default)]
    struct Notes(Arc<Mutex<Vec<String>>>);

    impl Registry for Notes {
        fn watch(&self, _: &ServiceKey) -> watch::Receiver<Arc<Snapshot>> {
            watch::channel(Arc::default()).1
        }

        fn register(
            &self,
            provided: &Provided,
            mut wanted: watch::Receiver<Wanted>,
        ) -> Option<watch::Receiver<Standing>> {
            let (tell, standing) = watch::channel(Standing::Pending(None));
            let (notes, what) = (self.0.clone(), format!("{} {}", provided.instance.address, provided.instance.weight));
            tokio::spawn(async move {
                loop {
                    let now = *wanted.borrow_and_update();
                    notes.lock().push(format!("{what} {now:?}"));
                    tell.send_replace(match now {
                        Wanted::Available => Standing::Available,
                        Wanted::Unavailable => Standing::Unavailable,
                        Wanted::Gone => Standing::Gone,
                    });
                    if now == Wanted::Gone || wanted.changed().await.is_err() {
                        return;
                    }
                }
            });
            Some(standing)
        }
    }

    fn config(services: &str) -> Config {
        let text =
            format!("registries: {{r: {{kind: file, path: f}}}}\nzone: z\nadvertise: 10.0.0.5\nservices: {services}");
        Config::parse(&text, Path::new("/x")).unwrap()
    }

    fn service(more: &str) -> String {
        format!("[{{service: s, protocol: motan2, export: '0.0.0.0:9', local: '127.0.0.1:7', registry: r{more}}}]")
    }

    #[test]
    fn what_is_registered_and_where() {
        let at = |more: &str| {
            let wishes = wishes(&config(&service(more)));
            let (name, provided, trouble) = &wishes[0];
            assert_eq!((wishes.len(), name.as_str(), trouble), (1, "r", &None));
            provided.instance.clone()
        };
        let plain = at("");
        assert_eq!((plain.address.as_str(), plain.weight, plain.zone.as_str()), ("10.0.0.5:9", 10, "z"));
        let told = at(", advertise: '10.0.0.6:81', weight: 3, zone: y, group: g, metadata: {a: b}");
        assert_eq!((told.address.as_str(), told.weight, told.zone.as_str()), ("10.0.0.6:81", 3, "y"));
        assert_eq!((told.group.as_str(), told.metadata["a"].as_str()), ("g", "b"));
        assert!(wishes(&config("[]")).is_empty());
        let detected = "services: [{service: s, export: '0.0.0.0:9', local: '127.0.0.1:7', registry: r}]\nregistries: {r: {kind: file, path: f}}";
        let told = Config::parse(detected, Path::new("/x")).unwrap_err().to_string();
        assert!(told.contains("declare `protocol: motan2`"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn registrations_follow_the_configuration_and_the_operator() {
        let notes = Notes::default();
        let written = notes.0.clone();
        let registry: Arc<dyn Registry> = Arc::new(notes);
        let of =
            |config: &Config| BTreeMap::from([("r".to_owned(), (config.registries["r"].clone(), registry.clone()))]);
        let availability = Availability::new(false);
        let mut registrar = Registrar::new(availability.clone());
        let one = config(&service(""));
        let seen = async |n: usize| {
            while written.lock().len() < n {
                tokio::task::yield_now().await;
            }
            assert_eq!(written.lock().len(), n);
            written.lock()[n - 1].clone()
        };
        registrar.apply(&one, &of(&one));
        assert_eq!(seen(1).await, "10.0.0.5:9 10 Unavailable");
        availability.set(true);
        assert_eq!(seen(2).await, "10.0.0.5:9 10 Available");
        registrar.apply(&one, &of(&one));
        // The weight changes: the old one goes first.
        let heavy = config(&service(", weight: 20"));
        registrar.apply(&heavy, &of(&heavy));
        seen(4).await;
        assert_eq!(written.lock()[2..], ["10.0.0.5:9 10 Gone", "10.0.0.5:9 20 Available"]);
        let mut shown = registrar.view.load()[0].standing.clone();
        shown.wait_for(|s| *s == Standing::Available).await.unwrap();
        registrar.take_back(Duration::from_secs(3)).await;
        assert_eq!(seen(5).await, "10.0.0.5:9 20 Gone");
    }
}
