// SPDX-License-Identifier: Apache-2.0
//! Samples, their quantiles, and the table.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

/// One row: an operation, by one runtime.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: String,
    who: String,
    unit: &'static str,
    runs: usize,
    min: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds durations as milliseconds.
    pub(crate) fn times(&mut self, what: &str, who: &str, samples: &[Duration]) {
        let millis = samples.iter().map(|sample| sample.as_secs_f64() * 1e3);
        self.add(what, who, "ms", millis.collect());
    }

    /// Adds durations as microseconds.
    pub(crate) fn micros(&mut self, what: &str, who: &str, samples: &[Duration]) {
        let micros = samples.iter().map(|sample| sample.as_secs_f64() * 1e6);
        self.add(what, who, "µs", micros.collect());
    }

    /// Adds sizes in KiB.
    pub(crate) fn kib(&mut self, what: &str, who: &str, samples: Vec<f64>) {
        self.add(what, who, "KiB", samples);
    }

    /// Adds how often something happened in a second.
    pub(crate) fn per_second(&mut self, what: &str, who: &str, samples: Vec<f64>) {
        self.add(what, who, "/s", samples);
    }

    /// Adds bits in a second, in billions.
    pub(crate) fn gigabits(&mut self, what: &str, who: &str, samples: Vec<f64>) {
        self.add(what, who, "Gbit/s", samples);
    }

    fn add(&mut self, what: &str, who: &str, unit: &'static str, mut samples: Vec<f64>) {
        if samples.is_empty() {
            return;
        }
        samples.sort_by(f64::total_cmp);
        // Nearest rank: the smallest sample that at least this share does not exceed.
        let at = |percent: usize| samples[(samples.len() * percent).div_ceil(100).max(1) - 1];
        self.rows.push(Row {
            what: what.into(),
            who: who.into(),
            unit,
            runs: samples.len(),
            min: at(0),
            p50: at(50),
            p99: at(99),
            max: at(100),
        });
    }

    /// A Markdown table.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "| what | who | unit | runs | min | p50 | p99 | max |\n|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let Row {
                what,
                who,
                unit,
                runs,
                min,
                p50,
                p99,
                max,
            } = row;
            writeln!(
                text,
                "| {what} | {who} | {unit} | {runs} | {min:.2} | {p50:.2} | {p99:.2} | {max:.2} |"
            )
            .expect("writing to a String does not fail");
        }
        text
    }
}

/// Runs and times `work`, a tenth more often at first without counting.
pub(crate) fn sample<E>(
    runs: usize,
    mut work: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Duration>, E> {
    let warm_up = runs.div_ceil(10);
    let mut samples = Vec::with_capacity(runs);
    for run in 0..warm_up + runs {
        let start = Instant::now();
        work(run)?;
        if run >= warm_up {
            samples.push(start.elapsed());
        }
    }
    Ok(samples)
}
