//! System calls on files, where the standard library's own won't do: memory that is not initialised, a close that may
//! fail, a wake-up for any event loop.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use super::{Error, Result, check};

/// Makes a call again as long as a signal interrupts it.
fn uninterrupted(mut call: impl FnMut() -> isize) -> Result<usize> {
    loop {
        match check(call()) {
            Err(Error { errno: libc::EINTR }) => {}
            result => return result,
        }
    }
}

/// read(2) into memory that need not be initialised; the result says how much of it is, 0 the end of the file.
pub fn read(file: &File, memory: &mut [MaybeUninit<u8>]) -> Result<usize> {
    let fd = file.as_raw_fd();
    // SAFETY: pointer and length describe `memory`, borrowed for the length of the call.
    uninterrupted(|| unsafe { libc::read(fd, memory.as_mut_ptr().cast(), memory.len()) })
}

/// write(2); it may write less than all.
pub fn write(file: &File, data: &[u8]) -> Result<usize> {
    let fd = file.as_raw_fd();
    // SAFETY: pointer and length describe `data`.
    uninterrupted(|| unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })
}

/// lseek(2), with whatever `whence` the platform knows.
pub fn seek(file: &File, offset: i64, whence: i32) -> Result<u64> {
    // SAFETY: no memory is involved.
    match unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) } {
        -1 => Err(std::io::Error::last_os_error().into()),
        position => Ok(position as u64),
    }
}

/// close(2), whose error may be the only word of a write that failed late.
pub fn close(file: File) -> Result<()> {
    // SAFETY: the descriptor was the file's, which has given it up; whatever close says, it is gone.
    match check(unsafe { libc::close(file.into_raw_fd()) } as isize) {
        Ok(_) | Err(Error { errno: libc::EINTR }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Wakes whoever polls its descriptor for reading, until the signal is taken back.
pub struct Signal {
    read: OwnedFd,
    /// The other end, where it is a pipe.
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    write: OwnedFd,
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
impl Signal {
    pub fn new() -> Result<Self> {
        // SAFETY: no memory is involved.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) } as isize)?;
        // SAFETY: the call succeeded, so this is a descriptor of ours that nobody else owns.
        Ok(Signal { read: unsafe { OwnedFd::from_raw_fd(fd as RawFd) } })
    }

    fn write_fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
impl Signal {
    pub fn new() -> Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: the call writes two descriptors to the array.
        check(unsafe { libc::pipe(ends.as_mut_ptr()) } as isize)?;
        // SAFETY: the call succeeded, so these are descriptors of ours that nobody else owns.
        let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        for end in [&read, &write] {
            // SAFETY: both calls only set flags of a descriptor of ours.
            unsafe {
                check(libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) as isize)?;
                check(libc::fcntl(end.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) as isize)?;
            }
        }
        Ok(Signal { read, write })
    }

    fn write_fd(&self) -> RawFd {
        self.write.as_raw_fd()
    }
}

impl Signal {
    /// What to poll.
    pub fn fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }

    /// It can't fail for a reason that matters: a counter or a pipe that is full has a signal in it.
    pub fn set(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: pointer and length describe `one`.
        let _ = uninterrupted(|| unsafe { libc::write(self.write_fd(), one.as_ptr().cast(), one.len()) });
    }

    /// Takes the signal back: the descriptor is not readable until the next [`set`](Self::set).
    pub fn clear(&self) {
        let mut memory = [0u8; 64];
        // SAFETY: pointer and length describe `memory`. A pipe that holds more than that stays readable: the caller
        // comes again.
        let _ = uninterrupted(|| unsafe { libc::read(self.fd(), memory.as_mut_ptr().cast(), memory.len()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_set(signal: &Signal) -> bool {
        let mut poll = libc::pollfd { fd: signal.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, valid for the call.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn a_signal_stays_until_it_is_taken_back() {
        let signal = Signal::new().unwrap();
        assert!(!is_set(&signal));
        signal.set();
        signal.set();
        assert!(is_set(&signal));
        signal.clear();
        assert!(!is_set(&signal));
    }

    #[test]
    fn closing_tells_of_a_descriptor_that_is_gone() {
        let file = File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        // SAFETY: no memory is involved; tests run one at a time, so that the number is not taken meanwhile.
        unsafe { libc::close(fd) };
        assert_eq!(close(file), Err(Error { errno: libc::EBADF }));
    }
}
