//! The addresses that a datagram endpoint has talked to of late, in both their forms.
//!
//! A server answers whom it has just heard, by the very object that it was handed: then the address is on hand as the
//! kernel wants it. And what comes from one peer is hardly ever the last that does.

use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::sys::SocketAddress;

/// How many senders are remembered, at most one in each place.
const PLACES: usize = 64;

struct Peer {
    address: SocketAddress,
    object: Py<PyTuple>,
    /// The object is of our making; what a program writes to may say the same in another way.
    heard: bool,
}

#[derive(Default)]
pub struct Peers {
    /// By the hash of the address. Empty until a second sender is heard of: a client has but one.
    senders: Vec<Option<Peer>>,
    /// The last one that was heard of, or written to.
    last: Option<Peer>,
    has_heard: bool,
}

impl Peers {
    /// The object that was made of a sender's address, which is the last peer from now on. What comes with it is to be
    /// dropped outside of any borrow.
    pub fn sender<'py>(
        &mut self,
        py: Python<'py>,
        address: &SocketAddress,
    ) -> Option<(Bound<'py, PyTuple>, impl Sized + use<>)> {
        let is_it = |peer: &&Peer| peer.heard && peer.address == *address;
        if let Some(last) = self.last.as_ref().filter(is_it) {
            return Some((last.object.bind(py).clone(), None));
        }
        let peer = self.senders.get(place(address))?.as_ref().filter(is_it)?;
        let object = peer.object.bind(py).clone();
        let last =
            self.last.replace(Peer { address: *address, object: object.clone().unbind(), heard: true });
        Some((object, last))
    }

    /// Remembers a sender. What is returned is to be dropped outside of any borrow.
    #[must_use]
    pub fn heard(&mut self, address: SocketAddress, object: &Bound<'_, PyTuple>) -> impl Sized + use<> {
        let peer = || Peer { address, object: object.clone().unbind(), heard: true };
        let last = self.last.replace(peer());
        if !std::mem::replace(&mut self.has_heard, true) {
            return (None, last);
        }
        if self.senders.is_empty() {
            self.senders.resize_with(PLACES, || None);
        }
        (self.senders[place(&address)].replace(peer()), last)
    }

    /// The address that an object stands for, if it is the last peer's.
    pub fn target(&self, object: &Bound<'_, PyTuple>) -> Option<SocketAddress> {
        self.last.as_ref().filter(|peer| peer.object.is(object)).map(|peer| peer.address)
    }

    /// Remembers whom is written to. What is returned is to be dropped outside of any borrow.
    #[must_use]
    pub fn written_to(&mut self, address: SocketAddress, object: &Bound<'_, PyTuple>) -> impl Sized + use<> {
        self.last.replace(Peer { address, object: object.clone().unbind(), heard: false })
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for peer in self.senders.iter().flatten().chain(&self.last) {
            visit.call(&peer.object)?;
        }
        Ok(())
    }
}

fn place(address: &SocketAddress) -> usize {
    let mut hasher = DefaultHasher::new();
    address.bytes().hash(&mut hasher);
    hasher.finish() as usize % PLACES
}
