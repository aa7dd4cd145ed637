//! Where an attribute stands among an object's.
//!
//! Objects that the same `__init__` has filled have their attributes in the same order, and CPython's dictionaries keep
//! it. So an attribute is most often where it was in the last object: one look at that place says whether it is, and is
//! cheaper than to look the name up. Nothing is taken for granted: what stands there has its name beside it.

use std::ptr;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{Borrowed, ffi};

use crate::py::AttachedValue;

/// How often a place is looked for anew. Objects that differ all the time would have it done each time.
const MOVES: u8 = 16;

/// The place of one attribute, as one piece of code has seen it last.
pub struct Place {
    position: AttachedValue<ffi::Py_ssize_t>,
    moves: AttachedValue<u8>,
}

impl Place {
    pub const fn new() -> Self {
        Place { position: AttachedValue::new(0), moves: AttachedValue::new(0) }
    }

    /// As `dict.get_item(name)`. The name has to be an interned one, as those of attributes are.
    #[inline(always)]
    pub fn get<'py>(
        &self,
        dict: &Bound<'py, PyDict>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut position = self.position.get(dict.py());
        match next(dict, &mut position) {
            Some((key, value)) if key == name.as_ptr() => Ok(Some(value.to_owned())),
            _ => self.look_up(dict, name),
        }
    }

    #[cold]
    #[inline(never)]
    fn look_up<'py>(
        &self,
        dict: &Bound<'py, PyDict>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (py, moves) = (dict.py(), self.moves.get(dict.py()));
        if moves < MOVES {
            let (mut before, mut position) = (0, 0);
            while let Some((key, _)) = next(dict, &mut position) {
                if key == name.as_ptr() {
                    self.position.set(py, before);
                    self.moves.set(py, moves + 1);
                    break;
                }
                before = position;
            }
        }
        dict.get_item(name)
    }
}

/// The entry at a position, which is moved on: its key, only to be compared, and its value. None at the end.
#[inline(always)]
fn next<'a, 'py>(
    dict: &'a Bound<'py, PyDict>,
    position: &mut ffi::Py_ssize_t,
) -> Option<(*mut ffi::PyObject, Borrowed<'a, 'py, PyAny>)> {
    let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: attached, on a live dictionary. CPython checks the position against the dictionary's size, so that one of
    // another dictionary is none or another entry. The value is the dictionary's: nobody may run other code before it is
    // counted.
    unsafe {
        match ffi::PyDict_Next(dict.as_ptr(), position, &mut key, &mut value) {
            0 => None,
            _ => Some((key, Borrowed::from_ptr(dict.py(), value))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dict<'py>(py: Python<'py>, names: &[&str]) -> Bound<'py, PyDict> {
        let dict = PyDict::new(py);
        for name in names {
            dict.set_item(PyString::intern(py, name), name).unwrap();
        }
        dict
    }

    fn found(place: &Place, dict: &Bound<'_, PyDict>, name: &str) -> Option<String> {
        let name = PyString::intern(dict.py(), name);
        place.get(dict, &name).unwrap().map(|value| value.extract().unwrap())
    }

    #[test]
    fn an_attribute_is_found_wherever_it_stands() {
        Python::initialize();
        Python::attach(|py| {
            let place = Place::new();
            let dicts = [
                dict(py, &["a", "b", "c"]),
                dict(py, &["c", "a", "b"]),
                dict(py, &["b"]),
                dict(py, &["x"; 1]),
                dict(py, &[]),
            ];
            for _ in 0..2 * usize::from(MOVES) {
                for (index, dict) in dicts.iter().enumerate() {
                    assert_eq!(found(&place, dict, "b").as_deref(), (index < 3).then_some("b"));
                }
            }
        });
    }

    #[test]
    fn what_was_deleted_or_replaced_is_seen() {
        Python::initialize();
        Python::attach(|py| {
            let (place, dict) = (Place::new(), dict(py, &["a", "b", "c"]));
            assert_eq!(found(&place, &dict, "b").as_deref(), Some("b"));
            dict.set_item("b", "other").unwrap();
            assert_eq!(found(&place, &dict, "b").as_deref(), Some("other"));
            dict.del_item("b").unwrap();
            assert_eq!(found(&place, &dict, "b"), None);
            dict.set_item("b", "again").unwrap();
            assert_eq!(found(&place, &dict, "b").as_deref(), Some("again"));
            // Not the interned string of that name.
            dict.clear();
            let name = PyString::new(py, "b");
            assert!(!name.is(PyString::intern(py, "b")));
            dict.set_item(name, "by another string").unwrap();
            assert_eq!(found(&place, &dict, "b").as_deref(), Some("by another string"));
        });
    }
}
