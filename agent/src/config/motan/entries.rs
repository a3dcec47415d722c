//! Refers and services: what both have in common, then each.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::{keys, node::Node, problem::Report, read::Place},
    Importer, filters,
    tree::{Out, kind, millis, plain, word},
    url::{Url, commas},
};

/// motan-go's default for calls and for connects.
const TIMEOUT_MS: u64 = 1000;
/// More failures than anybody counts: an endpoint is never taken out.
const NEVER: u64 = 1_000_000;

/// What differs between refers and services.
struct Side {
    /// `errorCountThreshold` when absent.
    failures: u64,
    cluster: bool,
}

impl Importer<'_> {
    /// The native form of a refer; `None` when it cannot be had, which is told.
    pub(super) fn refer(&mut self, url: &Url, report: &mut Report) -> Option<Node> {
        let path = self.path(url, report)?;
        let mut upstream = None;
        match url.get("protocol").unwrap_or("motan2") {
            "motan2" | "cedrus" => {}
            "grpc" => upstream = Some("grpc"),
            "motan" | "motanV1Compatible" => {
                let problem = "Motan1 is not spoken to endpoints";
                let remedy = "endpoints are called in Motan2: those that only speak Motan1 fail";
                report.warn(url.place("protocol").problem(problem, remedy));
            }
            other => {
                let problem = format!("the protocol `{other}` is not spoken to endpoints");
                report.warn(url.place("protocol").problem(problem, "the refer is left out"));
                return None;
            }
        }
        let group = self.group(url, report);
        let mut out = Out::new(url.at);
        out.word("service", url.at("path"), &path);
        if !group.is_empty() {
            out.word("group", url.at("group"), &group);
        }
        if let Some(version) = url.get("version") {
            out.word("version", url.at("version"), version);
        }
        out.word("protocol", url.at("protocol"), "motan2");
        if let Some(upstream) = upstream {
            out.word("upstream", url.at("protocol"), upstream);
        }
        out.plain("listen", self.forward.0, &self.forward.1);
        match self.direct_rpc(&path, report) {
            Some(endpoints) => {
                out.list("endpoints", url.at, endpoints);
            }
            None => {
                let registries = self.registries_of(url, false, report);
                if registries.is_empty() {
                    let problem = "has no registry, so calls have nowhere to go";
                    report.warn(url.place("registry").problem(problem, "the refer is left out: calls to it get 400"));
                    return None;
                }
                out.list("registry", url.at("registry"), registries);
            }
        }
        if let Some(application) = url.get("application").filter(|a| **a != self.application) {
            out.word("application", url.at("application"), application);
        }
        let mix: Vec<_> = url.list("mixGroups").into_iter().map(|g| word(url.at("mixGroups"), g)).collect();
        if !mix.is_empty() {
            out.list("mix_groups", url.at("mixGroups"), mix);
        }
        self.cluster(url, &Side { failures: 10, cluster: true }, &mut out, report);
        Some(self.checked(out, &[&keys::REFERER, &keys::CLUSTER], report))
    }

    /// The native forms of a service, one for each of its groups.
    pub(super) fn service(&mut self, url: &Url, report: &mut Report) -> Vec<Node> {
        let Some(path) = self.path(url, report) else { return Vec::new() };
        let Some((_, port)) = self.protocol_port(url, "export", 9982, report) else { return Vec::new() };
        let Some((local, upstream)) = self.provider(url, report) else { return Vec::new() };
        let mut groups = commas(&format!(
            "{},{}",
            url.get("group").unwrap_or_default(),
            self.variable("MESH_SERVICE_ADDITIONAL_GROUP")
        ));
        if groups.is_empty() {
            groups.push(String::new());
        }
        let suffix = self.variable("RPC_REG_GROUP_SUFFIX").to_owned();
        let registries = self.registries_of(url, true, report);
        let metadata = self.metadata(url, report);
        let mut side = Out::new(url.at);
        side.word("protocol", url.at("export"), "motan2");
        side.plain("export", url.at("export"), format!("0.0.0.0:{port}"));
        side.plain("local", url.at("proxy"), local);
        if let Some(upstream) = upstream {
            side.put("upstream", upstream);
        }
        if !registries.is_empty() {
            side.list("registry", url.at("registry"), registries);
            side.put("metadata", metadata.into_node());
        }
        self.cluster(url, &Side { failures: 0, cluster: false }, &mut side, report);
        let Node { data: super::super::node::Data::Map(side), .. } =
            self.checked(side, &[&keys::SERVICE, &keys::CLUSTER], report)
        else {
            return Vec::new();
        };
        let with = |group: String| {
            let group = if group.ends_with(&suffix) { group } else { group + &suffix };
            let mut out = Out::new(url.at);
            out.word("service", url.at("path"), &path);
            if !group.is_empty() {
                out.word("group", url.at("group"), group);
            }
            if let Some(version) = url.get("version") {
                out.word("version", url.at("version"), version);
            }
            for entry in side.clone() {
                out.put(&entry.key, entry.value);
            }
            out.into_node()
        };
        groups.into_iter().map(with).collect()
    }

    /// Address of the local program, and what it speaks if that is not Motan2.
    fn provider(&self, url: &Url, report: &mut Report) -> Option<(String, Option<Node>)> {
        let (proxy, port) = match url.get("proxy") {
            Some(_) => self.protocol_port(url, "proxy", 0, report)?,
            None => (String::new(), 0),
        };
        let provider = url.get("provider").unwrap_or(&proxy);
        if matches!(provider, "http" | "httpx") {
            return self.http_provider(url, report).map(|(local, upstream)| (local, Some(upstream)));
        }
        let unix = url.get("proxy.host").and_then(|host| host.strip_prefix("unix://"));
        if !matches!(provider, "motan2" | "motan" | "cedrus") || (port == 0 && unix.is_none()) {
            let problem = match provider {
                "" => "names no local program".to_owned(),
                provider => format!("the provider `{provider}` is not supported"),
            };
            let key = if url.get("provider").is_some() { "provider" } else { "proxy" };
            report.warn(url.place(key).problem(problem, instead(provider)));
            return None;
        }
        if provider == "motan" {
            let remedy = "it is called in Motan2, which a program that only speaks Motan1 refuses";
            report.warn(url.place("proxy").problem("Motan1 is not spoken to the local program", remedy));
        }
        if let Some(path) = unix {
            return Some((format!("unix:{path}"), None));
        }
        let host = url.get("proxy.host").unwrap_or("127.0.0.1");
        let host = self.resolve(host, &url.place("proxy.host"), report)?;
        Some((std::net::SocketAddr::new(host, port).to_string(), None))
    }

    fn path(&self, url: &Url, report: &mut Report) -> Option<String> {
        let path = url.get("path");
        if path.is_none() {
            report.warn(url.place("path").problem("has no `path`, which names the service", "the entry is left out"));
        }
        path.map(str::to_owned)
    }

    pub(super) fn group(&self, url: &Url, report: &mut Report) -> String {
        let group = url.get("group").unwrap_or_default();
        if !group.contains("${idc}") {
            return group.to_owned();
        }
        match &self.flags.idc {
            Some(idc) => group.replace("${idc}", idc),
            None => {
                let problem = format!("`{group}` asks for the flag -idc, which is not given");
                report.mistake(url.place("group").problem(problem, "add -idc NAME to the command line"));
                group.to_owned()
            }
        }
    }

    /// `PROTOCOL:PORT` or `PORT`.
    fn protocol_port(&self, url: &Url, key: &str, default: u16, report: &mut Report) -> Option<(String, u16)> {
        let Some(text) = url.get(key) else { return Some(("motan2".to_owned(), default)) };
        let (protocol, port) = text.rsplit_once(':').unwrap_or(("motan2", text));
        match port.trim().parse::<u16>() {
            Ok(port) if port > 0 => Some((protocol.trim().to_owned(), port)),
            _ => {
                let problem = format!("`{text}` has no usable port");
                report.mistake(url.place(key).problem(problem, "write it like motan2:9982"));
                None
            }
        }
    }

    /// The declared registries of an entry; those that take no registrations are of no use to services.
    fn registries_of(&self, url: &Url, service: bool, report: &mut Report) -> Vec<Node> {
        let mut list = Vec::new();
        for id in url.list("registry") {
            match self.registries.get(&id) {
                Some(registry) if service && registry.protocol == "direct" => {}
                Some(registry) if registry.usable => list.push(word(url.at("registry"), id)),
                // Told at its own place.
                Some(_) => {}
                None => {
                    let problem = format!("`{id}` is not declared under `motan-registry`");
                    report.warn(url.place("registry").problem(problem, "it is left out, as in motan-go"));
                }
            }
        }
        list
    }

    /// What `MESH_DIRECT_RPC` says about a service: `service>host:port`, `prefix*>group@host:port,host:port`.
    fn direct_rpc(&self, path: &str, report: &mut Report) -> Option<Vec<Node>> {
        let text = self.variable("MESH_DIRECT_RPC");
        let place = Place { key: "MESH_DIRECT_RPC".to_owned(), ..Place::default() };
        for rule in text.split(';').map(str::trim).filter(|r| !r.is_empty()) {
            let Some((pattern, target)) = rule.split_once('>') else { continue };
            let pattern = pattern.trim();
            let fits = match pattern.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => path.ends_with(pattern),
            };
            if pattern.is_empty() || !fits {
                continue;
            }
            let (group, addresses) = target.split_once('@').unwrap_or(("", target));
            let mut endpoints = Vec::new();
            for address in commas(addresses) {
                let Some(address) = self.address(&address, &place, report) else { continue };
                let mut out = Out::new(place.at);
                out.plain("address", place.at, address);
                if !group.trim().is_empty() {
                    out.word("group", place.at, group.trim());
                }
                endpoints.push(out.into_node());
            }
            return Some(endpoints).filter(|list| !list.is_empty());
        }
        None
    }

    /// What is registered besides address and group: every parameter, as motan-go does.
    fn metadata(&self, url: &Url, report: &mut Report) -> Out {
        let mut params: BTreeMap<String, String> =
            url.params().map(|(key, param)| (key.to_owned(), param.text.clone())).collect();
        for own in ["protocol", "host", "port", "path", "group", "version"] {
            params.remove(own);
        }
        params.insert("nodeType".to_owned(), "service".to_owned());
        params.insert("conf-id".to_owned(), url.id.clone());
        params.entry("application".to_owned()).or_insert_with(|| self.application.clone());
        params.entry("serialization".to_owned()).or_insert_with(|| "simple".to_owned());
        if url.boolean("registerMeta", report) == Some(true) {
            let meta = self.environment.iter().filter(|(name, _)| name.starts_with(&self.meta_prefix));
            params.extend(meta.map(|(name, value)| (name.clone(), value.clone())));
        }
        let mut out = Out::new(url.at);
        for (key, text) in params.into_iter().filter(|(_, text)| !text.is_empty()) {
            out.word(&key, url.at(&key), text);
        }
        out
    }

    /// The keys of a cluster.
    fn cluster(&self, url: &Url, side: &Side, out: &mut Out, report: &mut Report) {
        let timeout = url.positive("requestTimeout", report).unwrap_or(TIMEOUT_MS);
        out.plain("timeout", url.at("requestTimeout"), millis(timeout));
        let (min, max) = (url.positive("minRequestTimeout", report), url.positive("maxRequestTimeout", report));
        if min.is_some() || max.is_some() {
            let (min, max) = (min.unwrap_or(timeout.div_ceil(2)), max.unwrap_or(timeout * 2));
            let at =
                url.at(if url.get("minRequestTimeout").is_some() { "minRequestTimeout" } else { "maxRequestTimeout" });
            if min <= max {
                out.plain("timeout_range", at, format!("{}..{}", millis(min), millis(max)));
            } else {
                let problem = format!("the range of timeouts begins at {min} ms and ends at {max} ms");
                report
                    .warn(url.place("minRequestTimeout").problem(problem, "half to double of `requestTimeout` holds"));
            }
        }
        let connect = url.positive("connectTimeout", report).unwrap_or(TIMEOUT_MS).min(timeout);
        out.plain("connect_timeout", url.at("connectTimeout"), millis(connect));
        let retries = url.number("retries", report).unwrap_or(0).clamp(0, 100).unsigned_abs();
        let retried = url.of_methods("retries", report);
        if side.cluster {
            self.picking(url, retries > 0 || !retried.is_empty(), out, report);
        }
        out.plain("retries", url.at("retries"), if side.cluster { retries } else { 0 });
        if side.cluster && (retries > 0 || !retried.is_empty()) {
            // Motan-go sends again whatever became of the first try.
            out.plain("idempotent", url.at("retries"), true);
        }
        let filters = filters::of(self, url, side.cluster, timeout, report);
        out.list("filters", url.at("filter"), filters);
        out.plain(
            "connections",
            url.at("clientConnection"),
            url.positive("clientConnection", report).unwrap_or(3).min(1024),
        );
        let failures = match url.number("errorCountThreshold", report).map(i64::unsigned_abs).unwrap_or(side.failures) {
            0 => NEVER,
            n => n.min(NEVER),
        };
        let pause = millis(url.positive("keepaliveInterval", report).unwrap_or(1000));
        let (failed, paused) = (url.at("errorCountThreshold"), url.at("keepaliveInterval"));
        let mut eject = Out::new(failed);
        eject.plain("connect_failures", failed, failures).plain("failures", failed, failures);
        eject.plain("pause", paused, &pause).plain("max_pause", paused, &pause);
        out.put("eject", eject.into_node());
        if let Some(bytes) = url.positive("mingzSize", report) {
            out.plain("gzip_over", url.at("mingzSize"), bytes);
        }
        if let Some(ms) = url.positive("idleConnectionTimeout", report) {
            out.plain("idle_timeout", url.at("idleConnectionTimeout"), millis(ms));
        }
        if let Some(n) = url.positive("maxConnections", report) {
            out.plain("max_in_flight", url.at("maxConnections"), n.min(1_000_000));
        }
        self.methods(url, side, &retried, out, report);
    }

    fn methods(
        &self,
        url: &Url,
        side: &Side,
        retried: &[(String, super::url::Param, u64)],
        out: &mut Out,
        report: &mut Report,
    ) {
        let mut methods: BTreeMap<String, Out> = BTreeMap::new();
        for (method, param, ms) in url.of_methods("requestTimeout", report) {
            let at = param.place.at;
            methods.entry(method).or_insert_with(|| Out::new(at)).plain("timeout", at, millis(ms.max(1)));
        }
        for (method, param, retries) in retried.iter().filter(|_| side.cluster) {
            let at = param.place.at;
            methods.entry(method.clone()).or_insert_with(|| Out::new(at)).plain("retries", at, (*retries).min(100));
        }
        if methods.is_empty() {
            return;
        }
        let mut map = Out::new(url.at);
        for (method, keys) in methods {
            map.put(&method, keys.into_node());
        }
        out.put("methods", map.into_node());
    }

    /// `ha` and `lb`.
    fn picking(&self, url: &Url, retried: bool, out: &mut Out, report: &mut Report) {
        let at = url.at("haStrategy");
        let ha = match url.get("haStrategy").unwrap_or("failover") {
            // Without a further try it is a plain call.
            "backupRequest" if retried => {
                let mut options = Out::new(at);
                for (key, native) in
                    [("backupRequestDelayTime", "delay"), ("backupRequestInitDelayTime", "initial_delay")]
                {
                    if let Some(ms) = url.positive(key, report) {
                        options.plain(native, url.at(key), millis(ms));
                    }
                }
                for (key, native) in
                    [("backupRequestDelayRatio", "percentile"), ("backupRequestMaxRetryRatio", "max_percent")]
                {
                    if let Some(n) = url.positive(key, report) {
                        options.plain(native, url.at(key), n);
                    }
                }
                self.kind(
                    &super::super::kinds::HA,
                    "backup_request",
                    options,
                    "failover",
                    &url.place("haStrategy"),
                    report,
                )
            }
            "failover" | "backupRequest" => Some(word(at, "failover")),
            other => {
                let problem = format!("`{other}` is no strategy that motan-go has");
                report.warn(url.place("haStrategy").problem(problem, "failover is used"));
                Some(word(at, "failover"))
            }
        };
        if let Some(ha) = ha {
            out.put("ha", ha);
        }
        let at = url.at("loadbalance");
        let lb = match url.get("loadbalance").unwrap_or("random") {
            "random" => Some(word(at, "random")),
            "roundrobin" => Some(word(at, "round_robin")),
            "wrr" => Some(word(at, "weighted")),
            "consistentHashKey" => {
                let mut options = Out::new(at);
                options.word("key", at, "consistentHashKey");
                if let Some(load) = url.fraction("consistentHashKey.load", report) {
                    options.plain("load", url.at("consistentHashKey.load"), load);
                }
                for (key, native) in
                    [("consistentHashKey.partSize", "partitions"), ("consistentHashKey.replica", "replicas")]
                {
                    if let Some(n) = url.positive(key, report) {
                        options.plain(native, url.at(key), n);
                    }
                }
                self.kind(
                    &super::super::kinds::LB,
                    "consistent_hash",
                    options,
                    "random",
                    &url.place("loadbalance"),
                    report,
                )
            }
            other => {
                let problem = format!("`{other}` is no load balance that motan-go has");
                report.warn(url.place("loadbalance").problem(problem, "random is used"));
                Some(word(at, "random"))
            }
        };
        if let Some(lb) = lb {
            out.put("lb", lb);
        }
    }

    /// A kind by name with its options, or `otherwise` where this version does not have it; that is told.
    pub(super) fn kind(
        &self,
        table: &super::super::kinds::Table,
        name: &str,
        options: Out,
        otherwise: &str,
        place: &Place,
        report: &mut Report,
    ) -> Option<Node> {
        let node = kind(place.at, name, options);
        match table.accepts(&node, &self.cx()) {
            Ok(()) => Some(node),
            Err(error) => {
                let remedy = match otherwise {
                    "" => "it is left out".to_owned(),
                    other => format!("{other} is used"),
                };
                report.warn(place.problem(format!("`{name}` cannot be had: {error}"), remedy));
                (!otherwise.is_empty()).then(|| plain(place.at, otherwise))
            }
        }
    }

    /// An address of a registry of kind `direct`: names are resolved now.
    pub(super) fn address(&self, text: &str, place: &Place, report: &mut Report) -> Option<std::net::SocketAddr> {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let Some(port) = port.parse::<u16>().ok().filter(|p| *p > 0) else {
            let problem = format!("`{text}` is not an address with port");
            report.mistake(place.problem(problem, "write it like 127.0.0.1:8080"));
            return None;
        };
        Some(std::net::SocketAddr::new(self.resolve(host, place, report)?, port))
    }

    /// The IP address of a host.
    pub(super) fn resolve(&self, host: &str, place: &Place, report: &mut Report) -> Option<IpAddr> {
        use std::net::{Ipv4Addr, ToSocketAddrs};
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = bare.parse() {
            return Some(ip);
        }
        if host.eq_ignore_ascii_case("localhost") {
            return Some(Ipv4Addr::LOCALHOST.into());
        }
        if host.starts_with("unix:") {
            let problem = format!("`{host}` is a unix socket");
            report.warn(place.problem(problem, "endpoints are called by TCP: it is left out"));
            return None;
        }
        let found = (bare, 0).to_socket_addrs().ok().and_then(|list| list.map(|a| a.ip()).min_by_key(IpAddr::is_ipv6));
        match found {
            Some(ip) => {
                let remedy = format!("{ip} is used until the file is read again");
                report.warn(place.problem(format!("`{host}` is a name, resolved now"), remedy));
            }
            None => report.mistake(place.problem(format!("`{host}` cannot be resolved"), "write its IP address")),
        }
        found
    }
}

/// What to write in place of a provider that is not there.
fn instead(provider: &str) -> &'static str {
    match provider {
        "cgi" => {
            "the service is left out; put a web server that speaks FastCGI before the program (nginx: `fastcgi_pass`), \
             and write `provider: http` with `proxyAddress: HOST:PORT` of that server"
        }
        "mockProvider" => {
            "the service is left out; write `provider: motan2` with any `proxy`, import the file, and add the filter \
             `mock` to the service"
        }
        _ => "the service is left out; write `proxy: motan2:PORT`",
    }
}
