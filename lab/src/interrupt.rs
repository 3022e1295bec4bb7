//! Waiting: Ctrl-C and its kin as a flag that every wait looks at, and how long waits are.

use std::ptr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Whether the end was asked for, and with how much patience other things are awaited.
#[derive(Clone)]
pub struct Interrupt {
    state: Arc<(Mutex<bool>, Condvar)>,
    patience: u16,
}

impl Interrupt {
    /// A flag that no signal raises. What is awaited gets `patience` times its usual time.
    pub fn new(patience: u16) -> Interrupt {
        Interrupt { state: Arc::default(), patience }
    }

    /// Takes SIGINT, SIGTERM and SIGHUP for this flag. Must run before any thread is started: those
    /// started later leave the signals to the one thread that waits for them.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be started.
    pub fn install(patience: u16) -> Result<Interrupt, Error> {
        let interrupt = Interrupt::new(patience);
        let signals = signal_set();
        // SAFETY: `signals` is an initialised set, and a null pointer means that the old mask is not
        // wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut()) };
        let flag = interrupt.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                loop {
                    let mut signal = 0;
                    // SAFETY: both pointers are to values that live through the call.
                    unsafe { libc::sigwait(&raw const signals, &raw mut signal) };
                    flag.raise();
                }
            })
            .map_err(Error::io("start a thread"))?;
        Ok(interrupt)
    }

    /// Asks for the end.
    pub fn raise(&self) {
        let (raised, woken) = &*self.state;
        *raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        woken.notify_all();
    }

    /// # Errors
    /// [`Error::Interrupted`] once the end was asked for.
    pub fn check(&self) -> Result<(), Error> {
        self.sleep(Duration::ZERO)
    }

    /// Sleeps for `time`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] as soon as the end is asked for.
    pub fn sleep(&self, time: Duration) -> Result<(), Error> {
        let (raised, woken) = &*self.state;
        let deadline = Instant::now() + time;
        let mut state = raised.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if *state {
                return Err(Error::Interrupted);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = woken.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the end is asked for.
    pub fn wait(&self) {
        let (raised, woken) = &*self.state;
        let mut state = raised.lock().unwrap_or_else(PoisonError::into_inner);
        while !*state {
            state = woken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What usually takes up to `time` may take this long.
    pub fn patient(&self, time: Duration) -> Duration {
        time.saturating_mul(self.patience.into())
    }

    /// Asks `probe` again and again until it has an answer, or until `within`, with
    /// [patience](Interrupt::patient), has passed; then the last thing that it saw is returned as
    /// the error.
    ///
    /// # Errors
    /// The outer error is the end of the run: [`Error::Interrupted`] or an error of `probe`.
    pub fn poll<T>(
        &self,
        within: Duration,
        mut probe: impl FnMut() -> Result<Seen<T>, Error>,
    ) -> Result<Result<T, String>, Error> {
        let deadline = Instant::now() + self.patient(within);
        loop {
            self.check()?;
            match probe()? {
                Seen::Done(value) => return Ok(Ok(value)),
                Seen::NotYet(seen) if Instant::now() >= deadline => return Ok(Err(seen)),
                Seen::NotYet(_) => self.sleep(POLL_INTERVAL)?,
            }
        }
    }
}

/// One look of [`Interrupt::poll`].
pub enum Seen<T> {
    /// What was waited for.
    Done(T),
    /// What there is instead, in words.
    NotYet(String),
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: a signal set is plain bits, for which zero is a value; `sigemptyset` and `sigaddset`
    // only write to it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_ends_every_wait() -> Result<(), Error> {
        let interrupt = Interrupt::new(1);
        interrupt.sleep(Duration::from_millis(1))?;
        let other = interrupt.clone();
        let waiter = thread::spawn(move || other.sleep(Duration::from_secs(60)));
        interrupt.raise();
        assert!(matches!(waiter.join(), Ok(Err(Error::Interrupted))));
        let polled = interrupt.poll::<()>(Duration::from_secs(60), || Ok(Seen::NotYet("".into())));
        assert!(matches!(polled, Err(Error::Interrupted)));
        Ok(())
    }

    #[test]
    fn a_poll_returns_what_it_saw_last() -> Result<(), Error> {
        let mut looks = 0;
        let seen = Interrupt::new(2).poll::<()>(Duration::from_millis(10), || {
            looks += 1;
            Ok(Seen::NotYet(format!("look {looks}")))
        })?;
        assert_eq!(seen, Err(format!("look {looks}")));
        Ok(())
    }
}
