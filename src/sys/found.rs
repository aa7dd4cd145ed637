//! Finding and opening a file without waiting for anybody, where all that it takes is in the kernel's memory.
//!
//! A path is followed as far as the kernel has it cached (RESOLVE_CACHED), and the file taken hold of without being opened
//! (O_PATH): to open one of a file server or of FUSE is to ask somebody, to open a FIFO or a device has effects. What it
//! is and on which mount the kernel then says without asking anybody either (AT_STATX_DONT_SYNC; file systems that ask
//! all the same don't have names looked up from memory alone). If it is a regular file of a mount that is known as local,
//! it is opened.
//!
//! By its path a second time, if that leads from the root to it on one mount: whatever lies there by then is on that mount
//! too, so that no file server can come between; and if it is another file, it is closed again. Otherwise by its
//! descriptor's name in /proc, which is twice as dear: it is this very file.
//!
//! What may still wait: the root of a mount of 9P or SMB, which has no name to be looked up; and whoever has told the kernel
//! to be asked, an on-access scanner (fanotify) or a measurement (IMA). So none of this is done with the GIL held.

use std::ffi::CStr;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::local::Local;
use super::{Error, Result};

#[cfg(target_os = "linux")]
pub use platform::mount;
pub use platform::{find, find_to_open, learn, make_ordinary};

/// A file that was found, but is not open.
pub struct Found<'a> {
    path: &'a CStr,
    place: File,
    status: Status,
    /// The path leads to it from the root on one mount.
    is_near: bool,
}

/// A file that was found and is open for reading, at its beginning.
pub struct Opened {
    pub file: File,
    pub local: Local,
    pub size: u64,
    pub times: Times,
}

#[derive(Clone, Copy)]
struct Status {
    mount: u64,
    /// The device, as the subvolumes of Btrfs have devices of their own on one mount, and the inode there.
    identity: (u32, u32, u64),
    size: u64,
    times: Times,
    /// A regular file whose contents lie on the disk as they are: the keys or the proof of others may have to be fetched.
    is_plain: bool,
}

/// When a file was read, written and changed: in seconds, and nanoseconds.
#[derive(Clone, Copy)]
pub struct Times {
    pub read: (i64, i64),
    pub written: (i64, i64),
    pub changed: (i64, i64),
}

impl From<&Metadata> for Times {
    fn from(metadata: &Metadata) -> Self {
        Times {
            read: (metadata.atime(), metadata.atime_nsec()),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Something was found on a mount of which nothing is known: who has to do with it anyway may learn it.
static UNKNOWN: AtomicBool = AtomicBool::new(false);

impl Found<'_> {
    /// Opens it for reading; EAGAIN where that would mean to wait, or to open anything but a local file.
    pub fn open(&self) -> Result<Opened> {
        let local = self.local()?;
        if !self.status.is_plain {
            return Err(Error { errno: libc::EAGAIN });
        }
        let (file, Status { size, times, .. }) = match self.is_near {
            true => platform::open_again(self.path, &self.status)?,
            false => (platform::open_held(&self.place)?, self.status),
        };
        Ok(Opened { file, local, size, times })
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
    use std::ffi::c_int;
    use std::fs::OpenOptions;
    use std::mem::{MaybeUninit, size_of};
    use std::os::fd::{AsRawFd, FromRawFd, RawFd};
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::sys::check;

    // Here, as the libc crate has it for some C libraries only.
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

    const OPEN: c_int = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;

    const SEALED: u64 = (libc::STATX_ATTR_ENCRYPTED | libc::STATX_ATTR_VERITY) as u64;

    /// The kernel's `open_how`.
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }

    /// Something that it takes is not there (Linux before 6.8, a container that forbids openat2): nothing more is tried.
    static MISSING: AtomicBool = AtomicBool::new(false);

    /// There is no /proc.
    static NO_PROC: AtomicBool = AtomicBool::new(false);

    fn missing(error: Error) -> Error {
        MISSING.store(true, Relaxed);
        error
    }

    const NEAR: u64 = libc::RESOLVE_CACHED | libc::RESOLVE_NO_XDEV;

    /// How many paths come before one is tried again that may stay on one mount: where they don't, to try is in vain.
    static FAR: AtomicU32 = AtomicU32::new(0);

    /// Finds a file; `follow`: also if the path's last part is a symbolic link. EAGAIN if that would mean to wait; ENOENT
    /// is certain.
    pub fn find(path: &CStr, follow: bool) -> Result<Found<'_>> {
        found(path, || Ok((hold(path, follow, libc::RESOLVE_CACHED)?, false)))
    }

    /// As `find`, in such a way that it is cheap to open what was found.
    pub fn find_to_open(path: &CStr) -> Result<Found<'_>> {
        found(path, || hold_to_open(path))
    }

    fn found(path: &CStr, hold_place: impl FnOnce() -> Result<(File, bool)>) -> Result<Found<'_>> {
        if MISSING.load(Relaxed) {
            return Err(Error { errno: libc::EAGAIN });
        }
        let (place, is_near) = hold_place().map_err(|error| match error.errno {
            // It may be this path that is at fault.
            libc::ENOSYS | libc::EPERM | libc::EINVAL => match hold(c"/", true, libc::RESOLVE_CACHED) {
                Ok(_) => error,
                Err(_) => missing(error),
            },
            _ => error,
        })?;
        let status = status(&place)?;
        Ok(Found { path, place, status, is_near })
    }

    fn hold_to_open(path: &CStr) -> Result<(File, bool)> {
        let far = FAR.load(Relaxed);
        // A relative path may lead to another mount the second time: another thread may have changed the folder.
        if far > 0 || !path.to_bytes().starts_with(b"/") {
            FAR.store(far.saturating_sub(1), Relaxed);
            return Ok((hold(path, true, libc::RESOLVE_CACHED)?, false));
        }
        match hold(path, true, NEAR) {
            // EAGAIN is what it says of another mount, too, as long as it follows the path without locks.
            Err(error) if matches!(error.errno, libc::EXDEV | libc::EAGAIN) => {
                let place = hold(path, true, libc::RESOLVE_CACHED)?;
                FAR.store(15, Relaxed);
                Ok((place, false))
            }
            place => Ok((place?, true)),
        }
    }

    /// Learns what `find` had to know of a path's mount, if it came to that. On a blocking thread.
    pub fn learn(path: &CStr, follow: bool) {
        if UNKNOWN.swap(false, Relaxed)
            && let Ok(place) = hold(path, follow, 0)
        {
            Local::of(&place);
        }
    }

    /// Takes hold of a file without opening it.
    fn hold(path: &CStr, follow: bool, resolve: u64) -> Result<File> {
        openat2(path, libc::O_PATH | if follow { 0 } else { libc::O_NOFOLLOW }, resolve)
    }

    /// (By the system call's number, as the C library's functions are younger than the oldest one that wheels are for.)
    fn openat2(path: &CStr, flags: c_int, resolve: u64) -> Result<File> {
        let how = How { flags: (flags | libc::O_CLOEXEC) as u64, mode: 0, resolve };
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
        let mask = libc::STATX_TYPE | libc::STATX_SIZE | libc::STATX_INO;
        let times = libc::STATX_ATIME | libc::STATX_MTIME | libc::STATX_CTIME;
        let mask = libc::c_ulong::from(mask | times | STATX_MNT_ID_UNIQUE);
        // SAFETY: the path is an empty string; the call writes a statx to the pointer.
        let result =
            unsafe { libc::syscall(libc::SYS_statx, fd, c"".as_ptr(), flags, mask, status.as_mut_ptr()) };
        check(result as isize)?;
        // SAFETY: zeros are a statx, and so is what the call has written.
        let status = unsafe { status.assume_init() };
        if status.stx_mask & STATX_MNT_ID_UNIQUE == 0 {
            return Err(missing(Error { errno: libc::ENOSYS }));
        }
        let time = |time: libc::statx_timestamp| (time.tv_sec, i64::from(time.tv_nsec));
        Ok(Status {
            mount: status.stx_mnt_id,
            identity: (status.stx_dev_major, status.stx_dev_minor, status.stx_ino),
            size: status.stx_size,
            times: Times {
                read: time(status.stx_atime),
                written: time(status.stx_mtime),
                changed: time(status.stx_ctime),
            },
            is_plain: u32::from(status.stx_mode) & libc::S_IFMT == libc::S_IFREG
                && status.stx_attributes & SEALED == 0,
        })
    }

    // What was found is opened for reading. It has to be a local regular file: that has no effects but that whoever has a
    // lease on it is told to give it up, which O_NONBLOCK does not wait for.

    /// Opens it by its path, which may be another file's by now: EAGAIN then. (If that is a FIFO, a writer who waits for a
    /// reader may have taken this for one: docs/files.md.)
    pub fn open_again(path: &CStr, found: &Status) -> Result<(File, Status)> {
        let file = openat2(path, OPEN | libc::O_LARGEFILE, NEAR)?;
        let opened = status(&file)?;
        match (opened.mount, opened.identity) == (found.mount, found.identity) {
            true => Ok((file, opened)),
            false => Err(Error { errno: libc::EAGAIN }),
        }
    }

    pub fn open_held(place: &File) -> Result<File> {
        if NO_PROC.load(Relaxed) {
            return Err(Error { errno: libc::EAGAIN });
        }
        // The thread's, as a thread may have descriptors of its own.
        let name = format!("/proc/thread-self/fd/{}", place.as_raw_fd());
        let file = OpenOptions::new().read(true).custom_flags(OPEN).open(name);
        file.map_err(|error| match Error::from(error) {
            // The file itself is surely there.
            error if matches!(error.errno, libc::ENOENT | libc::ENOTDIR) => {
                NO_PROC.store(true, Relaxed);
                error
            }
            error => error,
        })
    }

    /// Takes O_NONBLOCK from a descriptor that others may see or inherit. (It means nothing for regular files.)
    pub fn make_ordinary(fd: RawFd) -> Result<()> {
        // SAFETY: sets flags of a descriptor that the caller has open.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, 0) } as isize).map(drop)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::os::fd::RawFd;

    use super::*;

    const MISSING: Error = Error { errno: libc::ENOSYS };

    pub fn find(_path: &CStr, _follow: bool) -> Result<Found<'_>> {
        Err(MISSING)
    }

    pub fn learn(_path: &CStr, _follow: bool) {}

    pub fn find_to_open(_path: &CStr) -> Result<Found<'_>> {
        Err(MISSING)
    }

    pub fn open_again(_path: &CStr, _found: &Status) -> Result<(File, Status)> {
        Err(MISSING)
    }

    pub fn open_held(_place: &File) -> Result<File> {
        Err(MISSING)
    }

    pub fn make_ordinary(_fd: RawFd) -> Result<()> {
        Err(MISSING)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_was_found_is_what_is_opened() {
        let folder = std::env::temp_dir().join(format!("mioloop-found-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (path, other) = (folder.join("file"), folder.join("fifo"));
        fs::write(&path, "found").unwrap();
        let name = |path: &std::path::Path| CString::new(path.to_str().unwrap()).unwrap();
        let text = |mut opened: Opened| {
            make_ordinary(opened.file.as_raw_fd()).unwrap();
            let mut text = String::new();
            opened.file.read_to_string(&mut text).unwrap();
            assert_eq!(opened.size, 5);
            text
        };
        let (path_name, other_name) = (name(&path), name(&other));
        if let Ok(mut found) = find_to_open(&path_name) {
            UNKNOWN.store(true, Relaxed);
            learn(&path_name, true);
            let is_known = found.open().is_ok_and(|opened| text(opened) == "found");
            // SAFETY: the path ends with a null byte.
            unsafe { libc::mkfifo(other_name.as_ptr(), 0o600) };
            fs::rename(&other, &path).unwrap();
            found.is_near = true;
            assert!(found.open().is_err());
            found.is_near = false;
            assert_eq!(found.open().is_ok_and(|opened| text(opened) == "found"), is_known);
            if let Ok(fifo) = find_to_open(&path_name) {
                assert_eq!(fifo.open().err(), Some(Error { errno: libc::EAGAIN }));
            }
            let absent = find(&other_name, true).err().unwrap();
            assert!(matches!(absent.errno, libc::ENOENT | libc::EAGAIN));
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
