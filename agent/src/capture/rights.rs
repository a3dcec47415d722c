//! Capabilities: what each is needed for, whether this process has it, and what is missing without it.
//!
//! `docs/operate.md` has the same table; a test keeps them one.

/// A capability that some part of the agent needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Right {
    /// As `capabilities(7)` writes it.
    pub name: &'static str,
    bit: u8,
    /// What it is needed for.
    pub purpose: &'static str,
    /// What happens without it.
    pub without: &'static str,
}

/// Loads programs and maps.
pub const BPF: Right =
    Right { name: "CAP_BPF", bit: 39, purpose: "programs and tables in the kernel", without: "no `capture: ebpf`" };
/// Attaches them, marks the agent's sockets, ends connections, writes rules.
pub const NET_ADMIN: Right = Right {
    name: "CAP_NET_ADMIN",
    bit: 12,
    purpose: "hooks of control groups, marks of the agent's own sockets, redirecting rules",
    without: "no `capture: ebpf` and no `capture: iptables`",
};
/// Has programs verified as root's are, and lets them read the kernel's structures.
pub const PERFMON: Right = Right {
    name: "CAP_PERFMON",
    bit: 38,
    purpose: "programs that are verified as root's are; bytes past TCP: `redirect`, `join`",
    without: "no `capture: ebpf`; with `mitigations=off` of the kernel only all bytes by TCP",
};
/// Lets the agent look at the descriptors and namespaces of programs.
pub const SYS_PTRACE: Right = Right {
    name: "CAP_SYS_PTRACE",
    bit: 19,
    purpose: "looking at programs of other users, or with more rights: `redirect: auto`, other network namespaces",
    without: "`redirect: auto` leaves those programs on TCP; in other network namespaces they connect directly",
};
/// Enters network namespaces and mounts file systems.
pub const SYS_ADMIN: Right = Right {
    name: "CAP_SYS_ADMIN",
    bit: 21,
    purpose: "entering other network namespaces (`netns:`, programs that live there), mounting a bpffs",
    without: "programs in other network namespaces connect directly; a bpffs must be mounted already",
};
/// Lets `iptables` open its socket.
pub const NET_RAW: Right = Right {
    name: "CAP_NET_RAW",
    bit: 13,
    purpose: "`capture: iptables` by the program `iptables`",
    without: "rules by `nft` only",
};

/// All of them, the most needed first.
pub const ALL: [Right; 6] = [BPF, NET_ADMIN, PERFMON, SYS_PTRACE, SYS_ADMIN, NET_RAW];

/// How to give a right.
pub const REMEDY: &str = "run as root, or grant it (`AmbientCapabilities=`, `setcap`)";

impl Right {
    /// Whether this process has it, or one that includes it.
    pub fn is_held(&self) -> bool {
        held().is_none_or(|held| self.is_in(held))
    }

    fn is_in(&self, held: u64) -> bool {
        let bit = |right: &Self| 1u64 << right.bit;
        // What was split off CAP_SYS_ADMIN is still part of it.
        let whole = if [BPF.bit, PERFMON.bit].contains(&self.bit) { bit(&SYS_ADMIN) } else { 0 };
        held & (bit(self) | whole) != 0
    }

    /// That it is missing, for the end of a sentence, with the remedy.
    pub fn missing(&self) -> String {
        format!("it takes {}: {REMEDY}", self.name)
    }
}

/// The effective set of this process; none where `/proc` does not tell.
fn held() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_told_apart() {
        assert!(NET_ADMIN.is_in(1 << 12) && !NET_ADMIN.is_in(1 << 21));
        assert!(BPF.is_in(1 << 21) && BPF.is_in(1 << 39) && PERFMON.is_in(1 << 21) && !PERFMON.is_in(1 << 39));
        assert!(!SYS_PTRACE.is_in(1 << 21));
    }

    #[test]
    fn the_page_for_operators_has_every_right() {
        let page = include_str!("../../../docs/operate.md");
        for right in ALL {
            let row = format!("| {} | {} | {} |", right.name, right.purpose, right.without);
            assert!(page.contains(&row), "docs/operate.md lacks: {row}");
        }
    }
}
