//! Finding and opening a file without waiting for anybody, where all that it takes is in the kernel's memory.
//!
//! A path is followed as far as the kernel has it cached (RESOLVE_CACHED), and the file taken hold of without being opened
//! (O_PATH): to open one of a file server or of FUSE is to ask somebody, to open a FIFO or a device has effects. What it
//! is and on which mount the kernel then says without asking anybody either (AT_STATX_DONT_SYNC; file systems that ask
//! all the same don't have names looked up from memory alone). If it is a regular file of a mount that is known as local,
//! it is opened by its descriptor's name in /proc: whatever lies under its own name by then, it is this file.
//!
//! What may still wait: the root of a mount of 9P or SMB, which has no name to be looked up; and whoever has told the kernel
//! to be asked, an on-access scanner (fanotify) or a measurement (IMA). So none of this is done with the GIL held.

use std::fs::{File, Metadata};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::local::Local;
use super::{Error, Result};

#[cfg(target_os = "linux")]
pub use platform::mount;
use platform::open;
pub use platform::{find, learn, make_ordinary};

/// A file that was found, but is not open.
pub struct Found {
    place: File,
    status: Status,
}

struct Status {
    mount: u64,
    size: u64,
    /// A regular file whose contents lie on the disk as they are: the keys or the proof of others may have to be fetched.
    is_plain: bool,
}

/// Something was found on a mount of which nothing is known: who has to do with it anyway may learn it.
static UNKNOWN: AtomicBool = AtomicBool::new(false);

impl Found {
    pub fn size(&self) -> u64 {
        self.status.size
    }

    /// Opens it for reading; EAGAIN where that would mean to wait, or to open anything but a local file.
    pub fn open(&self) -> Result<(File, Local)> {
        match self.local()? {
            local if self.status.is_plain => Ok((open(&self.place)?, local)),
            _ => Err(Error { errno: libc::EAGAIN }),
        }
    }

    /// EAGAIN where that would mean to wait.
    pub fn metadata(&self) -> Result<Metadata> {
        self.local()?;
        Ok(self.place.metadata()?)
    }

    fn local(&self) -> Result<Local> {
        Local::known(self.status.mount).map_err(|unknown| {
            if unknown {
                UNKNOWN.store(true, Relaxed);
            }
            Error { errno: libc::EAGAIN }
        })
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::ffi::CStr;
    use std::fs::OpenOptions;
    use std::mem::{MaybeUninit, size_of};
    use std::os::fd::{AsRawFd, FromRawFd, RawFd};
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::sys::check;

    // Here, as the libc crate has it for some C libraries only.
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

    const SEALED: u64 = (libc::STATX_ATTR_ENCRYPTED | libc::STATX_ATTR_VERITY) as u64;

    /// The kernel's `open_how`.
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }

    /// Something that it takes is not there (Linux before 6.8, a container that forbids openat2, no /proc): nothing more is
    /// tried.
    static MISSING: AtomicBool = AtomicBool::new(false);

    fn missing(error: Error) -> Error {
        MISSING.store(true, Relaxed);
        error
    }

    /// Finds a file; `follow`: also if the path's last part is a symbolic link. EAGAIN if that would mean to wait; ENOENT
    /// is certain.
    pub fn find(path: &CStr, follow: bool) -> Result<Found> {
        if MISSING.load(Relaxed) {
            return Err(Error { errno: libc::EAGAIN });
        }
        let place = hold(path, follow, libc::RESOLVE_CACHED).map_err(|error| match error.errno {
            // It may be this path that is at fault.
            libc::ENOSYS | libc::EPERM | libc::EINVAL => match hold(c"/", true, libc::RESOLVE_CACHED) {
                Ok(_) => error,
                Err(_) => missing(error),
            },
            _ => error,
        })?;
        let status = status(&place)?;
        Ok(Found { place, status })
    }

    /// Learns what `find` had to know of a path's mount, if it came to that. On a blocking thread.
    pub fn learn(path: &CStr, follow: bool) {
        if UNKNOWN.swap(false, Relaxed)
            && let Ok(place) = hold(path, follow, 0)
        {
            Local::of(&place);
        }
    }

    /// Takes hold of a file without opening it. (By the system call's number, as the C library's functions are younger than
    /// the oldest one that wheels are for.)
    fn hold(path: &CStr, follow: bool, resolve: u64) -> Result<File> {
        let flags = libc::O_PATH | libc::O_CLOEXEC | if follow { 0 } else { libc::O_NOFOLLOW };
        let how = How { flags: flags as u64, mode: 0, resolve };
        let (here, size) = (libc::c_long::from(libc::AT_FDCWD), size_of::<How>());
        // SAFETY: the path ends with a null byte, the size is that of `how`; both are borrowed for the length of the call.
        let fd = unsafe { libc::syscall(libc::SYS_openat2, here, path.as_ptr(), &how, size) };
        let fd = check(fd as isize)?;
        // SAFETY: the call succeeded, so this is a descriptor of ours that nobody else owns.
        Ok(unsafe { File::from_raw_fd(fd as RawFd) })
    }

    /// The number of the file's mount, which no other mount ever has.
    pub fn mount(file: &File) -> Result<u64> {
        Ok(status(file)?.mount)
    }

    fn status(file: &File) -> Result<Status> {
        let mut status = MaybeUninit::<libc::statx>::zeroed();
        let fd = libc::c_long::from(file.as_raw_fd());
        let flags = libc::c_long::from(libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC);
        let mask = libc::c_ulong::from(libc::STATX_TYPE | libc::STATX_SIZE | STATX_MNT_ID_UNIQUE);
        // SAFETY: the path is an empty string; the call writes a statx to the pointer.
        let result =
            unsafe { libc::syscall(libc::SYS_statx, fd, c"".as_ptr(), flags, mask, status.as_mut_ptr()) };
        check(result as isize)?;
        // SAFETY: zeros are a statx, and so is what the call has written.
        let status = unsafe { status.assume_init() };
        if status.stx_mask & STATX_MNT_ID_UNIQUE == 0 {
            return Err(missing(Error { errno: libc::ENOSYS }));
        }
        Ok(Status {
            mount: status.stx_mnt_id,
            size: status.stx_size,
            is_plain: u32::from(status.stx_mode) & libc::S_IFMT == libc::S_IFREG
                && status.stx_attributes & SEALED == 0,
        })
    }

    /// Opens what was found for reading. It has to be a local regular file: that has no effects but that whoever has a lease
    /// on it is told to give it up, which we do not wait for.
    pub fn open(place: &File) -> Result<File> {
        // The thread's, as a thread may have descriptors of its own.
        let name = format!("/proc/thread-self/fd/{}", place.as_raw_fd());
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(name);
        file.map_err(|error| match Error::from(error) {
            // The file itself is surely there.
            error if matches!(error.errno, libc::ENOENT | libc::ENOTDIR) => missing(error),
            error => error,
        })
    }

    /// Takes O_NONBLOCK from a descriptor that others may see or inherit. (It means nothing for regular files.)
    pub fn make_ordinary(file: &File) -> Result<()> {
        // SAFETY: sets flags of a descriptor that is open.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } as isize).map(drop)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::ffi::CStr;

    use super::*;

    const MISSING: Error = Error { errno: libc::ENOSYS };

    pub fn find(_path: &CStr, _follow: bool) -> Result<Found> {
        Err(MISSING)
    }

    pub fn learn(_path: &CStr, _follow: bool) {}

    pub fn open(_place: &File) -> Result<File> {
        Err(MISSING)
    }

    pub fn make_ordinary(_file: &File) -> Result<()> {
        Err(MISSING)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::io::Read;

    use super::*;

    #[test]
    fn what_was_found_is_what_is_opened() {
        let folder = std::env::temp_dir().join(format!("mioloop-found-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (path, other) = (folder.join("file"), folder.join("fifo"));
        fs::write(&path, "found").unwrap();
        let name = |path: &std::path::Path| CString::new(path.to_str().unwrap()).unwrap();
        if let Ok(found) = find(&name(&path), true) {
            UNKNOWN.store(true, Relaxed);
            learn(&name(&path), true);
            // SAFETY: the path ends with a null byte.
            unsafe { libc::mkfifo(name(&other).as_ptr(), 0o600) };
            fs::rename(&other, &path).unwrap();
            if let Ok((mut file, _)) = found.open() {
                make_ordinary(&file).unwrap();
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "found");
            }
            if let Ok(fifo) = find(&name(&path), true) {
                assert_eq!(fifo.open().err(), Some(Error { errno: libc::EAGAIN }));
            }
            let absent = find(&name(&other), true).err().unwrap();
            assert!(matches!(absent.errno, libc::ENOENT | libc::EAGAIN));
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
