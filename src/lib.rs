//! mioloop's core: everything that asyncio does once per event.
//!
//! Imports point one way, from the loop down to the helpers over the C API:
//! `event_loop -> executor, transport, sock, fd_watch -> handle -> reactor, timers, watch, sys, py`. Apart from them stand
//! files, which know no loop: `fs -> runtime, sys, py`.

mod event_loop;
mod executor;
mod fd_watch;
mod fs;
mod handle;
mod linger;
mod py;
mod reactor;
mod resolver;
mod runtime;
mod sock;
mod sys;
mod timers;
mod transport;
mod waiter;
mod watch;

/// The extension module behind the `mioloop` package.
// Without the interpreter lock `AttachedCell` is not safe, and since 0.28 pyo3 declares a module free of it by default.
#[pyo3::pymodule(gil_used = true)]
mod _core {
    #[pymodule_export]
    use crate::event_loop::{_check_interpreter, _end_debug_calls, EventLoop};
    #[pymodule_export]
    use crate::executor::{ThreadPool, Worker};
    #[pymodule_export]
    use crate::fs::{
        _open_at_once, _others_had_turn, _read_at_once, _refusal, _stat_at_once, _wait_for_writes, File,
        Mailbox,
    };
    #[pymodule_export]
    use crate::handle::{Handle, TimerHandle};
    #[pymodule_export]
    use crate::resolver::{Lookup, NameService};
    #[pymodule_export]
    use crate::sock::SocketOperation;
    #[pymodule_export]
    use crate::transport::{
        _enable_streams, _use_streams, StreamOperation, StreamReaderMethods, StreamWriterMethods,
    };
    #[pymodule_export]
    use crate::transport::{_use_connections, Connection};
    #[pymodule_export]
    use crate::transport::{DatagramTransport, Listener, StreamTransport, TlsTransport, Transport};
    #[pymodule_export]
    use crate::waiter::Waiter;

    #[pymodule_init]
    fn prepare(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        crate::event_loop::prepare_class(module.py())?;
        crate::handle::prepare_classes(module.py())?;
        crate::py::install_slots::<SocketOperation>(module.py())?;
        crate::py::install_slots::<Connection>(module.py())?;
        crate::resolver::prepare_classes(module.py())
    }
}

// A panic must unwind to the caller in Python, where pyo3 makes an exception of it.
const _: () = assert!(cfg!(panic = "unwind"), "with panic = \"abort\" a bug would end the user's process");

#[cfg(test)]
mod tests {
    use pyo3::ffi::c_str;
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    use crate::_core;
    use crate::py::enter_plain;

    #[pyfunction]
    fn panics() {
        panic!("on purpose");
    }

    #[test]
    fn a_panic_leaves_the_loop_as_an_exception_and_the_loop_lives_on() {
        pyo3::append_to_inittab!(_core);
        Python::initialize();
        Python::attach(|py| {
            let names = PyDict::new(py);
            names.set_item("panics", wrap_pyfunction!(panics, py).unwrap()).unwrap();
            let program = c_str!(
                "import asyncio, threading, _core
class Loop(_core.EventLoop, asyncio.BaseEventLoop):
    pass
loop, seen = Loop(), []
loop.call_soon(panics)
loop.call_soon(seen.append, 'next')
loop.call_soon(loop.stop)
try:
    loop.run_forever()
except BaseException as error:
    seen.append(type(error).__name__)
loop.run_forever()

class Pool(_core.ThreadPool):
    _max_workers, _idle_seconds, _pause = 1, 1.0, staticmethod(lambda: None)
    def _start_thread(self, worker):
        self.thread = threading.Thread(target=worker.run)
        self.thread.start()
pool = Pool()
for _ in range(2):
    try:
        loop.run_until_complete(loop.run_in_executor(pool, panics))
    except BaseException as error:
        seen.append(type(error).__name__)
pool._close(exiting=False)
pool.thread.join()
loop.close()
loop._release()
assert seen == ['PanicException', 'next', 'PanicException', 'PanicException'], seen
"
            );
            py.run(program, Some(&names), None).unwrap();

            // And one that leaves a method which is not pyo3's.
            let panics = |_: &Bound<'_, PyDict>| -> PyResult<()> { panic!("on purpose") };
            // SAFETY: attached, and `names` is a dictionary.
            let result = unsafe { enter_plain(names.as_ptr(), panics) };
            assert!(result.is_null());
            // Asked below pyo3, which would go on with the panic.
            // SAFETY: attached; an exception is set, and taken back.
            let raised = unsafe {
                let class = Bound::from_borrowed_ptr(py, pyo3::ffi::PyErr_Occurred());
                pyo3::ffi::PyErr_Clear();
                class
            };
            assert_eq!(raised.to_string(), "<class 'pyo3_runtime.PanicException'>");
        });
    }
}
