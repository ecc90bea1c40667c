// SPDX-License-Identifier: Apache-2.0
//! The threshold state machine of one probe. Pure: results in, verdicts out.

use k8s_openapi::api::core::v1::Probe;

/// What one run of a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The container is fine. The text matters for warnings only.
    Success(String),
    /// Fine, with a remark that becomes a ProbeWarning event.
    Warning(String),
    /// The container is not fine, and this is why.
    Failure(String),
    /// The probe could not be run; says nothing about the container.
    Unknown(String),
}

/// A change of what is believed about the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// `successThreshold` results in a row were good.
    Good,
    /// `failureThreshold` results in a row were bad.
    Bad,
}

/// Counts results in a row.
#[derive(Debug, Clone)]
pub struct Track {
    success_threshold: u32,
    failure_threshold: u32,
    last_good: Option<bool>,
    run: u32,
}

impl Track {
    /// The thresholds of the probe, 1 and 3 where it names none.
    pub fn new(probe: &Probe) -> Track {
        let read = |value: Option<i32>, default: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.filter(|value| *value > 0).unwrap_or(default)
        };
        Track {
            success_threshold: read(probe.success_threshold, 1),
            failure_threshold: read(probe.failure_threshold, 3),
            last_good: None,
            run: 0,
        }
    }

    /// Takes one result. A verdict comes with every result at or past its threshold; `Unknown`
    /// changes nothing and breaks no run.
    pub fn observe(&mut self, outcome: &Outcome) -> Option<Verdict> {
        let good = match outcome {
            Outcome::Success(_) | Outcome::Warning(_) => true,
            Outcome::Failure(_) => false,
            Outcome::Unknown(_) => return None,
        };
        if self.last_good == Some(good) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last_good = Some(good);
            self.run = 1;
        }
        match good {
            true if self.run >= self.success_threshold => Some(Verdict::Good),
            false if self.run >= self.failure_threshold => Some(Verdict::Bad),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(success: i32, failure: i32, results: &str) -> String {
        let probe = Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..Default::default()
        };
        let mut track = Track::new(&probe);
        let step = |letter: char| {
            let outcome = match letter {
                '+' => Outcome::Success(String::new()),
                '-' => Outcome::Failure(String::new()),
                _ => Outcome::Unknown(String::new()),
            };
            match track.observe(&outcome) {
                Some(Verdict::Good) => 'G',
                Some(Verdict::Bad) => 'B',
                None => '.',
            }
        };
        results.chars().map(step).collect()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let cases = [
            (1, 3, "+++", "GGG"),
            (1, 3, "---", "..B"),
            (1, 3, "--+--", "..G.."),
            (2, 1, "+-++", ".B.G"),
            (1, 3, "--?-", "...B"),
            (1, 1, "-+-+", "BGBG"),
        ];
        for (success, failure, results, expected) in cases {
            assert_eq!(verdicts(success, failure, results), expected, "{results}");
        }
    }
}
