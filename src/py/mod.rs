//! Thin helpers over the C API and over the parts of asyncio that the core calls.

mod asyncio;
mod awaitable;
mod call;
mod cell;

pub use asyncio::{Asyncio, is_fatal, would_block};
pub(crate) use awaitable::coroutine_methods;
pub use awaitable::{Awaitable, Step, install_send, iterate, thrown};
pub use call::{copy_current_context, in_context};
pub use cell::AttachedCell;
