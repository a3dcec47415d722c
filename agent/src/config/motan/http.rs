//! The HTTP half of motan-go's file: the forward proxy with its domains, and services behind HTTP programs.

use std::collections::BTreeMap;

use super::{
    super::{
        kinds,
        node::{At, Data, Node},
        problem::Report,
        read::Place,
    },
    Importer,
    tree::{Out, go_value, millis, word},
    url::Url,
};

/// What of the file is about HTTP.
#[derive(Clone, Debug, Default)]
pub(super) struct Http {
    /// Rules by domain.
    locations: BTreeMap<String, Vec<Location>>,
    /// URLs and methods of HTTP by id of the service, then by method.
    services: BTreeMap<String, Node>,
}

/// A rule of `http-locations`.
#[derive(Clone, Debug)]
struct Location {
    at: At,
    matches: String,
    kind: String,
    upstream: String,
    rewrite: Vec<String>,
}

impl Http {
    pub(super) fn read(top: &Node, report: &mut Report) -> Self {
        let mut http = Self::default();
        if let Some(Node { data: Data::Map(domains), .. }) = top.get("http-locations") {
            for domain in domains {
                let Data::List(rules) = &domain.value.data else {
                    let key = format!("http-locations.{}", domain.key);
                    let place = Place { at: domain.at, key, value: None };
                    report
                        .mistake(place.problem("is no list of rules", "write each as `- {match: /path, upstream: S}`"));
                    continue;
                };
                let rules = rules.iter().map(location).collect();
                http.locations.insert(domain.key.clone(), rules);
            }
        }
        if let Some(Node { data: Data::Map(services), .. }) = top.get("http-service") {
            http.services.extend(services.iter().map(|e| (e.key.clone(), e.value.clone())));
        }
        http
    }
}

fn location(node: &Node) -> Location {
    let text = |key: &str| node.get(key).map(|n| go_value(n).1).unwrap_or_default();
    let rewrite = match node.get("rewriteRules") {
        Some(Node { data: Data::List(list), .. }) => list.iter().map(|n| go_value(n).1).collect(),
        _ => Vec::new(),
    };
    let kind = Some(text("type")).filter(|kind| !kind.is_empty()).unwrap_or_else(|| "start".to_owned());
    Location { at: node.at, matches: text("match"), kind, upstream: text("upstream"), rewrite }
}

impl Location {
    fn node(&self, rewrites: bool) -> Node {
        let mut out = Out::new(self.at);
        out.word("match", self.at, self.matches.as_str());
        out.word("type", self.at, self.kind.as_str());
        if !self.upstream.is_empty() {
            out.word("service", self.at, self.upstream.as_str());
        }
        if rewrites && !self.rewrite.is_empty() {
            out.list("rewrite", self.at, self.rewrite.iter().map(|rule| word(self.at, rule.as_str())).collect());
        }
        out.into_node()
    }
}

impl Importer<'_> {
    /// `http_proxy`, and the referers of its domains.
    pub(super) fn http_proxy(
        &mut self,
        clients: Vec<Url>,
        referers: &mut Vec<Node>,
        report: &mut Report,
    ) -> Option<Node> {
        let agent = self.agent.clone();
        let enabled = agent.boolean("httpProxyEnable", report) == Some(true);
        if !enabled {
            if let Some(client) = clients.first() {
                let problem = "the HTTP forward proxy is off, so no program reaches this domain";
                report.warn(client.place("domain").problem(problem, "set `httpProxyEnable: true` under `motan-agent`"));
            }
            return None;
        }
        let at = agent.at("httpProxyEnable");
        let mut out = Out::new(at);
        match agent.get("httpProxyUnixSock") {
            Some(path) => {
                let path = self.absolute(path.strip_prefix("unix://").unwrap_or(path));
                out.word("listen", agent.at("httpProxyUnixSock"), format!("unix:{path}"));
            }
            None => {
                let port = self.flags.hport.or_else(|| super::port_of(&agent, "hport", report)).unwrap_or(9983);
                out.plain("listen", agent.at("hport"), std::net::SocketAddr::new(self.host, port));
            }
        }
        let mut domains = Vec::new();
        for client in clients {
            let domain = client.get("domain").unwrap_or(&client.id).to_owned();
            let group = self.group(&client, report);
            let locations = self.http.locations.get(&domain).cloned().unwrap_or_default();
            let mut services = client.list("preload");
            services.extend(locations.iter().map(|l| l.upstream.clone()).filter(|s| !s.is_empty()));
            let mut lost = false;
            for service in services {
                let known = |n: &Node| {
                    let text = |key: &str| n.get(key).map(|v| go_value(v).1).unwrap_or_default();
                    text("service") == service && text("group") == group
                };
                if referers.iter().any(known) {
                    continue;
                }
                let mut url = client.clone();
                url.set("path", service);
                match self.refer(&url, report) {
                    // Only the proxy calls it.
                    Some(node) => referers.push(without(node, "listen")),
                    None => lost = true,
                }
            }
            if lost {
                continue;
            }
            // At the forward port calls may name the domain, unless a refer has its name.
            let service = |n: &Node| n.get("service").map(|v| go_value(v).1).unwrap_or_default();
            if referers.iter().all(|n| service(n) != domain) {
                let mut url = client.clone();
                url.set("path", domain.clone());
                referers.extend(self.refer(&url, report));
            }
            let mut one = Out::new(client.at);
            one.word("domain", client.at("domain"), domain);
            if !group.is_empty() {
                one.word("group", client.at("group"), group);
            }
            if !locations.is_empty() {
                one.list("locations", client.at, locations.iter().map(|l| l.node(false)).collect());
            }
            domains.push(one.into_node());
        }
        if let Some(domain) = agent.get("httpProxyDefaultDomain") {
            out.word("default_domain", agent.at("httpProxyDefaultDomain"), domain);
        }
        if let Some(ms) = agent.positive("httpProxyTimeout", report) {
            out.plain("timeout", agent.at("httpProxyTimeout"), millis(ms));
        }
        if agent.boolean("httpProxyKeepalive", report) == Some(false) {
            out.plain("keep_alive", agent.at("httpProxyKeepalive"), "0s");
        } else if let Some(ms) = agent.positive("httpProxyKeepaliveTimeout", report) {
            out.plain("keep_alive", agent.at("httpProxyKeepaliveTimeout"), millis(ms));
        }
        if let Some(bytes) = agent.positive("httpProxyMaxRequestBodySize", report) {
            out.plain("body_bytes", agent.at("httpProxyMaxRequestBodySize"), bytes.clamp(1 << 10, 1 << 30));
        }
        if !domains.is_empty() {
            out.list("domains", at, domains);
        }
        Some(out.into_node())
    }

    /// Address of an HTTP program and `upstream` that calls it; `None` when it cannot be had, which is told.
    pub(super) fn http_provider(&self, url: &Url, report: &mut Report) -> Option<(String, Node)> {
        let at = url.at("provider");
        let format = url.get("URL_FORMAT");
        let local = match url.get("proxyAddress") {
            Some(address) => match address.strip_prefix("unix://") {
                Some(path) => format!("unix:{path}"),
                None => {
                    let with_port = if address.contains(':') { address.to_owned() } else { format!("{address}:80") };
                    self.address(&with_port, &url.place("proxyAddress"), report)?.to_string()
                }
            },
            None => {
                let Some(format) = format else {
                    let problem = "names no HTTP program";
                    report.warn(
                        url.place("provider")
                            .problem(problem, "the service is left out; write `proxyAddress: HOST:PORT`"),
                    );
                    return None;
                };
                let rest = format.strip_prefix("http://").unwrap_or(format);
                let authority = rest.split(['/', '?']).next().unwrap_or(rest);
                let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
                self.address(&with_port, &url.place("URL_FORMAT"), report)?.to_string()
            }
        };
        if let Some(schema) = url.get("proxySchema").filter(|schema| *schema != "http") {
            let problem = format!("`{schema}` is not spoken to local programs");
            report.warn(url.place("proxySchema").problem(problem, "http is used"));
        }
        let domain = url.get("domain").unwrap_or_default();
        let mut options = Out::new(at);
        for (key, native) in [("domain", "host"), ("HTTP_REQUEST_METHOD", "method")] {
            if let Some(text) = url.get(key) {
                options.word(native, url.at(key), text);
            }
        }
        if let Some(format) = format.filter(|_| url.get("proxyAddress").is_none()) {
            options.word("url", url.at("URL_FORMAT"), format);
        }
        if let Some(Node { data: Data::Map(methods), .. }) = self.http.services.get(&url.id) {
            let mut map = Out::new(at);
            for method in methods {
                let text = |key: &str| method.value.get(key).map(|n| go_value(n).1).filter(|t| !t.is_empty());
                let mut one = Out::new(method.at);
                for (key, native) in [("URL_FORMAT", "url"), ("HTTP_REQUEST_METHOD", "method")] {
                    if let Some(text) = text(key) {
                        one.word(native, method.at, text);
                    }
                }
                let name = if method.key == "http_default_motan_method" { "default" } else { &method.key };
                map.put(name, one.into_node());
            }
            options.put("methods", map.into_node());
        }
        let locations = self.http.locations.get(domain).cloned().unwrap_or_default();
        if !locations.is_empty() {
            options.list("locations", at, locations.iter().map(|l| l.node(true)).collect());
        }
        match url.boolean("enableRewrite", report) {
            Some(required) => drop(options.plain("require_location", url.at("enableRewrite"), required)),
            // Motan-go refuses every path then.
            None if url.get("proxyAddress").is_some() && locations.is_empty() => {
                options.plain("require_location", at, true);
            }
            None => {}
        }
        if url.boolean("enableHttpException", report) == Some(true) {
            options.plain("error_exceptions", url.at("enableHttpException"), true);
        }
        let upstream = self.kind(&kinds::UPSTREAM, "http", options, "", &url.place("provider"), report)?;
        Some((local, upstream))
    }
}

fn without(mut node: Node, key: &str) -> Node {
    if let Data::Map(entries) = &mut node.data {
        entries.retain(|e| e.key != key);
    }
    node
}
