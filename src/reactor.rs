//! The reactor: which file descriptors are watched, for what, and on whose behalf. The only file that names mio.
//!
//! mio reports edges: an event comes when a descriptor *becomes* ready and not again until it has been drained.
//! Transports live by that (see `transport`). Callbacks of `add_reader` and `add_writer` must be level-triggered, so
//! those descriptors are watched by the same poller but without the edge flag.
//!
//! Descriptors belong to the user, who closes them and gets the same number back for another file behind our back.
//! So a registration is named by a [`Key`], a slot and a generation, and an event whose generation is over is
//! dropped. The kernel's word on what is registered (ENOENT, EEXIST) is taken as an answer, never as a fault.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use slab::Slab;

use crate::sys;

/// How many events one poll takes at most; the rest wait for the next poll.
const EVENTS_PER_POLL: usize = 1024;

/// Never a source's token: its generation is the one that no source gets.
const WAKER: Token = Token(usize::MAX);

const _: () = assert!(usize::BITS >= 64, "a token holds a slot and a generation of 32 bits each");

/// What a descriptor can do, or what somebody wants to know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The peer will send no more (or the connection is gone): reading will find the end of the stream.
    pub read_closed: bool,
    /// Urgent data is under way: a read stops short before it.
    pub urgent: bool,
}

impl Readiness {
    pub const NONE: Readiness =
        Readiness { readable: false, writable: false, read_closed: false, urgent: false };
    pub const READABLE: Readiness = Readiness { readable: true, ..Readiness::NONE };
    pub const WRITABLE: Readiness = Readiness { writable: true, ..Readiness::NONE };

    pub fn merge(&mut self, other: Readiness) {
        self.readable |= other.readable;
        self.writable |= other.writable;
        self.read_closed |= other.read_closed;
        self.urgent |= other.urgent;
    }

    fn of(event: &mio::event::Event) -> Readiness {
        // An error or a hang-up makes both directions ready, as in asyncio's selectors: the system call that follows
        // reports what happened.
        let gone = event.is_error();
        Readiness {
            readable: event.is_readable() || event.is_read_closed() || gone,
            writable: event.is_writable() || event.is_write_closed() || gone,
            read_closed: event.is_read_closed() || gone,
            urgent: event.is_priority(),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const READABLE: Interest = Interest::READABLE.add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const READABLE: Interest = Interest::READABLE;

/// Which directions a registration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
    Both,
}

impl Direction {
    pub fn new(read: bool, write: bool) -> Option<Direction> {
        match (read, write) {
            (true, true) => Some(Direction::Both),
            (true, false) => Some(Direction::Read),
            (false, true) => Some(Direction::Write),
            (false, false) => None,
        }
    }

    fn interest(self) -> Interest {
        match self {
            Direction::Read => READABLE,
            Direction::Write => Interest::WRITABLE,
            Direction::Both => READABLE.add(Interest::WRITABLE),
        }
    }
}

/// Whether an event is told once when the state changes, for as long as it lasts, or just once: then the registration
/// is silent until it is armed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    Edge,
    Level,
    Once,
}

/// Names one registration; outlives it harmlessly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    fn token(self) -> Token {
        Token((self.generation as usize) << 32 | self.slot as usize)
    }

    fn of(token: Token) -> Key {
        Key { slot: token.0 as u32, generation: (token.0 >> 32) as u32 }
    }
}

struct Source<T> {
    generation: u32,
    fd: RawFd,
    trigger: Trigger,
    direction: Direction,
    /// What has been told of it and not been looked at yet.
    ready: Readiness,
    owner: T,
}

/// The registration of each descriptor: the kernel gives out the smallest number that is free, so the numbers are few
/// and an array is the shortest way.
#[derive(Default)]
struct ByFd(Vec<Option<Key>>);

impl ByFd {
    fn get(&self, fd: RawFd) -> Option<Key> {
        usize::try_from(fd).ok().and_then(|fd| self.0.get(fd).copied().flatten())
    }

    /// Only for a descriptor that the kernel knows.
    fn replace(&mut self, fd: RawFd, key: Option<Key>) -> Option<Key> {
        let fd = usize::try_from(fd).ok()?;
        if fd >= self.0.len() {
            self.0.resize(fd + 1, None);
        }
        std::mem::replace(&mut self.0[fd], key)
    }
}

/// The registered sources, each with an owner of type `T`. The loop's thread alone uses it.
pub struct Reactor<T> {
    registry: Registry,
    sources: Slab<Source<T>>,
    by_fd: ByFd,
    next_generation: u32,
}

impl<T> Reactor<T> {
    /// A reactor with the poller that waits for its events. They are two things so that sources can be registered
    /// while another thread sits in the poll.
    pub fn new() -> sys::Result<(Self, Poller)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let reactor = Reactor { registry, sources: Slab::new(), by_fd: ByFd::default(), next_generation: 0 };
        Ok((reactor, Poller { poll, events: Events::with_capacity(EVENTS_PER_POLL) }))
    }

    /// Starts over with a poller of its own, in a child process that shares the old one with its parent: what the
    /// child did to it, the parent would feel. Sources keep their keys; a descriptor that can't be watched any more
    /// (it was closed between the fork and now) stays silent.
    pub fn renew(&mut self) -> sys::Result<Poller> {
        let poll = Poll::new()?;
        self.registry = poll.registry().try_clone()?;
        for (slot, source) in &self.sources {
            let key = Key { slot: slot as u32, generation: source.generation };
            let _closed_meanwhile =
                self.control(source.fd, key, source.trigger, source.direction, Control::Add);
        }
        Ok(Poller { poll, events: Events::with_capacity(EVENTS_PER_POLL) })
    }

    /// A handle that ends a poll from any thread.
    pub fn waker(&self) -> sys::Result<Waker> {
        Ok(Waker::new(&self.registry, WAKER)?)
    }

    /// Starts watching `fd` for `owner`.
    ///
    /// A source that had the same number must be a leftover of a file that is closed by now; it is handed back, so
    /// that the caller can tell its owner.
    pub fn register(
        &mut self,
        fd: RawFd,
        trigger: Trigger,
        direction: Direction,
        owner: T,
    ) -> sys::Result<(Key, Option<T>)> {
        let generation = self.next_generation;
        let slot = self.sources.vacant_key();
        let key = Key { slot: slot as u32, generation };
        // A descriptor that once was waited for is most often still known to the kernel, too.
        let (likely, otherwise, mistaken) = match self.by_fd.get(fd) {
            Some(_) => (Control::Modify, Control::Add, libc::ENOENT),
            None => (Control::Add, Control::Modify, libc::EEXIST),
        };
        match self.control(fd, key, trigger, direction, likely) {
            Err(error) if error.errno == mistaken => self.control(fd, key, trigger, direction, otherwise)?,
            result => result?,
        }
        // One generation is never given out: the waker's token has it.
        self.next_generation = if generation + 1 == u32::MAX { 0 } else { generation + 1 };
        self.sources.insert(Source { generation, fd, trigger, direction, ready: Readiness::NONE, owner });
        let stale = self.by_fd.replace(fd, Some(key)).and_then(|old| self.forget(old));
        Ok((key, stale))
    }

    /// Changes what a source is watched for; also arms an edge anew, so that a state which lasts is told again.
    ///
    /// ENOENT says that the file was closed, and that the number is free or another file's by now.
    pub fn modify(&mut self, key: Key, direction: Direction) -> sys::Result<()> {
        match self.get_source(key).map(|source| source.trigger) {
            Some(trigger) => self.rearm(key, trigger, direction),
            None => Ok(()),
        }
    }

    /// As `modify`, and changes how it is told.
    pub fn rearm(&mut self, key: Key, trigger: Trigger, direction: Direction) -> sys::Result<()> {
        let Some(source) = self.get_source(key) else { return Ok(()) };
        self.control(source.fd, key, trigger, direction, Control::Modify)?;
        if let Some(source) = self.sources.get_mut(key.slot as usize) {
            (source.trigger, source.direction) = (trigger, direction);
        }
        Ok(())
    }

    /// Stops watching. The kernel may have forgotten the descriptor already, if the user closed it.
    pub fn deregister(&mut self, key: Key) -> Option<T> {
        let fd = self.get_source(key)?.fd;
        if self.by_fd.get(fd) == Some(key) {
            let _gone_already = self.registry.deregister(&mut SourceFd(&fd));
        }
        self.forget(key)
    }

    /// Forgets a source without a word to the kernel, which drops the registration itself when the descriptor is
    /// closed next. Should a copy of it live on in a child, its events have a generation that is over.
    pub fn forget(&mut self, key: Key) -> Option<T> {
        self.get_source(key)?;
        let source = self.sources.remove(key.slot as usize);
        if self.by_fd.get(source.fd) == Some(key) {
            self.by_fd.replace(source.fd, None);
        }
        Some(source.owner)
    }

    pub fn key_of(&self, fd: RawFd) -> Option<Key> {
        self.by_fd.get(fd)
    }

    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.sources.iter().map(|(slot, source)| Key { slot: slot as u32, generation: source.generation })
    }

    pub fn owner(&self, key: Key) -> Option<&T> {
        self.get_source(key).map(|source| &source.owner)
    }

    pub fn owner_mut(&mut self, key: Key) -> Option<&mut T> {
        let source = self.sources.get_mut(key.slot as usize)?;
        (source.generation == key.generation).then_some(&mut source.owner)
    }

    /// Notes that a source is ready. Says whether it was not before: then it wants a turn.
    pub fn mark_ready(&mut self, key: Key, ready: Readiness) -> bool {
        match self.sources.get_mut(key.slot as usize).filter(|source| source.generation == key.generation) {
            Some(source) => {
                let first = source.ready == Readiness::NONE;
                source.ready.merge(ready);
                first && source.ready != Readiness::NONE
            }
            None => false,
        }
    }

    /// What was noted of a source, whose turn it is.
    pub fn take_ready(&mut self, key: Key) -> Option<(&T, Readiness)> {
        let source = self.sources.get_mut(key.slot as usize)?;
        if source.generation != key.generation {
            return None;
        }
        let ready = std::mem::replace(&mut source.ready, Readiness::NONE);
        Some((&source.owner, ready))
    }

    pub fn owners(&self) -> impl Iterator<Item = &T> {
        self.sources.iter().map(|(_, source)| &source.owner)
    }

    /// Lets go of every source and hands the owners back, to be dropped where Python code may run.
    pub fn take_all(&mut self) -> Vec<T> {
        self.by_fd = ByFd::default();
        self.sources.drain().map(|source| source.owner).collect()
    }

    fn get_source(&self, key: Key) -> Option<&Source<T>> {
        self.sources.get(key.slot as usize).filter(|source| source.generation == key.generation)
    }

    fn control(
        &self,
        fd: RawFd,
        key: Key,
        trigger: Trigger,
        direction: Direction,
        control: Control,
    ) -> sys::Result<()> {
        let (token, interest) = (key.token(), direction.interest());
        match (trigger, control) {
            (Trigger::Edge, Control::Add) => self.registry.register(&mut SourceFd(&fd), token, interest)?,
            (Trigger::Edge, Control::Modify) => {
                self.registry.reregister(&mut SourceFd(&fd), token, interest)?;
            }
            (Trigger::Level, _) => level::control(&self.registry, fd, token, direction, control, false)?,
            (Trigger::Once, _) => level::control(&self.registry, fd, token, direction, control, true)?,
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Control {
    Add,
    Modify,
}

/// Waits for events.
pub struct Poller {
    poll: Poll,
    events: Events,
}

impl Poller {
    /// Waits until something happens, `timeout` is over (`None`: for ever) or a signal interrupts the wait, which is
    /// the error EINTR.
    pub fn poll(&mut self, timeout: Option<Duration>) -> sys::Result<()> {
        Ok(self.poll.poll(&mut self.events, timeout)?)
    }

    /// What the last poll found.
    pub fn events(&self) -> impl Iterator<Item = (Key, Readiness)> {
        self.events
            .iter()
            .filter(|event| event.token() != WAKER)
            .map(|event| (Key::of(event.token()), Readiness::of(event)))
    }
}

/// Level-triggered registration, and one that is told once, which mio does not offer: the same epoll instance, without
/// `EPOLLET`.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod level {
    use super::*;

    pub(super) fn control(
        registry: &Registry,
        fd: RawFd,
        token: Token,
        direction: Direction,
        control: Control,
        once: bool,
    ) -> sys::Result<()> {
        let events = match direction {
            Direction::Read => libc::EPOLLIN,
            Direction::Write => libc::EPOLLOUT,
            Direction::Both => libc::EPOLLIN | libc::EPOLLOUT,
        };
        let events = if once { events | libc::EPOLLONESHOT } else { events };
        let operation = match control {
            Control::Add => libc::EPOLL_CTL_ADD,
            Control::Modify => libc::EPOLL_CTL_MOD,
        };
        let mut event = libc::epoll_event { events: events as u32, u64: token.0 as u64 };
        // SAFETY: `event` is a live epoll_event for the length of the call, which keeps no pointer to it; a bad
        // descriptor is an error, not undefined behaviour.
        match unsafe { libc::epoll_ctl(registry.as_raw_fd(), operation, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }
}

/// Level-triggered registration on kqueue: a filter without `EV_CLEAR` goes on reporting.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod level {
    use super::*;

    pub(super) fn control(
        registry: &Registry,
        fd: RawFd,
        token: Token,
        direction: Direction,
        _control: Control,
        once: bool,
    ) -> sys::Result<()> {
        let add = if once { libc::EV_ADD | libc::EV_ONESHOT } else { libc::EV_ADD };
        let wanted = [
            (libc::EVFILT_READ, direction != Direction::Write),
            (libc::EVFILT_WRITE, direction != Direction::Read),
        ];
        for (filter, want) in wanted {
            // SAFETY: all-zero bytes are a valid kevent.
            let mut change: libc::kevent = unsafe { std::mem::zeroed() };
            change.ident = fd as libc::uintptr_t;
            change.filter = filter as _;
            change.flags = if want { add } else { libc::EV_DELETE } as _;
            change.udata = token.0 as _;
            // SAFETY: one change in, no events out; both pointers are valid for the lengths given.
            let result = unsafe {
                libc::kevent(registry.as_raw_fd(), &change, 1, std::ptr::null_mut(), 0, std::ptr::null())
            };
            if result < 0 {
                let error = sys::Error::from(std::io::Error::last_os_error());
                if want || error.errno != libc::ENOENT {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn ready(poller: &mut Poller) -> Vec<(Key, Readiness)> {
        poller.poll(Some(Duration::ZERO)).unwrap();
        poller.events().collect()
    }

    #[test]
    fn level_repeats_and_edge_does_not() {
        let (mut reactor, mut poller) = Reactor::new().unwrap();
        let (mut far, mut near) = UnixStream::pair().unwrap();
        let (edge, _) = reactor.register(near.as_raw_fd(), Trigger::Edge, Direction::Read, "edge").unwrap();
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&mut poller), [(edge, Readiness::READABLE)]);
        assert_eq!(ready(&mut poller), []);
        assert_eq!(reactor.deregister(edge), Some("edge"));
        let (level, _) =
            reactor.register(near.as_raw_fd(), Trigger::Level, Direction::Read, "level").unwrap();
        for _ in 0..3 {
            assert_eq!(ready(&mut poller), [(level, Readiness::READABLE)]);
        }
        near.read_exact(&mut [0]).unwrap();
        assert_eq!(ready(&mut poller), []);
    }

    #[test]
    fn once_is_told_once_for_each_arming() {
        let (mut reactor, mut poller) = Reactor::new().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let (key, _) = reactor.register(near.as_raw_fd(), Trigger::Once, Direction::Read, ()).unwrap();
        far.write_all(b"x").unwrap();
        for _ in 0..2 {
            assert_eq!(ready(&mut poller), [(key, Readiness::READABLE)]);
            assert_eq!(ready(&mut poller), []);
            far.write_all(b"x").unwrap();
            assert_eq!(ready(&mut poller), []);
            reactor.modify(key, Direction::Read).unwrap();
        }
    }

    #[test]
    fn a_reused_descriptor_gets_no_old_events() {
        let (mut reactor, mut poller) = Reactor::new().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let fd = near.as_raw_fd();
        let copy = near.try_clone().unwrap();
        let (old, _) = reactor.register(fd, Trigger::Level, Direction::Read, "old").unwrap();
        // The copy keeps the old registration alive in the kernel while the number goes to a new file.
        let (mut new_far, new_near) = UnixStream::pair().unwrap();
        // SAFETY: both are open descriptors of this test, and `near` goes on owning its number.
        assert_eq!(unsafe { libc::dup2(new_near.as_raw_fd(), fd) }, fd);
        let (new, stale) = reactor.register(fd, Trigger::Level, Direction::Read, "new").unwrap();
        assert_eq!(stale, Some("old"));
        far.write_all(b"x").unwrap();
        let seen = ready(&mut poller);
        assert!(seen.iter().all(|(key, _)| reactor.owner(*key).is_none()));
        assert_eq!(reactor.owner(old), None);
        new_far.write_all(b"x").unwrap();
        assert!(ready(&mut poller).contains(&(new, Readiness::READABLE)));
        assert_eq!(reactor.owner(new), Some(&"new"));
        drop(copy);
    }

    #[test]
    fn a_renewed_reactor_leaves_the_old_poller_alone() {
        let (mut reactor, mut old) = Reactor::new().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let (key, _) = reactor.register(near.as_raw_fd(), Trigger::Level, Direction::Read, ()).unwrap();
        let mut new = reactor.renew().unwrap();
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&mut new), [(key, Readiness::READABLE)]);
        reactor.deregister(key);
        assert_eq!(ready(&mut new), []);
        assert_eq!(ready(&mut old), [(key, Readiness::READABLE)]);
    }

    #[test]
    fn closed_and_refused_descriptors_are_errors() {
        let (mut reactor, _poller) = Reactor::new().unwrap();
        for trigger in [Trigger::Edge, Trigger::Level] {
            let error = reactor.register(-1, trigger, Direction::Read, ()).unwrap_err();
            assert_eq!(error.errno, libc::EBADF);
        }
        assert_eq!(reactor.owners().count(), 0);
    }
}
