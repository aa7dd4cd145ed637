//! Whether to receive into the object that the protocol gets: what a large message costs beyond a system call is then
//! no copy of it.
//!
//! The object's size has to be guessed before the message is there, by that of the one before. A small message is better
//! received into the loop's buffer and copied: a copy of a few KiB costs less than to make room and to give it back.

use crate::event_loop::READ_SIZE;
use crate::sys::memory::LEARNS;

/// From this many bytes on the copy costs more.
const WORTH_IT: usize = 6 * 1024;

/// malloc takes larger blocks from the kernel, one by one and empty each time, which costs more than any copy; unless it
/// has learned to keep them.
const LARGEST: usize = if LEARNS { READ_SIZE } else { 124 * 1024 };

/// What rarely comes in one piece.
const LARGE: usize = 32 * 1024;

/// How much room to make for a message that will be much like the last one of `size` bytes. None: receive into the
/// loop's buffer.
///
/// More than the size itself: only a read that does not fill its room tells that there is no more. And all that a read
/// may take, if what came last may have been a part: what is left over goes back.
pub fn room_after(size: usize) -> Option<usize> {
    let room = if is_large(size) && LEARNS { READ_SIZE } else { size + size / 8 + 512 };
    (size >= WORTH_IT && room <= LARGEST).then_some(room)
}

pub fn is_large(size: usize) -> bool {
    size >= LARGE
}
