//! Files of local file systems, with which some things can be done without waiting for anybody.
//!
//! To ask a file system what it is may be to wait for it: fstatfs(2) is a request where a server or a program (FUSE, which
//! may be the very one that asks) is behind it. So a blocking thread asks, and what it learns is kept under the number of
//! the mount, which the kernel tells itself ([`found`](super::found)), and never gives to another one.

use std::fs::File;
use std::mem::MaybeUninit;

use super::Result;
use super::found::Times;

pub use platform::Local;

#[cfg(target_os = "linux")]
mod platform {
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::sys::check;
    use crate::sys::found;

    // The kernel's, as the libc crate has them for some C libraries only.
    const NOATIME: u64 = 0x0400;
    const RELATIME: u64 = 0x1000;

    const DAY: i64 = 24 * 60 * 60;

    /// What is known of mounts: each has one place, which others may take from it. A number, and in the lowest bits what it
    /// is. Words, and not a lock, which a fork could leave locked for ever.
    static MOUNTS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

    const FOREIGN: u64 = 0;
    const MEMORY: u64 = 1;
    const DISK: u64 = 2;
    const DISK_NOTES_SELDOM: u64 = 3;
    const DISK_NOTES_ALWAYS: u64 = 4;
    /// An overlay, whose layers may be anything, and are asked when a file is opened.
    const LAYERS: u64 = 5;

    fn place_of(mount: u64) -> &'static AtomicU64 {
        &MOUNTS[(mount % MOUNTS.len() as u64) as usize]
    }

    fn remembered(mount: u64) -> Option<u64> {
        let word = place_of(mount).load(Relaxed);
        (mount != 0 && word >> 3 == mount).then_some(word & 7)
    }

    fn remember(mount: u64, kind: u64) {
        let place = place_of(mount);
        // One that is of use keeps its place against one that is not.
        let word = place.load(Relaxed);
        let is_free = word >> 3 == mount || word & 7 == FOREIGN;
        if mount != 0 && (is_free || kind != FOREIGN) {
            place.store(mount << 3 | kind, Relaxed);
        }
    }

    /// The file is on a disk or in memory of this machine, and nobody else is asked when it is closed. (A file system of
    /// FUSE is a program, which may be the very one that waits; one of the network may take its time.)
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Local {
        /// All that there is of the file. It may have been swapped out, as any memory of the program's own.
        Memory,
        Disk(Notes),
    }

    /// When the file system takes down that a file was read.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Notes {
        Never,
        /// Once after each change, and once a day.
        Seldom,
        Always,
    }

    impl Local {
        /// Asks the file system, and remembers what it says. On a blocking thread.
        pub fn of(file: &File) -> Option<Self> {
            // None has the number 0.
            let mount = found::mount(file).unwrap_or(0);
            if remembered(mount) == Some(FOREIGN) {
                return None;
            }
            let mut status = MaybeUninit::<libc::statfs64>::uninit();
            // SAFETY: the call writes a statfs64 to the pointer, and says so by 0.
            let status = unsafe {
                match libc::fstatfs64(file.as_raw_fd(), status.as_mut_ptr()) {
                    0 => status.assume_init(),
                    _ => {
                        remember(mount, FOREIGN);
                        return None;
                    }
                }
            };
            let (notes, disk) = match status.f_flags as u64 {
                flags if flags & NOATIME != 0 => (Notes::Never, DISK),
                flags if flags & RELATIME != 0 => (Notes::Seldom, DISK_NOTES_SELDOM),
                _ => (Notes::Always, DISK_NOTES_ALWAYS),
            };
            // Signed or not, as the C library has it.
            #[allow(clippy::unnecessary_cast)]
            let (local, kind) = match status.f_type as libc::c_long {
                libc::TMPFS_MAGIC => (Some(Local::Memory), MEMORY),
                libc::EXT4_SUPER_MAGIC | libc::XFS_SUPER_MAGIC | libc::BTRFS_SUPER_MAGIC => {
                    (Some(Local::Disk(notes)), disk)
                }
                libc::OVERLAYFS_SUPER_MAGIC => (Some(Local::Disk(notes)), LAYERS),
                _ => (None, FOREIGN),
            };
            remember(mount, kind);
            local
        }

        /// What was remembered of a mount, if nobody is asked when a file there is opened; else whether it is unknown.
        pub fn known(mount: u64) -> std::result::Result<Self, bool> {
            match remembered(mount) {
                Some(MEMORY) => Ok(Local::Memory),
                Some(DISK) => Ok(Local::Disk(Notes::Never)),
                Some(DISK_NOTES_SELDOM) => Ok(Local::Disk(Notes::Seldom)),
                Some(DISK_NOTES_ALWAYS) => Ok(Local::Disk(Notes::Always)),
                known => Err(known.is_none()),
            }
        }

        /// read(2) of what is in memory; an error where that would mean to wait for a disk, or where there is no such call.
        /// Less than was asked for need not mean the end of the file, nor does 0 (on Linux 5.9 and 5.10).
        pub fn read_cached(
            self,
            file: &File,
            times: &Times,
            memory: &mut [MaybeUninit<u8>],
        ) -> Result<usize> {
            let flags = match self {
                // Which does not know the other.
                Local::Memory => 0,
                Local::Disk(notes) if notes.are_due(times) => {
                    return Err(crate::sys::Error { errno: libc::EAGAIN });
                }
                Local::Disk(_) => libc::RWF_NOWAIT,
            };
            let part = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
            // Minus one is the file's own position, in two halves where a register is too small for it.
            let (parts, position): (libc::c_long, libc::c_long) = (1, -1);
            // SAFETY: the one part describes `memory`; both are borrowed for the length of the call. (By its number, as
            // the C library's function is younger than the oldest one that wheels are for.)
            let count = unsafe {
                let (fd, flags) = (libc::c_long::from(file.as_raw_fd()), libc::c_long::from(flags));
                libc::syscall(libc::SYS_preadv2, fd, &part, parts, position, position, flags)
            };
            check(count as isize)
        }
    }

    impl Notes {
        /// Whether a read is taken down now: the kernel may wait for the disk's journal then, come what may.
        fn are_due(self, times: &Times) -> bool {
            let Times { read, written, changed } = *times;
            match self {
                Notes::Never => false,
                Notes::Always => true,
                Notes::Seldom => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
                    read <= written.max(changed) || i64::try_from(now).unwrap_or(i64::MAX) - read.0 >= DAY
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use super::*;
    use crate::sys::Error;

    /// Nobody says so here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Local {}

    impl Local {
        pub fn of(_file: &File) -> Option<Self> {
            None
        }

        pub fn known(_mount: u64) -> std::result::Result<Self, bool> {
            Err(false)
        }

        pub fn read_cached(self, _: &File, _: &Times, _: &mut [MaybeUninit<u8>]) -> Result<usize> {
            Err(Error { errno: libc::ENOSYS })
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::sys::found;

    #[test]
    fn what_a_mount_is_has_to_be_learnt() {
        let (here, proc) = (File::open(".").unwrap(), File::open("/proc").unwrap());
        let Ok(mount) = found::mount(&here) else { return };
        let local = Local::of(&here);
        // An overlay is no more than local.
        assert!(Local::known(mount).ok() == local || Local::known(mount) == Err(false));
        assert_eq!(Local::of(&proc), None);
        assert_eq!(Local::known(found::mount(&proc).unwrap()), Err(false));
        // Another one with the same place.
        assert_eq!(Local::known(mount + 64), Err(true));
        assert_eq!(Local::known(0), Err(true));
    }
}
