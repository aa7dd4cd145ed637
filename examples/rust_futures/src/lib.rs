//! Rust futures for Python to await, and Python coroutines that Rust awaits: tokio with pyo3-async-runtimes.
//!
//! Nothing here knows what event loop the program runs on. Python's half of each future is an asyncio future; the
//! runtime's threads reach it by `call_soon_threadsafe`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyEOFError, PyTimeoutError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3_async_runtimes::TaskLocals;
use pyo3_async_runtimes::tokio::{future_into_py, get_current_locals, into_future};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio::time;

/// How many futures of `sleep` and `forever` there are.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// Counts the future that it is a part of.
struct Counted;

impl Counted {
    fn new() -> Self {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// A future that is done as soon as the runtime looks at it; its result is `value`.
#[pyfunction]
fn ready<'py>(py: Python<'py>, value: Py<PyAny>) -> PyResult<Bound<'py, PyAny>> {
    future_into_py(py, async move { Ok(value) })
}

/// A tokio timer.
#[pyfunction]
fn sleep(py: Python<'_>, seconds: f64) -> PyResult<Bound<'_, PyAny>> {
    let duration = duration(seconds)?;
    let counted = Counted::new();
    future_into_py(py, async move {
        let _counted = counted;
        time::sleep(duration).await;
        Ok(())
    })
}

/// A future that is never done: only cancelling it ends it.
#[pyfunction]
fn forever(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let counted = Counted::new();
    future_into_py(py, async move {
        let _counted = counted;
        std::future::pending::<PyResult<()>>().await
    })
}

/// How many futures of `sleep` and `forever` have neither ended nor been dropped.
#[pyfunction]
fn alive() -> usize {
    ALIVE.load(Ordering::SeqCst)
}

/// A task of Python's that Rust awaits. If Rust gives up on it, which is to drop this, the task is cancelled.
struct PythonTask {
    task: Py<PyAny>,
    event_loop: Py<PyAny>,
    done: bool,
}

impl PythonTask {
    fn start(awaitable: &Bound<'_, PyAny>, locals: &TaskLocals) -> PyResult<Self> {
        let py = awaitable.py();
        let task = py.import("asyncio")?.call_method1(intern!(py, "ensure_future"), (awaitable,))?;
        let event_loop = locals.event_loop(py).unbind();
        Ok(PythonTask { task: task.unbind(), event_loop, done: false })
    }

    async fn result(mut self) -> PyResult<Py<PyAny>> {
        let future = Python::attach(|py| into_future(self.task.bind(py).clone()))?;
        let result = future.await;
        self.done = true;
        result
    }
}

impl Drop for PythonTask {
    fn drop(&mut self) {
        if !self.done {
            Python::attach(|py| {
                let cancel = || -> PyResult<()> {
                    let cancel = self.task.bind(py).getattr(intern!(py, "cancel"))?;
                    self.event_loop.bind(py).call_method1(intern!(py, "call_soon_threadsafe"), (cancel,))?;
                    Ok(())
                };
                // The loop may be closed by now, and nobody left to be told.
                let _ = cancel();
            });
        }
    }
}

/// Awaits a Python awaitable in Rust, and gives its result or exception.
#[pyfunction]
fn await_in_rust<'py>(awaitable: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = awaitable.py();
    let task = PythonTask::start(awaitable, &get_current_locals(py)?)?;
    future_into_py(py, task.result())
}

/// The same, for `seconds` at most: then the Python task is cancelled, and the result is a TimeoutError.
#[pyfunction]
fn await_with_timeout<'py>(awaitable: &Bound<'py, PyAny>, seconds: f64) -> PyResult<Bound<'py, PyAny>> {
    let py = awaitable.py();
    let duration = duration(seconds)?;
    let task = PythonTask::start(awaitable, &get_current_locals(py)?)?;
    future_into_py(py, async move {
        match time::timeout(duration, task.result()).await {
            Ok(result) => result,
            Err(_) => Err(PyTimeoutError::new_err("Rust has waited for long enough")),
        }
    })
}

/// A queue of so many objects at most, between tasks.
#[pyclass(frozen)]
struct Channel {
    sender: mpsc::Sender<Py<PyAny>>,
    receiver: Arc<Mutex<mpsc::Receiver<Py<PyAny>>>>,
}

#[pymethods]
impl Channel {
    #[new]
    fn new(capacity: usize) -> PyResult<Self> {
        if capacity == 0 {
            return Err(PyValueError::new_err("a channel needs room for one object at least"));
        }
        let (sender, receiver) = mpsc::channel(capacity);
        Ok(Channel { sender, receiver: Arc::new(Mutex::new(receiver)) })
    }

    /// Puts an object in, as soon as there is room.
    fn send<'py>(&self, py: Python<'py>, object: Py<PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let sender = self.sender.clone();
        future_into_py(py, async move {
            sender.send(object).await.map_err(|_| PyEOFError::new_err("the channel is closed"))
        })
    }

    /// Takes the oldest object out, as soon as there is one.
    fn receive<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let receiver = self.receiver.clone();
        future_into_py(py, async move {
            receiver.lock().await.recv().await.ok_or_else(|| PyEOFError::new_err("the channel is closed"))
        })
    }
}

/// A TCP connection whose sockets are tokio's.
#[pyclass(frozen)]
struct TcpClient {
    read: Arc<Mutex<OwnedReadHalf>>,
    write: Arc<Mutex<OwnedWriteHalf>>,
}

#[pymethods]
impl TcpClient {
    /// Connects; the result is a `TcpClient`.
    #[staticmethod]
    fn connect(py: Python<'_>, host: String, port: u16) -> PyResult<Bound<'_, PyAny>> {
        future_into_py(py, async move {
            let (read, write) = TcpStream::connect((host, port)).await?.into_split();
            Ok(TcpClient { read: Arc::new(Mutex::new(read)), write: Arc::new(Mutex::new(write)) })
        })
    }

    /// Sends all of the data.
    fn send<'py>(&self, py: Python<'py>, data: Vec<u8>) -> PyResult<Bound<'py, PyAny>> {
        let write = self.write.clone();
        future_into_py(py, async move { Ok(write.lock().await.write_all(&data).await?) })
    }

    /// Receives up to `size` bytes; none at the end of the stream.
    fn receive<'py>(&self, py: Python<'py>, size: usize) -> PyResult<Bound<'py, PyAny>> {
        let read = self.read.clone();
        future_into_py(py, async move {
            let mut buffer = vec![0; size];
            let count = read.lock().await.read(&mut buffer).await?;
            Ok(Python::attach(|py| PyBytes::new(py, &buffer[..count]).unbind()))
        })
    }

    /// Tells the other side that nothing more will come.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let write = self.write.clone();
        future_into_py(py, async move { Ok(write.lock().await.shutdown().await?) })
    }
}

#[pymodule]
mod rust_futures {
    #[pymodule_export]
    use super::{Channel, TcpClient, alive, await_in_rust, await_with_timeout, forever, ready, sleep};
}
