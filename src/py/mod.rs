//! Thin helpers over the C API and over the parts of asyncio that the core calls.

mod asyncio;
pub mod audit;
mod awaitable;
mod call;
mod cell;
mod class;
mod method;
mod recycle;
mod slot;
mod thread;
mod unfinished;
mod version;

pub use asyncio::{Asyncio, is_fatal, would_block};
pub(crate) use awaitable::coroutine_methods;
pub use awaitable::{
    Awaitable, Step, attached, in_destructor, install_slots, iterate, stop_iteration, thrown,
    warn_never_awaited,
};
pub use call::{copy_current_context, in_context, in_context_or_this, is_empty, new_context};
pub use cell::AttachedCell;
pub use class::Class;
pub use method::{Arguments, Function, add_method, enter_fast, enter_plain};
pub use recycle::{Blank, Pool, Recycled, recycle, track};
pub use slot::{AttachedValue, Slot};
pub use thread::this_thread;
pub use unfinished::{UnfinishedBytes, new_bytes};
pub use version::minor_version;
