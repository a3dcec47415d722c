//! Who else on this host may have sockets in a table of sockets: the kernel gives each to one owner only.

use std::{
    fs,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::programs::{ProgramType, loaded_programs};

/// Number of a program; 0 if the kernel does not tell.
pub(super) fn number(program: BorrowedFd<'_>) -> u32 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
    line.and_then(|id| id.trim().parse().ok()).unwrap_or(0)
}

/// Programs for the messages of sockets besides `own`, for operators: number, name, and the process that holds it.
/// Looks at the descriptors of every process: for rare use.
pub(super) fn others(own: u32) -> String {
    let others: Vec<_> = loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| program.program_type() == ProgramType::SkMsg.into() && program.id() != own)
        .map(|program| {
            let name = program.name_as_str().unwrap_or("without a name").to_owned();
            match holder(program.id()) {
                Some(pid) => format!("program {} ({name}) of process {pid}", program.id()),
                None => format!("program {} ({name})", program.id()),
            }
        })
        .collect();
    if others.is_empty() { "unknown (seeing them takes CAP_SYS_ADMIN)".to_owned() } else { others.join(", ") }
}

/// A process with a descriptor of program number `id`.
fn holder(id: u32) -> Option<u32> {
    let wanted = format!("prog_id:\t{id}\n");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let descriptors = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        let mut programs = descriptors.filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to.to_str().is_some_and(|to| to.contains("bpf-prog")))
        });
        let holds = |fd: fs::DirEntry| {
            let info = entry.path().join("fdinfo").join(fd.file_name());
            fs::read_to_string(info).is_ok_and(|info| info.contains(&wanted))
        };
        programs.any(holds).then_some(pid)
    })
}
