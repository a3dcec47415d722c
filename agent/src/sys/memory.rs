//! Memory that is not needed any more.

/// Gives back what was used for a moment and is scattered: after loading and after the self-test. Pages of the
/// program itself go too, most of which only a start needs; those that are used come back from the page cache.
pub fn give_memory_back() {
    give_heap_back();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let exe = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    for (from, to) in code(&maps, &exe.to_string_lossy()) {
        // SAFETY: these pages are mapped from the program's file and were never written: the segments before
        // and with its code, which no relocation touches. Dropped, they are read from the file again.
        unsafe {
            libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED);
        }
    }
}

/// Gives back what of the heap is free: after reading what is much larger than what is kept of it.
pub fn give_heap_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Where the read-only segments up to the code of the program `exe` are mapped (proc(5)). What follows the code
/// may have been relocated before it was made read-only.
fn code(maps: &str, exe: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| !exe.is_empty() && line.ends_with(exe)) {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let ends = range.split_once('-').map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)));
        let Some((Ok(from), Ok(to))) = ends else { continue };
        match rights {
            "r--p" => found.push((from, to)),
            "r-xp" => {
                found.push((from, to));
                return found;
            }
            // Something that is written stands before the code: not a layout that is known.
            _ => return Vec::new(),
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_before_and_with_the_code_is_dropped() {
        let maps = "\
1000-2000 r--p 00000000 fe:00 1 /usr/bin/sockmesh
2000-5000 r-xp 00001000 fe:00 1 /usr/bin/sockmesh
5000-6000 r--p 00004000 fe:00 1 /usr/bin/sockmesh
6000-7000 rw-p 00005000 fe:00 1 /usr/bin/sockmesh
7f00-8000 r-xp 00000000 fe:00 2 /lib/libc.so.6
";
        assert_eq!(code(maps, "/usr/bin/sockmesh"), [(0x1000, 0x2000), (0x2000, 0x5000)]);
        assert_eq!(code(maps, "/usr/bin/other"), []);
        assert_eq!(code(maps, ""), []);
        assert_eq!(code("1000-2000 rw-p 0 fe:00 1 /a\n2000-3000 r-xp 0 fe:00 1 /a\n", "/a"), []);
        // And this program goes on without its pages.
        give_memory_back();
        assert_eq!(code("", "/a"), []);
    }
}
