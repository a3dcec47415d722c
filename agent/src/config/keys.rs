//! The table of keys: the one source for what is known, what is suggested and what `docs/config.md` says.

mod calls;

/// One mapping of the file.
#[derive(Debug)]
pub(crate) struct Section {
    /// Where it stands, e.g. `referers[]`; empty for the top.
    pub path: &'static str,
    /// What it is about: the text above its table.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    pub name: &'static str,
    /// Type and unit, for people.
    pub ty: &'static str,
    pub default: Absent,
    pub meaning: &'static str,
}

/// What holds when the key is absent.
#[derive(Debug)]
pub(crate) enum Absent {
    /// The key must be there.
    Required,
    /// As if this YAML stood there. A test compares it with the code.
    Yaml(&'static str),
    /// Told in words.
    Says(&'static str),
}

pub(crate) use self::calls::{CALLER, CLUSTER, EJECT, METHOD, SERVICE};
use Absent::{Required, Says, Yaml};

const fn key(name: &'static str, ty: &'static str, default: Absent, meaning: &'static str) -> Key {
    Key { name, ty, default, meaning }
}

/// The top of the file.
pub(crate) const TOP: Section = Section {
    path: "",
    about: "The top of the file. All keys are optional.",
    keys: &[
        key(
            "name",
            "name",
            Yaml("sockmesh"),
            "Name of this agent on its host. Pins and the lock carry it, so two agents on one host need two names. At most 32 letters, digits, `-`, `_`.",
        ),
        key("application", "name", Yaml("sockmesh"), "Application name told to callees when the caller names none."),
        key("threads", "number, 1 to 1024", Says("number of CPUs"), "Threads that carry traffic."),
        key("drain", "duration", Yaml("10s"), "How long a stop waits for calls in flight before it cuts them."),
        key(
            "advertise",
            "address",
            Says("the address of this host that the default route leaves from"),
            "Address told to callers of the services that are registered.",
        ),
        key("zone", "name", Yaml("\"\""), "Failure domain that this host is in."),
        key(
            "snapshots",
            "path",
            Says("none"),
            "Folder for lists of endpoints, one file per service and group, used when a registry does not answer at start. Made if it is missing.",
        ),
        key("hold_back", "mapping", Says("see below"), "When a list that a registry says is not believed at once."),
        key(
            "start_unavailable",
            "boolean",
            Yaml("false"),
            "Registered services are told as unavailable after a start, until `sockmesh registrations --set available`.",
        ),
        key("ports", "mapping", Says("see below"), "Ports of the agent itself."),
        key(
            "capture",
            "word or mapping",
            Yaml("auto"),
            "How connections come to the agent: `auto`, `ebpf`, `iptables` or `port`, or the mapping below.",
        ),
        key("limits", "mapping", Says("see below"), "Protection of the agent from its peers."),
        key("access_log", "mapping", Says("see below"), "Where the lines of the filter `access_log` go."),
        key("graphite", "list of mappings", Yaml("[]"), "Servers that are sent figures each interval."),
        key("series", "mapping", Says("see below"), "How many series there may be in `/metrics` and towards Graphite."),
        key("center", "mapping", Says("none"), "The governance centre that this agent reports to."),
        key("pidfile", "path", Says("none"), "File that holds the number of the process while the agent runs."),
        key(
            "runtime_dir",
            "path",
            Says("none"),
            "Folder for what management calls told the agent: whether it is available, and services registered and subscribed. Read at a start with `--recover`.",
        ),
        key("switchers", "mapping of booleans", Yaml("{}"), "Switchers that exist from the start, and how they stand."),
        key(
            "registries",
            "mapping",
            Yaml("{}"),
            "Sources of endpoint lists: a name of your choice, then the keys below.",
        ),
        key(
            "http_proxy",
            "mapping",
            Says("none"),
            "An HTTP forward proxy that sends requests of some domains as Motan2 calls.",
        ),
        key("referers", "list", Yaml("[]"), "Services that local programs call."),
        key("services", "list", Yaml("[]"), "Services that local programs provide."),
    ],
};

/// `ports`.
pub(crate) const PORTS: Section = Section {
    path: "ports",
    about: "Ports of the agent itself. 0 takes a free one.",
    keys: &[
        key("outbound", "port", Yaml("15001"), "Captured outbound connections arrive here, on 127.0.0.1 and [::1]."),
        key("inbound", "port", Yaml("15006"), "Captured inbound connections arrive here."),
        key(
            "dns",
            "port",
            Yaml("15053"),
            "Questions for names arrive here, on loopback, UDP and TCP. If it is taken, names are off.",
        ),
        key("admin", "address with port", Yaml("127.0.0.1:8002"), "Admin API and `/metrics`."),
        key(
            "admin_range",
            "first and last port",
            Says("none"),
            "The first free one of these is taken instead of that of `admin`, as `8002-8010`.",
        ),
        key(
            "admin_socket",
            "absolute path",
            Says("none"),
            "The admin API listens at this unix socket instead of `admin`. A file that is there is removed.",
        ),
        key(
            "forward",
            "address with port",
            Says("none"),
            "Programs dial services here that are subscribed by management calls. Referers with the same `listen` share it.",
        ),
        key(
            "reverse",
            "address with port",
            Says("none"),
            "Services that are registered by management calls are exported here, from the first one on.",
        ),
        key("motan_management", "boolean", Yaml("false"), "The admin API answers `docs/motan.md`'s calls as well."),
        key("debug_pages", "boolean", Yaml("false"), "With them, the pages below `/debug`, see `docs/motan.md`."),
    ],
};

/// `capture`.
pub(crate) const CAPTURE: Section = Section {
    path: "capture",
    about: "How connections come to the agent. `capture: ebpf` is short for `capture: {mode: ebpf}`.",
    keys: &[
        key(
            "mode",
            "`auto`, `ebpf`, `iptables`, `port`",
            Yaml("auto"),
            "`ebpf`: connect hooks, and the agent does not start without them. `iptables`: rules that redirect connects, without a bypass when the agent is gone. `port`: programs dial the `listen` addresses. `auto`: the first of these that the host can.",
        ),
        key("enroll", "list of mappings", Yaml("[]"), "Whose connections are captured. Nobody's by default."),
        key(
            "root",
            "absolute path",
            Says("root of the mount of cgroup v2"),
            "Control group to which programs are attached for entries with `uid` or `netns`. Processes elsewhere are not captured by those.",
        ),
        key(
            "stale_after",
            "duration, 200ms to 1m",
            Yaml("900ms"),
            "Connects go directly when the agent showed no life for this long. It shows some every 100 ms.",
        ),
        key(
            "max_connections",
            "number, 1024 to 4194304",
            Yaml("65536"),
            "Room in the kernel's tables, in connections.",
        ),
        key("bpffs", "absolute path", Yaml("/sys/fs/bpf"), "Where bpffs is mounted, or will be."),
        key(
            "dns",
            "boolean",
            Yaml("true"),
            "With `ebpf`: services have names under `.mesh` for enrolled programs, and those without `address` get a virtual one.",
        ),
        key(
            "iptables",
            "`auto`, `iptables`, `nft`",
            Yaml("auto"),
            "Which program writes the rules of the mode `iptables`. `auto`: `nft` where the host can, else `iptables`.",
        ),
        key("exempt", "mapping", Says("nothing"), "What the rules of the mode `iptables` leave alone."),
        key(
            "redirect",
            "`auto`, `on`, `off`",
            Yaml("auto"),
            "Whether bytes between a captured program and the agent go from socket to socket, past TCP. `auto`: for programs known not to notice. `off` holds for the next byte.",
        ),
    ],
};

/// `capture.enroll[]`.
pub(crate) const ENROLL: Section = Section {
    path: "capture.enroll[]",
    about: "Whose connections are captured: exactly one of the first four in each entry.",
    keys: &[
        key(
            "cgroup",
            "absolute path",
            Says("another of the four"),
            "Every process in this control group (v2) and the groups below it. With `*`, `?` (within a name) or `**` (any number of names), every group that matches, also one that comes later; never a login session.",
        ),
        key(
            "unit",
            "name of a systemd unit",
            Says("another of the four"),
            "Every process of this unit, also when it starts later. `.service` is understood; `*` and `?` match within the name, but never a login session.",
        ),
        key(
            "uid",
            "number",
            Says("another of the four"),
            "Every process of this user below `capture.root`, by the number in the initial user namespace.",
        ),
        key(
            "netns",
            "absolute path",
            Says("another of the four"),
            "Every process below `capture.root` in the network namespace of this file, as `/run/netns/shop` or `/proc/123/ns/net`.",
        ),
        key(
            "redirect",
            "`auto`, `on`, `off`",
            Says("as `capture.redirect`"),
            "Whether bytes between these programs and the agent go from socket to socket. Holds for connections from now on; `capture.redirect: off` goes before it.",
        ),
        key(
            "join",
            "boolean",
            Yaml("false"),
            "Whether connections of these programs to services with `path: kernel` are joined to endpoints on this host that are enrolled as well: bytes go from program to program, past TCP and past the agent. Programs can notice, see `docs/kernel.md`.",
        ),
    ],
};

/// `capture.exempt`.
pub(crate) const EXEMPT: Section = Section {
    path: "capture.exempt",
    about: "What the rules of the mode `iptables` leave alone, besides the agent's own connections. A service's address that is exempt is reached directly.",
    keys: &[
        key("ports", "list of ports", Yaml("[]"), "Destination ports."),
        key("networks", "list of networks", Yaml("[]"), "Destinations, like `10.0.0.0/8` or `fd00::/8`."),
        key("uids", "list of numbers", Yaml("[]"), "Users whose programs connect."),
        key("gids", "list of numbers", Yaml("[]"), "Groups whose programs connect."),
    ],
};

/// `limits`.
pub(crate) const LIMITS: Section = Section {
    path: "limits",
    about: "Protection of the agent from its peers.",
    keys: &[
        key(
            "connections",
            "number, 1 to 1000000",
            Yaml("8192"),
            "Connections held at once, all listeners together. Above it accepting pauses.",
        ),
        key(
            "reserved_descriptors",
            "number, 0 to 65536",
            Yaml("64"),
            "File descriptors kept free, so that admin answers and logs rotate in a shortage.",
        ),
        key("header_bytes", "size, 1KiB to 16MiB", Yaml("64KiB"), "Head of an HTTP request."),
        key("header_timeout", "duration", Yaml("10s"), "Time to receive a complete HTTP head."),
        key("content_bytes", "size, 1KiB to 1GiB", Yaml("10MiB"), "Motan2 metadata and body, each."),
        key(
            "calls_per_connection",
            "number, 1 to 1000000",
            Yaml("1024"),
            "Calls in flight on one multiplexed connection. Above it reading pauses.",
        ),
        key(
            "detect_timeout",
            "duration",
            Yaml("200ms"),
            "How long the first bytes of an undeclared protocol may dribble before the connection is taken for TCP.",
        ),
        key(
            "idle_timeout",
            "duration, 0s for never",
            Yaml("1h"),
            "A connection without a byte in either direction for this long is closed.",
        ),
    ],
};

/// `access_log`.
pub(crate) const ACCESS_LOG: Section = Section {
    path: "access_log",
    about: "Where the lines of the filter `access_log` go.",
    keys: &[
        key("path", "path", Says("standard output"), "The file. Opened again on SIGHUP."),
        key(
            "buffer_lines",
            "number, 1 to 1000000",
            Yaml("5000"),
            "Lines waiting for the disk. Further ones are dropped and counted.",
        ),
        key(
            "rotate",
            "`never`, `hourly`",
            Yaml("never"),
            "`hourly`: the file of an hour that is over becomes `NAME-YYYYMMDD-HH.log`. Nothing is deleted.",
        ),
    ],
};

/// `graphite[]`.
pub(crate) const GRAPHITE: Section = Section {
    path: "graphite[]",
    about: "A server that is sent figures each interval: by service, group, method and side, those of the methods where the filter `metrics` is on.",
    keys: &[
        key("address", "`HOST:PORT`", Required, "Where it listens. A name is looked up again with each connection."),
        key(
            "form",
            "`plain`, `motan`",
            Yaml("plain"),
            "`plain`: Carbon's line protocol over TCP. `motan`: what motan-go sends over UDP, so that its dashboards go on.",
        ),
        key(
            "prefix",
            "name with dots",
            Yaml("\"sockmesh.{host}.{application}\""),
            "`plain`: what every name begins with. `{host}`, `{application}` and `{name}` stand for this agent's.",
        ),
        key("interval", "duration, 100ms to 1h", Says("10s; 5s with `motan`"), "How often."),
        key(
            "queue",
            "number, 100 to 1000000",
            Yaml("10000"),
            "`plain`: lines that wait while the server does not take them. Beyond it the oldest are dropped and counted.",
        ),
    ],
};

/// `center`.
pub(crate) const CENTER: Section = Section {
    path: "center",
    about: "The governance centre that this agent reports to. To register services there as well, give them a registry of the kind `center`.",
    keys: &[
        key(
            "address",
            "`HOST:PORT` or a list of them",
            Required,
            "Where centres listen, with `https://` before it for TLS. Each of them is told what this agent counts; without a port it is 7480.",
        ),
        key("token", "text", Says("none"), "Proves to the centre who this agent is."),
        key("token_file", "path", Says("none"), "File that holds the token, instead of `token`."),
        key(
            "ca_file",
            "path",
            Says("those of the host, or of the file in the environment variable `SSL_CERT_FILE`"),
            "PEM file of the certificates that centres with `https://` are believed by. Read at the start.",
        ),
        key("report", "duration, 500ms to 30s", Yaml("2s"), "How often it is told what this agent counts. 0s: never."),
    ],
};

/// `series`.
pub(crate) const SERIES: Section = Section {
    path: "series",
    about: "How many series there may be. `/metrics` says how much of it is used.",
    keys: &[
        key(
            "methods",
            "number, 1 to 1000000",
            Yaml("2000"),
            "Methods of all services together that are counted by themselves; further ones run under `other`.",
        ),
        key(
            "endpoints",
            "number, 0 to 1000000",
            Yaml("1000"),
            "Endpoints with series in `/metrics`: those that are out or were called first.",
        ),
        key(
            "idle",
            "duration",
            Yaml("1h"),
            "A method that nobody called for this long is forgotten; its counters begin at 0 when it comes back. 0s means never.",
        ),
    ],
};

/// `hold_back`.
pub(crate) const HOLD_BACK: Section = Section {
    path: "hold_back",
    about: "When a list that a registry says is not believed at once. The endpoints of before stay beside the new ones until it is confirmed: by a second look, by `sockmesh confirm SERVICE`, or by a list that is whole again.",
    keys: &[
        key(
            "shrunk_percent",
            "number, 1 to 100",
            Yaml("70"),
            "A list that lost more than this share of its endpoints is held.",
        ),
        key(
            "shrunk_after",
            "duration, 0s for never",
            Yaml("60s"),
            "A shrunken list is believed when the registry still says it after this time.",
        ),
        key("empty_after", "duration, 0s for never", Yaml("0s"), "The same for an empty list."),
    ],
};

/// `registries.*`.
pub(crate) const REGISTRY: Section = Section {
    path: "registries.*",
    about: "One source of endpoint lists, under a name of your choice. Other keys are options of the kind: `direct` has `instances` (a list of endpoints), `file` has `path` (a YAML or JSON file, watched).",
    keys: &[key(
        "kind",
        "`center`, `consul`, `direct`, `dns`, `etcd`, `file`, `mesh`, `nacos`, `zookeeper`",
        Required,
        "Which kind of registry.",
    )],
};

/// `referers[]`, besides [`CLUSTER`].
pub(crate) const REFERER: Section = Section {
    path: "referers[]",
    about: "A service that local programs call. Programs reach it by `address` (captured), by `listen` (dialed), or both. Every key of a cluster (below) can stand here as well.",
    keys: &[
        key("service", "name", Required, "Interface path or service name."),
        key("group", "name", Yaml("\"\""), "Only instances of this group, or of none, are taken."),
        key("version", "name", Yaml("\"\""), "Only instances of this version, or of none, are taken."),
        key(
            "protocol",
            "`motan2`, `http`, `tcp`",
            Says("detected"),
            "What programs speak. Detected from the first bytes when absent.",
        ),
        key(
            "address",
            "address or list",
            Yaml("[]"),
            "Destinations captured for this service; they need not exist anywhere. An IP without port means every port. Quote IPv6 with port: `\"[fd00::1]:80\"`.",
        ),
        key(
            "listen",
            "address with port, or `unix:/PATH`",
            Says("none"),
            "The agent listens here, and programs dial it. Several referers can share one if all declare `motan2`, or all `http`. The file of a unix socket is removed first; its mode follows the agent's umask.",
        ),
        key(
            "on_agent_loss",
            "`direct`, `refuse`",
            Yaml("direct"),
            "What happens to captured connects when the agent is gone: they go where the program asked, or are refused.",
        ),
        key(
            "path",
            "`agent`, `kernel`",
            Yaml("agent"),
            "Who is on the way of captured connections. `kernel`: nobody; the connect hook picks an endpoint by weight and the program is connected to it. Needs `protocol: tcp` and `address`.",
        ),
        key(
            "allow",
            "list of mappings",
            Yaml("[]"),
            "`path: kernel`: who may connect, by the keys below. Everyone when empty.",
        ),
        key(
            "deny",
            "list of mappings",
            Yaml("[]"),
            "`path: kernel`: who may not connect, whatever `allow` says. Their connects fail with EPERM.",
        ),
        key(
            "registry",
            "name or list",
            Yaml("[]"),
            "Names under `registries` to ask for endpoints; lists are merged in this order.",
        ),
        key("endpoints", "list", Yaml("[]"), "Endpoints written here: `IP:PORT`, or the mapping below."),
        key(
            "mix_groups",
            "name or list",
            Yaml("[]"),
            "Groups used together instead of `group` while no command says otherwise. `idc-a:3` gives a group a weight, 1 to 100.",
        ),
        key(
            "application",
            "name",
            Says("the agent's"),
            "Application name told to callees of this service when the caller names none.",
        ),
    ],
};

/// `http_proxy`.
pub(crate) const HTTP_PROXY: Section = Section {
    path: "http_proxy",
    about: "An HTTP forward proxy (`docs/wire/http-mesh.md`). Requests of the domains below become Motan2 calls of referers that declare `protocol: motan2`; all others go where they say as plain HTTP.",
    keys: &[
        key("listen", "address with port, or `unix:/PATH`", Required, "Programs dial this."),
        key("default_domain", "name", Says("none"), "Domain of requests whose host is none of `domains`."),
        key(
            "timeout",
            "duration",
            Yaml("5s"),
            "Requests that go on as plain HTTP: time to connect, and time to the head of the answer.",
        ),
        key(
            "keep_alive",
            "duration, 0s for never",
            Yaml("5s"),
            "The same: how long an idle connection to a server is kept.",
        ),
        key("body_bytes", "size, 1KiB to 1GiB", Yaml("10MiB"), "Largest body of a request that becomes a call."),
        key("domains", "list of mappings", Yaml("[]"), "Domains whose requests become calls."),
    ],
};

/// `http_proxy.domains[]`.
pub(crate) const HTTP_DOMAIN: Section = Section {
    path: "http_proxy.domains[]",
    about: "A domain whose requests become calls.",
    keys: &[
        key("domain", "name", Required, "Its name as in `Host`, without a port."),
        key("group", "name", Yaml("\"\""), "Group of its services."),
        key("locations", "list of mappings", Yaml("[]"), "Which service a path belongs to."),
    ],
};

/// `http_proxy.domains[].locations[]`.
pub(crate) const HTTP_LOCATION: Section = Section {
    path: "http_proxy.domains[].locations[]",
    about: "Paths of one service. Exact ones go first, then patterns in this order, then the longest start.",
    keys: &[
        key("match", "text", Required, "What paths are compared with."),
        key("type", "`exact`, `regexp`, `iregexp`, `start`", Yaml("start"), "How."),
        key("service", "name", Required, "A referer that declares `protocol: motan2`."),
    ],
};

/// An endpoint as a mapping.
pub(crate) const INSTANCE: Section = Section {
    path: "endpoint",
    about: "An endpoint as a mapping: in `endpoints`, in the `instances` of a `direct` registry, and in the file of a `file` registry. `IP:PORT` is short for `{address: IP:PORT}`.",
    keys: &[
        key("address", "address with port", Required, "Where it listens."),
        key(
            "weight",
            "number, 0 to 10000",
            Yaml("10"),
            "Share of calls relative to its siblings. 0 takes it out without forgetting it.",
        ),
        key("group", "name", Yaml("\"\""), "Group it belongs to. Empty: the group that was asked for."),
        key("zone", "name", Yaml("\"\""), "Failure domain."),
        key("version", "name", Yaml("\"\""), "Version it runs. Empty: any."),
        key("metadata", "mapping of texts", Yaml("{}"), "Whatever else is known about it."),
    ],
};

/// The file of a registry of kind `file`.
pub(crate) const FILE: Section = Section {
    path: "file",
    about: "The file of a `file` registry, in YAML or JSON. Agents that register services or write commands into it write it anew, without its comments; a lock beside it (`NAME.lock`) lets one do so at a time.",
    keys: &[
        key("services", "mapping of lists", Required, "Endpoints by service name: `IP:PORT`, or the mapping above."),
        key(
            "unavailable",
            "mapping of lists",
            Yaml("{}"),
            "The same for endpoints that are registered, but that callers must not use.",
        ),
        key("commands", "mapping", Yaml("{}"), "Commands, by the keys below."),
    ],
};

/// `commands` in that file.
pub(crate) const FILE_COMMANDS: Section = Section {
    path: "file.commands",
    about: "Commands in the file of a `file` registry: each a text as Motan's clients read it, or the mapping that it would be (`{clientCommandList: [...]}`).",
    keys: &[
        key("groups", "mapping", Yaml("{}"), "By group: for all of its services."),
        key("agents", "mapping", Yaml("{}"), "By application: for its agents. They go before those of groups."),
    ],
};

/// All sections, in the order of the docs.
pub(crate) const SECTIONS: &[&Section] = &[
    &TOP,
    &PORTS,
    &CAPTURE,
    &ENROLL,
    &EXEMPT,
    &LIMITS,
    &ACCESS_LOG,
    &GRAPHITE,
    &SERIES,
    &CENTER,
    &HOLD_BACK,
    &REGISTRY,
    &HTTP_PROXY,
    &HTTP_DOMAIN,
    &HTTP_LOCATION,
    &REFERER,
    &CALLER,
    &SERVICE,
    &CLUSTER,
    &METHOD,
    &EJECT,
    &INSTANCE,
    &FILE,
    &FILE_COMMANDS,
];

/// Every mapping of the file with a table of its keys in Markdown, as in `docs/config.md`: path, text.
pub fn tables() -> impl Iterator<Item = (&'static str, String)> {
    SECTIONS.iter().map(|section| {
        let mut text = format!("{}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n", section.about);
        for key in section.keys {
            let default = match key.default {
                Required => "must be given".to_owned(),
                Yaml(yaml) => format!("`{yaml}`"),
                Says(words) => words.to_owned(),
            };
            text += &format!("| `{}` | {} | {default} | {} |\n", key.name, key.ty, key.meaning);
        }
        (section.path, text)
    })
}
