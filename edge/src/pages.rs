//! Memory that a start leaves behind: pages of the program itself.
//!
//! A start runs through code that is not needed again: options, configuration, the compiler of rules, TLS set-up. Of a static file the kernel maps sixteen
//! pages around each that is touched, and all of it counts as this process's memory for as long as it lives: 8 MiB of 10. Unmapping it costs
//! nothing: what is needed comes back from the page cache, one fault for sixteen pages, and on a machine with little memory it is the first
//! thing to be dropped anyway.

use rustix::mm::{Advice, madvise};
use std::ffi::c_void;
use std::path::Path;

/// Unmaps the pages of the program's own code and constants; those that are used come back by themselves.
pub(crate) fn drop_unused() {
    // Without /proc they stay.
    let (Ok(maps), Ok(program)) = (std::fs::read_to_string("/proc/self/maps"), std::env::current_exe())
    else {
        return;
    };
    for (start, bytes) in maps.lines().filter_map(|line| constant(line, &program)) {
        #[allow(unsafe_code, reason = "std has no way to unmap")]
        // SAFETY: a private mapping of a file that this process cannot write to, and has not written to: each page is read anew from
        // the file, which cannot change while it runs (ETXTBSY), when it is touched.
        let unmapped = unsafe { madvise(start as *mut c_void, bytes, Advice::LinuxDontNeed) };
        if unmapped.is_err() {
            return; // They stay.
        }
    }
}

/// Start and length of a mapping of the program's file that nobody has ever written to: its code, and its constants, with which the file
/// begins. (What is read-only further on was written to by the loader, and made read-only then.)
fn constant(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (rights, offset) = (words.next()?, words.next()?);
    let path = words.nth(2)?;
    let is_constant = rights == "r-xp" || (rights == "r--p" && offset.bytes().all(|digit| digit == b'0'));
    let address = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    (is_constant && Path::new(path) == program && start < end).then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_map_only_what_was_never_written_is_taken() {
        let program = Path::new("/usr/bin/ferrule-edge");
        for (line, wanted) in [
            ("1000-3000 r--p 00000000 fe:00 12 /usr/bin/ferrule-edge", Some((0x1000, 0x2000))),
            ("3000-8000 r-xp 00002000 fe:00 12    /usr/bin/ferrule-edge", Some((0x3000, 0x5000))),
            ("8000-9000 r--p 00007000 fe:00 12 /usr/bin/ferrule-edge", None),
            ("9000-a000 rw-p 00008000 fe:00 12 /usr/bin/ferrule-edge", None),
            ("b000-c000 r-xp 00000000 fe:00 13 /lib/libc.so.6", None),
            ("d000-e000 r-xp 00000000 00:00 0  [vdso]", None),
            ("e000-f000 rw-p 00000000 00:00 0", None),
            ("", None),
        ] {
            assert_eq!(constant(line, program), wanted, "{line}");
        }
        drop_unused();
        // Everything is there still.
        assert_eq!(constant("", program), None);
    }
}
