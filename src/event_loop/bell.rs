//! How other threads get the loop's attention.
//!
//! Whoever brings something puts it where the loop will look, and then rings. That costs a system call only if the loop
//! is asleep. Those who have the GIL put it among what is ready; the threads of names and of files, which know nothing of
//! Python, have boxes of their own, and the bell says that there is something in one of them.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use mio::Waker;

/// The loop comes to what is there by itself.
const AWAKE: u8 = 0;
/// It has nothing to do, and looks at this once more before it sleeps.
const DROWSY: u8 = 1;
/// It is in a poll that may last. Whoever has brought something sets `AWAKE`, and who finds this in its place wakes it.
const ASLEEP: u8 = 2;

/// What any thread may touch, without the interpreter lock's help, and no more than that: a fork may come at any time.
#[derive(Default)]
pub struct Bell {
    /// `AWAKE`, `DROWSY` or `ASLEEP`.
    sleep: AtomicU8,
    /// Something is in a box. Set before `sleep` is looked at, as the loop looks at it after it has become drowsy: one
    /// of the two sees the other.
    mail: AtomicBool,
    /// There is news of a job among what is ready; set last of all, when the GIL may be had.
    rung: AtomicBool,
}

impl Bell {
    /// Relaxed will do for those who have the GIL: with it the loop leaves this state; and whoever brings it back sees
    /// to it that the loop looks at what is ready once more.
    #[inline]
    pub fn is_loop_awake(&self) -> bool {
        self.sleep.load(Ordering::Relaxed) == AWAKE
    }

    /// Ends the loop's sleep, but for the poll that it may be in: whether it is, and has to be woken by the caller.
    pub fn rouse(&self) -> bool {
        self.sleep.swap(AWAKE, Ordering::SeqCst) == ASLEEP
    }

    /// For the loop, with the GIL: whoever has that after us and queues something sees this.
    pub fn become_drowsy(&self) {
        self.sleep.store(DROWSY, Ordering::SeqCst);
    }

    /// Whether the loop may sleep: nobody has come since it became drowsy.
    pub fn fall_asleep(&self) -> bool {
        self.sleep.compare_exchange(DROWSY, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    pub fn wake_up(&self) {
        self.sleep.store(AWAKE, Ordering::SeqCst);
    }

    pub fn has_mail(&self) -> bool {
        self.mail.load(Ordering::SeqCst)
    }

    /// Whether there may be something in the boxes. Asked before they are emptied.
    #[inline]
    pub fn take_mail(&self) -> bool {
        self.mail.load(Ordering::Relaxed) && self.mail.swap(false, Ordering::SeqCst)
    }

    /// For a loop that watches: whether it has something to do.
    pub fn has_news(&self) -> bool {
        self.rung.load(Ordering::SeqCst) || self.has_mail()
    }

    pub fn set_rung(&self, rung: bool) {
        self.rung.store(rung, Ordering::SeqCst);
    }
}

/// What a thread rings with that knows nothing of Python. The loop's descriptor is not kept open by it, least of all in
/// a forked child.
#[derive(Default)]
pub struct Ringer {
    bell: Arc<Bell>,
    waker: Weak<Waker>,
}

impl Ringer {
    pub fn new(bell: Arc<Bell>, waker: Weak<Waker>) -> Self {
        Ringer { bell, waker }
    }

    /// Tells the loop that something is in a box. The box must not be locked: the loop opens it as soon as it is awake.
    pub fn ring(&self) {
        if self.bell.mail.swap(true, Ordering::SeqCst) {
            // Whoever was first sees to the rest.
            return;
        }
        if self.bell.rouse()
            && let Some(waker) = self.waker.upgrade()
        {
            // It can only fail if somebody has closed its descriptor; asyncio does not tell of that either.
            let _ = waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;
    use std::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;

    #[test]
    fn nothing_that_is_put_in_a_box_is_left_there() {
        const LETTERS: usize = 20_000;
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let bell = Arc::new(Bell::default());
        let letters = Arc::new(Mutex::new(0));
        let threads = [0, 1].map(|_| {
            let ringer = Ringer::new(Arc::clone(&bell), Arc::downgrade(&waker));
            let letters = Arc::clone(&letters);
            thread::spawn(move || {
                for letter in 0..LETTERS {
                    *letters.lock().unwrap() += 1;
                    ringer.ring();
                    if letter % 64 == 0 {
                        thread::yield_now();
                    }
                }
            })
        });
        let (mut events, mut taken) = (Events::with_capacity(4), 0);
        while taken < 2 * LETTERS {
            bell.become_drowsy();
            if !bell.has_mail() && bell.fall_asleep() {
                // For ever, if a ring were lost.
                poll.poll(&mut events, Some(Duration::from_secs(60))).unwrap();
                assert!(!events.is_empty());
            }
            bell.wake_up();
            if bell.take_mail() {
                taken += std::mem::take(&mut *letters.lock().unwrap());
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
