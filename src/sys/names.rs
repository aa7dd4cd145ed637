//! The C library's resolver: getaddrinfo(3) and getnameinfo(3). Both may block, for as long as the network likes.

use std::ffi::{CStr, c_char};

use libc::c_int;

use super::SocketAddress;

/// As the standard library's own `getnameinfo` has it: NI_MAXHOST and NI_MAXSERV.
const HOST_SIZE: usize = 1025;
const SERVICE_SIZE: usize = 32;

// Missing in the libc crate for some platforms; POSIX has them.
unsafe extern "C" {
    fn getnameinfo(
        address: *const libc::sockaddr,
        length: libc::socklen_t,
        host: *mut c_char,
        host_size: libc::socklen_t,
        service: *mut c_char,
        service_size: libc::socklen_t,
        flags: c_int,
    ) -> c_int;
}

/// Why a look-up failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// One of the EAI numbers.
    Resolver(c_int),
    /// EAI_SYSTEM: a system call failed.
    System(super::Error),
}

impl NameError {
    fn of(code: c_int) -> Self {
        match code {
            libc::EAI_SYSTEM => NameError::System(std::io::Error::last_os_error().into()),
            code => NameError::Resolver(code),
        }
    }
}

/// The C library's text for an EAI number.
pub fn describe(code: c_int) -> String {
    // SAFETY: the call returns a constant string for every number.
    unsafe { CStr::from_ptr(libc::gai_strerror(code)) }.to_string_lossy().into_owned()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub family: c_int,
    pub kind: c_int,
    pub protocol: c_int,
    pub flags: c_int,
}

pub struct AddressInfo {
    pub family: c_int,
    pub kind: c_int,
    pub protocol: c_int,
    pub canonical_name: Option<Vec<u8>>,
    pub address: SocketAddress,
}

pub fn address_info(
    host: Option<&CStr>,
    service: Option<&CStr>,
    hints: Hints,
) -> Result<Vec<AddressInfo>, NameError> {
    // SAFETY: all-zero bytes are a valid addrinfo: no addresses, no next one.
    let mut wanted: libc::addrinfo = unsafe { std::mem::zeroed() };
    wanted.ai_family = hints.family;
    wanted.ai_socktype = hints.kind;
    wanted.ai_protocol = hints.protocol;
    wanted.ai_flags = hints.flags;
    let mut first: *mut libc::addrinfo = std::ptr::null_mut();
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end in zero and, like `wanted` and `first`, live until the call is over.
    match unsafe { libc::getaddrinfo(pointer(host), pointer(service), &wanted, &mut first) } {
        0 => {}
        code => return Err(NameError::of(code)),
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: the call succeeded, so `first` begins a list that is ours and ends in null; each entry holds an address of
    // the stated length, and a name that is null or ends in zero.
    while let Some(info) = unsafe { next.as_ref() } {
        // SAFETY: as above.
        let (address, canonical_name) = unsafe {
            let name = info.ai_canonname;
            let name = (!name.is_null()).then(|| CStr::from_ptr(name).to_bytes().to_owned());
            (SocketAddress::copied(info.ai_addr, info.ai_addrlen), name)
        };
        let (family, kind, protocol) = (info.ai_family, info.ai_socktype, info.ai_protocol);
        found.push(AddressInfo { family, kind, protocol, canonical_name, address });
        next = info.ai_next;
    }
    if !first.is_null() {
        // SAFETY: the list is the call's, and nothing of it is used from here on.
        unsafe { libc::freeaddrinfo(first) };
    }
    Ok(found)
}

/// The host and the service of an address.
pub fn name_info(address: &SocketAddress, flags: c_int) -> Result<(Vec<u8>, Vec<u8>), NameError> {
    let mut host = [0u8; HOST_SIZE];
    let mut service = [0u8; SERVICE_SIZE];
    let (pointer, length) = address.raw();
    // SAFETY: the address and its length are one another's; both buffers have the stated sizes.
    let code = unsafe {
        getnameinfo(
            pointer,
            length,
            host.as_mut_ptr().cast(),
            HOST_SIZE as libc::socklen_t,
            service.as_mut_ptr().cast(),
            SERVICE_SIZE as libc::socklen_t,
            flags,
        )
    };
    match code {
        0 => Ok((text(&host), text(&service))),
        code => Err(NameError::of(code)),
    }
}

fn text(buffer: &[u8]) -> Vec<u8> {
    buffer.iter().copied().take_while(|&byte| byte != 0).collect()
}
