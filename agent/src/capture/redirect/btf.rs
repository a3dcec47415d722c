//! Where fields lie in the running kernel's structures, from the type information that the kernel carries
//! (`/sys/kernel/btf/vmlinux`, Linux 5.4 with `CONFIG_DEBUG_INFO_BTF`).

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use ebpf_common::Offsets;

/// The running kernel's type information.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// The offsets that the programs need, from the file at `path`. An error names what is missing.
pub fn offsets(path: &Path) -> anyhow::Result<Offsets> {
    let raw = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let types = Types::parse(&raw).with_context(|| path.display().to_string())?;
    let field = |of: &str, path: &[&str]| {
        types.field(of, path).with_context(|| format!("this kernel has no field {of}.{}", path.join(".")))
    };
    let mut found = Offsets {
        sockets: 1,
        rmem_alloc: field("sock", &["sk_backlog", "rmem_alloc"])?,
        copied_seq: field("tcp_sock", &["copied_seq"])?,
        write_seq: field("tcp_sock", &["write_seq"])?,
        ..Offsets::default()
    };
    let executables = || -> anyhow::Result<Offsets> {
        Ok(Offsets {
            executables: 1,
            mm: field("task_struct", &["mm"])?,
            exe_file: field("mm_struct", &["exe_file"])?,
            f_inode: field("file", &["f_inode"])?,
            i_ino: field("inode", &["i_ino"])?,
            i_generation: field("inode", &["i_generation"])?,
            i_sb: field("inode", &["i_sb"])?,
            s_dev: field("super_block", &["s_dev"])?,
            ..found
        })
    };
    match executables() {
        Ok(all) => found = all,
        // Then every executable is unknown, and `auto` redirects none of them.
        Err(error) => tracing::warn!(error = format!("{error:#}"), "program files cannot be told apart"),
    }
    Ok(found)
}

struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; number 0 stands for `void`.
    starts: Vec<u32>,
}

impl<'a> Types<'a> {
    fn parse(raw: &'a [u8]) -> anyhow::Result<Self> {
        let short = || anyhow::anyhow!("the type information is cut short");
        let head = |at: usize| word(raw, at).ok_or_else(short);
        if raw.get(..2).map(|m| u16::from_ne_bytes([m[0], m[1]])) != Some(MAGIC) {
            bail!("no type information of this machine's byte order");
        }
        let part = |start: usize, len: usize| raw.get(start..start.checked_add(len)?);
        let header = head(4)? as usize;
        let types = part(header + head(8)? as usize, head(12)? as usize).ok_or_else(short)?;
        let strings = part(header + head(16)? as usize, head(20)? as usize).ok_or_else(short)?;
        let mut this = Self { types, strings, starts: vec![0] };
        let mut at = 0;
        while at < types.len() {
            this.starts.push(at as u32);
            let (kind, members) = this.info(at).ok_or_else(short)?;
            at += 12
                + match kind {
                    // Integer, variable, tag of a declaration.
                    1 | 14 | 17 => 4,
                    // Array.
                    3 => 12,
                    // Structure, union, section of data, enumeration of 64 bits.
                    STRUCT | UNION | 15 | 19 => 12 * members,
                    // Enumeration, prototype.
                    6 | 13 => 8 * members,
                    // Pointer, forward, names, qualifiers, function, floating point, tag of a type.
                    2 | 7..=12 | 16 | 18 => 0,
                    other => bail!("type information of kind {other}, which this version does not know"),
                };
        }
        Ok(this)
    }

    fn info(&self, at: usize) -> Option<(u32, usize)> {
        let info = word(self.types, at + 4)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn name(&self, at: usize) -> Option<&'a [u8]> {
        let rest = self.strings.get(word(self.types, at)? as usize..)?;
        rest.split(|b| *b == 0).next()
    }

    /// Byte offset of the field reached by `path` in the structure called `of`.
    fn field(&self, of: &str, path: &[&str]) -> Option<u32> {
        let mut at = self.starts.iter().skip(1).map(|at| *at as usize).find(|at| {
            matches!(self.info(*at), Some((STRUCT, members)) if members > 0) && self.name(*at) == Some(of.as_bytes())
        })?;
        let mut offset = 0;
        for (i, name) in path.iter().enumerate() {
            let (bits, kind) = self.member(at, name.as_bytes(), 0)?;
            offset += bits;
            if i + 1 < path.len() {
                at = *self.starts.get(kind as usize)? as usize;
            }
        }
        (offset % 8 == 0).then_some(offset / 8)
    }

    /// Offset in bits and type of the member called `name`, also one of an unnamed structure inside.
    fn member(&self, at: usize, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let (kind, members) = self.info(at)?;
        if !matches!(kind, STRUCT | UNION) || depth > 8 {
            return None;
        }
        // With this bit set the upper byte of an offset is the width of a bit field.
        let has_widths = word(self.types, at + 4)? >> 31 != 0;
        (0..members).find_map(|i| {
            let here = at + 12 + i * 12;
            let (kind, offset) = (word(self.types, here + 4)?, word(self.types, here + 8)?);
            let offset = if has_widths { offset & 0x00ff_ffff } else { offset };
            match self.name(here)? {
                found if found == name => Some((offset, kind)),
                [] => {
                    let inner = *self.starts.get(kind as usize)? as usize;
                    self.member(inner, name, depth + 1).map(|(more, kind)| (offset + more, kind))
                }
                _ => None,
            }
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(found.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; struct { int b; }; struct inner { int c; int d; } in; }`
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0inner\0a\0b\0c\0d\0in\0";
        let name = |s: &str| {
            let s = format!("\0{s}\0");
            strings.windows(s.len()).position(|w| w == s.as_bytes()).unwrap() as u32 + 1
        };
        let structure = |members: u32| STRUCT << 24 | members;
        let types: Vec<u32> = [
            vec![name("int"), 1 << 24, 4, 32],
            vec![name("inner"), structure(2), 8, name("c"), 1, 0, name("d"), 1, 32],
            vec![0, structure(1), 4, name("b"), 1, 0],
            vec![name("outer"), structure(3), 16, name("a"), 1, 0, 0, 3, 32, name("in"), 2, 64],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut raw = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            raw.extend(word.to_ne_bytes());
        }
        [raw, types, strings.to_vec()].concat()
    }

    #[test]
    fn finds_fields_also_in_unnamed_and_inner_structures() {
        let raw = sample();
        let types = Types::parse(&raw).unwrap();
        assert_eq!(types.field("outer", &["a"]), Some(0));
        assert_eq!(types.field("outer", &["b"]), Some(4));
        assert_eq!(types.field("outer", &["in", "d"]), Some(12));
        assert_eq!(types.field("outer", &["d"]), None);
        assert_eq!(types.field("nothing", &["a"]), None);
        assert_eq!(types.field("int", &["a"]), None);
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let raw = sample();
        for len in 0..raw.len() {
            if let Ok(types) = Types::parse(&raw[..len]) {
                types.field("outer", &["in", "d"]);
            }
        }
        assert!(Types::parse(&raw[..40]).is_err());
        assert!(Types::parse(b"garbage").is_err());
    }

    #[test]
    fn this_kernel_has_them() {
        if !Path::new(VMLINUX).exists() {
            println!("SKIPPED: this_kernel_has_them: no {VMLINUX}");
            assert!(std::env::var("REQUIRE_ALL").is_err(), "may not be skipped");
            return;
        }
        let found = offsets(Path::new(VMLINUX)).unwrap();
        assert_eq!((found.sockets, found.executables), (1, 1));
        assert!(found.write_seq != 0 && found.copied_seq != found.write_seq, "{found:?}");
    }
}
