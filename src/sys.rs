//! System calls that neither the standard library nor mio wraps: the one door to the platform.
//!
//! Each function takes a descriptor that its caller owns, retries nothing, and gives errno back as an [`Error`].

pub mod files;
pub mod found;
pub mod local;
pub mod memory;
pub mod names;

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use pyo3::exceptions::PyOSError;
use pyo3::ffi;
use pyo3::prelude::*;

/// A failed system call. In Python it is the OSError subclass that the standard library would raise, with errno and the
/// C library's text. (pyo3's own conversion of an [`io::Error`] loses errno, so none gets past this module.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    pub errno: i32,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the call should be made again later, rather than reported.
    pub fn is_transient(self) -> bool {
        matches!(self.errno, libc::EAGAIN | libc::EINTR)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        // mio and the standard library make errors of their own only for what the caller did wrong.
        Error { errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let text = io::Error::from_raw_os_error(error.errno).to_string();
        let text = text.split(" (os error").next().unwrap_or_default().to_owned();
        // SAFETY: asks, and needs nothing for it.
        if unsafe { ffi::PyGILState_Check() } == 0 {
            return PyOSError::new_err((error.errno, text));
        }
        // An object at once. pyo3 would put that off, and detach for it when somebody asks for the class; at the end of
        // the interpreter it can't attach again, and panics.
        // SAFETY: attached, as was just asked.
        let py = unsafe { Python::assume_attached() };
        py.get_type::<PyOSError>().call1((error.errno, text)).map_or_else(|error| error, PyErr::from_value)
    }
}

/// The clock of `time.monotonic()`, in seconds.
pub fn monotonic() -> f64 {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the call writes a timespec to the pointer; it can't fail for this clock and a valid pointer.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr());
        now.assume_init()
    };
    // The same arithmetic as CPython's, so that the two clocks agree to the last bit.
    (now.tv_sec * 1_000_000_000 + now.tv_nsec) as f64 / 1e9
}

/// A clock that is read seldom, and knows how late it may be at most.
///
/// To read the kernel's clock costs a good part of what a small callback does. The processor's own counter is far
/// cheaper, and says well enough that hardly any time has gone by. Its rate differs from one machine to the next, but is
/// nowhere below [`SLOWEST_COUNTER`]; where it jumps, as it may from one core to another, time seems to have flown.
pub struct LazyClock {
    /// When it was read last, by both.
    time: f64,
    count: u64,
    /// No more than that has gone by since, in seconds.
    since: f64,
}

/// Counts in a second.
const SLOWEST_COUNTER: f64 = 5e8;

impl LazyClock {
    pub fn new() -> Self {
        LazyClock { count: counter(), time: monotonic(), since: 0.0 }
    }

    /// The time, as `monotonic` says it.
    pub fn read(&mut self) -> f64 {
        // In this order: what happens in between makes it seem later than it is.
        self.count = counter();
        self.time = monotonic();
        self.since = 0.0;
        self.time
    }

    /// Notes how late it may be.
    #[inline]
    pub fn glance(&mut self) {
        // A counter that went backwards makes this huge.
        let counts = counter().wrapping_sub(self.count).min(i64::MAX as u64);
        self.since = counts as i64 as f64 * (1.0 / SLOWEST_COUNTER);
    }

    /// Whether it surely was no later than `time` at the last glance.
    #[inline]
    pub fn is_surely_before(&self, time: f64) -> bool {
        self.time + self.since < time
    }
}

#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it has no effect.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Elsewhere the kernel's clock is cheap enough.
#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    (monotonic() * 1e9) as u64
}

fn check(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error().into())
}

/// Where `needle`, one byte or more, is in `haystack`: memmem(3), which the C library does with vector instructions.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (start, length) = (haystack.as_ptr(), haystack.len());
    // SAFETY: pointers and lengths describe the two slices.
    let found = unsafe { libc::memmem(start.cast(), length, needle.as_ptr().cast(), needle.len()) };
    (!found.is_null()).then(|| found.addr() - start.addr())
}

/// recv(2) into memory that need not be initialised; the result says how much of it is.
pub fn recv(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> Result<usize> {
    // SAFETY: pointer and length describe `buffer`, borrowed for the length of the call.
    check(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) })
}

/// How much can be received at once (FIONREAD in ioctl(2), tcp(7), unix(7)). In TCP, up to an urgent mark.
pub fn available(fd: RawFd) -> Result<usize> {
    let mut size: libc::c_int = 0;
    // SAFETY: the call writes one int.
    check(unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut size) } as isize)?;
    Ok(usize::try_from(size).unwrap_or(0))
}

/// recvmsg(2) without room for anything but bytes, and whether something else was there, and was dropped.
pub fn recv_bytes_of_message(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> Result<(usize, bool)> {
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid msghdr: no address, no data, no ancillary data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    // SAFETY: the header describes `buffer`, borrowed for the length of the call.
    let received = check(unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) })?;
    Ok((received, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// send(2); a peer that is gone is EPIPE, never SIGPIPE.
pub fn send(fd: RawFd, data: &[u8]) -> Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length describe `data`.
    check(unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags) })
}

/// sendmsg(2) of several slices at once. The caller keeps to IOV_MAX.
pub fn send_vectored(fd: RawFd, slices: &[IoSlice<'_>]) -> Result<usize> {
    // SAFETY: all-zero bytes are a valid msghdr: no address, no data, no ancillary data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: IoSlice is guaranteed to have the layout of iovec; the kernel only reads through them.
    check(unsafe { libc::sendmsg(fd, &message, flags) })
}

/// sendto(2).
pub fn send_to(fd: RawFd, data: &[u8], target: &SocketAddress) -> Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let address = (&raw const target.storage).cast();
    // SAFETY: pointers and lengths describe `data` and the address.
    let sent = unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, address, target.length) };
    check(sent).map(drop)
}

/// recvfrom(2) into memory that need not be initialised; the size says how much of it is.
pub fn recv_from(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> Result<(usize, SocketAddress)> {
    let (address, size) = SocketAddress::read(|address, length| {
        let (memory, size) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: pointers and lengths describe `buffer` and a sockaddr_storage, both valid for the call.
        unsafe { libc::recvfrom(fd, memory, size, libc::MSG_DONTWAIT, address, length) }
    })?;
    Ok((size, address))
}

/// Keeps all signals from the calling thread: the process's others get them.
pub fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call fills the set in; neither can fail with valid arguments.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// shutdown(2) of the sending side.
pub fn shutdown_write(fd: RawFd) -> Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::shutdown(fd, libc::SHUT_WR) } as isize).map(drop)
}

/// Turns Nagle's algorithm off, where the socket has it: small writes leave at once.
pub fn set_nodelay(fd: RawFd) -> Result<()> {
    let on: libc::c_int = 1;
    let size = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is one int of the stated size.
    let result =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), size) };
    check(result as isize).map(drop)
}

/// A socket address as the kernel gives it.
#[derive(Clone, Copy)]
pub struct SocketAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

/// A socket address, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Address {
    V4 {
        host: String,
        port: u16,
    },
    V6 {
        host: String,
        port: u16,
        flow_info: u32,
        scope_id: u32,
    },
    /// A path, or an abstract name that begins with a zero byte, or nothing for a socket without a name.
    Unix(Vec<u8>),
    Other,
}

impl PartialEq for SocketAddress {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl SocketAddress {
    /// In bytes.
    pub const LONGEST: usize = mem::size_of::<libc::sockaddr_storage>();

    /// Lets a system call fill in an address; gives the call's own result too.
    fn read(fill: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> isize) -> Result<(Self, usize)> {
        // SAFETY: all-zero bytes are a valid sockaddr_storage (of family AF_UNSPEC).
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let mut length = Self::LONGEST as libc::socklen_t;
        let result = fill((&raw mut storage).cast(), &raw mut length);
        let result = check(result)?;
        Ok((SocketAddress { storage, length }, result))
    }

    /// The address that `fd` is bound to: getsockname(2).
    pub fn local(fd: RawFd) -> Result<Self> {
        // SAFETY: `read` passes pointers to a sockaddr_storage and its length, valid for the call.
        Self::read(|address, length| unsafe { libc::getsockname(fd, address, length) } as isize)
            .map(|(address, _)| address)
    }

    /// The address that `fd` is connected to: getpeername(2).
    pub fn peer(fd: RawFd) -> Result<Self> {
        // SAFETY: `read` passes pointers to a sockaddr_storage and its length, valid for the call.
        Self::read(|address, length| unsafe { libc::getpeername(fd, address, length) } as isize)
            .map(|(address, _)| address)
    }

    /// A copy of an address.
    ///
    /// # Safety
    /// `length` bytes must lie at `address`, or it must be null.
    pub unsafe fn copied(address: *const libc::sockaddr, length: libc::socklen_t) -> Self {
        match address.is_null() {
            true => Self::from_bytes(&[]),
            // SAFETY: the caller vouches for it.
            false => Self::from_bytes(unsafe { std::slice::from_raw_parts(address.cast(), length as usize) }),
        }
    }

    /// The address of which `bytes` are those that count.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let length = bytes.len().min(Self::LONGEST);
        // SAFETY: the line above keeps to the room and to the source, which are different memory; any bytes are valid
        // in a sockaddr_storage.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut storage).cast(), length) };
        SocketAddress { storage, length: length as libc::socklen_t }
    }

    pub fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        ((&raw const self.storage).cast(), self.length)
    }

    pub fn v4(host: Ipv4Addr, port: u16) -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_in.
        let mut address: libc::sockaddr_in = unsafe { mem::zeroed() };
        address.sin_family = libc::AF_INET as _;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes(host.octets());
        Self::of(address)
    }

    pub fn v6(host: Ipv6Addr, port: u16, flow_info: u32, scope_id: u32) -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_in6.
        let mut address: libc::sockaddr_in6 = unsafe { mem::zeroed() };
        address.sin6_family = libc::AF_INET6 as _;
        address.sin6_port = port.to_be();
        address.sin6_addr.s6_addr = host.octets();
        address.sin6_flowinfo = flow_info.to_be();
        address.sin6_scope_id = scope_id;
        Self::of(address)
    }

    /// `A` is one of the sockaddr types, none of which is larger than a sockaddr_storage.
    fn of<A: Copy>(address: A) -> Self {
        const { assert!(mem::size_of::<A>() <= Self::LONGEST) };
        // SAFETY: all-zero bytes are a valid sockaddr_storage, which is large and aligned enough for `A`.
        let storage = unsafe {
            let mut storage: libc::sockaddr_storage = mem::zeroed();
            (&raw mut storage).cast::<A>().write(address);
            storage
        };
        SocketAddress { storage, length: mem::size_of::<A>() as libc::socklen_t }
    }

    /// The bytes that count.
    pub fn bytes(&self) -> &[u8] {
        let length = (self.length as usize).min(Self::LONGEST);
        // SAFETY: the storage is initialised throughout, and `length` stays within it.
        unsafe { std::slice::from_raw_parts((&raw const self.storage).cast(), length) }
    }

    pub fn family(&self) -> libc::c_int {
        self.storage.ss_family.into()
    }

    pub fn parse(&self) -> Address {
        match self.family() {
            libc::AF_INET => {
                // SAFETY: the family says that the storage, large and aligned enough for any address, holds this one.
                let address: &libc::sockaddr_in = unsafe { &*(&raw const self.storage).cast() };
                let octets = address.sin_addr.s_addr.to_ne_bytes();
                Address::V4 { host: Ipv4Addr::from(octets).to_string(), port: u16::from_be(address.sin_port) }
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let address: &libc::sockaddr_in6 = unsafe { &*(&raw const self.storage).cast() };
                Address::V6 {
                    host: ipv6_text(Ipv6Addr::from(address.sin6_addr.s6_addr)),
                    port: u16::from_be(address.sin6_port),
                    flow_info: u32::from_be(address.sin6_flowinfo),
                    scope_id: address.sin6_scope_id,
                }
            }
            libc::AF_UNIX => Address::Unix(self.unix_path()),
            _ => Address::Other,
        }
    }

    fn unix_path(&self) -> Vec<u8> {
        // SAFETY: as in `parse`.
        let address: &libc::sockaddr_un = unsafe { &*(&raw const self.storage).cast() };
        let used = (self.length as usize).saturating_sub(mem::offset_of!(libc::sockaddr_un, sun_path));
        let mut path: Vec<u8> = address.sun_path.iter().take(used).map(|&byte| byte as u8).collect();
        if path.first() != Some(&0) {
            // A path ends at its zero byte; in an abstract name they count.
            path.truncate(path.iter().position(|&byte| byte == 0).unwrap_or(path.len()));
        }
        path
    }
}

/// As inet_ntop(3) writes it: Rust does not write the deprecated addresses that hold an IPv4 one and nothing else with
/// dots.
pub fn ipv6_text(address: Ipv6Addr) -> String {
    match address.octets() {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] if (a, b) != (0, 0) => {
            format!("::{}", Ipv4Addr::new(a, b, c, d))
        }
        _ => address.to_string(),
    }
}

/// Accepts a connection: a descriptor that blocks nobody and is not inherited, and the peer's address.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub fn accept(fd: RawFd) -> Result<(OwnedFd, SocketAddress)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let (address, accepted) =
        // SAFETY: `read` passes pointers to a sockaddr_storage and its length, valid for the call.
        SocketAddress::read(|address, length| unsafe { libc::accept4(fd, address, length, flags) } as isize)?;
    // SAFETY: the call succeeded, so this is a descriptor of ours that nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(accepted as RawFd) }, address))
}

/// Accepts a connection, where there is no accept4(2).
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub fn accept(fd: RawFd) -> Result<(OwnedFd, SocketAddress)> {
    let (address, accepted) =
        // SAFETY: `read` passes pointers to a sockaddr_storage and its length, valid for the call.
        SocketAddress::read(|address, length| unsafe { libc::accept(fd, address, length) } as isize)?;
    // SAFETY: the call succeeded, so this is a descriptor of ours that nobody else owns.
    let accepted_fd = unsafe { OwnedFd::from_raw_fd(accepted as RawFd) };
    // SAFETY: both calls only set flags of the new descriptor.
    unsafe {
        check(libc::fcntl(accepted as RawFd, libc::F_SETFD, libc::FD_CLOEXEC) as isize)?;
        check(libc::fcntl(accepted as RawFd, libc::F_SETFL, libc::O_NONBLOCK) as isize)?;
    }
    Ok((accepted_fd, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_lazy_clock_is_never_surely_before_what_is_over() {
        let mut clock = LazyClock::new();
        for round in 0..1000 {
            if round % 100 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let over = monotonic();
            clock.glance();
            assert!(!clock.is_surely_before(over));
            if round % 7 == 0 {
                assert!(clock.read() >= over);
                assert!(clock.is_surely_before(over + 1000.0));
            }
        }
    }

    #[test]
    fn addresses_come_out_as_python_writes_them() {
        for (host, text) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let Ok(listener) = TcpListener::bind(host) else {
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let port = client.local_addr().unwrap().port();
            let (_accepted, peer) = accept(listener.as_raw_fd()).unwrap();
            match peer.parse() {
                Address::V4 { host, port: p } | Address::V6 { host, port: p, flow_info: 0, scope_id: 0 } => {
                    assert_eq!((host.as_str(), p), (text, port));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_gone_peer_is_an_error_not_a_signal() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(SocketAddress::local(near.as_raw_fd()).unwrap().parse(), Address::Unix(Vec::new()));
        drop(far);
        assert_eq!(send(near.as_raw_fd(), b"x"), Err(Error { errno: libc::EPIPE }));
    }
}
