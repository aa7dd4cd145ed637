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
}

#[derive(Default)]
pub struct Peers {
    /// By the hash of the address. One place until there is a second sender: most clients have but one, and some programs
    /// many clients.
    senders: Vec<Option<Peer>>,
    /// The last one that was heard of, or written to.
    last: Option<Peer>,
}

impl Peers {
    /// The object that was made of a sender's address, which is the last peer from now on. What comes with it is to be
    /// dropped outside of any borrow.
    pub fn sender<'py>(
        &mut self,
        py: Python<'py>,
        address: &SocketAddress,
    ) -> Option<(Bound<'py, PyTuple>, impl Sized + use<>)> {
        let place = self.place(address);
        let peer = self.senders.get(place)?.as_ref().filter(|peer| peer.address == *address)?;
        let object = peer.object.bind(py).clone();
        let last = self.last.replace(Peer { address: *address, object: object.clone().unbind() });
        Some((object, last))
    }

    /// Remembers a sender that is not known. What is returned is to be dropped outside of any borrow.
    #[must_use]
    pub fn heard(&mut self, address: SocketAddress, object: &Bound<'_, PyTuple>) -> impl Sized + use<> {
        match self.senders.len() {
            0 => {
                self.senders.reserve_exact(1);
                self.senders.push(None);
            }
            1 => {
                let first = self.senders[0].take();
                self.senders.resize_with(PLACES, || None);
                let place = first.as_ref().map_or(0, |first| self.place(&first.address));
                self.senders[place] = first;
            }
            _ => {}
        }
        let peer = || Peer { address, object: object.clone().unbind() };
        let place = self.place(&address);
        (self.senders[place].replace(peer()), self.last.replace(peer()))
    }

    fn place(&self, address: &SocketAddress) -> usize {
        match self.senders.len() {
            0 | 1 => 0,
            places => {
                let mut hasher = DefaultHasher::new();
                address.bytes().hash(&mut hasher);
                hasher.finish() as usize % places
            }
        }
    }

    /// The address that an object stands for, if it is the last peer's.
    pub fn target(&self, object: &Bound<'_, PyTuple>) -> Option<SocketAddress> {
        self.last.as_ref().filter(|peer| peer.object.is(object)).map(|peer| peer.address)
    }

    /// Remembers whom is written to. What is returned is to be dropped outside of any borrow.
    #[must_use]
    pub fn written_to(&mut self, address: SocketAddress, object: &Bound<'_, PyTuple>) -> impl Sized + use<> {
        self.last.replace(Peer { address, object: object.clone().unbind() })
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for peer in self.senders.iter().flatten().chain(&self.last) {
            visit.call(&peer.object)?;
        }
        Ok(())
    }
}
