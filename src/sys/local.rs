//! Files of local file systems, with which some things can be done without waiting for anybody.

use std::fs::File;
use std::mem::MaybeUninit;

use super::Result;

pub use platform::Local;

#[cfg(target_os = "linux")]
mod platform {
    use std::fs::Metadata;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::sys::check;

    // The kernel's, as the libc crate has them for some C libraries only.
    const NOATIME: u64 = 0x0400;
    const RELATIME: u64 = 0x1000;

    const DAY: i64 = 24 * 60 * 60;

    /// The file is on a disk or in memory of this machine, and nobody else is asked when it is closed. (A file system of
    /// FUSE is a program, which may be the very one that waits; one of the network may take its time.)
    #[derive(Clone, Copy)]
    pub struct Local {
        notes: Notes,
    }

    /// When the file system takes down that a file was read.
    #[derive(Clone, Copy)]
    enum Notes {
        Never,
        /// Once after each change, and once a day.
        Seldom,
        Always,
    }

    impl Local {
        pub fn of(file: &File) -> Option<Self> {
            let mut status = MaybeUninit::<libc::statfs64>::uninit();
            // SAFETY: the call writes a statfs64 to the pointer, and says so by 0.
            let status = unsafe {
                match libc::fstatfs64(file.as_raw_fd(), status.as_mut_ptr()) {
                    0 => status.assume_init(),
                    _ => return None,
                }
            };
            let local = matches!(
                status.f_type,
                libc::EXT4_SUPER_MAGIC
                    | libc::XFS_SUPER_MAGIC
                    | libc::BTRFS_SUPER_MAGIC
                    | libc::TMPFS_MAGIC
                    | libc::OVERLAYFS_SUPER_MAGIC
            );
            let notes = match status.f_flags as u64 {
                flags if flags & NOATIME != 0 => Notes::Never,
                flags if flags & RELATIME != 0 => Notes::Seldom,
                _ => Notes::Always,
            };
            local.then_some(Local { notes })
        }

        /// read(2) of what the page cache holds; an error where that would mean to wait for a disk, or where there is no
        /// such call. Less than was asked for need not mean the end of the file, nor does 0 (on Linux 5.9 and 5.10).
        pub fn read_cached(
            self,
            file: &File,
            metadata: &Metadata,
            memory: &mut [MaybeUninit<u8>],
        ) -> Result<usize> {
            if self.is_noted(metadata) {
                return Err(crate::sys::Error { errno: libc::EAGAIN });
            }
            let part = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
            // Minus one is the file's own position, in two halves where a register is too small for it.
            let (parts, position): (libc::c_long, libc::c_long) = (1, -1);
            // SAFETY: the one part describes `memory`; both are borrowed for the length of the call. (By its number, as
            // the C library's function is younger than the oldest one that wheels are for.)
            let count = unsafe {
                let (fd, flags) =
                    (libc::c_long::from(file.as_raw_fd()), libc::c_long::from(libc::RWF_NOWAIT));
                libc::syscall(libc::SYS_preadv2, fd, &part, parts, position, position, flags)
            };
            check(count as isize)
        }

        /// Whether a read is taken down now: the kernel may wait for the disk's journal then, come what may.
        fn is_noted(self, metadata: &Metadata) -> bool {
            let read = (metadata.atime(), metadata.atime_nsec());
            let written = (metadata.mtime(), metadata.mtime_nsec());
            let changed = (metadata.ctime(), metadata.ctime_nsec());
            match self.notes {
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
    use std::fs::Metadata;

    use super::*;
    use crate::sys::Error;

    /// Nobody says so here.
    #[derive(Clone, Copy)]
    pub enum Local {}

    impl Local {
        pub fn of(_file: &File) -> Option<Self> {
            None
        }

        pub fn read_cached(self, _: &File, _: &Metadata, _: &mut [MaybeUninit<u8>]) -> Result<usize> {
            Err(Error { errno: libc::ENOSYS })
        }
    }
}
