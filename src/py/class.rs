//! Whether a class still is as it was, asked before each use of what knows its methods without looking them up.
//!
//! CPython gives the state of a class a number, its version tag, and takes it away when the class or one of its bases
//! changes. So one comparison says that nothing has changed since the attributes were last looked at, one by one.

use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySuper, PyTuple, PyType};

/// No version of any class.
const NO_VERSION: u32 = 0;

/// A class, its bases, and what was in them at first.
pub struct Class {
    class: Py<PyType>,
    /// For each class of the method resolution order but `object`, a copy of its `__dict__`.
    originals: Vec<(Py<PyType>, Py<PyDict>)>,
    /// The version that was found intact, and the one that was found changed.
    intact: AtomicU32,
    changed: AtomicU32,
}

impl Class {
    pub fn new(class: &Bound<'_, PyType>) -> PyResult<Self> {
        let mut originals = Vec::new();
        for base in class.mro().iter().take(class.mro().len() - 1) {
            let base = base.cast_into::<PyType>()?;
            originals.push((base.clone().unbind(), namespace(&base)?.unbind()));
        }
        let (intact, changed) = (AtomicU32::new(NO_VERSION), AtomicU32::new(NO_VERSION));
        Ok(Class { class: class.clone().unbind(), originals, intact, changed })
    }

    /// Calls the method that an object of this class would have without it.
    pub fn call_original<'py>(
        &self,
        object: &Bound<'py, PyAny>,
        name: &str,
        argument: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let method = PySuper::new(self.class.bind(object.py()), object)?.getattr(name)?;
        method.call1(PyTuple::new(object.py(), argument)?)
    }

    /// Whether the object is of just this class, and the class as it was.
    pub fn is_class_of(&self, object: &Bound<'_, PyAny>) -> bool {
        object.get_type_ptr() == self.class.as_ptr().cast() && self.is_intact(object.py())
    }

    fn version(&self) -> u32 {
        // SAFETY: `class` keeps the type alive; the field is CPython's, which writes to it only under the interpreter
        // lock, held by all callers.
        unsafe { (*self.class.as_ptr().cast::<pyo3::ffi::PyTypeObject>()).tp_version_tag }
    }

    /// Whether nothing in the class, or in a base, has been replaced.
    pub fn is_intact(&self, py: Python<'_>) -> bool {
        let version = self.version();
        if version != NO_VERSION && version == self.intact.load(Ordering::Relaxed) {
            return true;
        }
        if version != NO_VERSION && version == self.changed.load(Ordering::Relaxed) {
            return false;
        }
        // What can't be compared is no more what it was.
        let intact = self.compare(py).unwrap_or(false);
        let known = if intact { &self.intact } else { &self.changed };
        known.store(self.version(), Ordering::Relaxed);
        intact
    }

    fn compare(&self, py: Python<'_>) -> PyResult<bool> {
        for (class, original) in &self.originals {
            let original = original.bind(py);
            let now = namespace(class.bind(py))?;
            for (name, value) in &now {
                let same = original.get_item(&name)?.is_some_and(|original| original.is(&value));
                if !same && !name.extract::<&str>()?.starts_with(CACHED_BY_PYTHON) {
                    return Ok(false);
                }
            }
            for name in original.keys() {
                if !now.contains(name)? {
                    return Ok(false);
                }
            }
        }
        // A class without a version gets one when something is looked up in it.
        self.class.bind(py).getattr(intern!(py, "__init__"))?;
        Ok(true)
    }
}

/// `__annotations__` and its like appear in a class when they are first asked for.
const CACHED_BY_PYTHON: &str = "__annot";

/// A copy of a class's `__dict__`.
fn namespace<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyDict>> {
    let namespace = PyDict::new(class.py());
    namespace.update(class.getattr(intern!(class.py(), "__dict__"))?.cast()?)?;
    Ok(namespace)
}
