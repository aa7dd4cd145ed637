//! What malloc does with large blocks that are freed.
//!
//! A message of 100 KiB or more is an object of that size, made and freed for each. The GNU C library gives such a block
//! back to the kernel when it is freed: from 128 KiB on by munmap(2), below by a shorter heap, if it lies at the heap's
//! end and nothing else keeps it there. Then the next one is got page by page, each of which the kernel has to clear and
//! to map: a 512 MiB upload over TLS took 160,000 page faults and 0.8 s in place of 400 and 0.35, in some processes and
//! not in others, as their heaps happened to lie.
//!
//! malloc learns, though: the largest block that was freed is the size up to which it takes blocks from the heap from
//! then on, and twice that is what it keeps at the heap's end (mallopt(3), M_MMAP_THRESHOLD), for all of the process. A
//! program that has once freed such a block is in the same state; where somebody has set the limits, by `mallopt` or the
//! environment, they stay.

use std::hint::black_box;
use std::sync::Once;

/// Several times what a loop has at once of a connection that sends as fast as it can. So much may be kept twice.
const LARGE: usize = 1024 * 1024;

/// It learns from blocks that it got from the kernel. One may fit into a hole of the heap, but hardly as many.
const BLOCKS: usize = 16;

/// Whether malloc can be taught.
pub const LEARNS: bool = cfg!(target_env = "gnu");

/// Has malloc keep what large messages take and free.
pub fn keep_freed() {
    static ONCE: Once = Once::new();
    if LEARNS {
        // Not touched, so that they are no memory; made and freed in truth, which an optimiser would spare.
        ONCE.call_once(|| {
            let mut blocks = [const { Vec::<u8>::new() }; BLOCKS];
            for block in &mut blocks {
                // Where there is no room for it, there is nothing to be kept.
                let _ = block.try_reserve_exact(LARGE);
            }
            drop(black_box(blocks));
        });
    }
}
