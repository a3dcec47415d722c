//! Everything motan-go knows by name, and what becomes of it here: the one source for what the importer
//! accepts, for what it says about the rest, and for the tables of `docs/motan.md`.

/// What becomes of a key, a flag, a variable or a management call of motan-go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Works as in motan-go.
    Supported,
    /// Works, without a fault that the original has, or by other means.
    Mended,
    /// Has no effect; the text says what happens instead.
    Refused,
}

impl Fate {
    /// As the tables say it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Mended => "mended",
            Self::Refused => "refused",
        }
    }
}

/// One name of motan-go.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The name, as it is written.
    pub name: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// What it is here, or why it is refused and what happens instead.
    pub says: &'static str,
    /// A value by which tests see that it is read.
    pub example: &'static str,
}

/// Names of one place.
#[derive(Debug)]
pub struct Part {
    /// Heading in the docs.
    pub title: &'static str,
    /// The names.
    pub rows: &'static [Row],
}

use Fate::{Mended, Refused, Supported};

const fn row(name: &'static str, fate: Fate, example: &'static str, says: &'static str) -> Row {
    Row { name, fate, says, example }
}

/// Sections of the file.
pub const SECTIONS: Part = Part {
    title: "Sections of the file",
    rows: &[
        row("motan-agent", Supported, "", "below"),
        row("motan-registry", Supported, "", "`registries`"),
        row("motan-basicRefer", Supported, "", "template of `motan-refer` and `http-client`"),
        row("motan-refer", Supported, "", "`referers`, at the forward port"),
        row("motan-basicService", Supported, "", "template of `motan-service`"),
        row("motan-service", Supported, "", "`services`"),
        row("http-client", Supported, "", "`http_proxy.domains`; each is a service at the forward port as well"),
        row("http-locations", Supported, "", "`locations` of the proxy and of `upstream: http`"),
        row("http-service", Supported, "", "`methods` of `upstream: http`"),
        row("switcher", Supported, "", "`switchers`"),
        row("switchers", Supported, "", "as `switcher`"),
        row("metrics", Supported, "", "below; `/metrics` (Prometheus) besides"),
        row("dynamic-param", Supported, "", "placeholders are replaced"),
        row("import-refer", Supported, "", "in a folder, files of `services/`; a missing file is told"),
        row("import-http-location", Supported, "", "in a folder, files of `http/location/`; a missing file is told"),
        row("motan-client", Refused, "", "is for programs that embed the Go library"),
        row("motan-server", Refused, "", "is for programs that embed the Go library"),
        row("envMetaPrefix", Supported, "", "prefix of the variables that `registerMeta` registers"),
        row("metaCacheExpireSecond", Refused, "", "dynamic meta of endpoints is not asked for"),
    ],
};

/// `motan-agent`.
pub const AGENT: Part = Part {
    title: "`motan-agent`",
    rows: &[
        row("port", Supported, "19981", "`ports.forward`: programs call every refer here"),
        row("eport", Supported, "19982", "`ports.reverse`: services registered through the management port"),
        row("hport", Supported, "19983", "`http_proxy.listen`, with `httpProxyEnable`"),
        row("mport", Supported, "18002", "`ports.admin`"),
        row("mhost", Mended, "10.0.0.1", "new: address of the management port, 127.0.0.1 when absent (motan-go: all)"),
        row(
            "debugPages",
            Mended,
            "true",
            "new: `ports.debug_pages`, the pages below `/debug`; motan-go's are always there",
        ),
        row("host", Supported, "10.0.0.1", "address of the forward port; all IPv4 addresses when absent"),
        row("pidfile", Supported, "run/other.pid", "`pidfile`"),
        row(
            "runtime_dir",
            Supported,
            "run",
            "`runtime_dir`: status and what was registered through the management port",
        ),
        row("snapshot_dir", Mended, "snap", "`snapshots`: lists of endpoints, also read by the agent at start"),
        row("application", Supported, "shop", "`application`"),
        row("group", Supported, "shop", "`application`, when that is absent"),
        row("path", Refused, "shop", "the agent is known by its application"),
        row(
            "registry",
            Mended,
            "r",
            "commands are taken from every registry in use; the agent's own node, which nobody reads, is not written",
        ),
        row(
            "log_dir",
            Mended,
            "logs",
            "folder of the access log `PROGRAM-access.log`. The agent's own log, there `PROGRAM.log`, goes to standard error, which whatever starts the agent keeps and rotates; `PROGRAM-metrics.log` is not written, `/metrics` has the figures",
        ),
        row("log_level", Supported, "debug", "level of the agent's log, as `--log`"),
        row("log_async", Mended, "false", "the access log is always written in the background"),
        row("log_structured", Supported, "true", "the access log is JSON"),
        row("log_buffer_size", Supported, "77", "`access_log.buffer_lines`"),
        row("rotate_per_hour", Supported, "false", "`access_log.rotate`"),
        row("log_filter_caller", Refused, "true", "no line of the log names source lines"),
        row("unixSock", Supported, "a.sock", "`listen` of every referer, instead of the TCP port"),
        row("managementUnixSock", Supported, "m.sock", "`ports.admin_socket`, instead of the TCP port"),
        row("httpProxyUnixSock", Supported, "h.sock", "`http_proxy.listen`, instead of the TCP port"),
        row("managementPortRange", Supported, "18002-18009", "`ports.admin_range`"),
        row(
            "initClusterTimeout",
            Mended,
            "100",
            "a start waits at most 3 s for registries, then serves from snapshots",
        ),
        row("motanEpAsyncInit", Mended, "false", "endpoints always connect in the background"),
        row(
            "processPoolSize",
            Mended,
            "100",
            "calls are bounded by connection (`limits`), and wait instead of failing",
        ),
        row(
            "maxContentLength",
            Supported,
            "4096",
            "`limits.content_bytes`, for all services alike: the largest that is written",
        ),
        row("defaultFilter", Supported, "trace", "added to every refer and service without `disableDefaultFilter`"),
        row("globalFilter", Supported, "trace", "added to every refer and service without `disableGlobalFilter`"),
        row("httpProxyEnable", Supported, "false", "`http_proxy`"),
        row("httpProxyKeepalive", Supported, "false", "`http_proxy.keep_alive: 0s` when false"),
        row("httpProxyKeepaliveTimeout", Supported, "77", "`http_proxy.keep_alive`"),
        row("httpProxyDefaultDomain", Supported, "d", "`http_proxy.default_domain`"),
        row("httpProxyTimeout", Supported, "77", "`http_proxy.timeout`"),
        row("httpProxyMaxRequestBodySize", Supported, "7777", "`http_proxy.body_bytes`"),
    ],
};

/// Entries of `motan-registry`.
pub const REGISTRY: Part = Part {
    title: "`motan-registry`",
    rows: &[
        row(
            "protocol",
            Supported,
            "zookeeper",
            "`kind`: `direct`, `zookeeper`, `mesh`, `consul` (a real one), besides `etcd` and `nacos`; `local` is refused",
        ),
        row(
            "host",
            Supported,
            "127.0.0.9",
            "with `port`: one address. A name for `direct` is resolved when the file is read",
        ),
        row("port", Supported, "12181", "see `host`"),
        row("address", Supported, "127.0.0.9:1", "comma list of addresses"),
        row("group", Supported, "g9", "`direct`: group of the endpoints"),
        row("registrySessionTimeout", Supported, "17", "`session_timeout`, in seconds; the server caps it"),
        row("proxyRegistry", Refused, "direct://h:1", "the other agent chooses its registry"),
        row("requestTimeout", Refused, "1000", "motan-go does not read it either"),
    ],
};

/// Entries of `motan-refer` and `motan-basicRefer`.
pub const REFER: Part = Part {
    title: "`motan-refer` and `motan-basicRefer`",
    rows: &[
        row("basicRefer", Supported, "template", "the template is copied, then overridden"),
        row("path", Supported, "other.Service", "`service`"),
        row("group", Supported, "g9", "`group`; `${idc}` is the flag `-idc`"),
        row(
            "protocol",
            Supported,
            "grpc",
            "`motan2`; `motan` takes endpoints that speak Motan2; `grpc` is `upstream: grpc`; `local` is refused",
        ),
        row("registry", Supported, "other", "`registry`; ids that are not declared are left out"),
        row("version", Supported, "9", "`version`; endpoints without one fit any"),
        row("application", Supported, "other", "`application`"),
        row("module", Refused, "m", "`M_mdu` is passed on as the caller sent it"),
        row(
            "requestTimeout",
            Supported,
            "1234",
            "`timeout`, 1000 ms when absent; by method as `METHOD(DESC).requestTimeout`",
        ),
        row("minRequestTimeout", Supported, "123", "`timeout_range`"),
        row("maxRequestTimeout", Supported, "12345", "`timeout_range`"),
        row("retries", Mended, "2", "`retries`, within a budget; by method as `METHOD(DESC).retries`"),
        row("haStrategy", Supported, "backupRequest", "`ha`"),
        row("loadbalance", Supported, "roundrobin", "`lb`: `random`, `roundrobin`, `wrr`, `consistentHashKey`"),
        row("serialization", Supported, "breeze", "bodies are passed on as they are, whatever they are"),
        row("filter", Supported, "accessLog", "`filters`"),
        row("disableDefaultFilter", Supported, "failfast", "of the agent's `defaultFilter`"),
        row("disableGlobalFilter", Supported, "metrics", "of the agent's `globalFilter`"),
        row("mingzSize", Supported, "99", "`gzip_over`"),
        row("connectTimeout", Supported, "99", "`connect_timeout`, 1000 ms when absent"),
        row("connectRetryInterval", Mended, "99", "an endpoint out of reach is tried with `eject.pause`"),
        row("clientConnection", Supported, "9", "`connections`, 3 when absent"),
        row("errorCountThreshold", Supported, "9", "`eject.failures`, 10 when absent, 0 for never"),
        row("keepaliveInterval", Supported, "99", "`eject.pause` and `eject.max_pause`, 1000 ms when absent"),
        row("lazyInit", Mended, "true", "connections are opened when they are needed"),
        row("asyncInitConnection", Mended, "false", "endpoints always connect in the background"),
        row(
            "maxContentLength",
            Supported,
            "20971520",
            "`limits.content_bytes`, for all services alike: the largest that is written",
        ),
        row("mixGroups", Supported, "a,b", "`mix_groups`"),
        row("dynamicMeta", Refused, "false", "weights are those of the registrations"),
        row("weightRefreshPeriodSecond", Refused, "9", "weights are those of the registrations"),
        row("host", Refused, "127.0.0.1", "endpoints come from registries"),
        row("port", Refused, "9", "endpoints come from registries"),
        row("circuitBreaker.requestThreshold", Supported, "9", "`circuit_breaker.requests`"),
        row("circuitBreaker.sleepWindow", Supported, "99", "`circuit_breaker.sleep`"),
        row("circuitBreaker.errorPercent", Supported, "9", "`circuit_breaker.error_percent`"),
        row("circuitBreaker.maxConcurrent", Supported, "9", "`circuit_breaker.max_concurrent`"),
        row("circuitBreaker.bizException", Supported, "false", "`circuit_breaker.business_errors`"),
        row("rateLimit", Supported, "9", "`rate_limit.rate`; by method as `rateLimit.METHOD`"),
        row("capacity", Supported, "1009", "`rate_limit.burst`; by method as `METHOD().capacity`"),
        row("backupRequestDelayTime", Supported, "99", "`backup_request.delay`"),
        row("backupRequestDelayRatio", Supported, "99", "`backup_request.percentile`"),
        row("backupRequestInitDelayTime", Supported, "99", "`backup_request.initial_delay`"),
        row("backupRequestMaxRetryRatio", Supported, "9", "`backup_request.max_percent`"),
        row("consistentHashKey.load", Supported, "1.5", "`consistent_hash.load`"),
        row("consistentHashKey.partSize", Supported, "99", "`consistent_hash.partitions`"),
        row("consistentHashKey.replica", Supported, "9", "`consistent_hash.replicas`"),
        row("nodeType", Mended, "referer", "is always `referer`"),
    ],
};

/// Entries of `motan-service` and `motan-basicService`.
pub const SERVICE: Part = Part {
    title: "`motan-service` and `motan-basicService`",
    rows: &[
        row("basicService", Supported, "template", "the template is copied, then overridden"),
        row("path", Supported, "other.Service", "`service`"),
        row("group", Supported, "g8,g9", "`group`; a comma list makes one service each"),
        row("protocol", Supported, "motan2", "that of `export` counts"),
        row("registry", Supported, "other", "`registry`; ids that are not declared are left out"),
        row("version", Supported, "9", "`version`"),
        row("application", Supported, "other", "`metadata`"),
        row("module", Supported, "m", "`metadata`"),
        row("serialization", Mended, "breeze", "`metadata`; services of different serializations may share a port"),
        row("filter", Supported, "accessLog", "`filters`"),
        row("disableDefaultFilter", Supported, "failfast", "of the agent's `defaultFilter`"),
        row("disableGlobalFilter", Supported, "metrics", "of the agent's `globalFilter`"),
        row("mingzSize", Supported, "99", "`gzip_over`"),
        row(
            "requestTimeout",
            Supported,
            "1234",
            "`timeout`, 1000 ms when absent; by method as `METHOD(DESC).requestTimeout`",
        ),
        row("minRequestTimeout", Supported, "123", "`timeout_range`"),
        row("maxRequestTimeout", Supported, "12345", "`timeout_range`"),
        row("export", Supported, "motan2:18100", "`export`"),
        row("proxy", Supported, "motan2:18101", "`local`"),
        row("proxy.host", Supported, "127.0.0.9", "address in `local`; `unix://PATH` as `unix:PATH`"),
        row(
            "provider",
            Supported,
            "motan2",
            "`motan2`, `motan`; `http` and `httpx` are `upstream: http`; `cgi` and `mockProvider` are refused: the service is left out, and what to write instead is told",
        ),
        row("nodeType", Mended, "service", "is always `service`"),
        row("registerMeta", Supported, "true", "`metadata` gets the variables `META_*`"),
        row("connectTimeout", Supported, "99", "`connect_timeout`, 1000 ms when absent"),
        row("connectRetryInterval", Mended, "99", "a program out of reach is tried with `eject.pause`"),
        row("clientConnection", Supported, "9", "`connections`, 3 when absent"),
        row("errorCountThreshold", Supported, "9", "`eject.failures`, never when absent"),
        row("keepaliveInterval", Supported, "99", "`eject.pause` and `eject.max_pause`, 1000 ms when absent"),
        row("lazyInit", Mended, "true", "connections are opened when they are needed"),
        row("asyncInitConnection", Mended, "false", "connections are always opened in the background"),
        row(
            "maxContentLength",
            Supported,
            "20971520",
            "`limits.content_bytes`, for all services alike: the largest that is written",
        ),
        row("host", Refused, "127.0.0.1", "the address told to callers is the flag `-localIP`, else found out"),
        row("port", Refused, "9", "the port is that of `export`"),
        row("circuitBreaker.requestThreshold", Supported, "9", "`circuit_breaker.requests`"),
        row("circuitBreaker.sleepWindow", Supported, "99", "`circuit_breaker.sleep`"),
        row("circuitBreaker.errorPercent", Supported, "9", "`circuit_breaker.error_percent`"),
        row("circuitBreaker.maxConcurrent", Supported, "9", "`circuit_breaker.max_concurrent`"),
        row("circuitBreaker.bizException", Supported, "false", "`circuit_breaker.business_errors`"),
        row("rateLimit", Supported, "9", "`rate_limit.rate`; by method as `rateLimit.METHOD`"),
        row("capacity", Supported, "1009", "`rate_limit.burst`; by method as `METHOD().capacity`"),
    ],
};

/// Keys of the HTTP provider, which stand in `motan-service` as well.
pub const PROVIDER: Part = Part {
    title: "`motan-service`: keys of other providers",
    rows: &[
        row("domain", Supported, "d", "`upstream.http.host`, and the domain of its `http-locations`"),
        row("proxyAddress", Supported, "127.0.0.1:99", "`local`; `unix://PATH` as `unix:PATH`"),
        row("proxySchema", Mended, "http", "`http`; `https` is refused, http is used"),
        row("keepaliveTimeout", Mended, "1", "idle connections are kept as `idleConnectionTimeout` says"),
        row("idleConnectionTimeout", Supported, "77", "`idle_timeout`"),
        row("maxConnections", Supported, "77", "`max_in_flight`"),
        row("enableRewrite", Supported, "false", "`upstream.http.require_location`"),
        row("enableHttpException", Supported, "true", "`upstream.http.error_exceptions`"),
        row("HTTP_REQUEST_METHOD", Supported, "POST", "`upstream.http.method`"),
        row("URL_FORMAT", Supported, "http://127.0.0.1:98/%s", "`upstream.http.url`, without `proxyAddress`"),
        row(
            "CGI_HOST",
            Refused,
            "h",
            "FastCGI programs are not called: put a web server that does before them, and `provider: http`",
        ),
        row(
            "CGI_PORT",
            Refused,
            "1",
            "FastCGI programs are not called: put a web server that does before them, and `provider: http`",
        ),
        row(
            "CGI_REQUEST_METHOD",
            Refused,
            "GET",
            "FastCGI programs are not called: put a web server that does before them, and `provider: http`",
        ),
        row(
            "CGI_SCRIPT_FILENAME",
            Refused,
            "f",
            "FastCGI programs are not called: put a web server that does before them, and `provider: http`",
        ),
        row(
            "CGI_DOCUMENT_ROOT",
            Refused,
            "d",
            "FastCGI programs are not called: put a web server that does before them, and `provider: http`",
        ),
    ],
};

/// Entries of `http-client`, besides those of refers.
pub const CLIENT: Part = Part {
    title: "`http-client`, besides the keys of refers",
    rows: &[
        row("domain", Supported, "", "`http_proxy.domains[].domain`; the entry's id when absent"),
        row("preload", Supported, "", "a referer for each; those that rules name get one as well"),
    ],
};

/// `metrics`.
pub const METRICS: Part = Part {
    title: "`metrics`",
    rows: &[
        row("period", Supported, "7", "`graphite[].interval`, in seconds, 5 when absent"),
        row("processor", Mended, "3", "there is nothing to set"),
        row(
            "graphite",
            Supported,
            "[{host: 127.0.0.1, port: 2003}]",
            "`graphite`, in motan-go's form over UDP: `host`, `port`; `name` has no use",
        ),
    ],
};

/// Names in `filter`.
pub const FILTERS: Part = Part {
    title: "Filters",
    rows: &[
        row("accessLog", Supported, "", "`access_log: {format: motan, level: attempt}`"),
        row("clusterAccessLog", Supported, "", "`access_log: {format: motan, level: call}`"),
        row("metrics", Supported, "", "`metrics: {level: attempt}`"),
        row("clusterMetrics", Supported, "", "`metrics: {level: call}`"),
        row("circuitBreaker", Supported, "", "`circuit_breaker: {scope: endpoint}`"),
        row("clusterCircuitBreaker", Supported, "", "`circuit_breaker: {scope: service}`"),
        row("failfast", Supported, "", "`failfast`"),
        row("rateLimit", Supported, "", "`rate_limit`, with the switcher `ID_rateLimit`"),
        row("trace", Mended, "", "`tracing`; where spans go is said in the native form only"),
    ],
};

/// Flags of the command line.
pub const FLAGS: Part = Part {
    title: "Flags",
    rows: &[
        row(
            "-c",
            Supported,
            "",
            "the file, or the folder of pool mode; `./motan.yaml`, or `./` with `-pool`, when absent",
        ),
        row("-port", Supported, "", "goes before `port`"),
        row("-eport", Supported, "", "goes before `eport`"),
        row("-hport", Supported, "", "goes before `hport`"),
        row("-mport", Supported, "", "goes before the variable and `mport`"),
        row("-mhost", Mended, "", "new: goes before `mhost`"),
        row("-pidfile", Supported, "", "goes before `pidfile`"),
        row("-localIP", Supported, "", "`advertise`: the address in registrations"),
        row("-idc", Supported, "", "`${idc}` in groups"),
        row("-pool", Supported, "", "pool mode and placeholders"),
        row("-application", Supported, "", "pool mode; it does not change the agent's name, as in motan-go"),
        row(
            "-recover",
            Mended,
            "",
            "status and what was registered come back; the status that was saved, not always 200",
        ),
        row("-log_dir", Mended, "", "goes before `log_dir`, in either spelling"),
        row("-log_async", Mended, "", "the access log is always written in the background"),
        row("-log_buffer_size", Supported, "", "`log_buffer_size` goes before it, as in motan-go"),
        row("-log_level", Supported, "", "`log_level` goes before it, as in motan-go"),
        row("-log_structured", Supported, "", "`log_structured` goes before it, as in motan-go"),
        row("-rotate_per_hour", Supported, "", "`rotate_per_hour` goes before it, as in motan-go"),
        row("-log_filter_caller", Refused, "", "no line of the log names source lines"),
    ],
};

/// Environment variables.
pub const VARIABLES: Part = Part {
    title: "Environment variables",
    rows: &[
        row("MESH_SERVICE_ADDITIONAL_GROUP", Supported, "g8", "further groups of every service"),
        row(
            "MESH_DIRECT_RPC",
            Supported,
            "kit.*>g7@127.0.0.9:9",
            "`endpoints` of the refers that match, instead of their registries",
        ),
        row("MESH_FILTERS", Supported, "trace", "filters added everywhere"),
        row("MESH_ADMIN_EXT_HANDLERS", Refused, "x", "there are no handlers of embedders"),
        row("RPC_REG_GROUP_SUFFIX", Supported, "-gray", "appended to the groups of services"),
        row("MESH_MULTI_SUB_GROUP_SUFFIX", Supported, "-gray", "each refer once more, with the group so suffixed"),
        row("META_*", Supported, "", "registered with services that have `registerMeta: true`"),
        row("mport", Supported, "18003", "after the flag, before the file"),
    ],
};

/// Calls of the management port.
pub const CALLS: Part = Part {
    title: "Management calls",
    rows: &[
        row("/", Supported, "", "status page: 200 or 503; so are paths that nobody has"),
        row("/200", Supported, "", "services are registered as available"),
        row("/503", Mended, "", "services are registered as unavailable; a restart with `-recover` comes back so"),
        row("/version", Supported, "", "`1.2.0`; clients that accept JSON alone get the version of Sockmesh"),
        row("/status", Supported, "", ""),
        row("/registry/status", Supported, "", ""),
        row("/getConfig", Supported, "", ""),
        row("/getReferService", Supported, "", ""),
        row("/getAllService", Supported, "", ""),
        row("/switcher/set", Supported, "", ""),
        row("/switcher/get", Supported, "", ""),
        row("/switcher/getAll", Supported, "", ""),
        row("/logConfig/get", Supported, "", ""),
        row("/logConfig/set", Supported, "", ""),
        row("/registry/register", Mended, "", "what fails is answered as failed; registered at once when available"),
        row("/registry/unregister", Mended, "", "the service is taken back and exported no more"),
        row("/registry/subscribe", Supported, "", ""),
        row("/registry/list", Supported, "", ""),
        row("/registry/info", Supported, "", ""),
        row("/meta/update", Supported, "", ""),
        row("/meta/delete", Supported, "", ""),
        row("/meta/get", Supported, "", ""),
        row("/meta/getAll", Supported, "", ""),
        row("/reload/clusters", Mended, "", "services are read again as well, and all of it or nothing is taken"),
        row("/runtime/info", Supported, "", "with `?keys=` as well"),
        row(
            "/refers/filter/set",
            Supported,
            "",
            "of later versions: endpoints that calls leave out, until the agent ends",
        ),
        row("/refers/filter/get", Supported, "", "of later versions: what was set"),
        row("/debug/pprof/", Mended, "", "with `debugPages`: a list of these pages"),
        row("/debug/pprof/sw", Mended, "", "with `debugPages`: header `ctr: op` opens, `ctr: cp` closes them"),
        row("/debug/pprof/cmdline", Supported, "", "with `debugPages`"),
        row(
            "/debug/mesh/trace",
            Mended,
            "",
            "with `debugPages`: calls of `seconds` with their steps here, at most 100 a second",
        ),
        row("/debug/stat/system", Supported, "", "with `debugPages`"),
        row("/debug/stat/process", Supported, "", "with `debugPages`"),
        row("/debug/stat/openFiles", Supported, "", "with `debugPages`"),
        row("/debug/stat/connections", Supported, "", "with `debugPages`"),
        row("/debug/pprof/profile", Refused, "", "is of Go's runtime: the answer (501) names `perf`"),
        row("/debug/pprof/trace", Refused, "", "is of Go's runtime: the answer (501) names `sockmesh explain`"),
        row("/debug/pprof/symbol", Refused, "", "is of Go's runtime: the answer (501) names `perf`"),
        row("/debug/pprof/allocs", Refused, "", "is of Go's runtime: the answer (501) names `/metrics`"),
        row("/debug/pprof/heap", Refused, "", "is of Go's runtime: the answer (501) names `/metrics`"),
        row("/debug/pprof/block", Refused, "", "is of Go's runtime: the answer (501) names `perf`"),
        row("/debug/pprof/mutex", Refused, "", "is of Go's runtime: the answer (501) names `perf`"),
        row("/debug/pprof/goroutine", Refused, "", "is of Go's runtime: the answer (501) names `/metrics`"),
    ],
};

/// All tables, in the order of the docs.
pub const PARTS: &[&Part] = &[
    &SECTIONS, &AGENT, &REGISTRY, &REFER, &SERVICE, &PROVIDER, &CLIENT, &METRICS, &FILTERS, &FLAGS, &VARIABLES, &CALLS,
];

impl Part {
    /// The row of a name.
    pub fn row(&self, name: &str) -> Option<&'static Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The table in Markdown.
    pub fn render(&self) -> String {
        let mut text = "| name | | here |\n| --- | --- | --- |\n".to_owned();
        for Row { name, fate, says, .. } in self.rows {
            let says = if says.is_empty() { "as there" } else { says };
            text += &format!("| `{name}` | {} | {says} |\n", fate.word());
        }
        text
    }
}
