//! Keys of services that local programs provide, and of how calls to a service are made.

use super::{
    Absent::{Required, Says, Yaml},
    Section, key,
};

/// `referers[].allow[]` and `referers[].deny[]`.
pub(crate) const CALLER: Section = Section {
    path: "referers[].allow[]",
    about: "Callers, also for `deny`: one of the two keys each.",
    keys: &[
        key("uid", "number", Says("none"), "Processes of this user, as the host numbers it."),
        key("cgroup", "absolute path", Says("none"), "Processes in this control group (v2) and the groups below it."),
    ],
};

/// `services[]`, besides [`CLUSTER`].
pub(crate) const SERVICE: Section = Section {
    path: "services[]",
    about: "A service that a local program provides. Every key of a cluster (below) can stand here as well.",
    keys: &[
        key("service", "name", Required, "Interface path or service name."),
        key("group", "name", Yaml("\"\""), "Group it is provided in."),
        key("version", "name", Yaml("\"\""), "Version it is provided as."),
        key(
            "protocol",
            "`motan2`, `http`, `tcp`",
            Says("detected"),
            "What callers speak. Detected from the first bytes when absent.",
        ),
        key(
            "export",
            "address with port",
            Says("none, then `inbound` must be given"),
            "The agent listens here for callers. Several services can share one if all declare `motan2`, or all `http`.",
        ),
        key(
            "inbound",
            "port, address with port, or list",
            Yaml("[]"),
            "Addresses of the program itself: callers from other hosts or network namespaces that dial them are brought to the agent. A port alone means every local address. Loopback is left alone. Needs `capture: ebpf` or `iptables`.",
        ),
        key("local", "address with port, or `unix:/PATH`", Required, "The local program, the only endpoint."),
        key(
            "registry",
            "name or list",
            Yaml("[]"),
            "Names under `registries` where the service is registered while the agent serves. Needs `protocol`.",
        ),
        key(
            "advertise",
            "address, with or without port",
            Says("the top's `advertise`, with the port of `export`"),
            "Where callers that find it in a registry dial.",
        ),
        key("weight", "number, 0 to 10000", Yaml("10"), "Share of calls relative to other providers, as registered."),
        key("zone", "name", Says("the top's"), "Failure domain, as registered."),
        key("metadata", "mapping of texts", Yaml("{}"), "Further parameters of the registration."),
        key(
            "client_address",
            "boolean",
            Yaml("false"),
            "The program sees the caller's address as its peer (`accept`, `getpeername`) instead of the agent's. For `http` and `tcp`; callers share no connection then. Needs `capture: ebpf` and a program in a control group of its own.",
        ),
    ],
};

/// Keys that stand in `referers[]` and in `services[]`.
pub(crate) const CLUSTER: Section = Section {
    path: "cluster",
    about: "How calls to one service are made. These keys stand directly in `referers[]` and `services[]`.",
    keys: &[
        key(
            "timeout",
            "duration",
            Says("of the protocol"),
            "Time for a whole call, retries included, up to the head of the answer.",
        ),
        key(
            "timeout_range",
            "durations LOW..HIGH",
            Says("any"),
            "Range in which a timeout that came with the call is obeyed, e.g. `500ms..2s`.",
        ),
        key("connect_timeout", "duration", Yaml("250ms"), "Time to establish a connection to an endpoint."),
        key(
            "ha",
            "name, or name with options",
            Yaml("failover"),
            "What to do when an attempt fails: `backup_request`, `broadcast`, `failfast`, `failover`. See `docs/balancing.md`.",
        ),
        key(
            "lb",
            "name, or name with options",
            Yaml("p2c"),
            "How an endpoint is picked: `active_weight`, `configurable_weight`, `consistent_hash`, `local_first`, `p2c`, `random`, `round_robin`, `weighted`, `zone_first`. See `docs/balancing.md`.",
        ),
        key(
            "filters",
            "list of names, each possibly with options",
            Yaml("[metrics]"),
            "What happens to every call beside sending it, outermost first: see docs/filters.md.",
        ),
        key("retries", "number, 0 to 100", Yaml("1"), "Further tries after the first."),
        key("idempotent", "`true`, `false`", Yaml("false"), "Every method may be sent twice."),
        key("methods", "mapping", Yaml("{}"), "Exceptions for single methods: the method's name, then the keys below."),
        key(
            "connections",
            "number, 1 to 1024",
            Yaml("2"),
            "Connections to one endpoint, for protocols that multiplex (Motan2).",
        ),
        key(
            "idle_connections",
            "number, 0 to 65536",
            Yaml("128"),
            "Idle connections kept to one endpoint, for protocols that do not multiplex (HTTP).",
        ),
        key("idle_timeout", "duration", Yaml("60s"), "How long an idle connection is kept."),
        key(
            "max_in_flight",
            "number, 1 to 1000000",
            Yaml("10000"),
            "Calls in flight to one endpoint before the balancer passes it over.",
        ),
        key("eject", "mapping", Says("see below"), "When an endpoint leaves and how it comes back."),
        key(
            "gzip_over",
            "size, 0 for never",
            Yaml("0"),
            "Motan2: bodies longer than this are compressed towards the endpoint.",
        ),
        key(
            "upstream",
            "name, or name with options",
            Says("what callers speak"),
            "What endpoints speak, where callers speak `motan2`: `grpc` or `http`. See `docs/wire/grpc.md` and `docs/wire/http-mesh.md`.",
        ),
    ],
};

/// `methods.*`.
pub(crate) const METHOD: Section = Section {
    path: "cluster.methods.*",
    about: "What one method does differently.",
    keys: &[
        key("timeout", "duration", Says("the service's"), "Instead of the service's."),
        key("retries", "number, 0 to 100", Says("the service's"), "Instead of the service's."),
        key("idempotent", "`true`, `false`", Says("the service's"), "Instead of the service's."),
    ],
};

/// `eject`.
pub(crate) const EJECT: Section = Section {
    path: "cluster.eject",
    about: "When an endpoint leaves and how it comes back. When all are out, the least bad is tried rather than nothing.",
    keys: &[
        key("connect_failures", "number, 1 to 1000000", Yaml("2"), "Failed connects in a row."),
        key("failures", "number, 1 to 1000000", Yaml("10"), "Failed calls in a row."),
        key("pause", "duration", Yaml("500ms"), "Pause before the first probe; doubles with every failed one."),
        key("max_pause", "duration", Yaml("30s"), "The longest pause."),
    ],
};
