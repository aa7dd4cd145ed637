//! Objects that are made and dropped once per event are used again: their memory, and the Rust value in it, stays.
//!
//! pyo3 has a free list of its own, which hands objects out that the collector does not know. This one is below it, in
//! the class's `tp_dealloc`: an object that dies is taken out of the collector's lists, emptied, and kept with a
//! reference count of zero, so that nothing of Python can reach it. When one is wanted, it is counted again, filled,
//! and only then shown to the collector.

use std::ptr::NonNull;

use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::{Borrowed, PyClass, PyClassInitializer, ffi};

use super::{AttachedCell, AttachedValue};

/// So many dead objects of a class are kept: a burst of that many callbacks allocates nothing. A thread schedules 60,000
/// to 80,000 before the interpreter gives the loop's thread a turn, and twice that where the processor has other work.
/// They take 16 to 20 MiB, if there ever were so many.
const KEPT: usize = 128 * 1024;

/// An object may hold the last reference to another, and that to a third. Beyond this depth they wait their turn, or
/// a long chain would overflow the stack. (Python's own containers do the same.)
const DEEPEST: usize = 50;

/// A class whose objects are used again.
pub trait Recycled: PyClass<Frozen = True> + Sync {
    /// An empty one.
    fn blank() -> PyClassInitializer<Self>;

    /// Makes it as `blank` does. It is dead already: there must not be new references to it.
    fn empty(dead: &Bound<'_, Self>);

    fn pool() -> &'static Pool;
}

/// The dead objects of a class.
pub struct Pool {
    class: AttachedValue<Option<Class>>,
    kept: AttachedCell<Vec<Dead>>,
    /// Dead, and not emptied yet.
    waiting: AttachedCell<Vec<Dead>>,
    depth: AttachedValue<usize>,
}

#[derive(Clone, Copy)]
struct Class {
    class: NonNull<ffi::PyTypeObject>,
    /// What pyo3 does with a dead object: frees it.
    free: ffi::destructor,
}

// SAFETY: the class is used under the interpreter lock, and lives as long as the process.
unsafe impl Send for Class {}

struct Dead(NonNull<ffi::PyObject>);

// SAFETY: a dead object belongs to its pool alone.
unsafe impl Send for Dead {}

impl Pool {
    pub const fn new() -> Self {
        Pool {
            class: AttachedValue::new(None),
            kept: AttachedCell::new(Vec::new()),
            waiting: AttachedCell::new(Vec::new()),
            depth: AttachedValue::new(0),
        }
    }
}

/// Has dead objects of class `T` kept. To be called once, when there are none yet.
pub fn recycle<T: Recycled>(py: Python<'_>) {
    let class = py.get_type::<T>();
    let pool = T::pool();
    if pool.class.get(py).is_some() {
        return;
    }
    let Some(pointer) = NonNull::new(class.as_type_ptr()) else { return };
    // SAFETY: pyo3's classes are heap types made for this module; nothing else changes this slot, and `die` does the
    // same as what stood there, or calls it.
    unsafe {
        let slot = &raw mut (*pointer.as_ptr()).tp_dealloc;
        if let Some(free) = *slot {
            pool.class.set(py, Some(Class { class: pointer, free }));
            *slot = Some(die::<T>);
        }
    }
    std::mem::forget(class);
}

/// An object that only its maker knows: the collector sees it when it is published.
pub struct Blank<'py, T>(Bound<'py, T>);

impl<'py, T: Recycled> Blank<'py, T> {
    pub fn new(py: Python<'py>) -> PyResult<Self> {
        let pool = T::pool();
        let kept = pool.kept.borrow_mut(py).pop();
        if let (Some(Dead(object)), Some(Class { class, .. })) = (kept, pool.class.get(py)) {
            // SAFETY: `die` has put in an initialised and empty object of just that class, without references.
            // `PyObject_Init` gives it its first and its reference to the class.
            return Ok(Blank(unsafe {
                ffi::PyObject_Init(object.as_ptr(), class.as_ptr());
                Bound::from_owned_ptr(py, object.as_ptr()).cast_into_unchecked()
            }));
        }
        let object = Bound::new(py, T::blank())?;
        // SAFETY: the object is alive and of a class that the collector knows.
        unsafe { ffi::PyObject_GC_UnTrack(object.as_ptr().cast()) };
        Ok(Blank(object))
    }

    pub fn get(&self) -> &Bound<'py, T> {
        &self.0
    }

    /// Hands the object out, filled.
    pub fn publish(self) -> Bound<'py, T> {
        track(&self.0);
        self.0
    }

    /// Hands the object out, filled, for the collector not to see. It keeps alive whatever it refers to; whoever has
    /// the object owes a `track` before the last thing that surely is alive has let go of it.
    pub fn publish_untracked(self) -> Bound<'py, T> {
        self.0
    }
}

/// Shows an object to the collector, unless it knows it.
pub fn track<T: Recycled>(object: &Bound<'_, T>) {
    // SAFETY: the object is alive and whole, and its class has the collector's support.
    unsafe {
        if ffi::PyObject_GC_IsTracked(object.as_ptr()) == 0 {
            ffi::PyObject_GC_Track(object.as_ptr().cast());
        }
    }
}

/// `tp_dealloc` of class `T`.
///
/// # Safety
/// For CPython to call, attached, with an object of class `T` whose reference count has come down to zero.
unsafe extern "C" fn die<T: Recycled>(object: *mut ffi::PyObject) {
    let pool = T::pool();
    // SAFETY: attached, as the caller promises; and a dead object is not null.
    let (py, object) = unsafe { (Python::assume_attached(), NonNull::new_unchecked(object)) };
    // SAFETY: the object is not freed yet.
    let object_class = unsafe { ffi::Py_TYPE(object.as_ptr()) };
    let Some(class) = pool.class.get(py) else { return };
    if object_class != class.class.as_ptr() {
        // A subclass's, for whose own parts CPython has cared.
        // SAFETY: as this function's.
        return unsafe { (class.free)(object.as_ptr()) };
    }
    // SAFETY: the object is whole, and nobody else's; the offset is its class's, and of a list of weak references.
    unsafe {
        ffi::PyObject_GC_UnTrack(object.as_ptr().cast());
        let offset = (*object_class).tp_weaklistoffset;
        if offset > 0 && !object.as_ptr().byte_offset(offset).cast::<*mut ffi::PyObject>().read().is_null() {
            ffi::PyObject_ClearWeakRefs(object.as_ptr());
        }
    }
    let depth = pool.depth.get(py);
    if depth >= DEEPEST {
        return pool.waiting.borrow_mut(py).push(Dead(object));
    }
    pool.depth.set(py, depth + 1);
    let mut next = Some(Dead(object));
    while let Some(Dead(object)) = next {
        bury::<T>(py, class, object);
        // By whoever comes back: the outermost one may be another thread's, which can stay in there for long.
        next = pool.waiting.borrow_mut(py).pop();
    }
    pool.depth.set(py, pool.depth.get(py) - 1);
}

/// Empties a dead object and keeps it, or frees it where enough are kept.
fn bury<T: Recycled>(py: Python<'_>, class: Class, object: NonNull<ffi::PyObject>) {
    // SAFETY: a whole object of class `T` still; `Recycled::empty` makes no new references.
    let dead = unsafe { Borrowed::from_ptr(py, object.as_ptr()).cast_unchecked::<T>() };
    T::empty(&dead);
    let mut kept = T::pool().kept.borrow_mut(py);
    if kept.len() < KEPT {
        kept.push(Dead(object));
        drop(kept);
        // SAFETY: the reference to its class that every object of a heap type has; the class has others, of its module.
        unsafe { ffi::Py_DECREF(class.class.as_ptr().cast()) };
    } else {
        drop(kept);
        // SAFETY: a dead object of the class, for which this function was made.
        unsafe { (class.free)(object.as_ptr()) };
    }
}
