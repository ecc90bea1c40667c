// SPDX-License-Identifier: Apache-2.0
//! Doubling waits with jitter, for requests to the API server.

use std::time::Duration;

/// Doubles from `first` to `most`; each wait is spread over its upper half.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
        }
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.most);
        wait.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Something worked: start small again.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_start_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(300));
        for most in [100, 200, 300, 300] {
            let wait = backoff.next();
            assert!(
                wait >= ms(most / 2) && wait <= ms(most),
                "{wait:?} of {most}"
            );
        }
        backoff.reset();
        assert!(backoff.next() <= ms(100));
    }
}
